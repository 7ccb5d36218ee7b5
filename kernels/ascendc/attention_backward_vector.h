// The vector cores' half of attention's backward: weights = exp(scores scale - lse) and the
// gradients of the scores = weights (gradients of the weights - delta) of a tile, and the outputs
// from the sums of the cube core. Each of the two has half the rows.
//
// Source of the backward from the log-sum-exp: Dao et al., "FlashAttention".
#pragma once

#include "attention_backward_item.h"
#include "attention_mask.h"
#include "epilogue.h"

namespace mmkern {

template <class T, bool kKeys>
class AttentionBackwardVector {
 public:
  // stats: what AttentionDelta leaves. grads: dq, or dk and dv.
  __aicore__ inline AttentionBackwardVector(Address mask, Address stats, Address grad0,
                                            Address grad1, Address ring,
                                            const AttentionBackwardTiling& tiling)
      : t_(tiling), ring_(ring, tiling, AscendC::GetBlockIdx() / 2) {
    mask_.SetGlobalBuffer(reinterpret_cast<__gm__ uint8_t*>(mask));
    stats_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(stats));
    grads_[0].SetGlobalBuffer(reinterpret_cast<__gm__ T*>(grad0));
    grads_[1].SetGlobalBuffer(reinterpret_cast<__gm__ T*>(grad1));
    pass_ = Min(kPassElements / t_.block_keys / 8 * 8, 64);
    stat_rows_ = AlignUp(CeilDiv(t_.block_queries, 2), 8);
    pipe_.InitBuffer(in_queue_, 2, 2 * kPassElements * 4);
    pipe_.InitBuffer(out_queue_, 2, 2 * kPassElements * 2);
    pipe_.InitBuffer(stats_queue_, 2, 2 * stat_rows_ * 4);
    pipe_.InitBuffer(row_buffer_, (2 * pass_ * 8 + 8) * 4);
    if (t_.masked) {
      pipe_.InitBuffer(mask_queue_, 1, AlignUp(t_.block_keys, kBlock));
      pipe_.InitBuffer(mask_buffer_, t_.block_keys * 6);
    }
    lse_ = row_buffer_.template Get<float>();
    delta_ = lse_[pass_ * 8];
    scale_ = lse_[2 * pass_ * 8];
    AscendC::Duplicate(scale_, t_.scale, 8);
    VectorBarrier();
  }

  __aicore__ inline void Run(Address cu_q, Address cu_k) {
    BackwardSteps<kKeys> steps(t_, cu_q, cu_k, AscendC::GetBlockIdx() / 2);
    BackwardStep s;
    int64_t step = 0;
    while (steps.Next(s)) {
      if (s.Empty()) {
        StoreZeros(s);
        continue;
      }
      Weights(s, step);
      kept_[step % kSlots] = s;
      if (step >= 2) Finish(kept_[(step - 2) % kSlots]);
      ++step;
    }
    for (int64_t i = step < 2 ? 0 : step - 2; i < step; ++i) Finish(kept_[i % kSlots]);
  }

 private:
  static constexpr int32_t kPassElements = 4096;  // of a tile, at a time
  static constexpr int32_t kKinds = BackwardRing<kKeys>::kKinds;

  // Rows of this core.
  struct Share {
    int32_t first;
    int32_t rows;
    __aicore__ explicit Share(int32_t all) {
      int32_t middle = CeilDiv(all, 2);
      bool second = AscendC::GetSubBlockIdx() != 0;
      first = second ? middle : 0;
      rows = second ? all - middle : middle;
    }
  };

  __aicore__ inline void Weights(const BackwardStep& s, int64_t step) {
    Share share(s.m);
    LocalTensor<float> stats;
    if (share.rows > 0) stats = LoadStats(s, share);
    if (t_.masked) {
      LocalTensor<float> wide = mask_buffer_.template Get<float>();
      LoadKeyMask(wide, wide[t_.block_keys].template ReinterpretCast<half>(), mask_queue_,
                  mask_[s.batch * t_.mask_stride + s.key], s.n);
    }
    AscendC::CrossCoreWaitFlag(kTileReady);
    for (int32_t r = 0; r < share.rows; r += pass_) {
      Tile tile{Min(pass_, share.rows - r), s.n, AlignUp(s.n, 8)};
      Blocks(lse_, stats[r], tile.rows);
      Blocks(delta_, stats[stat_rows_ + r], tile.rows);
      WeighRows(s, step, share.first + r, tile);
    }
    if (share.rows > 0) stats_queue_.FreeTensor(stats);
    AscendC::CrossCoreSetFlag<2, PIPE_MTE3>(kWeightReady);
  }

  // Of the rows of this core -lse, and behind them delta.
  __aicore__ inline LocalTensor<float> LoadStats(const BackwardStep& s, const Share& share) {
    LocalTensor<float> stats = stats_queue_.template AllocTensor<float>();
    int64_t lines = static_cast<int64_t>(t_.packed ? 1 : t_.batch) * t_.heads;
    int64_t line = static_cast<int64_t>(t_.packed ? 0 : s.batch) * t_.heads + s.head;
    int64_t at = line * t_.tokens + s.query_token + s.query + share.first;
    Tile shape{1, share.rows, AlignUp(share.rows, 8)};
    for (int32_t i = 0; i < 2; ++i) {
      CopyRows<float>(stats[i * stat_rows_], stats_[at + i * lines * t_.tokens], share.rows, shape);
    }
    stats_queue_.EnQue(stats);
    return stats_queue_.template DeQue<float>();
  }

  // Rows of a tile from `row` on; lse_ and delta_ are theirs.
  __aicore__ inline void WeighRows(const BackwardStep& s, int64_t step, int32_t row,
                                   const Tile& tile) {
    LocalTensor<float> w = LoadTile(step, row, tile), grad = w[kPassElements];
    MaskRows(w, tile, s.query + row + s.shift - s.key, t_.left, t_.right);
    if (t_.masked) RowsWithVector<AddOp>(w, mask_buffer_.template Get<float>(), tile);
    uint8_t down = static_cast<uint8_t>(tile.pitch / 8);
    for (int32_t c = 0; c < tile.cols; c += kRepeatFloats) {
      AscendC::FusedMulAdd(
          w[c], scale_, lse_, static_cast<uint64_t>(Min(kRepeatFloats, tile.cols - c)),
          static_cast<uint8_t>(tile.rows), AscendC::BinaryRepeatParams(1, 0, 0, down, 0, 1));
    }
    RowsWithScalars<SubOp>(grad, delta_, tile);
    AscendC::Exp(w, w, tile.rows * tile.pitch);
    VectorBarrier();
    AscendC::Mul(grad, grad, w, tile.rows * tile.pitch);
    VectorBarrier();
    LocalTensor<T> out = out_queue_.template AllocTensor<T>();
    for (int32_t kind = 0; kind < kKinds; ++kind) {
      CastRows<T, float>(out[kind * kPassElements], kind ? w : grad, tile.rows, tile.cols,
                         AlignUp(tile.cols, 16), tile.pitch, AscendC::RoundMode::CAST_RINT);
    }
    in_queue_.FreeTensor(w);
    out_queue_.EnQue(out);
    out = out_queue_.template DeQue<T>();
    AscendC::DataCopyExtParams shape(static_cast<uint16_t>(tile.rows), tile.cols * 2, 0,
                                     (ring_.keys - tile.cols) * 2, 0);
    for (int32_t kind = 0; kind < kKinds; ++kind) {
      AscendC::DataCopyPad(ring_.template Weights<T>(step, kind)[row * ring_.keys],
                           out[kind * kPassElements], shape);
    }
    out_queue_.FreeTensor(out);
  }

  // Rows of scores, and behind them of the gradients of the weights.
  __aicore__ inline LocalTensor<float> LoadTile(int64_t step, int32_t row, const Tile& tile) {
    LocalTensor<float> in = in_queue_.template AllocTensor<float>();
    for (int32_t kind = 0; kind < 2; ++kind) {
      CopyRows<float>(in[kind * kPassElements], ring_.Scores(step, kind)[row * ring_.keys],
                      ring_.keys, tile);
    }
    in_queue_.EnQue(in);
    return in_queue_.template DeQue<float>();
  }

  // The outputs of an item, once the sums of its last step are there.
  __aicore__ inline void Finish(const BackwardStep& s) {
    if (!s.last) return;
    AscendC::CrossCoreWaitFlag(kSumsReady);
    Share share(kKeys ? s.n : s.m);
    for (int32_t kind = 0; kind < kKinds; ++kind) {
      int32_t pitch = ring_.width[kind], pass = 2 * kPassElements / pitch;
      for (int32_t r = 0; r < share.rows; r += pass) {
        Tile tile{Min(pass, share.rows - r), pitch, pitch};
        LocalTensor<float> in =
            TakeRows(in_queue_, ring_.Sums(s.item, kind)[(share.first + r) * pitch], pitch, tile);
        if (kind == 0) AscendC::Muls(in, in, t_.scale, tile.rows * pitch);
        VectorBarrier();
        LocalTensor<T> out = out_queue_.template AllocTensor<T>();
        AscendC::Cast(out, in, AscendC::RoundMode::CAST_RINT, tile.rows * pitch);
        VectorBarrier();
        in_queue_.FreeTensor(in);
        StoreRowsOfGrad(s, kind, share.first + r, tile.rows, out);
      }
    }
  }

  __aicore__ inline void StoreZeros(const BackwardStep& s) {
    Share share(kKeys ? s.n : s.m);
    for (int32_t kind = 0; kind < kKinds; ++kind) {
      int32_t pass = 2 * kPassElements / ring_.width[kind];
      for (int32_t r = 0; r < share.rows; r += pass) {
        LocalTensor<T> out = out_queue_.template AllocTensor<T>();
        AscendC::Duplicate(out, T(0.0f), 2 * kPassElements);
        VectorBarrier();
        StoreRowsOfGrad(s, kind, share.first + r, Min(pass, share.rows - r), out);
      }
    }
  }

  // Rows of dq, or of dk and dv, from `row` of the item on.
  __aicore__ inline void StoreRowsOfGrad(const BackwardStep& s, int32_t kind, int32_t row,
                                         int32_t rows, LocalTensor<T> out) {
    int32_t heads = kKeys ? t_.heads_k : t_.heads, dim = kind ? t_.dim_v : t_.dim;
    int64_t first = kKeys ? s.key_token + s.key : s.query_token + s.query;
    int64_t length = t_.packed ? 0 : kKeys ? t_.keys : t_.queries;
    int64_t at = (s.batch * length + first + row) * heads + (kKeys ? s.head_k : s.head);
    out_queue_.EnQue(out);
    out = out_queue_.template DeQue<T>();
    AscendC::DataCopyPad(grads_[kind][at * dim], out,
                         AscendC::DataCopyExtParams(static_cast<uint16_t>(rows), dim * 2, 0,
                                                    (heads - 1) * dim * 2, 0));
    out_queue_.FreeTensor(out);
  }

  AttentionBackwardTiling t_;
  BackwardRing<kKeys> ring_;
  GlobalTensor<uint8_t> mask_;
  GlobalTensor<float> stats_;
  GlobalTensor<T> grads_[2];
  int32_t pass_;       // rows
  int32_t stat_rows_;  // room for the rows of this core
  BackwardStep kept_[kSlots];
  AscendC::TPipe pipe_;
  AscendC::TQue<TPosition::VECIN, 1> in_queue_, stats_queue_, mask_queue_;
  AscendC::TQue<TPosition::VECOUT, 1> out_queue_;
  AscendC::TBuf<TPosition::VECCALC> row_buffer_, mask_buffer_;
  LocalTensor<float> lse_, delta_, scale_;  // a block for each row
};

}  // namespace mmkern
