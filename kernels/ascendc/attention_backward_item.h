// The work of attention's backward. An item is one block of keys of one head of theirs, past which
// the queries of its group go, for dk and dv; or one block of queries of one head, past which the
// keys go, for dq. A step is a tile of scores: some queries and some keys. Cube and vector cores go
// through the same steps.
#pragma once

#include "attention_backward_tiling.h"
#include "shim.h"

namespace mmkern {

// In step t the cube core makes the scores and the gradients of the weights t and, of the weights
// that the vector cores made of older ones, the products t - 2, which add up in L0C. The vector
// cores make the weights t; of the last step of an item, two steps later, they round the sums.
//
// No flag says that a slot of a ring is free. Before the cube core makes the scores t it has waited
// for the weights t - 3, for which the scores t - 3 were read; the weights t follow on the scores
// t, before which the weights t - 3 were multiplied; and before the sums of an item overwrite those
// of the third item before, which ended at a step s, it has waited for weights of a later step than
// s + 2, before which those were read.
constexpr uint16_t kTileReady = 0, kWeightReady = 1, kSumsReady = 2;

struct BackwardStep {
  int32_t batch;
  int32_t head;  // of the queries
  int32_t head_k;
  int32_t query;  // the first, within its sequence
  int32_t m;      // queries
  int32_t key;
  int32_t n;
  int32_t shift;        // query i stands at key i + shift
  int64_t query_token;  // where the sequence begins, packed
  int64_t key_token;
  int64_t item;  // how many came before on this core
  bool first;    // of its item
  bool last;

  // An item that nothing goes past has one step without scores.
  __aicore__ bool Empty() const { return m <= 0 || n <= 0; }
};

// The steps of one core.
template <bool kKeys>  // for dk and dv
class BackwardSteps {
 public:
  __aicore__ BackwardSteps(const AttentionBackwardTiling& t, Address cu_q, Address cu_k,
                           int64_t core)
      : t_(t), index_(core) {
    cu_q_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(cu_q));
    cu_k_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(cu_k));
    group_ = t.heads / t.heads_k;
  }

  // False after the last one.
  __aicore__ bool Next(BackwardStep& s) {
    if (at_ == count_ && !Open()) return false;
    int32_t per_head = Max(CeilDiv(end_ - begin_, Moving()), 1);
    int32_t moved = begin_ + at_ % per_head * Moving(), rest = Min(Moving(), end_ - moved);
    s = item_;
    if (kKeys) {
      s.head += at_ / per_head;
      s.query = moved;
      s.m = rest;
    } else {
      s.key = moved;
      s.n = rest;
    }
    s.first = at_ == 0;
    s.last = at_ == count_ - 1;
    ++at_;
    return true;
  }

 private:
  __aicore__ int32_t Held() const { return kKeys ? t_.block_keys : t_.block_queries; }
  __aicore__ int32_t Moving() const { return kKeys ? t_.block_queries : t_.block_keys; }

  // The next item of this core that lies within its sequence.
  __aicore__ bool Open() {
    int32_t heads = kKeys ? t_.heads_k : t_.heads;
    int32_t blocks = CeilDiv(kKeys ? t_.keys : t_.queries, Held());
    int64_t items = static_cast<int64_t>(t_.batch) * heads * blocks;
    while (index_ < items) {
      int32_t block = static_cast<int32_t>(index_ % blocks);
      int32_t head = static_cast<int32_t>(index_ / blocks % heads);
      item_.batch = static_cast<int32_t>(index_ / blocks / heads);
      index_ += AscendC::GetBlockNum();
      item_.head = kKeys ? head * group_ : head;
      item_.head_k = kKeys ? head : head / group_;
      if (Place(block * Held())) return true;
    }
    return false;
  }

  // Sets out the item at row `first` of its sequence, if it is within it.
  __aicore__ bool Place(int32_t first) {
    int32_t queries = t_.queries, keys = t_.keys;
    item_.query_token = 0;
    item_.key_token = 0;
    if (t_.packed) {
      item_.query_token = cu_q_.GetValue(item_.batch);
      item_.key_token = cu_k_.GetValue(item_.batch);
      queries = cu_q_.GetValue(item_.batch + 1) - static_cast<int32_t>(item_.query_token);
      keys = cu_k_.GetValue(item_.batch + 1) - static_cast<int32_t>(item_.key_token);
    }
    int32_t rows = Min(Held(), (kKeys ? keys : queries) - first);
    if (rows <= 0) return false;
    item_.shift = keys - queries;
    // what of the others sees any of the rows, or is seen
    int32_t at = kKeys ? first - item_.shift : first + item_.shift;
    int32_t before = kKeys ? t_.right : t_.left, behind = kKeys ? t_.left : t_.right;
    int32_t all = kKeys ? queries : keys;
    begin_ = before < 0 ? 0 : Max(0, at - before);
    end_ = behind < 0 ? all : Min(all, at + rows + behind);
    if (end_ < begin_) end_ = begin_;
    if (kKeys) {
      item_.key = first;
      item_.n = rows;
    } else {
      item_.query = first;
      item_.m = rows;
    }
    int32_t blocks = CeilDiv(end_ - begin_, Moving());
    count_ = Max(blocks * (kKeys ? group_ : 1), 1);
    at_ = 0;
    if (blocks) item_.item = items_++;
    return true;
  }

  AttentionBackwardTiling t_;
  GlobalTensor<int32_t> cu_q_, cu_k_;
  BackwardStep item_;
  int64_t index_;
  int64_t items_ = 0;
  int32_t group_;
  int32_t begin_ = 0, end_ = 0;  // of what goes past the item
  int32_t at_ = 0, count_ = 0;   // steps
};

// What lies in global memory between the cores, of each kind: scores (kind 0) and the gradients of
// the weights (1) in float32; the gradients of the scores (0) and for dv the weights (1) in the
// inputs' type; the sums for dq or dk (0) and dv (1) in float32.
template <bool kKeys>
struct BackwardRing {
  static constexpr int32_t kKinds = kKeys ? 2 : 1;  // of weights, and of sums

  Address base;
  int64_t tile;      // elements of a tile of scores
  int32_t keys;      // of a row of it
  int32_t held;      // rows of the sums
  int32_t width[2];  // elements of a row of the sums

  __aicore__ BackwardRing(Address ring, const AttentionBackwardTiling& t, int64_t core)
      : base(ring + core * t.ring_bytes), keys(t.block_keys) {
    tile = static_cast<int64_t>(t.block_queries) * t.block_keys;
    held = kKeys ? t.block_keys : t.block_queries;
    width[0] = AlignUp(t.dim, 16);
    width[1] = AlignUp(t.dim_v, 16);
  }
  __aicore__ GlobalTensor<float> Scores(int64_t step, int32_t kind) const {
    return At<float>((step % kTileSlots * 2 + kind) * tile * 4);
  }
  template <class T>
  __aicore__ GlobalTensor<T> Weights(int64_t step, int32_t kind) const {
    return At<T>(kTileSlots * 2 * tile * 4 + (step % kSlots * kKinds + kind) * tile * 2);
  }
  __aicore__ GlobalTensor<float> Sums(int64_t item, int32_t kind) const {
    int64_t begin = (kTileSlots * 2 * 4 + kSlots * kKinds * 2) * tile;
    return At<float>(begin + (item % kSlots * (width[0] + width[1]) + kind * width[0]) * held * 4);
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
