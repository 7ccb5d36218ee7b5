// out = x * cos + quarter_turn(x) * sin over the first `width` elements of each head of q and k,
// after an optional RMSNorm of the head. Rows (b, t) are numbered b * tokens + t; strides count
// elements.
#pragma once

#include "isa.h"
#include "row_sums.h"
#include "types.h"

namespace mmkern {

// Heads of head_dim consecutive elements of the op's dtype; data is null where there are none.
struct RopeHeads {
  const void* data;
  int64_t count;
  int64_t batch_stride, token_stride, head_stride;
};

// A row of `width` elements per token, in float32 or the op's dtype.
struct RopeTable {
  const void* data;
  int64_t batch_stride, token_stride;
};

// (head_dim,), in float32 or the op's dtype; data is null where there is no norm.
struct RopeWeight {
  const void* data;
  bool is_float32;
};

struct RopeSide {
  RopeHeads x;
  RopeWeight weight;
  void* out;  // contiguous; in the backward the gradient of x, or null if not asked for
};

struct RopeArgs {
  DType dtype;
  bool interleaved;
  bool is_float32_table;
  float eps;
  int64_t tokens;
  int64_t head_dim;
  int64_t width;  // even, at most head_dim
  RopeTable cos, sin;
  RopeSide q, k;
};

// Scratch that a thread needs: so many rows of scratch_pitch(head_dim + kRopePadding) floats. A row
// holds up to three runs of a head's elements, each padded on its own.
inline constexpr int64_t kRopePadding = 3 * kScratchPad;
inline constexpr int64_t kRopeScratchRows = 4;

struct RopeGradArgs {
  RopeArgs forward;
  RopeHeads grad_q, grad_k;
  RowTasks tasks;
  RowSum q_weight, k_weight;
};

inline constexpr int64_t kRopeGradScratchRows = 8;

}  // namespace mmkern

MMKERN_KERNEL(void, rope_forward,
              (const RopeArgs& args, int64_t begin, int64_t end, float* scratch))
// Over tasks of args.tasks.
MMKERN_KERNEL(void, rope_backward,
              (const RopeGradArgs& args, int64_t begin, int64_t end, float* scratch))
