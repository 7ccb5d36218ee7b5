#include "../cpu/modulate.h"

#include <numeric>

#include "host.h"
#include "row_sums.h"

namespace mmkern {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Norm norm_of(std::string_view name) {
  if (name == "layer") return Norm::kLayer;
  if (name == "rms") return Norm::kRms;
  TORCH_CHECK_VALUE(name == "none", "mmkern::modulate: norm is '", name,
                    "'; wanted 'layer', 'rms' or 'none'");
  return Norm::kNone;
}

// What the kernels take: x.dtype or float32, unit last stride.
bool fits(const OptionalTensor& t, const Tensor& x) {
  return !t.has_value() ||
         ((t->scalar_type() == x.scalar_type() || t->scalar_type() == at::kFloat) &&
          has_unit_last_stride(*t));
}

bool fits(const Tensor& x, std::initializer_list<const OptionalTensor*> modulations) {
  return is_kernel_dtype(x.scalar_type()) && has_unit_last_stride(x) &&
         std::all_of(modulations.begin(), modulations.end(),
                     [&](const OptionalTensor* m) { return fits(*m, x); });
}

// x is (B, T, C), or (N, C) read as N samples of one token.
int64_t tokens_of(const Tensor& x) { return x.dim() == 3 ? x.size(1) : 1; }

TokenRows token_rows(const OptionalTensor& t) {
  if (!t.has_value()) return {};
  return {data_or_null(*t), t->stride(0), t->dim() == 3 ? t->stride(1) : 0};
}

// m is (C), (B, C), (B, F, C) or (B, F, 1, C), where B may be 1.
Modulation modulation(const OptionalTensor& m, int64_t tokens) {
  if (!m.has_value()) return {};
  const int64_t groups = m->dim() > 2 ? m->size(1) : 1;
  return {data_or_null(*m), m->scalar_type() == at::kFloat,
          m->dim() > 1 && m->size(0) > 1 ? m->stride(0) : 0, groups > 1 ? m->stride(1) : 0,
          std::max<int64_t>(tokens / std::max<int64_t>(groups, 1), 1)};
}

struct Problem {
  ModulateArgs args;
  int64_t batch;
  int64_t rows;
};

Problem problem(const Tensor& x, const OptionalTensor& branch, const OptionalTensor& gate,
                const OptionalTensor& shift, const OptionalTensor& scale,
                const OptionalTensor& weight, const OptionalTensor& bias, std::string_view norm,
                double eps) {
  const int64_t tokens = tokens_of(x);
  ModulateArgs args{};
  args.dtype = kernel_dtype(x.scalar_type());
  args.norm = norm_of(norm);
  args.eps = static_cast<float>(eps);
  args.tokens = tokens;
  args.channels = x.size(-1);
  args.x = token_rows(x);
  args.branch = token_rows(branch);
  args.gate = modulation(gate, tokens);
  args.shift = modulation(shift, tokens);
  args.scale = modulation(scale, tokens);
  args.weight = modulation(weight, tokens);
  args.bias = modulation(bias, tokens);
  return {args, x.size(0), x.numel() == 0 ? 0 : x.size(0) * tokens};
}

Tensor empty_if(bool exists, const Tensor& x) {
  return exists ? new_tensor(x.sizes(), x.options()) : no_tensor(x);
}

std::tuple<Tensor, Tensor> modulate(const Tensor& x, const OptionalTensor& branch,
                                    const OptionalTensor& gate, const OptionalTensor& shift,
                                    const OptionalTensor& scale, const OptionalTensor& weight,
                                    const OptionalTensor& bias, std::string_view norm, double eps) {
  if (!fits(x, {&branch, &gate, &shift, &scale, &weight, &bias})) {
    return call_reference<std::tuple<Tensor, Tensor>>("mmkern::modulate", x, branch, gate, shift,
                                                      scale, weight, bias, norm, eps);
  }
  auto [args, batch, rows] = problem(x, branch, gate, shift, scale, weight, bias, norm, eps);
  const Tensor h = empty_if(branch.has_value(), x);
  const Tensor y = empty_if(args.norm != Norm::kNone, x);
  args.h = h.mutable_data_ptr();
  args.y = y.mutable_data_ptr();
  const int64_t operands = 1 + 2 * branch.has_value() + (args.norm != Norm::kNone);
  args.stream =
      larger_than_cache(operands * x.nbytes()) && has_aligned_rows(h) && has_aligned_rows(y);
  const auto kernel = MMKERN_PICK(modulate_forward);
  const int64_t scratch_size = kModulateScratchRows * scratch_pitch(args.channels);
  parallel_even(rows, operands * args.channels, [&](int64_t begin, int64_t end) {
    const Scratch<float> scratch(scratch_size);
    kernel(args, begin, end, scratch.get());
  });
  return {h, y};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Consecutive tokens that are of one group of every modulation tensor.
int64_t run_length(const ModulateArgs& args) {
  int64_t run = args.tokens;
  for (const Modulation& m : {args.gate, args.shift, args.scale}) {
    if (m.data != nullptr) run = std::gcd(run, m.tokens_per_group);
  }
  return run;
}

Gradients modulate_backward(const OptionalTensor& grad_h, const OptionalTensor& grad_y,
                            const Tensor& h, const OptionalTensor& branch,
                            const OptionalTensor& gate, const OptionalTensor& shift,
                            const OptionalTensor& scale, const OptionalTensor& weight,
                            const OptionalTensor& bias, std::string_view norm, double eps,
                            std::array<bool, 7> mask) {
  const OptionalTensor dh = dense(grad_h), dy = dense(grad_y);
  if (!fits(h, {&branch, &gate, &shift, &scale, &weight, &bias, &dh, &dy})) {
    return call_reference<Gradients>("mmkern::modulate_backward", grad_h, grad_y, h, branch, gate,
                                     shift, scale, weight, bias, norm, eps, mask);
  }
  auto [forward, batch, rows] = problem(h, branch, gate, shift, scale, weight, bias, norm, eps);
  ModulateGradArgs args{};
  args.forward = forward;
  args.grad_h = token_rows(dh);
  args.grad_y = forward.norm == Norm::kNone ? TokenRows{} : token_rows(dy);
  args.tasks = rows > 0 ? row_tasks(batch, forward.tokens) : RowTasks{};
  args.run = run_length(forward);
  const Tensor grad_x = empty_if(mask[0], h), grad_branch = empty_if(mask[1], h);
  args.grad_x = mask[0] ? grad_x.mutable_data_ptr() : nullptr;
  args.grad_branch = mask[1] ? grad_branch.mutable_data_ptr() : nullptr;
  const int64_t operands = 1 + dy.has_value() + dh.has_value() + mask[0] + mask[1] + mask[2];
  args.forward.stream = larger_than_cache(operands * h.nbytes()) && has_aligned_rows(grad_x) &&
                        has_aligned_rows(grad_branch);
  const auto sum_like = [&](bool asked, const OptionalTensor& m) {
    return RowSumGradient(asked ? m : OptionalTensor(), h, args.tasks);
  };
  const bool through_norm = forward.norm != Norm::kNone && dy.has_value();
  RowSumGradient sums[] = {sum_like(mask[2], gate), sum_like(mask[3] && through_norm, shift),
                           sum_like(mask[4] && through_norm, scale),
                           sum_like(mask[5] && through_norm, weight),
                           sum_like(mask[6] && through_norm, bias)};
  args.gate = sums[0].sum;
  args.shift = sums[1].sum;
  args.scale = sums[2].sum;
  args.weight = sums[3].sum;
  args.bias = sums[4].sum;
  const auto kernel = MMKERN_PICK(modulate_backward);
  const int64_t scratch_size = kModulateGradScratchRows * scratch_pitch(forward.channels);
  const int64_t work = rows / std::max<int64_t>(args.tasks.count, 1) * forward.channels * 4;
  parallel_dynamic(args.tasks.count, work, 1, [&](const auto& next) {
    const Scratch<float> scratch(scratch_size);
    for (int64_t begin, end; next(begin, end);) kernel(args, begin, end, scratch.get());
  });
  for (RowSumGradient& sum : sums) sum.finish(forward.dtype);
  return {grad_x,         grad_branch,    sums[0].result, sums[1].result,
          sums[2].result, sums[3].result, sums[4].result};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmkern, CPU, m) {
  m.impl("modulate", &modulate);
  m.impl("modulate_backward", &modulate_backward);
}

}  // namespace mmkern
