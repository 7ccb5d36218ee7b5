// h = x + gate * branch; y = (norm(h) * weight + bias) * (1 + scale) + shift, over rows (b, t)
// numbered b * tokens + t. Strides count elements.
#pragma once

#include "isa.h"
#include "row_sums.h"
#include "types.h"

namespace mmkern {

enum class Norm : int32_t { kNone, kLayer, kRms };

// Rows of `channels` consecutive elements of the op's dtype; data is null where there are none.
struct TokenRows {
  const void* data;
  int64_t batch_stride;
  int64_t token_stride;
};

// One row per sample and run of tokens_per_group consecutive tokens, in float32 or the op's dtype;
// data is null where there is none. weight and bias have strides of 0.
struct Modulation {
  const void* data;
  bool is_float32;
  int64_t batch_stride;
  int64_t group_stride;
  int64_t tokens_per_group;
};

struct ModulateArgs {
  DType dtype;
  Norm norm;
  float eps;
  int64_t tokens;
  int64_t channels;
  TokenRows x;
  TokenRows branch;
  Modulation gate, shift, scale, weight, bias;
  void* h;      // contiguous; written if there is a branch
  void* y;      // contiguous; written if there is a norm
  bool stream;  // non-temporal stores: h and y are aligned and a row is a multiple of 64 bytes
};

// Scratch that a thread needs: so many rows of scratch_pitch(channels) floats.
inline constexpr int64_t kModulateScratchRows = 8;

// The gradients. forward.x is the saved h and forward.branch is given only where the gradient of
// gate is asked for; forward.h and y are not used, stream is of grad_x and grad_branch.
struct ModulateGradArgs {
  ModulateArgs forward;
  TokenRows grad_h, grad_y;
  RowTasks tasks;
  int64_t run;        // this many consecutive tokens are of one group of every modulation
  void* grad_x;       // contiguous, or null if not asked for
  void* grad_branch;  // likewise
  RowSum gate, shift, scale, weight, bias;
};

inline constexpr int64_t kModulateGradScratchRows = 12;

}  // namespace mmkern

MMKERN_KERNEL(void, modulate_forward,
              (const ModulateArgs& args, int64_t begin, int64_t end, float* scratch))
// Over tasks of args.tasks.
MMKERN_KERNEL(void, modulate_backward,
              (const ModulateGradArgs& args, int64_t begin, int64_t end, float* scratch))
