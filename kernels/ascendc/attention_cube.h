// The cube core's half of attention: scores = q k^T and product = weights v, a block of keys each,
// in pieces of 128 keys. Scores leave in halves of 64 keys, each with a part of L0C of its own, so
// that the fixpipe, which bounds this core, always has one to store; the products of an older block
// are multiplied meanwhile.
#pragma once

#include "attention_item.h"
#include "attention_loads.h"

namespace mmkern {

template <class T>
class AttentionCube {
 public:
  __aicore__ inline AttentionCube(Address q, Address k, Address v, Address ring,
                                  const AttentionTiling& tiling)
      : t_(tiling), ring_(ring, tiling, AscendC::GetBlockIdx()) {
    q_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(q));
    k_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(k));
    v_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(v));
    pipe_.InitBuffer(q_l1_, 2 * kQueries * kMaxHeadDim * 2);
    pipe_.InitBuffer(k_l1_, 2 * kPieceKeys * kMaxHeadDim * 2);
    pipe_.InitBuffer(v_l1_, 2 * kPieceKeys * kColumns * 2);
    pipe_.InitBuffer(w_l1_, 2 * kQueries * kPieceKeys * 2);
    pipe_.InitBuffer(l0a_, 2 * kSlotL0 * 2);
    pipe_.InitBuffer(l0b_, 2 * kSlotL0 * 2);
    pipe_.InitBuffer(l0c_, 2 * kQueries * kPieceKeys * 4);
  }

  __aicore__ inline void Run(Address cu_q, Address cu_k) {
    for (int32_t i = 0; i < 6; ++i) AscendC::SetFlag<HardEvent::MTE1_MTE2>(i);
    for (int32_t i = 0; i < 2; ++i) AscendC::SetFlag<HardEvent::M_MTE1>(i);
    for (int32_t i = 0; i < 3; ++i) AscendC::SetFlag<HardEvent::FIX_M>(i);
    int64_t items = AttentionItem::Count(t_);
    for (int64_t i = AscendC::GetBlockIdx(); i < items; i += AscendC::GetBlockNum()) {
      AttentionItem item(t_, cu_q, cu_k, i);
      int32_t blocks = item.Blocks(t_);
      if (blocks == 0) continue;
      LoadQueries(item);
      for (int32_t block = 0; block < blocks; ++block) {
        Step(item, block);
        if (block == blocks - 1) AscendC::SetFlag<HardEvent::MTE1_MTE2>(kQuery + q_slot_);
      }
      q_slot_ ^= 1;
    }
    for (int64_t step = steps_ < 2 ? 0 : steps_ - 2; step < steps_; ++step) {
      AscendC::CrossCoreWaitFlag(kWeightsReady);
      for (int32_t unit = 0; unit < Units(blocks_[step % kSlots]); ++unit) Product(step, unit);
    }
    for (int32_t i = 0; i < 6; ++i) AscendC::WaitFlag<HardEvent::MTE1_MTE2>(i);
    for (int32_t i = 0; i < 2; ++i) AscendC::WaitFlag<HardEvent::M_MTE1>(i);
    for (int32_t i = 0; i < 3; ++i) AscendC::WaitFlag<HardEvent::FIX_M>(i);
  }

 private:
  // Flags of L1: 0 and 1 the slots of k, 2 and 3 those of v and the weights, 4 and 5 those of q.
  static constexpr int32_t kValues = 2, kQuery = 4;
  // Depth and columns of one multiplication; parts of L0C: scores of 64 keys each, and the product.
  static constexpr int32_t kDepth = 128, kColumns = 128, kHalfPiece = kPieceKeys / 2;
  static constexpr int32_t kProductPart = 2;
  static constexpr int32_t kSlotL0 = kQueries * kDepth;

  // What is left of a step when its weights come.
  struct Block {
    int64_t values;  // where v begins
    int32_t rows;
    int32_t keys;
  };

  __aicore__ inline void LoadQueries(const AttentionItem& item) {
    int64_t at = item.batch * t_.q_batch_stride +
                 (item.query_token + item.first) * t_.q_row_stride + item.head * t_.q_head_stride;
    AscendC::WaitFlag<HardEvent::MTE1_MTE2>(kQuery + q_slot_);
    LoadRowsOfA<T>(Queries(), q_[at], item.rows, t_.dim, t_.q_row_stride);
    AscendC::SetFlag<HardEvent::MTE2_MTE1>(kQuery + q_slot_);
    AscendC::WaitFlag<HardEvent::MTE2_MTE1>(kQuery + q_slot_);
  }

  __aicore__ inline LocalTensor<T> Queries() {
    return q_l1_.template Get<T>()[q_slot_ * kQueries * kMaxHeadDim];
  }

  __aicore__ inline int64_t KeyOffset(const AttentionItem& item, int32_t block,
                                      int64_t batch_stride, int64_t row_stride,
                                      int64_t head_stride) const {
    return item.batch * batch_stride +
           (item.key_token + item.begin + block * t_.block_keys) * row_stride +
           item.head / (t_.heads / t_.heads_k) * head_stride;
  }

  // Scores of a block of keys, and in turns the product of the last block but one.
  __aicore__ inline void Step(const AttentionItem& item, int32_t block) {
    int32_t keys = item.BlockKeys(t_, block), pieces = CeilDiv(keys, kPieceKeys), units = 0;
    int64_t at = KeyOffset(item, block, t_.k_batch_stride, t_.k_row_stride, t_.k_head_stride);
    if (steps_ >= 2) {
      AscendC::CrossCoreWaitFlag(kWeightsReady);
      units = Units(blocks_[(steps_ - 2) % kSlots]);
    }
    for (int32_t i = 0; i < Max(pieces, units); ++i) {
      if (i < pieces) {
        Scores(at + i * kPieceKeys * t_.k_row_stride, item.rows,
               Min(kPieceKeys, keys - i * kPieceKeys), i * kPieceKeys);
      }
      if (i == pieces - 1) AscendC::CrossCoreSetFlag<2, PIPE_FIX>(kScoresReady);
      if (i < units) Product(steps_ - 2, i);
    }
    Block& kept = blocks_[steps_ % kSlots];
    kept.values = KeyOffset(item, block, t_.v_batch_stride, t_.v_row_stride, t_.v_head_stride);
    kept.rows = item.rows;
    kept.keys = keys;
    ++steps_;
  }

  // Scores of the keys at `at`, for columns from `column` on of the block.
  __aicore__ inline void Scores(int64_t at, int32_t rows, int32_t keys, int32_t column) {
    int32_t pitch = AlignUp(keys, 16), halves = CeilDiv(keys, kHalfPiece);
    LocalTensor<T> k = k_l1_.template Get<T>()[k_slot_ * kPieceKeys * kMaxHeadDim];
    AscendC::WaitFlag<HardEvent::MTE1_MTE2>(k_slot_);
    LoadColumns<T>(k, k_[at], keys, t_.dim, t_.k_row_stride, pitch);
    AscendC::SetFlag<HardEvent::MTE2_MTE1>(k_slot_);
    AscendC::WaitFlag<HardEvent::MTE2_MTE1>(k_slot_);
    for (int32_t d = 0; d < t_.dim; d += kDepth) {
      int32_t depth = Min(kDepth, t_.dim - d);
      bool last = d + depth == t_.dim;
      AscendC::WaitFlag<HardEvent::M_MTE1>(l0_slot_);
      LoadL0A<T>(L0A(), Queries()[d * AlignUp(rows, 16)], Max(rows, 2), depth, AlignUp(rows, 16));
      for (int32_t half = 0; half < halves; ++half) {
        LoadB<T>(L0B()[half * kHalfPiece * kDepth], k[d * pitch + half * kHalfPiece * 16],
                 Min(kHalfPiece, keys - half * kHalfPiece), depth, pitch);
      }
      if (last) AscendC::SetFlag<HardEvent::MTE1_MTE2>(k_slot_);
      Loaded();
      for (int32_t half = 0; half < halves; ++half) {
        int32_t n = Min(kHalfPiece, keys - half * kHalfPiece);
        if (d == 0) AscendC::WaitFlag<HardEvent::FIX_M>(half);
        Multiply(half, L0B()[half * kHalfPiece * kDepth], rows, n, depth, d == 0);
        if (last)
          Store(ring_.Scores(steps_)[column + half * kHalfPiece], half, rows, n, ring_.keys);
      }
      Multiplied();
    }
    k_slot_ ^= 1;
  }

  // Units of the product of a block: of 128 keys and 128 columns of v.
  __aicore__ inline int32_t Units(const Block& block) const {
    return CeilDiv(block.keys, kPieceKeys) * CeilDiv(t_.dim_v, kColumns);
  }

  __aicore__ inline void Product(int64_t step, int32_t unit) {
    const Block& block = blocks_[step % kSlots];
    int32_t pieces = CeilDiv(block.keys, kPieceKeys), piece = unit % pieces;
    int32_t first = unit / pieces * kColumns, width = Min(kColumns, t_.dim_v - first);
    int32_t keys = Min(kPieceKeys, block.keys - piece * kPieceKeys), pitch = AlignUp(keys, 16);
    LocalTensor<T> v = v_l1_.template Get<T>()[v_slot_ * kPieceKeys * kColumns];
    LocalTensor<T> w = w_l1_.template Get<T>()[v_slot_ * kQueries * kPieceKeys];
    AscendC::WaitFlag<HardEvent::MTE1_MTE2>(kValues + v_slot_);
    LoadColumns<T>(v, v_[block.values + piece * kPieceKeys * t_.v_row_stride + first], keys, width,
                   t_.v_row_stride, pitch);
    LoadRowsOfA<T>(w, ring_.template Weights<T>(step)[piece * kPieceKeys], block.rows, keys,
                   ring_.keys);
    AscendC::SetFlag<HardEvent::MTE2_MTE1>(kValues + v_slot_);
    AscendC::WaitFlag<HardEvent::MTE2_MTE1>(kValues + v_slot_);
    AscendC::WaitFlag<HardEvent::M_MTE1>(l0_slot_);
    LoadL0A<T>(L0A(), w, Max(block.rows, 2), keys, AlignUp(block.rows, 16));
    LoadTurnedB<T>(L0B(), v, width, keys, pitch);
    AscendC::SetFlag<HardEvent::MTE1_MTE2>(kValues + v_slot_);
    Loaded();
    if (piece == 0) AscendC::WaitFlag<HardEvent::FIX_M>(kProductPart);
    Multiply(kProductPart, L0B(), block.rows, width, keys, piece == 0);
    Multiplied();
    if (piece == pieces - 1) {
      Store(ring_.Product(step)[first], kProductPart, block.rows, width, ring_.product);
    }
    if (unit == Units(block) - 1) AscendC::CrossCoreSetFlag<2, PIPE_FIX>(kProductReady);
    v_slot_ ^= 1;
  }

  __aicore__ inline LocalTensor<T> L0A() { return l0a_.template Get<T>()[l0_slot_ * kSlotL0]; }
  __aicore__ inline LocalTensor<T> L0B() { return l0b_.template Get<T>()[l0_slot_ * kSlotL0]; }
  __aicore__ inline LocalTensor<float> Part(int32_t part) {
    return l0c_.template Get<float>()[part * kQueries * kHalfPiece];
  }

  // A slot of L0 is filled; is free again.
  __aicore__ inline void Loaded() {
    AscendC::SetFlag<HardEvent::MTE1_M>(l0_slot_);
    AscendC::WaitFlag<HardEvent::MTE1_M>(l0_slot_);
  }
  __aicore__ inline void Multiplied() {
    AscendC::SetFlag<HardEvent::M_MTE1>(l0_slot_);
    l0_slot_ ^= 1;
  }

  __aicore__ inline void Multiply(int32_t part, LocalTensor<T> b, int32_t m, int32_t n, int32_t k,
                                  bool first) {
    AscendC::Mmad(Part(part), L0A(), b, mmkern::Product(m, n, k, first));
    AscendC::PipeBarrier<PIPE_M>();
  }

  __aicore__ inline void Store(GlobalTensor<float> to, int32_t part, int32_t m, int32_t n,
                               int32_t stride) {
    AscendC::SetFlag<HardEvent::M_FIX>(part);
    AscendC::WaitFlag<HardEvent::M_FIX>(part);
    AscendC::Fixpipe<float, float, AscendC::CFG_ROW_MAJOR>(to, Part(part),
                                                           StoreRowsOf(m, n, stride));
    AscendC::SetFlag<HardEvent::FIX_M>(part);
  }

  AttentionTiling t_;
  AttentionRing ring_;
  GlobalTensor<T> q_, k_, v_;
  int64_t steps_ = 0;
  int32_t q_slot_ = 0, k_slot_ = 0, v_slot_ = 0, l0_slot_ = 0;
  Block blocks_[kSlots];
  AscendC::TPipe pipe_;
  AscendC::TBuf<TPosition::A1> q_l1_, k_l1_, v_l1_, w_l1_;
  AscendC::TBuf<TPosition::A2> l0a_;
  AscendC::TBuf<TPosition::B2> l0b_;
  AscendC::TBuf<TPosition::CO1> l0c_;
};

}  // namespace mmkern
