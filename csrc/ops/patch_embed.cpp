// Copies that the kernels ask for, all small: a weight, bias or position embedding that is not
// contiguous (a channels_last weight), and a gradient whose rows two strides cannot reach (that of
// out.sum()). Pixels are read where they are, whatever their strides.
#include "../cpu/patch_embed.h"

#include <ATen/ops/zeros.h>

#include <array>

#include "column_sum.h"
#include "gemm.h"

namespace mmkern {
namespace {

bool is_flattened(const at::Tensor& x, const at::Tensor& weight) {
  return x.dim() != weight.dim() || weight.dim() == 2;
}

bool has_kernel(const at::Tensor& x, const at::Tensor& weight,
                const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& pos_embed) {
  const auto dtype = x.scalar_type();
  return is_kernel_dtype(dtype) && weight.scalar_type() == dtype &&
         (!bias || bias->scalar_type() == dtype) &&
         (!pos_embed || pos_embed->scalar_type() == dtype ||
          pos_embed->scalar_type() == at::kFloat) &&
         (!is_flattened(x, weight) || rows_view(x));
}

PatchGrid patch_grid(const at::Tensor& x, const at::Tensor& weight) {
  PatchGrid p{const_cast<void*>(data_or_null(x)),
              {1, 1, 1},
              {1, 1, 1},
              x.stride(0),
              x.stride(1),
              {0, 0, 0}};
  const int64_t missing = 5 - x.dim();
  for (int64_t d = 2; d < x.dim(); ++d) {
    const int64_t to = d - 2 + missing;
    p.kernel[to] = weight.size(d);
    p.grid[to] = x.size(d) / weight.size(d);
    p.stride[to] = x.stride(d);
  }
  // Dimensions in which a patch is consecutive become one: longer runs to copy.
  for (int d = 1; d >= 0; --d) {
    if (p.grid[2] != 1 || p.stride[d] != p.kernel[2] * p.stride[2]) break;
    p.kernel[2] *= p.kernel[d];
    p.grid[2] = p.grid[d];
    p.kernel[d] = p.grid[d] = 1;
  }
  return p;
}

// Everything that the forward and the backward share; the plan is still to be made.
PatchEmbedArgs describe(const at::Tensor& x, const at::Tensor& weight) {
  PatchEmbedArgs args{};
  args.dtype = kernel_dtype(x.scalar_type());
  args.flattened = is_flattened(x, weight);
  if (args.flattened) {
    args.patches = *rows_view(x);
    args.tokens = x.size(-2);
  } else {
    args.pixels = patch_grid(x, weight);
    args.tokens = args.pixels.grid[0] * args.pixels.grid[1] * args.pixels.grid[2];
  }
  args.weight = contiguous_rows(data_or_null(weight), weight.numel() / weight.size(0));
  return args;
}

int64_t batches(const at::Tensor& x, const PatchEmbedArgs& args) {
  return args.flattened && x.dim() == 2 ? 1 : x.size(0);
}

at::Tensor patch_embed(const at::Tensor& x, const at::Tensor& weight_in,
                       const std::optional<at::Tensor>& bias_in,
                       const std::optional<at::Tensor>& pos_embed_in) {
  if (!has_kernel(x, weight_in, bias_in, pos_embed_in)) {
    return call_reference<at::Tensor>("mmkern::patch_embed", x, weight_in, bias_in, pos_embed_in);
  }
  const at::Tensor weight = weight_in.contiguous();
  const at::Tensor bias = bias_in ? bias_in->contiguous() : at::Tensor();
  at::Tensor pos_embed = pos_embed_in.value_or(at::Tensor());
  PatchEmbedArgs args = describe(x, weight);
  const int64_t channels = weight.size(0), batch = batches(x, args);
  at::Tensor out = args.flattened && x.dim() == 2
                       ? new_tensor({args.tokens, channels}, x.options())
                       : new_tensor({batch, args.tokens, channels}, x.options());
  if (bias_in) args.bias = data_or_null(bias);
  if (pos_embed_in) {
    if (!has_unit_last_stride(pos_embed)) pos_embed = pos_embed.contiguous();
    args.pos_embed = data_or_null(pos_embed);
    args.pos_is_float32 = pos_embed.scalar_type() == at::kFloat;
    args.pos_token_stride = pos_embed.stride(-2);
    const bool per_sample = pos_embed.dim() == 3 && pos_embed.size(0) > 1;
    args.pos_batch_stride = per_sample ? pos_embed.stride(0) : 0;
  }
  args.out = out.data_ptr();
  args.plan = gemm_plan(args.dtype, batch * args.tokens, channels, weight.numel() / channels,
                        args.flattened ? &args.weight : nullptr);
  run_gemm(args, MMKERN_PICK(patch_embed_forward));
  return out;
}

at::Tensor grad_input(PatchEmbedArgs args, const at::Tensor& x, const at::Tensor& weight) {
  bool covered = true;
  for (int64_t d = 2; !args.flattened && d < x.dim(); ++d) {
    covered &= x.size(d) % weight.size(d) == 0;
  }
  const at::Tensor grad_x =
      covered ? new_tensor(x.sizes(), x.options()) : at::zeros(x.sizes(), x.options());
  if (!args.flattened) args.pixels = patch_grid(grad_x, weight);
  args.out = grad_x.data_ptr();
  const int64_t channels = weight.size(0);
  args.plan =
      gemm_plan(args.dtype, batches(x, args) * args.tokens, weight.numel() / channels, channels);
  run_gemm(args, MMKERN_PICK(patch_embed_grad_input));
  return grad_x;
}

at::Tensor grad_weight(PatchEmbedArgs args, const at::Tensor& x, const at::Tensor& weight) {
  const at::Tensor result = new_tensor(weight.sizes(), x.options());
  args.out = result.data_ptr();
  const int64_t channels = weight.size(0);
  args.plan =
      gemm_plan(args.dtype, channels, weight.numel() / channels, batches(x, args) * args.tokens);
  run_gemm(args, MMKERN_PICK(patch_embed_grad_weight));
  return result;
}

// Of a position embedding per sample: the gradient itself; else its sum over the batch.
at::Tensor grad_pos_embed(const PatchEmbedArgs& args, const at::Tensor& x,
                          const at::Tensor& pos_embed) {
  const at::Tensor result = new_tensor(pos_embed.sizes(), pos_embed.options());
  const int64_t batch = batches(x, args);
  const bool per_sample = pos_embed.dim() == 3 && pos_embed.size(0) == batch;
  const int64_t rows = per_sample ? 1 : batch;
  const int64_t outer = per_sample ? batch * args.tokens : args.tokens;
  sum_rows(x.scalar_type(), args.grad, rows, args.tokens, outer, 1, result);
  return result;
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Gradients patch_embed_backward(const at::Tensor& grad_in, const at::Tensor& x,
                               const at::Tensor& weight_in,
                               const std::optional<at::Tensor>& pos_embed,
                               std::array<bool, 4> mask) {
  if (!has_kernel(x, weight_in, std::nullopt, pos_embed) ||
      grad_in.scalar_type() != x.scalar_type()) {
    return call_reference<Gradients>("mmkern::patch_embed_backward", grad_in, x, weight_in,
                                     pos_embed, mask);
  }
  at::Tensor grad = grad_in;
  const at::Tensor weight = weight_in.contiguous();
  PatchEmbedArgs args = describe(x, weight);
  args.grad = rows_view_or_copy(grad);
  std::array<at::Tensor, 4> grads;
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!mask[i]) grads[i] = no_tensor(x);
  }
  if (mask[0]) grads[0] = grad_input(args, x, weight);
  if (mask[1]) grads[1] = grad_weight(args, x, weight);
  if (mask[2]) {
    grads[2] = new_tensor({weight.size(0)}, x.options());
    sum_rows(x.scalar_type(), args.grad, batches(x, args) * args.tokens, 1, 1, 0, grads[2]);
  }
  if (mask[3]) grads[3] = grad_pos_embed(args, x, *pos_embed);
  return {grads[0], grads[1], grads[2], grads[3]};
}

}  // namespace
}  // namespace mmkern

TORCH_LIBRARY_IMPL(mmkern, CPU, m) {
  m.impl("patch_embed", &mmkern::patch_embed);
  m.impl("patch_embed_backward", &mmkern::patch_embed_backward);
}
