#include <limits>

#include "host.h"
#include "ops.h"

namespace mmkern::ascendc {
namespace {

// Rows, heads and dimensions of (B, S, H, D) or packed (T, H, D).
bool fits(const Tensor& t, int64_t row_dim) {
  return t.numel() > 0 && has_unit_last_stride(t) && t.size(-1) <= kMaxHeadDim &&
         (t.size(row_dim) == 1 || is_row_stride(t.stride(row_dim)));
}

int64_t row_stride(const Tensor& t, int64_t row_dim) {
  return t.size(row_dim) == 1 ? t.size(-1) : t.stride(row_dim);
}

}  // namespace

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const OptionalTensor& key_padding_mask,
                                     const OptionalTensor& cu_seqlens_q,
                                     const OptionalTensor& cu_seqlens_k, int64_t max_seqlen_q,
                                     int64_t max_seqlen_k, bool causal, int64_t window_left,
                                     int64_t window_right, double scale) {
  const bool packed = cu_seqlens_q.has_value(), masked = key_padding_mask.has_value();
  const int64_t row_dim = packed ? 0 : 1;
  const bool sizes = !packed || (max_seqlen_q > 0 && max_seqlen_q < (int64_t{1} << 29));
  // what is not seen gets a weight of 0 through a score that is far below others, scaled
  const bool scales = scale >= 0x1p-20 && scale <= 0x1p20;
  if (!is_half(q) || !sizes || !scales || !fits(q, row_dim) || !fits(k, row_dim) ||
      !fits(v, row_dim) || (masked && !has_unit_last_stride(*key_padding_mask))) {
    return reference<std::tuple<Tensor, Tensor>>(
        "mmkern::attention", q, k, v, key_padding_mask, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, causal, window_left, window_right, scale);
  }
  AttentionTiling t{};
  t.packed = packed;
  t.masked = masked;
  t.heads = static_cast<int32_t>(q.size(-2));
  t.heads_k = static_cast<int32_t>(k.size(-2));
  t.dim = static_cast<int32_t>(q.size(-1));
  t.dim_v = static_cast<int32_t>(v.size(-1));
  t.batch = static_cast<int32_t>(packed ? cu_seqlens_q->size(0) - 1 : q.size(0));
  t.tokens = static_cast<int32_t>(q.size(row_dim));
  t.queries = static_cast<int32_t>(packed ? std::min(max_seqlen_q, q.size(0)) : q.size(1));
  t.keys = static_cast<int32_t>(packed ? max_seqlen_k : k.size(1));
  const auto strides = [&](const Tensor& x, int64_t& batch, int64_t& row, int64_t& head) {
    batch = packed ? 0 : x.stride(0);
    row = row_stride(x, row_dim);
    head = x.stride(-2);
  };
  strides(q, t.q_batch_stride, t.q_row_stride, t.q_head_stride);
  strides(k, t.k_batch_stride, t.k_row_stride, t.k_head_stride);
  strides(v, t.v_batch_stride, t.v_row_stride, t.v_head_stride);
  t.mask_stride = masked ? key_padding_mask->stride(0) : 0;
  const auto limit = [](int64_t n) {
    return static_cast<int32_t>(n < 0 ? -1 : std::min<int64_t>(n, 1 << 29));
  };
  t.left = limit(window_left);
  t.right = causal ? 0 : limit(window_right);
  t.scale = static_cast<float>(scale);
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
  const auto dense = [](const OptionalTensor& c) {
    return c.has_value() ? OptionalTensor(c->contiguous()) : c;
  };
  const OptionalTensor cu_q = dense(cu_seqlens_q), cu_k = dense(cu_seqlens_k);
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
