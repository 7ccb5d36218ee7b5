// What attention's backward needs of each query: -lse, and delta = rowsum(grad out) less the
// gradient of lse. A query that sees no key gets such a lse that its weights are 0, and delta 0.
#pragma once

#include "attention_backward_tiling.h"
#include "rows.h"

namespace mmkern {

constexpr int32_t kDeltaRows = 32;

template <class T>
class AttentionDelta {
 public:
  // out, lse and grad_lse (or null) are contiguous; stats: float32, as lse twice.
  __aicore__ inline AttentionDelta(Address grad, Address out, Address lse, Address grad_lse,
                                   Address stats, const AttentionBackwardTiling& tiling)
      : grad_(grad), out_(out), has_grad_lse_(grad_lse != nullptr), t_(tiling) {
    lse_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(lse));
    grad_lse_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(grad_lse));
    stats_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(stats));
    pitch_ = AlignUp(t_.dim_v, 16);
    int32_t elements = kDeltaRows * pitch_;
    pipe_.InitBuffer(pair_queue_, 2, 2 * elements * 2);
    pipe_.InitBuffer(lse_queue_, 2, 2 * kDeltaRows * 4);
    pipe_.InitBuffer(stats_queue_, 2, 2 * kLanes * 4);
    pipe_.InitBuffer(work_buffer_, 2 * elements * 4);
    pipe_.InitBuffer(row_buffer_, (2 * kLanes + kDeltaRows * kRepeatFloats) * 4);
    pipe_.InitBuffer(seen_buffer_, kBlock);
    AscendC::Duplicate(row_buffer_.template Get<float>(), 0.0f, 2 * kLanes);
    VectorBarrier();
  }

  __aicore__ inline void Run() {
    int64_t chunks = CeilDiv(t_.tokens, kDeltaRows);
    int64_t lines = static_cast<int64_t>(t_.packed ? 1 : t_.batch) * t_.heads;
    for (int64_t i = AscendC::GetBlockIdx(); i < lines * chunks; i += AscendC::GetBlockNum()) {
      int32_t token = static_cast<int32_t>(i % chunks) * kDeltaRows;
      RunRows(i / chunks, token, Min(kDeltaRows, t_.tokens - token), lines * t_.tokens);
    }
  }

 private:
  static constexpr int32_t kLanes = kRepeatFloats;  // a comparison takes whole repeats

  // Rows of one line of lse; delta lies `behind` elements after -lse.
  __aicore__ inline void RunRows(int64_t line, int32_t token, int32_t rows, int64_t behind) {
    int64_t batch = line / t_.heads, head = line % t_.heads, at = line * t_.tokens + token;
    Tile tile{rows, t_.dim_v, pitch_};
    int32_t half_pair = kDeltaRows * pitch_, count = rows * pitch_;
    LocalTensor<T> pair = pair_queue_.template AllocTensor<T>();
    CopyRows<T>(
        pair, grad_,
        batch * t_.grad_batch_stride + token * t_.grad_row_stride + head * t_.grad_head_stride,
        t_.grad_row_stride, tile);
    CopyRows<T>(pair[half_pair], out_, ((batch * t_.tokens + token) * t_.heads + head) * t_.dim_v,
                static_cast<int64_t>(t_.heads) * t_.dim_v, tile);
    pair_queue_.EnQue(pair);
    LocalTensor<float> lse = LoadLse(at, rows);
    LocalTensor<float> grad = work_buffer_.template Get<float>(), out = grad[half_pair];
    pair = pair_queue_.template DeQue<T>();
    AscendC::Cast(grad, pair, AscendC::RoundMode::CAST_NONE, count);
    AscendC::Cast(out, pair[half_pair], AscendC::RoundMode::CAST_NONE, count);
    VectorBarrier();
    pair_queue_.FreeTensor(pair);
    AscendC::Mul(grad, grad, out, count);
    VectorBarrier();
    LocalTensor<float> wide_lse = row_buffer_.template Get<float>(), delta = wide_lse[kLanes];
    RowSums(delta, grad, delta[kLanes], tile);
    if (has_grad_lse_) AscendC::Sub(delta, delta, lse[kDeltaRows], rows);
    AscendC::Adds(wide_lse, lse, 0.0f, rows);
    VectorBarrier();
    lse_queue_.FreeTensor(lse);
    StoreStats(wide_lse, delta, at, rows, behind);
  }

  // lse, and behind it its gradient.
  __aicore__ inline LocalTensor<float> LoadLse(int64_t at, int32_t rows) {
    LocalTensor<float> lse = lse_queue_.template AllocTensor<float>();
    Tile line{1, rows, AlignUp(rows, 8)};
    CopyRows<float>(lse, lse_[at], rows, line);
    if (has_grad_lse_) CopyRows<float>(lse[kDeltaRows], grad_lse_[at], rows, line);
    lse_queue_.EnQue(lse);
    return lse_queue_.template DeQue<float>();
  }

  __aicore__ inline void StoreStats(LocalTensor<float> lse, LocalTensor<float> delta, int64_t at,
                                    int32_t rows, int64_t behind) {
    LocalTensor<uint8_t> seen = seen_buffer_.template Get<uint8_t>();
    LocalTensor<float> stats = stats_queue_.template AllocTensor<float>();
    AscendC::CompareScalar(seen, lse, kNoKeys, AscendC::CMPMODE::GT, kLanes);
    AscendC::Muls(lse, lse, -1.0f, kLanes);
    VectorBarrier();
    AscendC::Select(stats, seen, lse, kNoKeys, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE, kLanes);
    AscendC::Select(stats[kLanes], seen, delta, 0.0f, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE,
                    kLanes);
    VectorBarrier();
    stats_queue_.EnQue(stats);
    stats = stats_queue_.template DeQue<float>();
    AscendC::DataCopyExtParams shape(1, rows * 4, 0, 0, 0);
    AscendC::DataCopyPad(stats_[at], stats, shape);
    AscendC::DataCopyPad(stats_[at + behind], stats[kLanes], shape);
    stats_queue_.FreeTensor(stats);
  }

  static constexpr float kNoKeys = -1.0e30f;  // lse of a query that sees no key is below it

  Address grad_, out_;
  bool has_grad_lse_;
  AttentionBackwardTiling t_;
  GlobalTensor<float> lse_, grad_lse_, stats_;
  int32_t pitch_;
  AscendC::TPipe pipe_;
  AscendC::TQue<TPosition::VECIN, 1> pair_queue_, lse_queue_;
  AscendC::TQue<TPosition::VECOUT, 1> stats_queue_;
  AscendC::TBuf<TPosition::VECCALC> work_buffer_, row_buffer_, seen_buffer_;
};

}  // namespace mmkern
