// The cube core's half of attention: scores = q k^T and product = weights v, a block of keys each.
// The scores of block j + 1 are on their way before the weights of block j are waited for.
#pragma once

#include "attention_item.h"
#include "gemm.h"

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
    pipe_.InitBuffer(q_l1_, kQueries * kMaxHeadDim * 2);
    pipe_.InitBuffer(k_l1_, 2 * kKeys * kMaxHeadDim * 2);
    pipe_.InitBuffer(v_l1_, 2 * kKeys * kMaxHeadDim * 2);
    pipe_.InitBuffer(w_l1_, 2 * kQueries * kKeys * 2);
    pipe_.InitBuffer(l0a_, 2 * kQueries * kDepthL0 * 2);
    pipe_.InitBuffer(l0b_, 2 * kKeys * kDepthL0 * 2);
    pipe_.InitBuffer(l0c_, 2 * kQueries * kKeys * 4);
  }

  __aicore__ inline void Run(Address cu_q, Address cu_k) {
    for (int32_t i = 0; i < 5; ++i) AscendC::SetFlag<HardEvent::MTE1_MTE2>(i);
    for (int32_t i = 0; i < 2; ++i) {
      AscendC::SetFlag<HardEvent::M_MTE1>(i);
      AscendC::SetFlag<HardEvent::FIX_M>(i);
    }
    int64_t items = AttentionItem::Count(t_);
    for (int64_t i = AscendC::GetBlockIdx(); i < items; i += AscendC::GetBlockNum()) {
      AttentionItem item(t_, cu_q, cu_k, i);
      RunItem(item);
    }
    for (int32_t i = 0; i < 5; ++i) AscendC::WaitFlag<HardEvent::MTE1_MTE2>(i);
    for (int32_t i = 0; i < 2; ++i) {
      AscendC::WaitFlag<HardEvent::M_MTE1>(i);
      AscendC::WaitFlag<HardEvent::FIX_M>(i);
    }
  }

 private:
  // Flags of L1: 0 and 1 the slots of k, 2 and 3 those of v and the weights, 4 q.
  static constexpr int32_t kValues = 2, kQuery = 4;

  __aicore__ inline void RunItem(const AttentionItem& item) {
    int32_t blocks = item.Blocks();
    if (blocks == 0) return;
    int64_t at = item.batch * t_.q_batch_stride +
                 (item.query_token + item.first) * t_.q_row_stride + item.head * t_.q_head_stride;
    AscendC::WaitFlag<HardEvent::MTE1_MTE2>(kQuery);
    LoadRowsOfA(q_l1_.template Get<T>(), q_[at], item.rows, t_.dim, t_.q_row_stride);
    AscendC::SetFlag<HardEvent::MTE2_MTE1>(kQuery);
    AscendC::WaitFlag<HardEvent::MTE2_MTE1>(kQuery);
    for (int32_t block = 0; block < blocks; ++block) {
      Scores(item, block);
      if (block == blocks - 1) AscendC::SetFlag<HardEvent::MTE1_MTE2>(kQuery);
      if (block > 0) Product(item, block - 1);
    }
    Product(item, blocks - 1);
  }

  // Rows of a left operand; a single one twice, since a product has at least two.
  __aicore__ inline void LoadRowsOfA(LocalTensor<T> dst, GlobalTensor<T> src, int32_t rows,
                                     int32_t depth, int64_t stride) {
    int32_t pitch = AlignUp(rows, 16);
    LoadColumns<T>(dst, src, rows, depth, stride, pitch);
    if (rows == 1) LoadColumns<T>(dst[16], src, 1, depth, stride, pitch);
  }

  __aicore__ inline int64_t KeyOffset(const AttentionItem& item, int32_t block,
                                      int64_t batch_stride, int64_t row_stride,
                                      int64_t head_stride) const {
    return item.batch * batch_stride + (item.key_token + item.begin + block * kKeys) * row_stride +
           item.head / (t_.heads / t_.heads_k) * head_stride;
  }

  __aicore__ inline void Scores(const AttentionItem& item, int32_t block) {
    int32_t keys = item.BlockKeys(block), slot = scores_done_ % 2, pitch = AlignUp(keys, 16);
    LocalTensor<T> q = q_l1_.template Get<T>();
    LocalTensor<T> k = k_l1_.template Get<T>()[slot * kKeys * kMaxHeadDim];
    LocalTensor<float> scores = l0c_.template Get<float>();
    AscendC::WaitFlag<HardEvent::MTE1_MTE2>(slot);
    int64_t at = KeyOffset(item, block, t_.k_batch_stride, t_.k_row_stride, t_.k_head_stride);
    LoadColumns<T>(k, k_[at], keys, t_.dim, t_.k_row_stride, pitch);
    AscendC::SetFlag<HardEvent::MTE2_MTE1>(slot);
    AscendC::WaitFlag<HardEvent::MTE2_MTE1>(slot);
    AscendC::WaitFlag<HardEvent::FIX_M>(0);
    for (int32_t d = 0; d < t_.dim; d += kDepthL0) {
      int32_t depth = Min(kDepthL0, t_.dim - d);
      AscendC::WaitFlag<HardEvent::M_MTE1>(l0_slot_);
      LoadL0A<T>(L0A(), q[d * AlignUp(item.rows, 16)], Max(item.rows, 2), depth);
      LoadL0B<T>(L0B(), k[d * pitch], keys, depth);
      Multiply(scores, item.rows, keys, depth, d == 0);
    }
    AscendC::SetFlag<HardEvent::MTE1_MTE2>(slot);
    Store(ring_.Scores(slot), scores, 0, item.rows, keys, kKeys);
    AscendC::CrossCoreSetFlag<2, PIPE_FIX>(kScoresReady);
    ++scores_done_;
  }

  __aicore__ inline void Product(const AttentionItem& item, int32_t block) {
    int32_t keys = item.BlockKeys(block), slot = products_done_ % 2, pitch = AlignUp(keys, 16);
    LocalTensor<T> v = v_l1_.template Get<T>()[slot * kKeys * kMaxHeadDim];
    LocalTensor<T> w = w_l1_.template Get<T>()[slot * kQueries * kKeys];
    LocalTensor<float> product = l0c_.template Get<float>()[kQueries * kKeys];
    AscendC::WaitFlag<HardEvent::MTE1_MTE2>(kValues + slot);
    int64_t at = KeyOffset(item, block, t_.v_batch_stride, t_.v_row_stride, t_.v_head_stride);
    LoadColumns<T>(v, v_[at], keys, t_.dim_v, t_.v_row_stride, pitch);
    AscendC::CrossCoreWaitFlag(kWeightsReady);
    LoadRowsOfA(w, ring_.template Weights<T>(slot), item.rows, keys, kKeys);
    AscendC::SetFlag<HardEvent::MTE2_MTE1>(kValues + slot);
    AscendC::WaitFlag<HardEvent::MTE2_MTE1>(kValues + slot);
    for (int32_t n = 0; n < t_.dim_v; n += kKeys) {
      int32_t width = Min(kKeys, t_.dim_v - n);
      AscendC::WaitFlag<HardEvent::FIX_M>(1);
      for (int32_t d = 0; d < keys; d += kDepthL0) {
        int32_t depth = Min(kDepthL0, keys - d);
        AscendC::WaitFlag<HardEvent::M_MTE1>(l0_slot_);
        LoadL0A<T>(L0A(), w[d * AlignUp(item.rows, 16)], Max(item.rows, 2), depth);
        LoadTransposed(L0B(), v[n * pitch + d * 16], width, depth, pitch);
        Multiply(product, item.rows, width, depth, d == 0);
      }
      Store(ring_.Product(slot)[n], product, 1, item.rows, width, ring_.product);
    }
    AscendC::SetFlag<HardEvent::MTE1_MTE2>(kValues + slot);
    AscendC::CrossCoreSetFlag<2, PIPE_FIX>(kProductReady);
    ++products_done_;
  }

  // v (keys x width) into L0B: it lies in L1 as columns of 16, and each fractal is transposed.
  __aicore__ inline void LoadTransposed(LocalTensor<T> dst, LocalTensor<T> src, int32_t width,
                                        int32_t keys, int32_t pitch) {
    int32_t across = CeilDiv(width, 16);
    for (int32_t k = 0; k < CeilDiv(keys, 16); ++k) {
      AscendC::LoadData(dst[k * across * kFractal], src[k * kFractal],
                        AscendC::LoadData2DParams(0, across, pitch / 16, 0, 0, true, 0));
    }
  }

  __aicore__ inline LocalTensor<T> L0A() {
    return l0a_.template Get<T>()[l0_slot_ * kQueries * kDepthL0];
  }
  __aicore__ inline LocalTensor<T> L0B() {
    return l0b_.template Get<T>()[l0_slot_ * kKeys * kDepthL0];
  }

  // What was just loaded into L0; its slot is free afterwards.
  __aicore__ inline void Multiply(LocalTensor<float> c, int32_t m, int32_t n, int32_t k,
                                  bool first) {
    AscendC::SetFlag<HardEvent::MTE1_M>(l0_slot_);
    AscendC::WaitFlag<HardEvent::MTE1_M>(l0_slot_);
    AscendC::Mmad(c, L0A(), L0B(), mmkern::Product(m, n, k, first));
    AscendC::PipeBarrier<PIPE_M>();
    AscendC::SetFlag<HardEvent::M_MTE1>(l0_slot_);
    l0_slot_ ^= 1;
  }

  __aicore__ inline void Store(GlobalTensor<float> to, LocalTensor<float> c, int32_t region,
                               int32_t m, int32_t n, int32_t stride) {
    AscendC::SetFlag<HardEvent::M_FIX>(region);
    AscendC::WaitFlag<HardEvent::M_FIX>(region);
    AscendC::FixpipeParamsV220 p;
    p.nSize = static_cast<uint16_t>(n);
    p.mSize = static_cast<uint16_t>(m);
    p.srcStride = static_cast<uint16_t>(AlignUp(m, 16));
    p.dstStride = stride;
    p.quantPre = QuantMode_t::NoQuant;
    AscendC::Fixpipe<float, float, AscendC::CFG_ROW_MAJOR>(to, c, p);
    AscendC::SetFlag<HardEvent::FIX_M>(region);
  }

  AttentionTiling t_;
  AttentionRing ring_;
  GlobalTensor<T> q_, k_, v_;
  int32_t scores_done_ = 0, products_done_ = 0, l0_slot_ = 0;
  AscendC::TPipe pipe_;
  AscendC::TBuf<TPosition::A1> q_l1_, k_l1_, v_l1_, w_l1_;
  AscendC::TBuf<TPosition::A2> l0a_;
  AscendC::TBuf<TPosition::B2> l0b_;
  AscendC::TBuf<TPosition::CO1> l0c_;
};

}  // namespace mmkern
