// The vector cores' half of attention: the softmax over blocks of keys as they come, and the sum of
// the products. Each of the two has half the rows of a block of queries.
//
// Source of the online softmax: Milakov & Gimelshein, "Online normalizer calculation for softmax";
// of its use here: Dao et al., "FlashAttention".
#pragma once

#include "attention_item.h"
#include "attention_mask.h"
#include "epilogue.h"

namespace mmkern {

constexpr int32_t kHalf = kQueries / 2;
constexpr int32_t kPassRows = 16, kWidePassRows = 8;  // of one pass; with heads over 128

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
    pass_ = t_.dim_v <= kMaxHeadDim / 2 ? kPassRows : kWidePassRows;
    pipe_.InitBuffer(scores_queue_, 2, pass_ * t_.block_keys * 4);
    pipe_.InitBuffer(weights_queue_, 2, pass_ * t_.block_keys * 2);
    pipe_.InitBuffer(product_queue_, 2, pass_ * ring_.product * 4);
    pipe_.InitBuffer(out_queue_, 1, pass_ * ring_.product * 2);
    pipe_.InitBuffer(lse_queue_, 1, kHalf * 4);
    pipe_.InitBuffer(sum_buffer_, kHalf * width_ * 4);
    pipe_.InitBuffer(lanes_buffer_, pass_ * (kRepeatFloats + 8) * 4);
    pipe_.InitBuffer(row_buffer_, ((2 * kSlots + 3) * kHalf + (kSlots + 1) * kHalf * 8 + 8) * 4);
    if (t_.masked) {
      pipe_.InitBuffer(mask_queue_, 1, t_.block_keys);
      pipe_.InitBuffer(mask_buffer_, t_.block_keys * 6);
    }
    LocalTensor<float> rows = row_buffer_.template Get<float>();
    max_ = rows;
    sum_ = rows[kSlots * kHalf];
    next_ = rows[2 * kSlots * kHalf];
    factor_ = next_[kHalf];
    ones_ = next_[2 * kHalf];
    blocks_ = next_[3 * kHalf];
    factors_ = blocks_[kHalf * 8];
    scale_ = factors_[kSlots * kHalf * 8];
    AscendC::Duplicate(rows, 1.0f, (2 * kSlots + 3) * kHalf);
    AscendC::Duplicate(scale_, t_.scale, 8);
    AscendC::Duplicate(lanes_buffer_.template Get<float>(), 0.0f, pass_ * (kRepeatFloats + 8));
    VectorBarrier();
  }

  __aicore__ inline void Run(Address cu_q, Address cu_k) {
    int64_t items = AttentionItem::Count(t_);
    for (int64_t i = AscendC::GetBlockIdx() / 2; i < items; i += AscendC::GetBlockNum()) {
      AttentionItem item(t_, cu_q, cu_k, i);
      if (item.rows > 0) RunItem(item);
    }
    for (int64_t step = steps_ < 2 ? 0 : steps_ - 2; step < steps_; ++step) AddProduct(step);
  }

 private:
  // What is left of a step when its product comes: rows of this core, and where their state is.
  struct Block {
    AttentionItem item;
    int32_t row;
    int32_t rows;
    int32_t state;
    bool first;
    bool last;
  };

  __aicore__ inline void RunItem(const AttentionItem& item) {
    int32_t middle = CeilDiv(item.rows, 2), half = AscendC::GetSubBlockIdx();
    Block b{item, half ? middle : 0, half ? item.rows - middle : middle, state_, true, true};
    int32_t blocks = item.Blocks(t_);
    if (blocks == 0 && b.rows > 0) StoreUnseen(b);
    for (int32_t block = 0; block < blocks; ++block) {
      b.first = block == 0;
      b.last = block == blocks - 1;
      blocks_of_[steps_ % kSlots] = b;
      Softmax(b, block);
      ++steps_;
      if (steps_ > 2) AddProduct(steps_ - 3);
    }
    if (blocks) state_ = (state_ + 1) % kSlots;
  }

  // The weights of one block of keys; what the sums so far are to be multiplied by, in factors_.
  __aicore__ inline void Softmax(const Block& b, int32_t block) {
    int32_t keys = b.item.BlockKeys(t_, block), first = b.item.begin + block * t_.block_keys;
    if (b.first) {
      AscendC::Duplicate(max_[b.state * kHalf], kUnseen, kHalf);
      AscendC::Duplicate(sum_[b.state * kHalf], 0.0f, kHalf);
      VectorBarrier();
    }
    if (t_.masked) {
      LocalTensor<float> wide = mask_buffer_.template Get<float>();
      LoadKeyMask(wide, wide[t_.block_keys].template ReinterpretCast<half>(), mask_queue_,
                  mask_[b.item.batch * t_.mask_stride + first], keys);
    }
    AscendC::CrossCoreWaitFlag(kScoresReady);
    for (int32_t r = 0; r < b.rows; r += pass_) {
      Tile tile{Min(pass_, b.rows - r), keys, AlignUp(keys, 8)};
      LocalTensor<float> s =
          TakeRows(scores_queue_, ring_.Scores(steps_)[(b.row + r) * ring_.keys], ring_.keys, tile);
      MaskRows(s, tile, b.item.first + b.row + r + b.item.keys - b.item.queries - first, t_.left,
               t_.right);
      if (t_.masked) RowsWithVector<AddOp>(s, mask_buffer_.template Get<float>(), tile);
      Weigh(s, b.state * kHalf + r, (steps_ % kSlots * kHalf + r) * 8, tile);
      LocalTensor<T> w = weights_queue_.template AllocTensor<T>();
      CastRows<T, float>(w, s, tile.rows, keys, AlignUp(keys, 16), tile.pitch,
                         AscendC::RoundMode::CAST_RINT);
      weights_queue_.EnQue(w);
      scores_queue_.FreeTensor(s);
      w = weights_queue_.template DeQue<T>();
      AscendC::DataCopyPad(ring_.template Weights<T>(steps_)[(b.row + r) * ring_.keys], w,
                           AscendC::DataCopyExtParams(static_cast<uint16_t>(tile.rows), keys * 2, 0,
                                                      (ring_.keys - keys) * 2, 0));
      weights_queue_.FreeTensor(w);
    }
    AscendC::CrossCoreSetFlag<2, PIPE_MTE3>(kWeightsReady);
  }

  // s becomes exp((s - max) scale), and max_ and sum_ at `row` and factors_ at `factors` follow.
  __aicore__ inline void Weigh(LocalTensor<float> s, int32_t row, int32_t factors,
                               const Tile& tile) {
    LocalTensor<float> lanes = lanes_buffer_.template Get<float>();
    LocalTensor<float> octets = lanes[pass_ * kRepeatFloats];
    LocalTensor<float> max = max_[row], sum = sum_[row];
    int32_t groups = AlignUp(tile.rows, 8), eights = CeilDiv(tile.rows, 8);
    FoldRows<MaxOp>(lanes, s, kMasked, tile);
    AscendC::BlockReduceMax(octets, lanes, tile.rows, kRepeatFloats, 1, 1, 8);
    VectorBarrier();
    AscendC::BlockReduceMax(next_, octets, eights, kRepeatFloats, 1, 1, 8);
    VectorBarrier();
    AscendC::Max(next_, next_, max, groups);
    VectorBarrier();
    AscendC::Sub(factor_, max, next_, groups);
    VectorBarrier();
    AscendC::Muls(factor_, factor_, t_.scale, groups);
    AscendC::Adds(max, next_, 0.0f, groups);
    VectorBarrier();
    AscendC::Exp(factor_, factor_, groups);
    AscendC::Muls(next_, next_, -t_.scale, groups);
    VectorBarrier();
    Blocks(factors_[factors], factor_, tile.rows);
    Blocks(blocks_, next_, tile.rows);
    uint8_t step = static_cast<uint8_t>(tile.pitch / 8);
    for (int32_t c = 0; c < tile.cols; c += kRepeatFloats) {
      AscendC::FusedMulAdd(
          s[c], scale_, blocks_, static_cast<uint64_t>(Min(kRepeatFloats, tile.cols - c)),
          static_cast<uint8_t>(tile.rows), AscendC::BinaryRepeatParams(1, 0, 0, step, 0, 1));
    }
    VectorBarrier();
    AscendC::Exp(s, s, tile.rows * tile.pitch);
    VectorBarrier();
    FoldRows<AddOp>(lanes, s, 0.0f, tile);
    AscendC::BlockReduceSum(octets, lanes, tile.rows, kRepeatFloats, 1, 1, 8);
    VectorBarrier();
    AscendC::BlockReduceSum(next_, octets, eights, kRepeatFloats, 1, 1, 8);
    AscendC::Mul(sum, sum, factor_, groups);
    VectorBarrier();
    AscendC::Add(sum, sum, next_, groups);
    VectorBarrier();
  }

  // sums = sums * factors + the product of one block's weights and values
  __aicore__ inline void AddProduct(int64_t step) {
    const Block& b = blocks_of_[step % kSlots];
    LocalTensor<float> sums = sum_buffer_.template Get<float>();
    AscendC::CrossCoreWaitFlag(kProductReady);
    for (int32_t r = 0; r < b.rows; r += pass_) {
      Tile tile{Min(pass_, b.rows - r), t_.dim_v, width_};
      LocalTensor<float> product = TakeRows(
          product_queue_, ring_.Product(step)[(b.row + r) * ring_.product], ring_.product, tile);
      LocalTensor<float> part = sums[r * width_];
      if (b.first) {
        AscendC::Adds(part, product, 0.0f, tile.rows * width_);
      } else {
        RowsWithScalars<MulOp>(part, factors_[(step % kSlots * kHalf + r) * 8], tile);
        AscendC::Add(part, part, product, tile.rows * width_);
      }
      VectorBarrier();
      product_queue_.FreeTensor(product);
    }
    if (b.last && b.rows > 0) Finish(b);
  }

  // out = sums / sum; lse = max scale + ln(sum)
  __aicore__ inline void Finish(const Block& b) {
    LocalTensor<float> sums = sum_buffer_.template Get<float>();
    LocalTensor<float> sum = sum_[b.state * kHalf], max = max_[b.state * kHalf];
    AscendC::Maxs(sum, sum, 1.0e-30f, kHalf);
    VectorBarrier();
    AscendC::Div(next_, ones_, sum, kHalf);
    VectorBarrier();
    Blocks(blocks_, next_, kHalf);
    for (int32_t r = 0; r < b.rows; r += pass_) {
      Tile tile{Min(pass_, b.rows - r), t_.dim_v, width_};
      RowsWithScalars<MulOp>(sums[r * width_], blocks_[r * 8], tile);
      LocalTensor<T> out = out_queue_.template AllocTensor<T>();
      CastRows<T, float>(out, sums[r * width_], tile.rows, t_.dim_v, AlignUp(t_.dim_v, 16), width_,
                         AscendC::RoundMode::CAST_RINT);
      StoreOut(b, r, tile.rows, out);
    }
    LocalTensor<float> lse = lse_queue_.template AllocTensor<float>();
    AscendC::Ln(lse, sum, kHalf);
    AscendC::Muls(max, max, t_.scale, kHalf);
    VectorBarrier();
    AscendC::Add(lse, lse, max, kHalf);
    VectorBarrier();
    StoreLse(b, lse);
  }

  // Rows that see no key.
  __aicore__ inline void StoreUnseen(const Block& b) {
    for (int32_t r = 0; r < b.rows; r += pass_) {
      LocalTensor<T> out = out_queue_.template AllocTensor<T>();
      AscendC::Duplicate(out, T(0.0f), pass_ * ring_.product);
      VectorBarrier();
      StoreOut(b, r, Min(pass_, b.rows - r), out);
    }
    LocalTensor<float> lse = lse_queue_.template AllocTensor<float>();
    AscendC::Duplicate(lse, kUnseen * t_.scale, kHalf);
    VectorBarrier();
    StoreLse(b, lse);
  }

  __aicore__ inline void StoreOut(const Block& b, int32_t r, int32_t rows, LocalTensor<T> out) {
    int64_t token = b.item.query_token + b.item.first + b.row + r;
    int64_t at = b.item.batch * static_cast<int64_t>(t_.packed ? 0 : t_.queries) + token;
    out_queue_.EnQue(out);
    out = out_queue_.template DeQue<T>();
    AscendC::DataCopyPad(out_[(at * t_.heads + b.item.head) * t_.dim_v], out,
                         AscendC::DataCopyExtParams(static_cast<uint16_t>(rows), t_.dim_v * 2, 0,
                                                    (t_.heads - 1) * t_.dim_v * 2, 0));
    out_queue_.FreeTensor(out);
  }

  __aicore__ inline void StoreLse(const Block& b, LocalTensor<float> lse) {
    int64_t token = b.item.query_token + b.item.first + b.row;
    int64_t row = static_cast<int64_t>(t_.packed ? 0 : b.item.batch) * t_.heads + b.item.head;
    lse_queue_.EnQue(lse);
    lse = lse_queue_.template DeQue<float>();
    AscendC::DataCopyPad(lse_[row * t_.tokens + token], lse,
                         AscendC::DataCopyExtParams(1, b.rows * 4, 0, 0, 0));
    lse_queue_.FreeTensor(lse);
  }

  AttentionTiling t_;
  AttentionRing ring_;
  GlobalTensor<uint8_t> mask_;
  GlobalTensor<T> out_;
  GlobalTensor<float> lse_;
  int32_t width_;  // dim_v, rounded up to a block of float32
  int32_t pass_;   // rows
  int32_t state_ = 0;
  int64_t steps_ = 0;
  Block blocks_of_[kSlots];
  AscendC::TPipe pipe_;
  AscendC::TQue<TPosition::VECIN, 1> scores_queue_, product_queue_, mask_queue_;
  AscendC::TQue<TPosition::VECOUT, 1> weights_queue_, out_queue_, lse_queue_;
  AscendC::TBuf<TPosition::VECCALC> sum_buffer_, lanes_buffer_, row_buffer_, mask_buffer_;
  // of each row, for as many items as are under way: the largest score, the sum of weights; and the
  // sum's next value, what sums are multiplied by
  LocalTensor<float> max_, sum_, next_, factor_, ones_;
  LocalTensor<float> blocks_, factors_, scale_;
};

}  // namespace mmkern
