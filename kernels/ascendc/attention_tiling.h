// What the host tells the attention kernel, and those of its backward. Computed in
// csrc/ascendc/attention.cpp.
#pragma once

#include <cstdint>

namespace mmkern {

// Queries and at most keys of one block; a vector core has half its queries. The cube core takes
// the keys in pieces.
constexpr int32_t kQueries = 128, kMaxKeys = 512, kPieceKeys = 128;
constexpr int32_t kMaxHeadDim = 256;
// of scores, and of weights and products, in the rings between the cores: attention_item.h says why
constexpr int32_t kScoreSlots = 2, kSlots = 3;
// The largest score of a row that sees no key: times the scale it is lse, or lse is less, which the
// host makes -inf, so that no infinity arises on a core.
constexpr float kUnseen = -1.0e20f;

struct AttentionTiling {
  int64_t q_batch_stride;  // elements; packed: 0
  int64_t q_row_stride;
  int64_t q_head_stride;
  int64_t k_batch_stride;
  int64_t k_row_stride;
  int64_t k_head_stride;
  int64_t v_batch_stride;
  int64_t v_row_stride;
  int64_t v_head_stride;
  int64_t mask_stride;  // of a batch entry of the key padding mask
  int64_t ring_bytes;   // of a cube core: AttentionRing, in backward BackwardRing
  int32_t batch;        // packed: segments
  int32_t heads;
  int32_t heads_k;
  int32_t queries;  // longest, and the rows of lse; packed: of one segment
  int32_t keys;
  int32_t tokens;  // packed: all queries, a row of lse; otherwise queries
  int32_t dim;
  int32_t dim_v;
  int32_t left;  // window; -1: unlimited
  int32_t right;
  int32_t packed;
  int32_t masked;  // there is a key padding mask
  float scale;
  int32_t block_keys;  // a multiple of kPieceKeys, in backward of 16
};

}  // namespace mmkern
