// The work of attention: an item is one block of queries of one head. Cube and vector cores go
// through the same items and the same blocks of keys.
#pragma once

#include "attention_tiling.h"
#include "shim.h"

namespace mmkern {

// Both go through steps, a step for each block of keys of each item. In step t the cube core makes
// the scores t and, of weights that the vector cores made of older scores, the product t - 2; the
// vector cores make the weights t and add the product t - 2. So each has work while it waits for
// the other.
//
// Flags between a cube core and its two vector cores. No flag says that a slot of a ring is free:
// before scores t overwrite scores t - 2 the cube core has waited for the weights t - 2; weights t
// follow on the scores t, before which the weights t - 3 were read; and before the product t
// overwrites t - 3 the cube core has waited for the weights t, before which that was read.
constexpr uint16_t kScoresReady = 0, kWeightsReady = 1, kProductReady = 2;

struct AttentionItem {
  int32_t batch;
  int32_t head;
  int32_t first;    // query, within its sequence
  int32_t rows;     // <= 0: beyond the end of a packed segment
  int32_t queries;  // of the sequence
  int32_t keys;
  int64_t query_token;  // where the sequence begins, packed
  int64_t key_token;
  int32_t begin;  // keys that any of the rows sees
  int32_t end;

  __aicore__ static int64_t Count(const AttentionTiling& t) {
    return static_cast<int64_t>(t.batch) * t.heads * CeilDiv(t.queries, kQueries);
  }

  __aicore__ AttentionItem() {}
  __aicore__ AttentionItem(const AttentionTiling& t, Address cu_q, Address cu_k, int64_t index) {
    int32_t blocks = CeilDiv(t.queries, kQueries);
    first = static_cast<int32_t>(index % blocks) * kQueries;
    head = static_cast<int32_t>(index / blocks % t.heads);
    batch = static_cast<int32_t>(index / blocks / t.heads);
    queries = t.queries;
    keys = t.keys;
    query_token = 0;
    key_token = 0;
    if (t.packed) {
      GlobalTensor<int32_t> q, k;
      q.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(cu_q));
      k.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(cu_k));
      query_token = q.GetValue(batch);
      key_token = k.GetValue(batch);
      queries = q.GetValue(batch + 1) - static_cast<int32_t>(query_token);
      keys = k.GetValue(batch + 1) - static_cast<int32_t>(key_token);
    }
    rows = Min(kQueries, queries - first);
    begin = t.left < 0 ? 0 : Max(0, First(t, 0));
    end = t.right < 0 ? keys : Min(keys, Last(t, rows - 1) + 1);
    if (rows <= 0 || end < begin) end = begin;
  }

  // The first and the last key that row r may see, were there keys beyond both ends.
  __aicore__ int32_t First(const AttentionTiling& t, int32_t r) const {
    return first + r + keys - queries - t.left;
  }
  __aicore__ int32_t Last(const AttentionTiling& t, int32_t r) const {
    return first + r + keys - queries + t.right;
  }
  __aicore__ int32_t Blocks(const AttentionTiling& t) const {
    return CeilDiv(end - begin, t.block_keys);
  }
  __aicore__ int32_t BlockKeys(const AttentionTiling& t, int32_t block) const {
    return Min(t.block_keys, end - begin - block * t.block_keys);
  }
};

// What lies in global memory between the cores: scores and products in float32, weights in the
// inputs' type.
struct AttentionRing {
  Address base;
  int32_t keys;     // elements of a row of scores and weights
  int32_t product;  // of a row of the product

  __aicore__ AttentionRing(Address ring, const AttentionTiling& t, int32_t core)
      : keys(t.block_keys), product(AlignUp(t.dim_v, 16)) {
    base = ring + core * t.ring_bytes;
  }
  __aicore__ GlobalTensor<float> Scores(int64_t step) const {
    return At<float>(step % kScoreSlots * kQueries * keys * 4);
  }
  template <class T>
  __aicore__ GlobalTensor<T> Weights(int64_t step) const {
    return At<T>((kScoreSlots * 4 + step % kSlots * 2) * kQueries * keys);
  }
  __aicore__ GlobalTensor<float> Product(int64_t step) const {
    return At<float>((kScoreSlots * 4 + kSlots * 2) * kQueries * keys +
                     step % kSlots * kQueries * product * 4);
  }

 private:
  template <class T>
  __aicore__ GlobalTensor<T> At(int64_t bytes) const {
    GlobalTensor<T> tensor;
    tensor.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(base + bytes));
    return tensor;
  }
};

}  // namespace mmkern
