#include "attention.h"

#include <limits>

#include "ops.h"

namespace mmkern::ascendc {
std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const OptionalTensor& key_padding_mask,
                                     const OptionalTensor& cu_seqlens_q,
                                     const OptionalTensor& cu_seqlens_k, int64_t max_seqlen_q,
                                     int64_t max_seqlen_k, bool causal, int64_t window_left,
                                     int64_t window_right, double scale) {
  const bool packed = cu_seqlens_q.has_value(), masked = key_padding_mask.has_value();
  const bool sizes = packed ? max_seqlen_q > 0 && max_seqlen_q < kMaxSeqlen
                            : q.size(1) < kMaxSeqlen && k.size(1) < kMaxSeqlen;
  const auto fits = [&](const Tensor& t) { return is_attention_operand(t, packed ? 0 : 1); };
  if (!is_half(q) || !sizes || !is_attention_scale(scale) || !fits(q) || !fits(k) || !fits(v) ||
      (masked && !has_unit_last_stride(*key_padding_mask))) {
    return reference<std::tuple<Tensor, Tensor>>(
        "mmkern::attention", q, k, v, key_padding_mask, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, causal, window_left, window_right, scale);
  }
  AttentionTiling t = describe_attention(q, k, v, key_padding_mask, cu_seqlens_q, max_seqlen_q,
                                         max_seqlen_k, causal, window_left, window_right, scale);
  // blocks alike
  const int64_t keys = std::max<int64_t>(t.keys, 1);
  t.block_keys =
      static_cast<int32_t>(align_up(ceil_div(keys, ceil_div(keys, kMaxKeys)), kPieceKeys));
  t.ring_bytes = int64_t{kQueries} * (t.block_keys * (kScoreSlots * 4 + kSlots * 2) +
                                      align_up(t.dim_v, 16) * kSlots * 4);

  std::vector<int64_t> shape = q.sizes().vec();
  shape.back() = t.dim_v;
  const Tensor out = at::empty(shape, q.options());
  const auto wide = q.options().dtype(at::kFloat);
  Tensor lse =
      packed ? at::empty({t.heads, t.tokens}, wide) : at::empty({t.batch, t.heads, t.tokens}, wide);
  const int64_t items = int64_t{t.batch} * t.heads * ceil_div(t.queries, kQueries);
  const auto blocks = static_cast<uint32_t>(std::min<int64_t>(chip().cube_cores, items));
  const Tensor ring = at::empty({blocks * t.ring_bytes}, q.options().dtype(at::kByte));
  const OptionalTensor cu_q = contiguous_or_none(cu_seqlens_q),
                       cu_k = contiguous_or_none(cu_seqlens_k);
  const bool bfloat16 = is_bfloat16(q);
  submit({"attention",
          q.device(),
          true,
          blocks,
          {input(q), input(k), input(v), input(key_padding_mask), input(cu_q), input(cu_k),
           output(out), output(lse), workspace(ring)}},
         [=](void* stream, uint8_t** p) { launch_attention(bfloat16, blocks, stream, p, t); });
  if (packed || masked || t.left >= 0 || t.right >= 0) {
    lse.masked_fill_(lse < kUnseen * t.scale / 2, -std::numeric_limits<float>::infinity());
  }
  return {out, lse};
}

}  // namespace mmkern::ascendc
