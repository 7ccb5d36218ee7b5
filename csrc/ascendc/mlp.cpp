#include "linear.h"
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
  t.a_stride = a.size(0) == 1 ? t.k : a.stride(0);
  t.b_stride = b.size(0) == 1 ? t.k : b.stride(0);
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

}  // namespace

std::tuple<Tensor, Tensor> mlp(const Tensor& x, const OptionalTensor& rows, const Tensor& w1,
                               const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                               const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                               std::string_view activation, std::string_view norm, double eps,
                               int64_t merge, bool save) {
  const int64_t channels = x.dim() > 0 ? x.size(-1) : 0;
  const bool taken = is_half(x) && x.numel() > 0 && is_matrix(w1) && is_matrix(w2) &&
                     is_vector(b1, x) && is_vector(b2, x);
  Tensor a;
  if (taken) {
    // rows apart by one stride need no copy
    a = x.reshape({-1, channels});
    if (norm != "none") {
      a = std::get<1>(modulate(a, {}, {}, {}, {}, norm_weight, norm_bias, norm, eps));
    }
    if (rows.has_value()) a = a.index_select(0, *rows);
    if (merge > 1) a = a.reshape({-1, merge * merge * channels});
  }
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

}  // namespace mmkern::ascendc
