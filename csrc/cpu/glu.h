// out = activation(gate) * up, elementwise over rows. A task is kGluColumns columns of one row.
#pragma once

#include "isa.h"
#include "strided_rows.h"
#include "types.h"

namespace mmkern {

inline constexpr int64_t kGluColumns = 4096;

enum class Activation : int32_t { kSilu, kGelu, kGeluTanh, kQuickGelu, kRelu, kSigmoid };

struct GluArgs {
  DType dtype;
  Activation activation;
  int64_t columns;
  RowShape shape;
  StridedRows gate, up;
  void* out;    // contiguous
  bool stream;  // non-temporal stores: the outputs' rows are aligned and multiples of 64 bytes
};

// forward.out is not used, stream is of grad_gate and grad_up. Those have evenly spaced rows, as
// they may be the halves of one packed tensor.
struct GluGradArgs {
  GluArgs forward;
  StridedRows grad;
  void* grad_gate;
  void* grad_up;
  int64_t row_stride;
};

}  // namespace mmkern

MMKERN_KERNEL(void, glu_forward, (const GluArgs& args, int64_t begin, int64_t end))
MMKERN_KERNEL(void, glu_backward, (const GluGradArgs& args, int64_t begin, int64_t end))
