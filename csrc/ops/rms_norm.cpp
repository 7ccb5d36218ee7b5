#include "../cpu/rms_norm.h"

#include "host.h"
#include "row_sums.h"
#include "strided_rows.h"

namespace mmkern {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::tuple<Tensor, Tensor>;

bool casts_first(std::string_view cast) {
  TORCH_CHECK_VALUE(cast == "after" || cast == "before", "mmkern::rms_norm: cast is '", cast,
                    "'; wanted 'after' or 'before'");
  return cast == "after";
}

// What the kernels take: x.dtype or float32, unit last stride.
bool fits(const OptionalTensor& t, const Tensor& x) {
  return !t.has_value() ||
         ((t->scalar_type() == x.scalar_type() || t->scalar_type() == at::kFloat) &&
          has_unit_last_stride(*t));
}
bool fits_exactly(const OptionalTensor& t, const Tensor& x) {
  return !t.has_value() || (t->scalar_type() == x.scalar_type() && has_unit_last_stride(*t));
}

RmsNormArgs problem(const Tensor& x, const OptionalTensor& weight, double eps) {
  RmsNormArgs args{};
  args.dtype = kernel_dtype(x.scalar_type());
  args.eps = static_cast<float>(eps);
  args.channels = x.size(-1);
  args.weight = data_or_null(weight);
  args.weight_is_float32 = weight.has_value() && weight->scalar_type() == at::kFloat;
  return args;
}

Tensors rms_norm(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& residual,
                 double eps, std::string_view cast) {
  const auto reference = [&] {
    return call_reference<Tensors>("mmkern::rms_norm", x, weight, residual, eps, cast);
  };
  const bool fitting = is_kernel_dtype(x.scalar_type()) && has_unit_last_stride(x) &&
                       fits(weight, x) && fits_exactly(residual, x);
  if (!fitting) return reference();
  RmsNormArgs args = problem(x, weight, eps);
  if (!lay_out_rows(x.sizes(), args.shape, {{x, args.x}, {residual, args.residual}})) {
    return reference();
  }
  const bool half = args.dtype != DType::kFloat32;
  const bool widens = casts_first(cast) && half && args.weight_is_float32;
  args.cast = widens ? Cast::kFirstToFloat32 : casts_first(cast) ? Cast::kFirst : Cast::kLast;
  const Tensor h = residual.has_value() ? new_tensor(x.sizes(), x.options()) : no_tensor(x);
  const Tensor y = new_tensor(x.sizes(), widens ? weight->options() : x.options());
  args.h = h.mutable_data_ptr();
  args.y = y.mutable_data_ptr();
  const int64_t inputs_and_h = 1 + 2 * residual.has_value();
  args.stream = larger_than_cache(inputs_and_h * x.nbytes() + y.nbytes()) && has_aligned_rows(h) &&
                has_aligned_rows(y);
  const auto kernel = MMKERN_PICK(rms_norm_forward);
  const int64_t scratch_size = kRmsNormScratchRows * scratch_pitch(args.channels);
  parallel_even(row_count(x), (inputs_and_h + 1) * args.channels, [&](int64_t begin, int64_t end) {
    const Scratch<float> scratch(scratch_size);
    kernel(args, begin, end, scratch.get());
  });
  return {h, y};
}

Tensors rms_norm_backward(const OptionalTensor& grad_h, const OptionalTensor& grad_y,
                          const Tensor& h, const OptionalTensor& weight, double eps,
                          std::string_view cast, std::array<bool, 2> mask) {
  const auto reference = [&] {
    return call_reference<Tensors>("mmkern::rms_norm_backward", grad_h, grad_y, h, weight, eps,
                                   cast, mask);
  };
  // Without grad_y there is no norm to go through, only a copy of grad_h.
  if (!grad_y.has_value()) return reference();
  const OptionalTensor dh = dense(grad_h), dy = dense(grad_y);
  const bool fitting = is_kernel_dtype(h.scalar_type()) && has_unit_last_stride(h) &&
                       fits(weight, h) && fits_exactly(dh, h) && fits(dy, h);
  if (!fitting) return reference();
  RmsNormGradArgs args{};
  args.forward = problem(h, weight, eps);
  const bool laid_out = lay_out_rows(h.sizes(), args.forward.shape,
                                     {{h, args.forward.x}, {dh, args.grad_h}, {dy, args.grad_y}});
  if (!laid_out) return reference();
  args.grad_y_is_float32 = dy->scalar_type() == at::kFloat;
  args.tasks = row_tasks(1, row_count(h));
  const Tensor grad_x = mask[0] ? new_tensor(h.sizes(), h.options()) : no_tensor(h);
  args.grad_x = mask[0] ? grad_x.mutable_data_ptr() : nullptr;
  args.forward.stream =
      larger_than_cache((1 + mask[0] + dh.has_value()) * h.nbytes() + dy->nbytes()) &&
      has_aligned_rows(grad_x);
  RowSumGradient sum(mask[1] ? weight : OptionalTensor(), h, args.tasks);
  args.weight = sum.sum;
  const auto kernel = MMKERN_PICK(rms_norm_backward);
  const int64_t scratch_size = kRmsNormScratchRows * scratch_pitch(args.forward.channels);
  const int64_t work = kTaskRows * args.forward.channels * 4;
  parallel_dynamic(args.tasks.count, work, 1, [&](const auto& next) {
    const Scratch<float> scratch(scratch_size);
    for (int64_t begin, end; next(begin, end);) kernel(args, begin, end, scratch.get());
  });
  sum.finish(args.forward.dtype);
  return {grad_x, sum.result};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmkern, CPU, m) {
  m.impl("rms_norm", &rms_norm);
  m.impl("rms_norm_backward", &rms_norm_backward);
}

}  // namespace mmkern
