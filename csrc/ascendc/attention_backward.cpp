// Launches of attention's backward: what each query needs of out and lse, then dk and dv, then dq.
#include "attention.h"
#include "ops.h"

namespace mmkern::ascendc {
namespace {

int32_t multiple_of_16(int64_t n) { return static_cast<int32_t>(n / 16 * 16); }

// Blocks of at most `most` rows, alike.
int32_t block_of(int64_t rows, int64_t most) {
  const int64_t limit = multiple_of_16(most);
  return static_cast<int32_t>(align_up(ceil_div(rows, ceil_div(rows, limit)), 16));
}

// A launch for dk and dv (of_keys) or dq; its blocks and its ring.
struct Pass {
  AttentionBackwardTiling tiling;
  uint32_t blocks;
  Tensor ring;

  Pass(const AttentionBackwardTiling& shape, bool of_keys, const Tensor& like) : tiling(shape) {
    AttentionBackwardTiling& t = tiling;
    const int64_t width = align_up(t.dim, 16), both = width + align_up(t.dim_v, 16);
    const int64_t held = std::min<int64_t>(
        {kMaxHeld, kHeldElements / both, kSumElements / (of_keys ? both : width)});
    const int64_t moving = std::min<int64_t>(kMaxMoving, kMovingElements / both);
    t.block_queries = block_of(t.queries, of_keys ? moving : held);
    t.block_keys = block_of(t.keys, of_keys ? held : moving);
    const int32_t rows = of_keys ? t.block_keys : t.block_queries;
    t.piece = std::min<int32_t>(kMaxHeld, multiple_of_16(kPartElements / rows));
    const int64_t tile = int64_t{t.block_queries} * t.block_keys, kinds = of_keys ? 2 : 1;
    t.ring_bytes = tile * (kTileSlots * 2 * 4 + kSlots * kinds * 2) + kSlots * both * rows * 4;
    const int64_t items = int64_t{t.batch} * (of_keys ? t.heads_k : t.heads) *
                          ceil_div(of_keys ? t.keys : t.queries, rows);
    blocks = static_cast<uint32_t>(std::min<int64_t>(chip().cube_cores, items));
    ring = at::empty({blocks * t.ring_bytes}, like.options().dtype(at::kByte));
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& q, const Tensor& k,
    const Tensor& v, const Tensor& out, const Tensor& lse, const OptionalTensor& key_padding_mask,
    const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k, int64_t max_seqlen_q,
    int64_t max_seqlen_k, bool causal, int64_t window_left, int64_t window_right, double scale) {
  const bool packed = cu_seqlens_q.has_value(), masked = key_padding_mask.has_value();
  const auto fits = [&](const Tensor& t) { return is_attention_operand(t, packed ? 0 : 1); };
  const auto is_length = [](int64_t n) { return n > 0 && n < kMaxSeqlen; };
  const bool sizes = packed ? is_length(max_seqlen_q) && is_length(max_seqlen_k)
                            : is_length(q.size(1)) && is_length(k.size(1));
  // rows that overlap are not to be loaded one after the other
  const int64_t row_dim = packed ? 0 : 1;
  const bool apart = grad_out.size(row_dim) == 1 || grad_out.stride(row_dim) >= grad_out.size(-1);
  const Tensor grad = fits(grad_out) && apart ? grad_out : grad_out.contiguous();
  if (!is_half(q) || !sizes || !is_attention_scale(scale) || !fits(q) || !fits(k) || !fits(v) ||
      !fits(grad) || (masked && !has_unit_last_stride(*key_padding_mask))) {
    return reference<std::tuple<Tensor, Tensor, Tensor>>(
        "mmkern::attention_backward", grad_out, grad_lse, q, k, v, out, lse, key_padding_mask,
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, window_left, window_right,
        scale);
  }
  AttentionBackwardTiling t{describe_attention(q, k, v, key_padding_mask, cu_seqlens_q,
                                               max_seqlen_q, max_seqlen_k, causal, window_left,
                                               window_right, scale)};
  const AttentionStrides strides(grad, packed);
  t.grad_batch_stride = strides.batch;
  t.grad_row_stride = strides.row;
  t.grad_head_stride = strides.head;
  const bool bfloat16 = is_bfloat16(q);
  const Tensor rows = out.contiguous(), logs = lse.contiguous();
  const OptionalTensor grad_logs = contiguous_or_none(grad_lse);
  const Tensor stats = at::empty({2, lse.numel()}, logs.options());
  const auto vectors = static_cast<uint32_t>(chip().vector_cores);
  submit(
      {"attention_delta",
       q.device(),
       false,
       vectors,
       {input(grad), input(rows), input(logs), input(grad_logs), output(stats)}},
      [=](void* stream, uint8_t** p) { launch_attention_delta(bfloat16, vectors, stream, p, t); });
  const auto like = [](const Tensor& x) { return at::empty(x.sizes(), x.options()); };
  const Tensor dq = like(q), dk = like(k), dv = like(v);
  const OptionalTensor cu_q = contiguous_or_none(cu_seqlens_q),
                       cu_k = contiguous_or_none(cu_seqlens_k);
  std::vector<Buffer> inputs{
      input(q),    input(k),    input(v),    input(grad), input(key_padding_mask),
      input(cu_q), input(cu_k), input(stats)};
  for (const bool of_keys : {true, false}) {
    const Pass pass(t, of_keys, q);
    std::vector<Buffer> buffers = inputs;
    if (of_keys) {
      buffers.insert(buffers.end(), {output(dk), output(dv)});
    } else {
      buffers.push_back(output(dq));
    }
    buffers.push_back(workspace(pass.ring));
    submit({of_keys ? "attention_dkdv" : "attention_dq", q.device(), true, pass.blocks, buffers},
           [=, blocks = pass.blocks, tiling = pass.tiling](void* stream, uint8_t** p) {
             if (of_keys) {
               launch_attention_dkdv(bfloat16, blocks, stream, p, tiling);
             } else {
               launch_attention_dq(bfloat16, blocks, stream, p, tiling);
             }
           });
  }
  return {dq, dk, dv};
}

}  // namespace mmkern::ascendc
