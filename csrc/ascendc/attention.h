// What attention's forward and backward ask of their tensors.
#pragma once

#include "host.h"

namespace mmkern::ascendc {

// (B, S, H, D) or packed (T, H, D), the rows along `row_dim`, that the kernels can load.
inline bool is_attention_operand(const Tensor& t, int64_t row_dim) {
  return t.numel() > 0 && has_unit_last_stride(t) && t.size(-1) <= kMaxHeadDim &&
         (t.size(row_dim) == 1 || is_row_stride(t.stride(row_dim)));
}

struct AttentionStrides {
  int64_t batch;  // packed: 0
  int64_t row;
  int64_t head;

  AttentionStrides(const Tensor& t, bool packed)
      : batch(packed ? 0 : t.stride(0)),
        row(t.size(packed ? 0 : 1) == 1 ? t.size(-1) : t.stride(packed ? 0 : 1)),
        head(t.stride(-2)) {}
};

// Positions and windows fit an int32 with room to add them.
constexpr int64_t kMaxSeqlen = int64_t{1} << 29;
inline int32_t window_limit(int64_t n) {
  return static_cast<int32_t>(n < 0 ? -1 : std::min(n, kMaxSeqlen));
}

// What is not seen gets a weight of 0 through a score that is far below others, scaled.
inline bool is_attention_scale(double scale) { return scale >= 0x1p-20 && scale <= 0x1p20; }

// The problem; how it is cut into blocks is not chosen yet.
inline AttentionTiling describe_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                          const OptionalTensor& key_padding_mask,
                                          const OptionalTensor& cu_seqlens_q, int64_t max_seqlen_q,
                                          int64_t max_seqlen_k, bool causal, int64_t window_left,
                                          int64_t window_right, double scale) {
  const bool packed = cu_seqlens_q.has_value(), masked = key_padding_mask.has_value();
  const AttentionStrides q_strides(q, packed), k_strides(k, packed), v_strides(v, packed);
  AttentionTiling t{};
  t.q_batch_stride = q_strides.batch;
  t.q_row_stride = q_strides.row;
  t.q_head_stride = q_strides.head;
  t.k_batch_stride = k_strides.batch;
  t.k_row_stride = k_strides.row;
  t.k_head_stride = k_strides.head;
  t.v_batch_stride = v_strides.batch;
  t.v_row_stride = v_strides.row;
  t.v_head_stride = v_strides.head;
  t.mask_stride = masked ? key_padding_mask->stride(0) : 0;
  t.packed = packed;
  t.masked = masked;
  t.heads = static_cast<int32_t>(q.size(-2));
  t.heads_k = static_cast<int32_t>(k.size(-2));
  t.dim = static_cast<int32_t>(q.size(-1));
  t.dim_v = static_cast<int32_t>(v.size(-1));
  t.batch = static_cast<int32_t>(packed ? cu_seqlens_q->size(0) - 1 : q.size(0));
  t.tokens = static_cast<int32_t>(q.size(packed ? 0 : 1));
  t.queries = static_cast<int32_t>(packed ? std::min(max_seqlen_q, q.size(0)) : q.size(1));
  t.keys = static_cast<int32_t>(packed ? std::min(max_seqlen_k, k.size(0)) : k.size(1));
  t.left = window_limit(window_left);
  t.right = causal ? 0 : window_limit(window_right);
  t.scale = static_cast<float>(scale);
  return t;
}

inline OptionalTensor contiguous_or_none(const OptionalTensor& t) {
  return t.has_value() ? OptionalTensor(t->contiguous()) : t;
}

}  // namespace mmkern::ascendc
