// h = x + residual; y = weight * (h * rsqrt(mean(h^2) + eps)), over rows.
#pragma once

#include "isa.h"
#include "row_sums.h"
#include "strided_rows.h"
#include "types.h"

namespace mmkern {

// Where y is rounded to the op's dtype: after the multiplication by the weight, or before it; then
// the product is in the op's dtype, or in float32.
enum class Cast : int32_t { kLast, kFirst, kFirstToFloat32 };

struct RmsNormArgs {
  DType dtype;
  Cast cast;
  float eps;
  int64_t channels;
  RowShape shape;
  StridedRows x, residual;
  const void* weight;  // null if there is none
  bool weight_is_float32;
  void* h;      // contiguous; written if there is a residual
  void* y;      // contiguous
  bool stream;  // non-temporal stores: h and y are aligned and a row is a multiple of 64 bytes
};

// Scratch that a thread needs: so many rows of scratch_pitch(channels) floats.
inline constexpr int64_t kRmsNormScratchRows = 2;

// The gradients. forward.x is the saved h; forward.residual, cast, h and y are not used, stream is
// of grad_x.
struct RmsNormGradArgs {
  RmsNormArgs forward;
  StridedRows grad_h, grad_y;
  bool grad_y_is_float32;
  RowTasks tasks;
  void* grad_x;  // contiguous, or null if not asked for
  RowSum weight;
};

}  // namespace mmkern

MMKERN_KERNEL(void, rms_norm_forward,
              (const RmsNormArgs& args, int64_t begin, int64_t end, float* scratch))
// Over tasks of args.tasks.
MMKERN_KERNEL(void, rms_norm_backward,
              (const RmsNormGradArgs& args, int64_t begin, int64_t end, float* scratch))
