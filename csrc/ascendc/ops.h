// The raw ops on the AscendC kernels, with the arguments of mmkern/ops.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace mmkern::ascendc {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using SevenTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

std::tuple<Tensor, Tensor> modulate(const Tensor& x, const OptionalTensor& branch,
                                    const OptionalTensor& gate, const OptionalTensor& shift,
                                    const OptionalTensor& scale, const OptionalTensor& weight,
                                    const OptionalTensor& bias, std::string_view norm, double eps);
SevenTensors modulate_backward(const OptionalTensor& grad_h, const OptionalTensor& grad_y,
                               const Tensor& h, const OptionalTensor& branch,
                               const OptionalTensor& gate, const OptionalTensor& shift,
                               const OptionalTensor& scale, const OptionalTensor& weight,
                               const OptionalTensor& bias, std::string_view norm, double eps,
                               std::array<bool, 7> mask);
std::tuple<Tensor, Tensor> mlp(const Tensor& x, const OptionalTensor& rows, const Tensor& w1,
                               const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                               const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                               std::string_view activation, std::string_view norm, double eps,
                               int64_t merge, bool save);
SevenTensors mlp_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& rows,
                          const Tensor& w1, const Tensor& w2, const OptionalTensor& norm_weight,
                          const OptionalTensor& norm_bias, const Tensor& z,
                          std::string_view activation, std::string_view norm, double eps,
                          int64_t merge, std::array<bool, 7> mask);
Tensor patch_embed(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& pos_embed);
FourTensors patch_embed_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                 const OptionalTensor& pos_embed, std::array<bool, 4> mask);
std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const OptionalTensor& key_padding_mask,
                                     const OptionalTensor& cu_seqlens_q,
                                     const OptionalTensor& cu_seqlens_k, int64_t max_seqlen_q,
                                     int64_t max_seqlen_k, bool causal, int64_t window_left,
                                     int64_t window_right, double scale);

std::tuple<Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& q, const Tensor& k,
    const Tensor& v, const Tensor& out, const Tensor& lse, const OptionalTensor& key_padding_mask,
    const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k, int64_t max_seqlen_q,
    int64_t max_seqlen_k, bool causal, int64_t window_left, int64_t window_right, double scale);

}  // namespace mmkern::ascendc
