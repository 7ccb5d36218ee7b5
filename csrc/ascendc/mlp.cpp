#include "linear_backward.h"
#include "linear_norm.h"
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

// A linear layer on m rows; its tiles are not chosen yet.
LinearTiling describe(int64_t m, const Tensor& b, const OptionalTensor& bias, int32_t activation,
                      bool saves) {
  LinearTiling t{};
  t.m = m;
  t.n = static_cast<int32_t>(b.size(0));
  t.k = static_cast<int32_t>(b.size(1));
  t.a_stride = t.k;
  t.b_stride = row_stride(b);
  t.activation = activation;
  t.has_bias = bias.has_value();
  t.saves = saves;
  return t;
}

// y = activation(a b^T + bias); z, the input of the activation, where t.saves.
struct Layer {
  Tensor y, z;

  Layer(const LinearTiling& t, const Tensor& like)
      : y(at::empty({t.m, t.n}, like.options())),
        z(t.saves ? at::empty({t.m, t.n}, like.options()) : no_tensor(like)) {}
};

Layer linear(LinearTiling t, const Tensor& a, const Tensor& b, const OptionalTensor& bias) {
  t.a_stride = row_stride(a);
  choose_tiles(t);
  const Layer layer(t, a);
  const Tensor ring = ring_of(t, a);
  const uint32_t blocks = blocks_of(t);
  const bool bfloat16 = is_bfloat16(a);
  submit({"linear",
          a.device(),
          true,
          blocks,
          {input(a), input(b), input(bias), output(layer.z), output(layer.y), workspace(ring)}},
         [=](void* stream, uint8_t** p) { launch_linear(bfloat16, blocks, stream, p, t); });
  return layer;
}

// The same of a = the norm of x's rows.
Layer linear_normed(const NormedLinear& plan, const Tensor& x, const OptionalTensor& norm_weight,
                    const OptionalTensor& norm_bias, const Tensor& b, const OptionalTensor& bias) {
  const LinearTiling t = plan.linear;
  const NormTiling n = plan.norm;
  const Layer layer(t, x);
  const Tensor ring = ring_of(t, x);
  const uint32_t blocks = blocks_of(t);
  const Tensor rows = at::empty({row_ring_of(t)}, x.options());
  const bool bfloat16 = is_bfloat16(x);
  submit(
      {"linear_normed",
       x.device(),
       true,
       blocks,
       {input(x), input(norm_weight), input(norm_bias), input(b), input(bias), output(layer.z),
        output(layer.y), workspace(rows), workspace(ring)}},
      [=](void* stream, uint8_t** p) { launch_linear_normed(bfloat16, blocks, stream, p, t, n); });
  return layer;
}

// The rows of x, (N, C), in the order in which they are merged. Rows apart by one stride need no
// copy.
Tensor gathered(const Tensor& x, const OptionalTensor& rows) {
  const Tensor a = x.reshape({-1, x.size(-1)});
  return rows.has_value() ? a.index_select(0, *rows) : a;
}

// The rows that the first layer multiplies, of gathered ones.
Tensor merged_rows(Tensor a, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                   std::string_view norm, double eps, int64_t merge) {
  const int64_t channels = a.size(-1);
  if (norm != "none") {
    a = std::get<1>(modulate(a, {}, {}, {}, {}, norm_weight, norm_bias, norm, eps));
  }
  return merge > 1 ? a.reshape({-1, merge * merge * channels}) : a;
}

// The first layer; nothing if no kernel takes its rows.
std::optional<Layer> first_layer(const LinearTiling& t, const Tensor& x, const OptionalTensor& rows,
                                 const Tensor& w1, const OptionalTensor& b1,
                                 const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                                 std::string_view norm, double eps, int64_t merge) {
  Tensor a = gathered(x, rows);
  if (norm != "none") {
    const auto plan = fold_norm(t, a, norm_weight, norm_bias, norm, eps, merge * merge);
    if (plan) return linear_normed(*plan, a, norm_weight, norm_bias, w1, b1);
  }
  a = merged_rows(a, norm_weight, norm_bias, norm, eps, merge);
  if (!is_matrix(a)) return {};
  return linear(t, a, w1, b1);
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
  std::optional<Layer> first;
  if (taken) {
    const int64_t elements = rows.has_value() ? rows->numel() * x.size(-1) : x.numel();
    const int64_t m = elements / w1.size(1);
    if (m > 0) {
      first = first_layer(describe(m, w1, b1, activation_of(activation), save), x, rows, w1, b1,
                          norm_weight, norm_bias, norm, eps, merge);
    }
  }
  if (!first) {
    return reference<std::tuple<Tensor, Tensor>>("mmkern::mlp", x, rows, w1, b1, w2, b2,
                                                 norm_weight, norm_bias, activation, norm, eps,
                                                 merge, save);
  }
  Tensor z = first->z;
  Tensor y = linear(describe(first->y.size(0), w2, b2, kNoActivation, false), first->y, w2, b2).y;
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
      const Tensor a = merged_rows(gathered(x, rows), norm_weight, norm_bias, norm, eps, merge);
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
