#include "../cpu/rope.h"

#include "host.h"
#include "row_sums.h"

namespace mmkern {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What the kernels take: tables and weights of q.dtype or float32, unit last strides.
bool fits(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
          const OptionalTensor& q_weight, const OptionalTensor& k_weight) {
  const auto close_to_q = [&](const Tensor& t) {
    return (t.scalar_type() == q.scalar_type() || t.scalar_type() == at::kFloat) &&
           has_unit_last_stride(t);
  };
  return is_kernel_dtype(q.scalar_type()) && k.scalar_type() == q.scalar_type() &&
         has_unit_last_stride(q) && has_unit_last_stride(k) &&
         sin.scalar_type() == cos.scalar_type() && close_to_q(cos) && close_to_q(sin) &&
         (!q_weight.has_value() || close_to_q(*q_weight)) &&
         (!k_weight.has_value() || close_to_q(*k_weight));
}

// t is (B, S, H, D), or (T, H, D) read as one sample.
RopeHeads heads(const Tensor& t) {
  return {data_or_null(t), t.size(-2), t.dim() == 4 ? t.stride(0) : 0, t.stride(-3), t.stride(-2)};
}

// t is (S, R) or (B, S, R), where B may be 1.
RopeTable table(const Tensor& t) {
  return {data_or_null(t), t.dim() == 3 && t.size(0) > 1 ? t.stride(0) : 0, t.stride(-2)};
}

RopeWeight weight(const OptionalTensor& t) {
  return {data_or_null(t), t.has_value() && t->scalar_type() == at::kFloat};
}

RopeArgs problem(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                 const OptionalTensor& q_weight, const OptionalTensor& k_weight, bool interleaved,
                 double eps) {
  RopeArgs args{};
  args.dtype = kernel_dtype(q.scalar_type());
  args.interleaved = interleaved;
  args.is_float32_table = cos.scalar_type() == at::kFloat;
  args.eps = static_cast<float>(eps);
  args.tokens = q.size(-3);
  args.head_dim = q.size(-1);
  args.width = cos.size(-1);
  args.cos = table(cos);
  args.sin = table(sin);
  args.q = {heads(q), weight(q_weight), nullptr};
  args.k = {heads(k), weight(k_weight), nullptr};
  return args;
}

int64_t batch_of(const Tensor& q) { return q.dim() == 4 ? q.size(0) : 1; }

int64_t work_per_token(const RopeArgs& args) {
  return (args.q.x.count + args.k.x.count) * args.head_dim;
}

Tensor empty_if(bool exists, const Tensor& x) {
  return exists ? new_tensor(x.sizes(), x.options()) : no_tensor(x);
}

std::tuple<Tensor, Tensor> rope(const Tensor& q, const Tensor& k, const Tensor& cos,
                                const Tensor& sin, const OptionalTensor& q_weight,
                                const OptionalTensor& k_weight, bool interleaved, double eps) {
  if (!fits(q, k, cos, sin, q_weight, k_weight)) {
    return call_reference<std::tuple<Tensor, Tensor>>("mmkern::rope", q, k, cos, sin, q_weight,
                                                      k_weight, interleaved, eps);
  }
  RopeArgs args = problem(q, k, cos, sin, q_weight, k_weight, interleaved, eps);
  const Tensor out_q = empty_if(true, q), out_k = empty_if(true, k);
  args.q.out = out_q.mutable_data_ptr();
  args.k.out = out_k.mutable_data_ptr();
  const auto kernel = MMKERN_PICK(rope_forward);
  const int64_t scratch_size = kRopeScratchRows * scratch_pitch(args.head_dim + kRopePadding);
  parallel_even(batch_of(q) * args.tokens, 2 * work_per_token(args),
                [&](int64_t begin, int64_t end) {
                  const Scratch<float> scratch(scratch_size);
                  kernel(args, begin, end, scratch.get());
                });
  return {out_q, out_k};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Gradients rope_backward(const Tensor& grad_q, const Tensor& grad_k, const Tensor& q,
                        const Tensor& k, const Tensor& cos, const Tensor& sin,
                        const OptionalTensor& q_weight, const OptionalTensor& k_weight,
                        bool interleaved, double eps, std::array<bool, 4> mask) {
  if (!fits(q, k, cos, sin, q_weight, k_weight) || grad_q.scalar_type() != q.scalar_type() ||
      grad_k.scalar_type() != q.scalar_type()) {
    return call_reference<Gradients>("mmkern::rope_backward", grad_q, grad_k, q, k, cos, sin,
                                     q_weight, k_weight, interleaved, eps, mask);
  }
  const Tensor dense_q = dense(grad_q), dense_k = dense(grad_k);
  RopeGradArgs args{};
  args.forward = problem(q, k, cos, sin, q_weight, k_weight, interleaved, eps);
  args.grad_q = heads(dense_q);
  args.grad_k = heads(dense_k);
  args.tasks = row_tasks(batch_of(q), args.forward.tokens);
  const Tensor dq = empty_if(mask[0], q), dk = empty_if(mask[1], k);
  args.forward.q.out = mask[0] ? dq.mutable_data_ptr() : nullptr;
  args.forward.k.out = mask[1] ? dk.mutable_data_ptr() : nullptr;
  RowSumGradient dq_weight(mask[2] ? q_weight : OptionalTensor(), q, args.tasks);
  RowSumGradient dk_weight(mask[3] ? k_weight : OptionalTensor(), q, args.tasks);
  args.q_weight = dq_weight.sum;
  args.k_weight = dk_weight.sum;
  const auto kernel = MMKERN_PICK(rope_backward);
  const int64_t scratch_size =
      kRopeGradScratchRows * scratch_pitch(args.forward.head_dim + kRopePadding);
  const int64_t rows = batch_of(q) * args.forward.tokens;
  const int64_t work =
      rows / std::max<int64_t>(args.tasks.count, 1) * work_per_token(args.forward) * 4;
  parallel_dynamic(args.tasks.count, work, 1, [&](const auto& next) {
    const Scratch<float> scratch(scratch_size);
    for (int64_t begin, end; next(begin, end);) kernel(args, begin, end, scratch.get());
  });
  dq_weight.finish(args.forward.dtype);
  dk_weight.finish(args.forward.dtype);
  return {dq, dk, dq_weight.result, dk_weight.result};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmkern, CPU, m) {
  m.impl("rope", &rope);
  m.impl("rope_backward", &rope_backward);
}

}  // namespace mmkern
