// The two linear layers of mlp and their gradients as matrix products (one task of a plan each),
// and the rows around them: norm and gather in front, their gradients behind. Strides count
// elements.
#pragma once

#include "gemm_args.h"
#include "isa.h"

namespace mmkern {

enum class Activation : int32_t { kNone, kGelu, kGeluTanh, kQuickGelu, kSilu, kRelu };
enum class RowNorm : int32_t { kNone, kLayer, kRms };

struct MlpProductArgs {
  DType dtype;
  GemmPlan plan;
  RowsView a, b;
  void* out;  // contiguous rows
  // mlp_linear
  const void* bias;
  Activation activation;
  void* pre_activation;  // contiguous rows; null: not kept
  // mlp_grad_hidden
  const void* z;  // the pre-activations, contiguous rows
  void* hidden;   // activation(z), contiguous rows; null: not wanted
  // mlp_grad_input
  bool out_is_float32;
};

struct MlpActivateArgs {
  DType dtype;
  Activation activation;
  const void* z;
  void* out;
};

// Row r of out is norm(row r, or rows[r], of x) * weight + bias.
struct MlpRowsArgs {
  DType dtype;
  RowNorm norm;
  float eps;
  int64_t channels;
  RowsView x;
  const int64_t* rows;
  const void* weight;
  const void* bias;
  void* out;  // contiguous rows
};

// The gradient of each row of x: that of its normalised copies, which are rows
// copies[starts[r] .. starts[r + 1]) of grad (row r alone if starts is null).
struct MlpRowsGradArgs {
  MlpRowsArgs forward;  // out: the gradient of x, or null
  const float* grad;    // contiguous rows
  const int64_t* starts;
  const int64_t* copies;
  int64_t count;       // rows of x
  float* weight_sums;  // one row per task of kMlpTaskRows rows of x, or null
  float* bias_sums;    // likewise
};

inline constexpr int64_t kMlpTaskRows = 32;

}  // namespace mmkern

// out = activation(a b^T + bias): rows x cols, depth the inputs.
MMKERN_KERNEL(void, mlp_linear, (const MlpProductArgs& args, const GemmTask& task, float* scratch))
// out = activation'(z) * (a b): the gradient of the pre-activations, a that of the output, b = w2.
MMKERN_KERNEL(void, mlp_grad_hidden,
              (const MlpProductArgs& args, const GemmTask& task, float* scratch))
// out = a b.
MMKERN_KERNEL(void, mlp_grad_input,
              (const MlpProductArgs& args, const GemmTask& task, float* scratch))
// out = a^T b.
MMKERN_KERNEL(void, mlp_grad_weight,
              (const MlpProductArgs& args, const GemmTask& task, float* scratch))
// Elements [begin, end).
MMKERN_KERNEL(void, mlp_activate, (const MlpActivateArgs& args, int64_t begin, int64_t end))
// Rows [begin, end) of out.
MMKERN_KERNEL(void, mlp_rows, (const MlpRowsArgs& args, int64_t begin, int64_t end))
// Tasks [begin, end); scratch: channels floats, rounded up to kGemmPad.
MMKERN_KERNEL(void, mlp_rows_grad,
              (const MlpRowsGradArgs& args, int64_t begin, int64_t end, float* scratch))
