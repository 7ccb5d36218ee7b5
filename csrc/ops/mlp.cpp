// mlp as two matrix products. Rows go through a matrix of their own only where there is a norm, a
// gather, or a merge of rows that do not follow each other: written once, it costs under 1 % of the
// products, which would otherwise normalise each row again for every block of columns.
//
// Copies that the kernels ask for: vectors that are not contiguous, and in the backward a gradient
// whose rows two strides cannot reach (that of y.sum()). Weights or rows of x whose elements are
// not consecutive run on the reference.
#include "../cpu/mlp.h"

#include <ATen/ops/empty_like.h>

#include <array>
#include <string_view>
#include <vector>

#include "column_sum.h"
#include "gemm.h"

namespace mmkern {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

Activation activation_of(std::string_view name) {
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "quick_gelu") return Activation::kQuickGelu;
  if (name == "silu") return Activation::kSilu;
  TORCH_CHECK_VALUE(name == "relu", "mmkern::mlp: unknown activation '", std::string(name), "'");
  return Activation::kRelu;
}

RowNorm norm_of(std::string_view name) {
  if (name == "none") return RowNorm::kNone;
  if (name == "layer") return RowNorm::kLayer;
  TORCH_CHECK_VALUE(name == "rms", "mmkern::mlp: unknown norm '", std::string(name), "'");
  return RowNorm::kRms;
}

bool has_kernel(const at::Tensor& x, std::initializer_list<OptionalTensor> same_dtype,
                std::initializer_list<at::Tensor> matrices) {
  if (!is_kernel_dtype(x.scalar_type()) || x.dim() < 1 || !rows_view(x)) return false;
  for (const auto& t : same_dtype) {
    if (t && t->scalar_type() != x.scalar_type()) return false;
  }
  for (const auto& t : matrices) {
    if (t.dim() != 2 || t.scalar_type() != x.scalar_type() || !rows_view(t)) return false;
  }
  return true;
}

// What comes before the first product.
struct Front {
  at::Tensor x, rows, weight, bias;
  RowNorm norm;
  double eps;
  int64_t merge;

  int64_t channels() const { return x.size(-1); }
  int64_t x_rows() const { return c10::multiply_integers(x.sizes().slice(0, x.dim() - 1)); }
  int64_t copied_rows() const { return rows.defined() ? rows.numel() : x_rows(); }
  int64_t merged_rows() const { return copied_rows() / (merge * merge); }
  int64_t merged_channels() const { return merge * merge * channels(); }
  bool is_plain() const { return norm == RowNorm::kNone && !rows.defined(); }
};

Front front(const at::Tensor& x, const OptionalTensor& rows, const OptionalTensor& weight,
            const OptionalTensor& bias, std::string_view norm, double eps, int64_t merge) {
  Front f{x,
          rows ? rows->contiguous() : at::Tensor(),
          weight ? weight->contiguous() : at::Tensor(),
          bias ? bias->contiguous() : at::Tensor(),
          norm_of(norm),
          eps,
          merge};
  if (merge == 1) f.rows = at::Tensor();
  if (f.rows.defined()) {
    const int64_t* index = f.rows.const_data_ptr<int64_t>();
    const int64_t count = f.x_rows();
    for (int64_t i = 0; i < f.rows.numel(); ++i) {
      TORCH_CHECK_INDEX(index[i] >= 0 && index[i] < count, "mmkern::mlp: rows[", i, "] is ",
                        index[i], "; wanted a row of x, which has ", count);
    }
  }
  return f;
}

MlpRowsArgs rows_args(const Front& f, void* out) {
  MlpRowsArgs args{};
  args.dtype = kernel_dtype(f.x.scalar_type());
  args.norm = f.norm;
  args.eps = static_cast<float>(f.eps);
  args.channels = f.channels();
  args.x = *rows_view(f.x);
  if (f.rows.defined()) args.rows = f.rows.const_data_ptr<int64_t>();
  if (f.weight.defined()) args.weight = data_or_null(f.weight);
  if (f.bias.defined()) args.bias = data_or_null(f.bias);
  args.out = out;
  return args;
}

// The rows that the first product takes: those of x where it can, else those written to `room`.
RowsView merged_rows(const Front& f, at::Tensor& room) {
  const RowsView view = *rows_view(f.x);
  if (f.is_plain() && f.merge == 1) return view;
  if (f.is_plain() && f.x.is_contiguous()) return contiguous_rows(view.data, f.merged_channels());
  room = new_tensor({f.merged_rows(), f.merged_channels()}, f.x.options());
  const MlpRowsArgs args = rows_args(f, room.data_ptr());
  parallel_even(f.copied_rows(), f.channels(),
                [&](int64_t begin, int64_t end) { MMKERN_PICK(mlp_rows)(args, begin, end); });
  return contiguous_rows(data_or_null(room), f.merged_channels());
}

at::Tensor rows_like(const Front& f, int64_t columns) {
  if (f.merge > 1) return new_tensor({f.merged_rows(), columns}, f.x.options());
  auto sizes = f.x.sizes().vec();
  sizes.back() = columns;
  return new_tensor(sizes, f.x.options());
}

MlpProductArgs product(const Front& f, const RowsView& a, const RowsView& b,
                       const at::Tensor& out) {
  MlpProductArgs args{};
  args.dtype = kernel_dtype(f.x.scalar_type());
  args.a = a;
  args.b = b;
  args.out = out.data_ptr();
  args.out_is_float32 = out.scalar_type() == at::kFloat;
  return args;
}

using Outputs = std::tuple<at::Tensor, at::Tensor>;

Outputs mlp(const at::Tensor& x, const OptionalTensor& rows, const at::Tensor& w1,
            const OptionalTensor& b1, const at::Tensor& w2, const OptionalTensor& b2,
            const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
            std::string_view activation, std::string_view norm, double eps, int64_t merge,
            bool save) {
  if (!has_kernel(x, {b1, b2, norm_weight, norm_bias}, {w1, w2})) {
    return call_reference<Outputs>("mmkern::mlp", x, rows, w1, b1, w2, b2, norm_weight, norm_bias,
                                   std::string(activation), std::string(norm), eps, merge, save);
  }
  const Front f = front(x, rows, norm_weight, norm_bias, norm, eps, merge);
  const int64_t hidden_size = w1.size(0);
  const at::Tensor hidden = rows_like(f, hidden_size);
  const at::Tensor z = save ? rows_like(f, hidden_size) : no_tensor(x);
  const at::Tensor y = rows_like(f, w2.size(0));
  const at::Tensor bias1 = b1 ? b1->contiguous() : at::Tensor();
  const at::Tensor bias2 = b2 ? b2->contiguous() : at::Tensor();

  at::Tensor room;
  MlpProductArgs first = product(f, merged_rows(f, room), *rows_view(w1), hidden);
  first.plan = gemm_plan(first.dtype, f.merged_rows(), hidden_size, w1.size(1), &first.b);
  first.activation = activation_of(activation);
  if (b1) first.bias = data_or_null(bias1);
  if (save) first.pre_activation = z.data_ptr();
  run_gemm(first, MMKERN_PICK(mlp_linear));

  const RowsView hidden_rows = contiguous_rows(data_or_null(hidden), hidden_size);
  MlpProductArgs second = product(f, hidden_rows, *rows_view(w2), y);
  second.plan = gemm_plan(second.dtype, f.merged_rows(), w2.size(0), hidden_size, &second.b);
  if (b2) second.bias = data_or_null(bias2);
  run_gemm(second, MMKERN_PICK(mlp_linear));
  return {y, z};
}

// ---- backward -----------------------------------------------------------------------------------

// a^T b, for a and b of f.merged_rows() rows.
at::Tensor grad_weight(const Front& f, const RowsView& a, int64_t a_columns, const RowsView& b,
                       int64_t b_columns) {
  const at::Tensor result = new_tensor({a_columns, b_columns}, f.x.options());
  MlpProductArgs args = product(f, a, b, result);
  args.plan = gemm_plan(args.dtype, a_columns, b_columns, f.merged_rows());
  run_gemm(args, MMKERN_PICK(mlp_grad_weight));
  return result;
}

at::Tensor grad_bias(const Front& f, const RowsView& grad, int64_t columns) {
  const at::Tensor result = new_tensor({columns}, f.x.options());
  sum_rows(f.x.scalar_type(), grad, f.merged_rows(), 1, 1, 0, result);
  return result;
}

// Where the rows of x went, in order: copies[starts[r] .. starts[r + 1]) are those of row r.
struct Copies {
  std::vector<int64_t> starts, copies;
};

Copies copies_of(const Front& f) {
  const int64_t* const index = f.rows.const_data_ptr<int64_t>();
  const int64_t count = f.rows.numel();
  Copies c{std::vector<int64_t>(f.x_rows() + 1), std::vector<int64_t>(count)};
  for (int64_t i = 0; i < count; ++i) ++c.starts[index[i] + 1];
  for (size_t r = 1; r < c.starts.size(); ++r) c.starts[r] += c.starts[r - 1];
  std::vector<int64_t> next = c.starts;
  for (int64_t i = 0; i < count; ++i) c.copies[next[index[i]]++] = i;
  return c;
}

// Gradients of x, norm_weight and norm_bias from that of the merged rows, in float32.
void grad_front(const Front& f, const at::Tensor& grad_merged, std::array<bool, 7> mask,
                std::array<at::Tensor, 7>& grads) {
  const int64_t tasks = ceil_div(f.x_rows(), kMlpTaskRows);
  const auto partials = [&](bool wanted) {
    return wanted ? new_tensor({tasks, f.channels()}, f.x.options().dtype(at::kFloat))
                  : at::Tensor();
  };
  const at::Tensor weight_sums = partials(mask[5]), bias_sums = partials(mask[6]);
  if (mask[0]) grads[0] = new_tensor(f.x.sizes(), f.x.options());
  const Copies copies = f.rows.defined() ? copies_of(f) : Copies{};
  MlpRowsGradArgs args{};
  args.forward = rows_args(f, mask[0] ? grads[0].data_ptr() : nullptr);
  args.grad = grad_merged.const_data_ptr<float>();
  args.starts = f.rows.defined() ? copies.starts.data() : nullptr;
  args.copies = copies.copies.data();
  args.count = f.x_rows();
  args.weight_sums = mask[5] ? weight_sums.data_ptr<float>() : nullptr;
  args.bias_sums = mask[6] ? bias_sums.data_ptr<float>() : nullptr;
  parallel_even(tasks, kMlpTaskRows * f.channels(), [&](int64_t begin, int64_t end) {
    const Scratch<float> scratch(f.channels());
    MMKERN_PICK(mlp_rows_grad)(args, begin, end, scratch.get());
  });
  const auto reduce = [&](const at::Tensor& sums) {
    const at::Tensor result = new_tensor({f.channels()}, sums.options());
    const RowsView view = contiguous_rows(data_or_null(sums), f.channels());
    sum_rows(at::kFloat, view, tasks, 1, 1, 0, result);
    return result.to(f.x.scalar_type());
  };
  if (mask[5]) grads[5] = reduce(weight_sums);
  if (mask[6]) grads[6] = reduce(bias_sums);
}

void grad_input(const Front& f, const RowsView& dz, const at::Tensor& w1, std::array<bool, 7> mask,
                std::array<at::Tensor, 7>& grads) {
  const auto type = f.is_plain() ? f.x.scalar_type() : at::kFloat;
  const auto options = f.x.options().dtype(type);
  const at::Tensor merged = f.is_plain()
                                ? new_tensor(f.x.sizes(), options)
                                : new_tensor({f.merged_rows(), f.merged_channels()}, options);
  MlpProductArgs args = product(f, dz, *rows_view(w1), merged);
  args.plan = gemm_plan(args.dtype, f.merged_rows(), f.merged_channels(), w1.size(0));
  run_gemm(args, MMKERN_PICK(mlp_grad_input));
  if (f.is_plain()) {
    grads[0] = merged;
  } else {
    grad_front(f, merged, mask, grads);
  }
}

// The gradient of the pre-activations, and the activations if `hidden` is defined.
at::Tensor grad_hidden(const Front& f, const RowsView& grad, const at::Tensor& w2,
                       const at::Tensor& z, Activation activation, const at::Tensor& hidden) {
  const at::Tensor dz = new_tensor(z.sizes(), z.options());
  MlpProductArgs args = product(f, grad, *rows_view(w2), dz);
  args.plan = gemm_plan(args.dtype, f.merged_rows(), w2.size(1), w2.size(0));
  args.activation = activation;
  args.z = z.const_data_ptr();
  args.hidden = hidden.defined() ? hidden.data_ptr() : nullptr;
  run_gemm(args, MMKERN_PICK(mlp_grad_hidden));
  return dz;
}

void activate(const at::Tensor& z, Activation activation, const at::Tensor& out) {
  const MlpActivateArgs args{kernel_dtype(z.scalar_type()), activation, z.const_data_ptr(),
                             out.data_ptr()};
  parallel_even(z.numel(), 1,
                [&](int64_t begin, int64_t end) { MMKERN_PICK(mlp_activate)(args, begin, end); });
}

using Gradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Gradients mlp_backward(const at::Tensor& grad_in, const at::Tensor& x, const OptionalTensor& rows,
                       const at::Tensor& w1, const at::Tensor& w2,
                       const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                       const at::Tensor& z_in, std::string_view activation, std::string_view norm,
                       double eps, int64_t merge, std::array<bool, 7> mask) {
  if (!has_kernel(x, {grad_in, norm_weight, norm_bias, z_in}, {w1, w2})) {
    return call_reference<Gradients>("mmkern::mlp_backward", grad_in, x, rows, w1, w2, norm_weight,
                                     norm_bias, z_in, std::string(activation), std::string(norm),
                                     eps, merge, mask);
  }
  const Front f = front(x, rows, norm_weight, norm_bias, norm, eps, merge);
  const Activation act = activation_of(activation);
  const int64_t hidden_size = w1.size(0), out_size = w2.size(0);
  at::Tensor grad = grad_in;
  const RowsView grad_rows = rows_view_or_copy(grad);
  const at::Tensor z = z_in.contiguous();
  std::array<at::Tensor, 7> grads;
  for (auto& g : grads) g = no_tensor(x);

  const at::Tensor hidden = mask[3] ? new_tensor(z.sizes(), z.options()) : at::Tensor();
  const bool needs_dz = mask[0] || mask[1] || mask[2] || mask[5] || mask[6];
  at::Tensor dz;
  if (needs_dz) {
    dz = grad_hidden(f, grad_rows, w2, z, act, hidden);
  } else if (mask[3]) {
    activate(z, act, hidden);
  }
  if (mask[3]) {
    const RowsView hidden_rows = contiguous_rows(data_or_null(hidden), hidden_size);
    grads[3] = grad_weight(f, grad_rows, out_size, hidden_rows, hidden_size);
  }
  if (mask[4]) grads[4] = grad_bias(f, grad_rows, out_size);
  if (needs_dz) {
    const RowsView dz_rows = contiguous_rows(data_or_null(dz), hidden_size);
    if (mask[1]) {
      at::Tensor room;
      const RowsView merged = merged_rows(f, room);
      grads[1] = grad_weight(f, dz_rows, hidden_size, merged, f.merged_channels());
    }
    if (mask[2]) grads[2] = grad_bias(f, dz_rows, hidden_size);
    if (mask[0] || mask[5] || mask[6]) grad_input(f, dz_rows, w1, mask, grads);
  }
  return {grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], grads[6]};
}

}  // namespace
}  // namespace mmkern

TORCH_LIBRARY_IMPL(mmkern, CPU, m) {
  m.impl("mlp", &mmkern::mlp);
  m.impl("mlp_backward", &mmkern::mlp_backward);
}
