// Attention on the CPU: what the host hands to the kernels, and their entry points.
//
// The query heads that share one key head are computed together: row r of a (sequence, key head)
// is query r / group of head (r % group) of the group. So keys and values are read once for the
// group, and a block of neighbouring rows spans few query positions, which keeps masks tight.
#pragma once

#include <cstdint>

#include "isa.h"
#include "types.h"

namespace mmkern {

// Element (batch, row, head, d) lies at data + batch * batch_stride + row * row_stride +
// head * head_stride + d. Packed tensors have one batch.
struct AttentionTensor {
  void* data;
  int64_t batch_stride, row_stride, head_stride;
};

// Queries q_begin ... of a batch entry, which see keys of k_begin ... of the same entry: one batch
// entry, or one packed segment.
struct AttentionSequence {
  int64_t batch, q_begin, k_begin;
  int32_t seqlen_q, seqlen_k;
};

// Windows and positions stay below this in magnitude, so that their sums fit an int32.
inline constexpr int32_t kUnlimitedWindow = 1 << 29;

struct AttentionArgs {
  DType dtype;
  int32_t heads_q, heads_k;
  int32_t head_dim, head_dim_v;
  int32_t window_left, window_right;  // kUnlimitedWindow: no limit
  float scale;                        // finite and not 0
  AttentionTensor q, k, v, out;
  float* lse;                    // [batch][head][lse_rows]
  int64_t lse_rows;              // queries of all sequences of a batch entry
  const bool* key_padding_mask;  // null: every key takes part
  int64_t mask_batch_stride, mask_key_stride;
};

// Rows [row_begin, row_end) of one (sequence, key head); row_begin is a multiple of 64.
struct AttentionTask {
  AttentionSequence sequence;
  int32_t head_k;
  int64_t row_begin, row_end;
};

// The keys [key_begin, key_end) for all rows of a (sequence, key head) that has few rows. Which
// keys a split has depends on the sequence alone, and so do the bits of the result.
struct AttentionSplit {
  AttentionSequence sequence;
  int32_t head_k;
  int64_t rows;
  int64_t key_begin, key_end;
  float* result;  // attention_decode_result() floats
};

// All splits of a (sequence, key head), their results `stride` floats apart; joining them
// overwrites these.
struct AttentionSplits {
  AttentionSequence sequence;
  int32_t head_k;
  int64_t rows, splits;
  float* first;
  int64_t stride;
};

// The backward walks over the queries once for each chunk of keys, whose gradients it keeps. A
// chunk adds its share of dq to the shares of others in a second step, in order: the bits depend on
// the length of a chunk, which depends on the head dims alone, and not on who computes it when.
struct AttentionBackwardArgs {
  AttentionArgs forward;
  AttentionTensor grad_out, dq, dk, dv;
  const float* grad_lse;  // laid out as lse; null: none
};

// Rows of a (sequence, key head) that are few: their keys are split in the forward, and in the
// backward come in long chunks.
inline constexpr int64_t kFewRows = 16;

// One chunk of the keys of a (sequence, key head).
struct AttentionChunk {
  AttentionSequence sequence;
  int32_t head_k;
  int64_t key_begin, key_end;
  float* dq_share;  // [rows][head_dim], before the scale; null: the only chunk, write dq
};

// Rows whose shares of dq are to be added up: `chunks` of them, `share_stride` floats apart.
struct AttentionShares {
  AttentionTask rows;
  const float* first;  // of row 0 of the (sequence, key head)
  int64_t share_stride, chunks;
};

}  // namespace mmkern

// Bytes of 64-byte-aligned scratch for tasks of at most `rows` rows and `keys` keys.
MMKERN_KERNEL(int64_t, attention_forward_scratch,
              (const AttentionArgs& args, int64_t rows, int64_t keys))
MMKERN_KERNEL(void, attention_forward,
              (const AttentionArgs& args, const AttentionTask& task, void* scratch))

// Bytes of scratch for splits of at most `keys` keys, and floats of the result of `rows` rows.
MMKERN_KERNEL(int64_t, attention_decode_scratch, (const AttentionArgs& args, int64_t keys))
MMKERN_KERNEL(int64_t, attention_decode_result, (const AttentionArgs& args, int64_t rows))
MMKERN_KERNEL(void, attention_decode,
              (const AttentionArgs& args, const AttentionSplit& split, void* scratch))
MMKERN_KERNEL(void, attention_combine, (const AttentionArgs& args, const AttentionSplits& splits))

// Bytes of scratch for a chunk of `keys` keys of a (sequence, key head) with `rows` rows.
MMKERN_KERNEL(int64_t, attention_backward_scratch,
              (const AttentionBackwardArgs& args, int64_t keys, int64_t rows))
MMKERN_KERNEL(void, attention_backward,
              (const AttentionBackwardArgs& args, const AttentionChunk& chunk, void* scratch))
MMKERN_KERNEL(void, attention_add_shares,
              (const AttentionBackwardArgs& args, const AttentionShares& shares))
