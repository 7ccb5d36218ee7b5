// The cube core's half of attention's backward: scores = q k^T and weights' gradients = grad v^T of
// a tile, in parts that each fill a slot of L0C; and the products with what the vector cores made
// of an older tile, which add up in the rest of L0C until all has gone past the block.
#pragma once

#include "attention_backward_item.h"
#include "attention_loads.h"

namespace mmkern {

template <class T, bool kKeys>
class AttentionBackwardCube {
 public:
  __aicore__ inline AttentionBackwardCube(Address q, Address k, Address v, Address grad,
                                          Address ring, const AttentionBackwardTiling& tiling)
      : t_(tiling), ring_(ring, tiling, AscendC::GetBlockIdx()) {
    q_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(q));
    k_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(k));
    v_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(v));
    grad_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(grad));
    pipe_.InitBuffer(held_l1_, 2 * kSlotHeld * 2);
    pipe_.InitBuffer(moving_l1_, kMovingSlots * kMovingElements * 2);
    pipe_.InitBuffer(weights_l1_, 2 * kSlotL0 * 2);
    pipe_.InitBuffer(l0a_, 2 * kSlotL0 * 2);
    pipe_.InitBuffer(l0b_, 2 * kSlotL0 * 2);
    pipe_.InitBuffer(l0c_, (kSumElements + 2 * kPartElements) * 4);
  }

  __aicore__ inline void Run(Address cu_q, Address cu_k) {
    for (int32_t i = 0; i < 2; ++i) {
      AscendC::SetFlag<HardEvent::MTE1_MTE2>(kHeld + i);
      AscendC::SetFlag<HardEvent::MTE1_MTE2>(kWeights + i);
      AscendC::SetFlag<HardEvent::M_MTE1>(i);
      AscendC::SetFlag<HardEvent::FIX_M>(i);
      AscendC::SetFlag<HardEvent::FIX_M>(kSums + i);
    }
    BackwardSteps<kKeys> steps(t_, cu_q, cu_k, AscendC::GetBlockIdx());
    bool more = Load(steps);
    for (int64_t step = 0; step < loaded_ + (loaded_ ? 2 : 0); ++step) {
      if (step >= kMovingSlots - 1) WaitForSlotOf(step - (kMovingSlots - 1));
      more = more && Load(steps);
      Step(step);
    }
    for (int64_t i = loaded_ < kLeft ? 0 : loaded_ - kLeft; i < loaded_; ++i) WaitForSlotOf(i);
    for (int32_t i = 0; i < 2; ++i) {
      AscendC::WaitFlag<HardEvent::MTE1_MTE2>(kHeld + i);
      AscendC::WaitFlag<HardEvent::MTE1_MTE2>(kWeights + i);
      AscendC::WaitFlag<HardEvent::M_MTE1>(i);
      AscendC::WaitFlag<HardEvent::FIX_M>(i);
      AscendC::WaitFlag<HardEvent::FIX_M>(kSums + i);
    }
  }

 private:
  // Flags of L1, by what is free again: slots of what goes past, of which at most two are waited
  // for at a time; those of blocks; those of weights. Of L0C: the parts of scores are 0 and 1.
  static constexpr int32_t kMoving = 0, kHeld = 2, kWeights = 4, kSums = 2;
  // A tile is loaded while the one before is scored and the third before multiplied; for dk and dv,
  // where blocks are small, it need not wait for that. Products of how many are left at the end.
  static constexpr int32_t kMovingSlots = kKeys ? 5 : 4, kLeft = kMovingSlots - 3;
  static constexpr int32_t kDepth = 128, kColumns = 128;  // of one multiplication
  // Depth of a product of weights: for dq smaller, so that scores are stored in between.
  static constexpr int32_t kUnitDepth = kKeys ? kDepth : kDepth / 2;
  static constexpr int32_t kSlotL0 = kMaxHeld * kDepth;
  // What is held for dk and dv has sums of its size.
  static constexpr int32_t kSlotHeld = kKeys ? kSumElements : kHeldElements;
  static constexpr int32_t kKinds = BackwardRing<kKeys>::kKinds;

  __aicore__ inline void WaitForSlotOf(int64_t step) {
    AscendC::WaitFlag<HardEvent::MTE1_MTE2>(kMoving + step % 2);
  }

  // Loads what the next step needs; false if there is none.
  __aicore__ inline bool Load(BackwardSteps<kKeys>& steps) {
    BackwardStep& s = steps_[loaded_ % kMovingSlots];
    do {
      if (!steps.Next(s)) return false;
    } while (s.Empty());
    if (s.first) AscendC::WaitFlag<HardEvent::MTE1_MTE2>(kHeld + s.item % 2);
    if (s.first || kKeys) {
      LoadRowsOfA<T>(Queries(loaded_, 0),
                     q_[Query(s, t_.q_batch_stride, t_.q_row_stride, t_.q_head_stride)], s.m,
                     t_.dim, t_.q_row_stride);
      LoadRowsOfA<T>(Queries(loaded_, 1),
                     grad_[Query(s, t_.grad_batch_stride, t_.grad_row_stride, t_.grad_head_stride)],
                     s.m, t_.dim_v, t_.grad_row_stride);
    }
    if (s.first || !kKeys) {
      int32_t pitch = AlignUp(s.n, 16);
      LoadColumns<T>(Keys(loaded_, 0),
                     k_[Key(s, t_.k_batch_stride, t_.k_row_stride, t_.k_head_stride)], s.n, t_.dim,
                     t_.k_row_stride, pitch);
      LoadColumns<T>(Keys(loaded_, 1),
                     v_[Key(s, t_.v_batch_stride, t_.v_row_stride, t_.v_head_stride)], s.n,
                     t_.dim_v, t_.v_row_stride, pitch);
    }
    AscendC::SetFlag<HardEvent::MTE2_MTE1>(loaded_ % 2);
    ++loaded_;
    return true;
  }

  __aicore__ inline int64_t Query(const BackwardStep& s, int64_t batch, int64_t row,
                                  int64_t head) const {
    return s.batch * batch + (s.query_token + s.query) * row + s.head * head;
  }
  __aicore__ inline int64_t Key(const BackwardStep& s, int64_t batch, int64_t row,
                                int64_t head) const {
    return s.batch * batch + (s.key_token + s.key) * row + s.head_k * head;
  }

  // In L1, of kind 0 q and k, of kind 1 the gradient and v.
  __aicore__ inline LocalTensor<T> Queries(int64_t step, int32_t kind) {
    return kKeys ? Moving(step, kind) : Held(step, kind);
  }
  __aicore__ inline LocalTensor<T> Keys(int64_t step, int32_t kind) {
    return kKeys ? Held(step, kind) : Moving(step, kind);
  }
  __aicore__ inline LocalTensor<T> Moving(int64_t step, int32_t kind) {
    int32_t at = kind * (kKeys ? t_.block_queries : t_.block_keys) * AlignUp(t_.dim, 16);
    return moving_l1_.template Get<T>()[step % kMovingSlots * kMovingElements + at];
  }
  __aicore__ inline LocalTensor<T> Held(int64_t step, int32_t kind) {
    int32_t at = kind * (kKeys ? t_.block_keys : t_.block_queries) * AlignUp(t_.dim, 16);
    return held_l1_.template Get<T>()[steps_[step % kMovingSlots].item % 2 * kSlotHeld + at];
  }

  // The scores of one step, and in turns the products of the last but one.
  __aicore__ inline void Step(int64_t step) {
    int32_t parts = 0, units = 0;
    if (step < loaded_) {
      parts = Parts(steps_[step % kMovingSlots]);
      AscendC::WaitFlag<HardEvent::MTE2_MTE1>(step % 2);
    }
    if (step >= 2) units = Units(steps_[(step - 2) % kMovingSlots]);
    // A part is stored while the next one is multiplied, and the weights come meanwhile.
    for (int32_t i = 0; i < Max(parts, units + 1); ++i) {
      if (i < parts) Scores(step, i);
      if (i == parts - 1) {
        const BackwardStep& s = steps_[step % kMovingSlots];
        if (s.last) AscendC::SetFlag<HardEvent::MTE1_MTE2>(kHeld + s.item % 2);
        AscendC::CrossCoreSetFlag<2, PIPE_FIX>(kTileReady);
      }
      if (i == 1 && units > 0) AscendC::CrossCoreWaitFlag(kWeightReady);
      if (i > 0 && i <= units) AddProduct(step - 2, i - 1);
    }
  }

  // Parts of the scores of a step, of either kind in turn.
  __aicore__ inline int32_t Parts(const BackwardStep& s) const {
    return 2 * CeilDiv(kKeys ? s.m : s.n, t_.piece);
  }

  __aicore__ inline void Scores(int64_t step, int32_t part) {
    const BackwardStep& s = steps_[step % kMovingSlots];
    int32_t kind = part % 2, slot = part_slot_, moved = part / 2 * t_.piece;
    int32_t row = kKeys ? moved : 0, column = kKeys ? 0 : moved;
    int32_t m = Min(kKeys ? t_.piece : s.m, s.m - row);
    int32_t n = Min(kKeys ? s.n : t_.piece, s.n - column);
    int32_t dim = kind ? t_.dim_v : t_.dim, down = AlignUp(s.m, 16), across = AlignUp(s.n, 16);
    LocalTensor<T> queries = Queries(step, kind)[row * 16], keys = Keys(step, kind)[column * 16];
    for (int32_t d = 0; d < dim; d += kDepth) {
      int32_t depth = Min(kDepth, dim - d);
      AscendC::WaitFlag<HardEvent::M_MTE1>(l0_slot_);
      LoadL0A<T>(L0A(), queries[d * down], Max(m, 2), depth, down);
      LoadB<T>(L0B(), keys[d * across], n, depth, across);
      Loaded();
      if (d == 0) AscendC::WaitFlag<HardEvent::FIX_M>(slot);
      Multiply(Part(slot), m, n, depth, d == 0);
    }
    Store(ring_.Scores(step, kind)[row * ring_.keys + column], Part(slot), slot, m, n, ring_.keys);
    part_slot_ ^= 1;
  }

  // Units of the products of a step: some rows of what went past, of either kind in turn.
  __aicore__ inline int32_t Units(const BackwardStep& s) const {
    return kKinds * CeilDiv(kKeys ? s.m : s.n, kUnitDepth);
  }

  // dk += ds^T q and dv += weights^T grad; or dq += ds k
  __aicore__ inline void AddProduct(int64_t step, int32_t unit) {
    const BackwardStep& s = steps_[step % kMovingSlots];
    int32_t kind = unit % kKinds, moved = unit / kKinds * kUnitDepth, all = kKeys ? s.m : s.n;
    int32_t depth = Min(kUnitDepth, all - moved), pitch = AlignUp(all, 16);
    int32_t held = kKeys ? s.n : s.m, width = ring_.width[kind];
    LocalTensor<T> w = weights_l1_.template Get<T>()[weights_slot_ * kSlotL0];
    AscendC::WaitFlag<HardEvent::MTE1_MTE2>(kWeights + weights_slot_);
    if (kKeys) {
      LoadColumns<T>(w, ring_.template Weights<T>(step, kind)[moved * ring_.keys], depth, held,
                     ring_.keys, AlignUp(depth, 16));
    } else {
      LoadRowsOfA<T>(w, ring_.template Weights<T>(step, kind)[moved], held, depth, ring_.keys);
    }
    AscendC::SetFlag<HardEvent::MTE2_MTE1>(2 + weights_slot_);
    AscendC::WaitFlag<HardEvent::MTE2_MTE1>(2 + weights_slot_);
    for (int32_t c = 0; c < width; c += kColumns) {
      int32_t columns = Min(kColumns, width - c);
      AscendC::WaitFlag<HardEvent::M_MTE1>(l0_slot_);
      if (kKeys) {
        LoadTurnedA<T>(L0A(), w, held, depth, AlignUp(depth, 16));
      } else {
        LoadL0A<T>(L0A(), w, Max(held, 2), depth, AlignUp(held, 16));
      }
      LoadTurnedB<T>(L0B(), Moving(step, kind)[c * pitch + moved * 16], columns, depth, pitch);
      Loaded();
      bool begins = s.first && moved == 0;
      if (begins && c == 0) AscendC::WaitFlag<HardEvent::FIX_M>(kSums + kind);
      Multiply(Sums(kind)[c * AlignUp(held, 16)], held, columns, depth, begins);
    }
    AscendC::SetFlag<HardEvent::MTE1_MTE2>(kWeights + weights_slot_);
    weights_slot_ ^= 1;
    if (s.last && moved + depth == all) {
      Store(ring_.Sums(s.item, kind), Sums(kind), kSums + kind, held, width, width);
    }
    if (unit < Units(s) - 1) return;
    AscendC::SetFlag<HardEvent::MTE1_MTE2>(kMoving + step % 2);
    if (s.last) AscendC::CrossCoreSetFlag<2, PIPE_FIX>(kSumsReady);
  }

  __aicore__ inline LocalTensor<T> L0A() { return l0a_.template Get<T>()[l0_slot_ * kSlotL0]; }
  __aicore__ inline LocalTensor<T> L0B() { return l0b_.template Get<T>()[l0_slot_ * kSlotL0]; }
  __aicore__ inline LocalTensor<float> Part(int32_t slot) {
    return l0c_.template Get<float>()[kSumElements + slot * kPartElements];
  }
  __aicore__ inline LocalTensor<float> Sums(int32_t kind) {
    return l0c_.template Get<float>()[kind * ring_.held * ring_.width[0]];
  }

  __aicore__ inline void Loaded() {
    AscendC::SetFlag<HardEvent::MTE1_M>(l0_slot_);
    AscendC::WaitFlag<HardEvent::MTE1_M>(l0_slot_);
  }

  // c (+)= what is in the slot of L0A and L0B, which is free then.
  __aicore__ inline void Multiply(LocalTensor<float> c, int32_t m, int32_t n, int32_t k,
                                  bool first) {
    AscendC::Mmad(c, L0A(), L0B(), Product(m, n, k, first));
    AscendC::PipeBarrier<PIPE_M>();
    AscendC::SetFlag<HardEvent::M_MTE1>(l0_slot_);
    l0_slot_ ^= 1;
  }

  __aicore__ inline void Store(GlobalTensor<float> to, LocalTensor<float> from, int32_t event,
                               int32_t m, int32_t n, int32_t stride) {
    AscendC::SetFlag<HardEvent::M_FIX>(event);
    AscendC::WaitFlag<HardEvent::M_FIX>(event);
    AscendC::Fixpipe<float, float, AscendC::CFG_ROW_MAJOR>(to, from, StoreRowsOf(m, n, stride));
    AscendC::SetFlag<HardEvent::FIX_M>(event);
  }

  AttentionBackwardTiling t_;
  BackwardRing<kKeys> ring_;
  GlobalTensor<T> q_, k_, v_, grad_;
  int64_t loaded_ = 0;
  int32_t l0_slot_ = 0, weights_slot_ = 0, part_slot_ = 0;
  BackwardStep steps_[kMovingSlots];
  AscendC::TPipe pipe_;
  AscendC::TBuf<TPosition::A1> held_l1_, moving_l1_, weights_l1_;
  AscendC::TBuf<TPosition::A2> l0a_;
  AscendC::TBuf<TPosition::B2> l0b_;
  AscendC::TBuf<TPosition::CO1> l0c_;
};

}  // namespace mmkern
