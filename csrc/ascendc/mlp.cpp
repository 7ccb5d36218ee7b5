#include "linear_backward.h"
#include "ops.h"

namespace mmkern::ascendc {
namespace {

int32_t activation_of(std::string_view name) {
  if (name == "gelu") return kGelu;
  if (name == "gelu_tanh") return kGeluTanh;
  if (name == "quick_gelu") return kQuickGelu;
  if (name == "silu") return kSilu;
  return name == "relu" ? kRelu : kNoActivation;
}

// y = activation(a b^T + bias); z, the input of the activation, where `saves`.
std::tuple<Tensor, Tensor> linear(const Tensor& a, const Tensor& b, const OptionalTensor& bias,
                                  int32_t activation, bool saves) {
  LinearTiling t{};
  t.m = a.size(0);
  t.n = static_cast<int32_t>(b.size(0));
  t.k = static_cast<int32_t>(b.size(1));
  t.a_stride = row_stride(a);
  t.b_stride = row_stride(b);
  t.activation = activation;
  t.has_bias = bias.has_value();
  t.saves = saves;
  choose_tiles(t);
  const Tensor y = at::empty({t.m, t.n}, a.options());
  const Tensor z = saves ? at::empty({t.m, t.n}, a.options()) : no_tensor(a);
  const Tensor ring = ring_of(t, a);
  const uint32_t blocks = blocks_of(t);
  const bool bfloat16 = is_bfloat16(a);
  submit({"linear",
          a.device(),
          true,
          blocks,
          {input(a), input(b), input(bias), output(z), output(y), workspace(ring)}},
         [=](void* stream, uint8_t** p) { launch_linear(bfloat16, blocks, stream, p, t); });
  return {y, z};
}

// The rows that the first layer gets: normalised, gathered, and merged.
Tensor merged_rows(const Tensor& x, const OptionalTensor& rows, const OptionalTensor& norm_weight,
                   const OptionalTensor& norm_bias, std::string_view norm, double eps,
                   int64_t merge) {
  // rows apart by one stride need no copy
  Tensor a = x.reshape({-1, x.size(-1)});
  if (norm != "none") {
    a = std::get<1>(modulate(a, {}, {}, {}, {}, norm_weight, norm_bias, norm, eps));
  }
  if (rows.has_value()) a = a.index_select(0, *rows);
  return merge > 1 ? a.reshape({-1, merge * merge * x.size(-1)}) : a;
}

// The gradient of each row of x, (N, C), given that of the merged rows.
Tensor unmerged(const Tensor& grad, const Tensor& x, const OptionalTensor& rows) {
  const Tensor g = grad.reshape({-1, x.size(-1)});
  if (!rows.has_value()) return g;
  // index_select's backward: a row may be gathered more than once
  const Tensor wide =
      at::zeros({x.numel() / x.size(-1), x.size(-1)}, x.options().dtype(at::kFloat));
  return wide.index_add(0, *rows, g.to(at::kFloat)).to(x.scalar_type());
}

}  // namespace

std::tuple<Tensor, Tensor> mlp(const Tensor& x, const OptionalTensor& rows, const Tensor& w1,
                               const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                               const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                               std::string_view activation, std::string_view norm, double eps,
                               int64_t merge, bool save) {
  const bool taken = is_half(x) && x.numel() > 0 && is_matrix(w1) && is_matrix(w2) &&
                     is_vector(b1, x) && is_vector(b2, x);
  const Tensor a = taken ? merged_rows(x, rows, norm_weight, norm_bias, norm, eps, merge) : x;
  if (!taken || !is_matrix(a)) {
    return reference<std::tuple<Tensor, Tensor>>("mmkern::mlp", x, rows, w1, b1, w2, b2,
                                                 norm_weight, norm_bias, activation, norm, eps,
                                                 merge, save);
  }
  auto [hidden, z] = linear(a, w1, b1, activation_of(activation), save);
  Tensor y = std::get<0>(linear(hidden, w2, b2, kNoActivation, false));
  if (merge == 1) {
    std::vector<int64_t> shape = x.sizes().vec();
    shape.back() = w2.size(0);
    y = y.reshape(shape);
    shape.back() = w1.size(0);
    if (save) z = z.reshape(shape);
  }
  return {y, z};
}

SevenTensors mlp_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& rows,
                          const Tensor& w1, const Tensor& w2, const OptionalTensor& norm_weight,
                          const OptionalTensor& norm_bias, const Tensor& z,
                          std::string_view activation, std::string_view norm, double eps,
                          int64_t merge, std::array<bool, 7> mask) {
  const auto count = [&](const Tensor& t) { return t.numel() / std::max<int64_t>(t.size(-1), 1); };
  const bool taken = is_half(x) && x.numel() > 0 && is_matrix(w1) && is_matrix(w2) &&
                     grad.scalar_type() == x.scalar_type() &&
                     can_be_operand(count(grad), w2.size(0)) &&
                     can_be_operand(count(z), w1.size(0)) && can_be_operand(count(x), w1.size(1));
  if (!taken) {
    return reference<SevenTensors>("mmkern::mlp_backward", grad, x, rows, w1, w2, norm_weight,
                                   norm_bias, z, activation, norm, eps, merge, mask);
  }
  std::array<Tensor, 7> grads;
  grads.fill(no_tensor(x));
  const bool wants_input = mask[0] || mask[5] || mask[6];
  const Tensor g = as_operand(grad.reshape({-1, w2.size(0)}));
  if (mask[4]) grads[4] = column_sums(g).to(x.scalar_type());
  if (wants_input || mask[1] || mask[2] || mask[3]) {
    const auto [hidden, dz] = product_through_activation(
        g, w2, z.reshape({-1, w1.size(0)}).contiguous(), activation_of(activation), mask[3]);
    if (mask[3]) grads[3] = product(g, true, hidden);
    if (mask[2]) grads[2] = column_sums(dz).to(x.scalar_type());
    if (mask[1]) {
      const Tensor a = merged_rows(x, rows, norm_weight, norm_bias, norm, eps, merge);
      grads[1] = product(dz, true, as_operand(a));
    }
    if (wants_input) {
      const Tensor dn = unmerged(product(dz, false, w1), x, rows);
      if (norm == "none") {
        grads[0] = dn.reshape(x.sizes());
      } else {
        const auto normed = modulate_backward(
            {}, dn, x.reshape({-1, x.size(-1)}), {}, {}, {}, {}, norm_weight, norm_bias, norm, eps,
            {mask[0], false, false, false, false, mask[5], mask[6]});
        if (mask[0]) grads[0] = std::get<0>(normed).reshape(x.sizes());
        grads[5] = std::get<5>(normed);
        grads[6] = std::get<6>(normed);
      }
    }
  }
  return {grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], grads[6]};
}

}  // namespace mmkern::ascendc
