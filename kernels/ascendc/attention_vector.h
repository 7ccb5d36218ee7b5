// The vector cores' half of attention: the softmax over blocks of keys as they come, and the sum of
// the products. Each of the two has half the rows of a block of queries.
//
// Source of the online softmax: Milakov & Gimelshein, "Online normalizer calculation for softmax";
// of its use here: Dao et al., "FlashAttention".
#pragma once

#include "attention_item.h"
#include "epilogue.h"

namespace mmkern {

constexpr int32_t kHalf = kQueries / 2;
constexpr int32_t kSoftmaxRows = 32, kProductRows = 16;  // rows of one pass, 16 KiB each
constexpr float kMasked = -1.0e30f;                      // far below kUnseen

template <class T>
class AttentionVector {
 public:
  __aicore__ inline AttentionVector(Address mask, Address out, Address lse, Address ring,
                                    const AttentionTiling& tiling)
      : t_(tiling), ring_(ring, tiling, AscendC::GetBlockIdx() / 2) {
    mask_.SetGlobalBuffer(reinterpret_cast<__gm__ uint8_t*>(mask));
    out_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(out));
    lse_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(lse));
    width_ = AlignUp(t_.dim_v, 8);
    pipe_.InitBuffer(scores_queue_, 2, kSoftmaxRows * kKeys * 4);
    pipe_.InitBuffer(weights_queue_, 2, kSoftmaxRows * kKeys * 2);
    pipe_.InitBuffer(product_queue_, 2, kProductRows * ring_.product * 4);
    pipe_.InitBuffer(out_queue_, 1, kProductRows * ring_.product * 2);
    pipe_.InitBuffer(lse_queue_, 1, kHalf * 4);
    pipe_.InitBuffer(sum_buffer_, kHalf * width_ * 4);
    pipe_.InitBuffer(lanes_buffer_, kSoftmaxRows * kRepeatFloats * 4);
    pipe_.InitBuffer(row_buffer_, (5 * kHalf + 3 * kHalf * 8) * 4);
    if (t_.masked) {
      pipe_.InitBuffer(mask_queue_, 1, kKeys);
      pipe_.InitBuffer(mask_buffer_, kKeys * 6);
    }
    LocalTensor<float> rows = row_buffer_.template Get<float>();
    max_ = rows;
    sum_ = rows[kHalf];
    next_ = rows[2 * kHalf];
    factor_ = rows[3 * kHalf];
    ones_ = rows[4 * kHalf];
    blocks_ = rows[5 * kHalf];
    factors_ = rows[5 * kHalf + kHalf * 8];
    AscendC::Duplicate(rows, 1.0f, 5 * kHalf);
    VectorBarrier();
  }

  __aicore__ inline void Run(Address cu_q, Address cu_k) {
    int64_t items = AttentionItem::Count(t_);
    for (int64_t i = AscendC::GetBlockIdx() / 2; i < items; i += AscendC::GetBlockNum()) {
      AttentionItem item(t_, cu_q, cu_k, i);
      if (item.rows > 0) RunItem(item);
    }
  }

 private:
  __aicore__ inline void RunItem(const AttentionItem& item) {
    int32_t middle = CeilDiv(item.rows, 2), half = AscendC::GetSubBlockIdx();
    row_ = half ? middle : 0;
    rows_ = half ? item.rows - middle : middle;
    AscendC::Duplicate(max_, kUnseen, kHalf);
    AscendC::Duplicate(sum_, 0.0f, kHalf);
    AscendC::Duplicate(sum_buffer_.template Get<float>(), 0.0f, kHalf * width_);
    VectorBarrier();
    int32_t blocks = item.Blocks();
    for (int32_t block = 0; block < blocks; ++block) {
      Softmax(item, block);
      if (block > 0) AddProduct();
    }
    if (blocks) AddProduct();
    if (rows_ > 0) Finish(item);
  }

  // The weights of one block of keys; what the sums so far are to be multiplied by, in factors_.
  __aicore__ inline void Softmax(const AttentionItem& item, int32_t block) {
    int32_t keys = item.BlockKeys(block), first = item.begin + block * kKeys;
    int32_t slot = softmaxes_done_ % 2;
    if (t_.masked) LoadMask(item, first, keys);
    AscendC::CrossCoreWaitFlag(kScoresReady);
    for (int32_t r = 0; r < rows_; r += kSoftmaxRows) {
      Tile tile{Min(kSoftmaxRows, rows_ - r), keys, AlignUp(keys, 8)};
      LocalTensor<float> s = LoadScores(slot, r, tile);
      AscendC::Muls(s, s, t_.scale, tile.rows * tile.pitch);
      VectorBarrier();
      MaskRows(s, item, r, first, tile);
      if (t_.masked) RowsWithVector<AddOp>(s, mask_buffer_.template Get<float>(), tile);
      Weigh(s, r, slot, tile);
      LocalTensor<T> w = weights_queue_.template AllocTensor<T>();
      CastRows<T, float>(w, s, tile.rows, keys, AlignUp(keys, 16), tile.pitch,
                         AscendC::RoundMode::CAST_RINT);
      weights_queue_.EnQue(w);
      scores_queue_.FreeTensor(s);
      w = weights_queue_.template DeQue<T>();
      AscendC::DataCopyPad(ring_.template Weights<T>(slot)[(row_ + r) * kKeys], w,
                           AscendC::DataCopyExtParams(static_cast<uint16_t>(tile.rows), keys * 2, 0,
                                                      (kKeys - keys) * 2, 0));
      weights_queue_.FreeTensor(w);
    }
    AscendC::CrossCoreSetFlag<2, PIPE_MTE3>(kWeightsReady);
    ++softmaxes_done_;
  }

  __aicore__ inline LocalTensor<float> LoadScores(int32_t slot, int32_t r, const Tile& tile) {
    LocalTensor<float> s = scores_queue_.template AllocTensor<float>();
    uint8_t pad = static_cast<uint8_t>(tile.pitch - tile.cols);
    AscendC::DataCopyPad(s, ring_.Scores(slot)[(row_ + r) * kKeys],
                         AscendC::DataCopyExtParams(static_cast<uint16_t>(tile.rows), tile.cols * 4,
                                                    (kKeys - tile.cols) * 4, 0, 0),
                         AscendC::DataCopyPadExtParams<float>(true, 0, pad, 0.0f));
    scores_queue_.EnQue(s);
    return scores_queue_.template DeQue<float>();
  }

  // s becomes exp(s - max), and max_, sum_ and factors_ follow.
  __aicore__ inline void Weigh(LocalTensor<float> s, int32_t r, int32_t slot, const Tile& tile) {
    LocalTensor<float> lanes = lanes_buffer_.template Get<float>();
    LocalTensor<float> max = max_[r], sum = sum_[r], next = next_[r], factor = factor_[r];
    int32_t groups = AlignUp(tile.rows, 8);
    AscendC::Duplicate(lanes, kMasked, tile.rows * kRepeatFloats);
    VectorBarrier();
    for (int32_t c = 0; c < tile.cols; c += kRepeatFloats) {
      AscendC::Max(lanes, lanes, s[c], static_cast<uint64_t>(Min(kRepeatFloats, tile.cols - c)),
                   static_cast<uint8_t>(tile.rows), Strides(8, 8, tile.pitch / 8));
      VectorBarrier();
    }
    AscendC::WholeReduceMax(next, lanes, kRepeatFloats, tile.rows, 1, 1, 8,
                            AscendC::ReduceOrder::ORDER_ONLY_VALUE);
    VectorBarrier();
    AscendC::Max(next, next, max, groups);
    VectorBarrier();
    AscendC::Sub(factor, max, next, groups);
    VectorBarrier();
    AscendC::Exp(factor, factor, groups);
    AscendC::Adds(max, next, 0.0f, groups);
    VectorBarrier();
    Blocks(factors_[(slot * kHalf + r) * 8], factor, tile.rows);
    Blocks(blocks_, max, tile.rows);
    RowsWithScalars<SubOp>(s, blocks_, tile);
    AscendC::Exp(s, s, tile.rows * tile.pitch);
    VectorBarrier();
    RowSums(next, s, lanes, tile);
    AscendC::Mul(sum, sum, factor, groups);
    VectorBarrier();
    AscendC::Add(sum, sum, next, groups);
    VectorBarrier();
  }

  // Scores of keys that a row does not see, causal or by a window, become kMasked.
  __aicore__ inline void MaskRows(LocalTensor<float> s, const AttentionItem& item, int32_t r,
                                  int32_t first, const Tile& tile) {
    if (t_.left < 0 && t_.right < 0) return;
    for (int32_t i = 0; i < tile.rows; ++i) {
      int32_t row = row_ + r + i;
      int32_t begin = t_.left < 0 ? 0 : item.First(t_, row) - first;
      int32_t end = t_.right < 0 ? tile.cols : item.Last(t_, row) + 1 - first;
      if (begin <= 0 && end >= tile.cols) continue;
      for (int32_t c = 0; c < tile.cols; c += kRepeatFloats) {
        int32_t width = Min(kRepeatFloats, tile.cols - c);
        uint64_t bits[2] = {Below(width) & ~(Below(end - c) & ~Below(begin - c)), 0};
        if (bits[0]) AscendC::Duplicate(s[i * tile.pitch + c], kMasked, bits, 1, 1, 8);
      }
    }
    VectorBarrier();
  }

  // The n lowest of 64 bits.
  __aicore__ static inline uint64_t Below(int32_t n) {
    if (n <= 0) return 0;
    return n >= 64 ? ~static_cast<uint64_t>(0) : (static_cast<uint64_t>(1) << n) - 1;
  }

  // (mask - 1) * 1e30 for each key, in mask_buffer_.
  __aicore__ inline void LoadMask(const AttentionItem& item, int32_t first, int32_t keys) {
    LocalTensor<uint8_t> raw = mask_queue_.template AllocTensor<uint8_t>();
    uint8_t pad = static_cast<uint8_t>(AlignUp(keys, kBlock) - keys);
    AscendC::DataCopyPad(raw, mask_[item.batch * t_.mask_stride + first],
                         AscendC::DataCopyExtParams(1, keys, 0, 0, 0),
                         AscendC::DataCopyPadExtParams<uint8_t>(true, 0, pad, 0));
    mask_queue_.EnQue(raw);
    raw = mask_queue_.template DeQue<uint8_t>();
    LocalTensor<float> wide = mask_buffer_.template Get<float>();
    LocalTensor<half> narrow = wide[kKeys].template ReinterpretCast<half>();
    AscendC::Cast(narrow, raw, AscendC::RoundMode::CAST_NONE, keys);
    VectorBarrier();
    mask_queue_.FreeTensor(raw);
    AscendC::Cast(wide, narrow, AscendC::RoundMode::CAST_NONE, keys);
    VectorBarrier();
    AscendC::Adds(wide, wide, -1.0f, keys);
    VectorBarrier();
    AscendC::Muls(wide, wide, -kMasked, keys);
    VectorBarrier();
  }

  // sums = sums * factors + the product of one block's weights and values
  __aicore__ inline void AddProduct() {
    int32_t slot = products_done_ % 2;
    LocalTensor<float> sums = sum_buffer_.template Get<float>();
    AscendC::CrossCoreWaitFlag(kProductReady);
    for (int32_t r = 0; r < rows_; r += kProductRows) {
      Tile tile{Min(kProductRows, rows_ - r), t_.dim_v, width_};
      LocalTensor<float> product = product_queue_.template AllocTensor<float>();
      uint8_t pad = static_cast<uint8_t>(width_ - t_.dim_v);
      AscendC::DataCopyPad(
          product, ring_.Product(slot)[(row_ + r) * ring_.product],
          AscendC::DataCopyExtParams(static_cast<uint16_t>(tile.rows), t_.dim_v * 4,
                                     (ring_.product - t_.dim_v) * 4, 0, 0),
          AscendC::DataCopyPadExtParams<float>(true, 0, pad, 0.0f));
      product_queue_.EnQue(product);
      product = product_queue_.template DeQue<float>();
      LocalTensor<float> part = sums[r * width_];
      RowsWithScalars<MulOp>(part, factors_[(slot * kHalf + r) * 8], tile);
      AscendC::Add(part, part, product, tile.rows * width_);
      VectorBarrier();
      product_queue_.FreeTensor(product);
    }
    ++products_done_;
  }

  // out = sums / sum; lse = max + ln(sum)
  __aicore__ inline void Finish(const AttentionItem& item) {
    int64_t token = item.query_token + item.first + row_;
    LocalTensor<float> sums = sum_buffer_.template Get<float>();
    AscendC::Maxs(sum_, sum_, 1.0e-30f, kHalf);
    VectorBarrier();
    AscendC::Div(next_, ones_, sum_, kHalf);
    VectorBarrier();
    Blocks(blocks_, next_, kHalf);
    int64_t at = item.batch * static_cast<int64_t>(t_.packed ? 0 : t_.queries) + token;
    for (int32_t r = 0; r < rows_; r += kProductRows) {
      Tile tile{Min(kProductRows, rows_ - r), t_.dim_v, width_};
      RowsWithScalars<MulOp>(sums[r * width_], blocks_[r * 8], tile);
      LocalTensor<T> out = out_queue_.template AllocTensor<T>();
      CastRows<T, float>(out, sums[r * width_], tile.rows, t_.dim_v, AlignUp(t_.dim_v, 16), width_,
                         AscendC::RoundMode::CAST_RINT);
      out_queue_.EnQue(out);
      out = out_queue_.template DeQue<T>();
      AscendC::DataCopyPad(
          out_[((at + r) * t_.heads + item.head) * t_.dim_v], out,
          AscendC::DataCopyExtParams(static_cast<uint16_t>(tile.rows), t_.dim_v * 2, 0,
                                     (t_.heads - 1) * t_.dim_v * 2, 0));
      out_queue_.FreeTensor(out);
    }
    LocalTensor<float> lse = lse_queue_.template AllocTensor<float>();
    AscendC::Ln(lse, sum_, kHalf);
    VectorBarrier();
    AscendC::Add(lse, lse, max_, kHalf);
    VectorBarrier();
    lse_queue_.EnQue(lse);
    lse = lse_queue_.template DeQue<float>();
    int64_t row = static_cast<int64_t>(t_.packed ? 0 : item.batch) * t_.heads + item.head;
    AscendC::DataCopyPad(lse_[row * t_.tokens + token], lse,
                         AscendC::DataCopyExtParams(1, rows_ * 4, 0, 0, 0));
    lse_queue_.FreeTensor(lse);
  }

  AttentionTiling t_;
  AttentionRing ring_;
  GlobalTensor<uint8_t> mask_;
  GlobalTensor<T> out_;
  GlobalTensor<float> lse_;
  int32_t width_;  // dim_v, rounded up to a block of float32
  int32_t row_ = 0, rows_ = 0, softmaxes_done_ = 0, products_done_ = 0;
  AscendC::TPipe pipe_;
  AscendC::TQue<TPosition::VECIN, 1> scores_queue_, product_queue_, mask_queue_;
  AscendC::TQue<TPosition::VECOUT, 1> weights_queue_, out_queue_, lse_queue_;
  AscendC::TBuf<TPosition::VECCALC> sum_buffer_, lanes_buffer_, row_buffer_, mask_buffer_;
  // of each row: the largest score, the sum of weights, its next value, what sums are multiplied by
  LocalTensor<float> max_, sum_, next_, factor_, ones_;
  LocalTensor<float> blocks_, factors_;
};

}  // namespace mmkern
