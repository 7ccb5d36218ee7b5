// The gradients of modulate.cpp: of x and of the branch, and for each task (a chunk of tokens that
// share every vector) the sums over its rows from which the host makes the other gradients.
//
//   dh = grad_h + rstd * (g - mean(g) - xhat * mean(g * xhat)), where g = grad_y * weight (1 +
//   scale) dx = dh; dbranch = dh * gate; sums of grad_y, of grad_y * xhat, and of dh * branch
#include "modulate_task.h"

namespace mmkern {

using AscendC::TPosition;

// What the host passes: null where there is none, or nobody asks.
struct ModulateGradients {
  Address grad_h;
  Address grad_y;
  Address h;
  Address branch;
  Address gate;
  Address scale;
  Address weight;
  Address dx;
  Address dbranch;
  Address sums;  // float32 (tasks, 3, cols): of grad_y, grad_y * xhat, dh * branch
};

template <class T>
class ModulateBackward {
 public:
  __aicore__ inline ModulateBackward(const ModulateGradients& g, const ModulateTiling& tiling)
      : g_(g), t_(tiling) {
    normed_ = t_.has_grad_y != 0;
    factored_ = normed_ && (t_.scale.kind || t_.weight.kind);
    int32_t elements = t_.rows * t_.pitch, row_bytes = t_.pitch * 4;
    if (t_.has_grad_h) pipe_.InitBuffer(grad_h_queue_, t_.buffers, elements * 2);
    if (g_.branch) {
      pipe_.InitBuffer(branch_queue_, t_.buffers, elements * 2);
      pipe_.InitBuffer(branch_sum_, row_bytes);
    }
    if (g_.dx) pipe_.InitBuffer(dx_queue_, t_.buffers, elements * 2);
    if (g_.dbranch) pipe_.InitBuffer(dbranch_queue_, t_.buffers, elements * 2);
    if (t_.gate.kind || factored_) pipe_.InitBuffer(vector_queue_, 1, row_bytes);
    if (t_.gate.kind) pipe_.InitBuffer(gate_buffer_, row_bytes);
    if (factored_) pipe_.InitBuffer(factor_buffer_, row_bytes);
    pipe_.InitBuffer(grad_buffer_, elements * 4);
    pipe_.InitBuffer(work_buffer_, elements * 4);
    if (!normed_) return;
    pipe_.InitBuffer(pair_queue_, t_.buffers, 2 * elements * 2);
    pipe_.InitBuffer(xhat_buffer_, elements * 4);
    pipe_.InitBuffer(y_sum_, row_bytes);
    pipe_.InitBuffer(xhat_sum_, row_bytes);
    int32_t elements_of_norm = RowNorm::Elements(t_.rows, t_.pitch);
    pipe_.InitBuffer(row_buffer_, (elements_of_norm + 8 * AlignUp(t_.rows, 8)) * 4);
    LocalTensor<float> rows = row_buffer_.template Get<float>();
    norm_.Bind(rows, t_.rows);
    rstd_ = rows[elements_of_norm];
  }

  __aicore__ inline void Run() {
    CoreTasks tasks(ModulateTask::Count(t_));
    for (int32_t i = tasks.begin; i < tasks.end; ++i) {
      ModulateTask task(t_, i);
      int32_t segment = task.batch * (t_.tokens / t_.segment) + task.token / t_.segment;
      if (segment != segment_) LoadVectors(task);
      segment_ = segment;
      ClearSums();
      for (int32_t first = 0; first < task.rows; first += t_.rows) {
        RunTile(task, task.token + first, Min(t_.rows, task.rows - first));
      }
      StoreSums(i);
    }
  }

 private:
  __aicore__ inline void LoadVectors(const ModulateTask& task) {
    if (t_.gate.kind) {
      LoadVector<T>(gate_buffer_.template Get<float>(), VectorOf(t_.gate, g_.gate, task), t_.cols,
                    vector_queue_);
    }
    if (!factored_) return;
    LocalTensor<float> factor = factor_buffer_.template Get<float>();
    LocalTensor<float> work = work_buffer_.template Get<float>();
    if (t_.scale.kind) {
      LoadVector<T>(factor, VectorOf(t_.scale, g_.scale, task), t_.cols, vector_queue_);
      AscendC::Adds(factor, factor, 1.0f, t_.cols);
      VectorBarrier();
    }
    if (t_.weight.kind) {
      LoadVector<T>(t_.scale.kind ? work : factor, VectorOf(t_.weight, g_.weight, task), t_.cols,
                    vector_queue_);
      if (t_.scale.kind) AscendC::Mul(factor, factor, work, t_.cols);
      VectorBarrier();
    }
  }

  __aicore__ inline void ClearSums() {
    if (normed_) {
      AscendC::Duplicate(y_sum_.template Get<float>(), 0.0f, t_.cols);
      AscendC::Duplicate(xhat_sum_.template Get<float>(), 0.0f, t_.cols);
    }
    if (g_.branch) AscendC::Duplicate(branch_sum_.template Get<float>(), 0.0f, t_.cols);
    VectorBarrier();
  }

  // sum += the rows of x, in their order
  __aicore__ inline void AddRows(LocalTensor<float> sum, LocalTensor<float> x, const Tile& tile) {
    for (int32_t r = 0; r < tile.rows; ++r) {
      AscendC::Add(sum, sum, x[r * tile.pitch], tile.cols);
      VectorBarrier();
    }
  }

  __aicore__ inline void RunTile(const ModulateTask& task, int32_t token, int32_t rows) {
    Tile tile{rows, t_.cols, t_.pitch};
    int32_t count = tile.rows * tile.pitch;
    LocalTensor<float> grad = grad_buffer_.template Get<float>();
    LocalTensor<float> work = work_buffer_.template Get<float>();
    int64_t out = (static_cast<int64_t>(task.batch) * t_.tokens + token) * t_.cols;
    if (normed_) {
      LocalTensor<T> pair = pair_queue_.template AllocTensor<T>();
      CopyRows<T>(pair, g_.h, task.batch * t_.x_batch_stride + token * t_.x_row_stride,
                  t_.x_row_stride, tile);
      CopyRows<T>(pair[t_.rows * t_.pitch], g_.grad_y, out, t_.cols, tile);
      pair_queue_.EnQue(pair);
    }
    if (t_.has_grad_h) LoadRows<T>(grad_h_queue_, g_.grad_h, out, t_.cols, tile);
    if (g_.branch) {
      LoadRows<T>(branch_queue_, g_.branch,
                  task.batch * t_.branch_batch_stride + token * t_.branch_row_stride,
                  t_.branch_row_stride, tile);
    }
    if (normed_) NormBackward(grad, work, tile);
    if (t_.has_grad_h) {
      Widen<T>(normed_ ? work : grad, grad_h_queue_, tile);
      if (normed_) AscendC::Add(grad, grad, work, count);
      VectorBarrier();
    }
    if (g_.dx) {
      Narrow<T>(dx_queue_, grad, tile);
      StoreRows<T>(dx_queue_, g_.dx, out, t_.cols, tile);
    }
    if (g_.branch) {
      Widen<T>(work, branch_queue_, tile);
      AscendC::Mul(work, work, grad, count);
      VectorBarrier();
      AddRows(branch_sum_.template Get<float>(), work, tile);
    }
    if (g_.dbranch) {
      if (t_.gate.kind) RowsWithVector<MulOp>(grad, gate_buffer_.template Get<float>(), tile);
      Narrow<T>(dbranch_queue_, grad, tile);
      StoreRows<T>(dbranch_queue_, g_.dbranch, out, t_.cols, tile);
    }
  }

  // grad = rstd * (g - mean(g) - xhat * mean(g * xhat)); both sums over grad_y on the way.
  __aicore__ inline void NormBackward(LocalTensor<float> grad, LocalTensor<float> work,
                                      const Tile& tile) {
    int32_t count = tile.rows * tile.pitch;
    float mean = 1.0f / static_cast<float>(t_.cols);
    LocalTensor<float> xhat = xhat_buffer_.template Get<float>();
    LocalTensor<T> pair = pair_queue_.template DeQue<T>();
    AscendC::Cast(xhat, pair, AscendC::RoundMode::CAST_NONE, count);
    AscendC::Cast(grad, pair[t_.rows * t_.pitch], AscendC::RoundMode::CAST_NONE, count);
    VectorBarrier();
    pair_queue_.FreeTensor(pair);
    norm_.Normalise(xhat, work, tile, t_.norm, t_.eps);
    AscendC::Adds(rstd_, norm_.blocks, 0.0f, AlignUp(tile.rows, 8) * 8);
    AddRows(y_sum_.template Get<float>(), grad, tile);
    AscendC::Mul(work, grad, xhat, count);
    VectorBarrier();
    AddRows(xhat_sum_.template Get<float>(), work, tile);
    if (factored_) {
      LocalTensor<float> factor = factor_buffer_.template Get<float>();
      RowsWithVector<MulOp>(grad, factor, tile);
      RowsWithVector<MulOp>(work, factor, tile);
    }
    norm_.MeanBlocks(work, mean, tile);
    RowsWithScalars<MulOp>(xhat, norm_.blocks, tile);
    if (t_.norm == kLayerNorm) {
      norm_.MeanBlocks(grad, mean, tile);
      RowsWithScalars<SubOp>(grad, norm_.blocks, tile);
    }
    AscendC::Sub(grad, grad, xhat, count);
    VectorBarrier();
    RowsWithScalars<MulOp>(grad, rstd_, tile);
  }

  __aicore__ inline void StoreSums(int32_t task) {
    if (normed_) {
      StoreSum(y_sum_.template Get<float>(), task * 3);
      StoreSum(xhat_sum_.template Get<float>(), task * 3 + 1);
    }
    if (g_.branch) StoreSum(branch_sum_.template Get<float>(), task * 3 + 2);
    // the next task clears the sums: once a few thousand rows, so no second buffer
    int32_t event = pipe_.FetchEventID(AscendC::HardEvent::MTE3_V);
    AscendC::SetFlag<AscendC::HardEvent::MTE3_V>(event);
    AscendC::WaitFlag<AscendC::HardEvent::MTE3_V>(event);
  }

  __aicore__ inline void StoreSum(LocalTensor<float> sum, int32_t row) {
    GlobalTensor<float> to;
    to.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(g_.sums) +
                       static_cast<int64_t>(row) * t_.cols);
    int32_t event = pipe_.FetchEventID(AscendC::HardEvent::V_MTE3);
    AscendC::SetFlag<AscendC::HardEvent::V_MTE3>(event);
    AscendC::WaitFlag<AscendC::HardEvent::V_MTE3>(event);
    AscendC::DataCopyPad(to, sum, AscendC::DataCopyExtParams(1, t_.cols * 4, 0, 0, 0));
  }

  ModulateGradients g_;
  ModulateTiling t_;
  bool normed_, factored_;
  int32_t segment_ = -1;
  AscendC::TPipe pipe_;
  // A core has eight events from V to MTE2, and each buffer of these queues holds one: h and grad_y
  // share theirs.
  AscendC::TQue<TPosition::VECIN, 1> pair_queue_, grad_h_queue_, branch_queue_, vector_queue_;
  AscendC::TQue<TPosition::VECOUT, 1> dx_queue_, dbranch_queue_;
  AscendC::TBuf<TPosition::VECCALC> grad_buffer_, work_buffer_, xhat_buffer_, gate_buffer_,
      factor_buffer_, y_sum_, xhat_sum_, branch_sum_, row_buffer_;
  LocalTensor<float> rstd_;  // a block for each row
  RowNorm norm_;
};

}  // namespace mmkern

#define MMKERN_MODULATE_BACKWARD(T, name)                                                         \
  MMKERN_VECTOR_ENTRY mmkern_modulate_backward_##name(                                            \
      GM_ADDR grad_h, GM_ADDR grad_y, GM_ADDR h, GM_ADDR branch, GM_ADDR gate, GM_ADDR scale,     \
      GM_ADDR weight, GM_ADDR dx, GM_ADDR dbranch, GM_ADDR sums, mmkern::ModulateTiling tiling) { \
    MMKERN_ON_VECTOR;                                                                             \
    mmkern::ModulateGradients g{                                                                  \
        grad_h, grad_y, h, branch, gate, scale, weight, dx, dbranch, sums};                       \
    mmkern::ModulateBackward<T>(g, tiling).Run();                                                 \
  }
MMKERN_MODULATE_BACKWARD(half, float16)
MMKERN_MODULATE_BACKWARD(bfloat16_t, bfloat16)
