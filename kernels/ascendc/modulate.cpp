// h = x + gate * branch; y = norm(h) * (1 + scale) + shift: x and branch are read once, h and y
// written once. The contract is in mmkern/ops/modulate.py.
#include "modulate_task.h"

namespace mmkern {

using AscendC::TPosition;

template <class T>
class Modulate {
 public:
  __aicore__ inline Modulate(GM_ADDR x, GM_ADDR branch, GM_ADDR gate, GM_ADDR shift, GM_ADDR scale,
                             GM_ADDR weight, GM_ADDR bias, GM_ADDR h, GM_ADDR y,
                             const ModulateTiling& tiling)
      : x_(x),
        branch_(branch),
        gate_(gate),
        shift_(shift),
        scale_(scale),
        weight_(weight),
        bias_(bias),
        h_(h),
        y_(y),
        t_(tiling) {
    factored_ = t_.scale.kind || t_.weight.kind;
    shifted_ = t_.shift.kind || t_.bias.kind;
    int32_t elements = t_.rows * t_.pitch, row_bytes = t_.pitch * 4;
    pipe_.InitBuffer(x_queue_, t_.buffers, elements * 2);
    pipe_.InitBuffer(vector_queue_, 1, row_bytes);
    pipe_.InitBuffer(x_buffer_, elements * 4);
    pipe_.InitBuffer(work_buffer_, elements * 4);
    if (t_.branched) {
      pipe_.InitBuffer(branch_queue_, t_.buffers, elements * 2);
      pipe_.InitBuffer(h_queue_, t_.buffers, elements * 2);
      if (t_.gate.kind) pipe_.InitBuffer(gate_buffer_, row_bytes);
    }
    if (!t_.norm) return;
    pipe_.InitBuffer(y_queue_, t_.buffers, elements * 2);
    if (factored_) pipe_.InitBuffer(factor_buffer_, row_bytes);
    if (shifted_) pipe_.InitBuffer(shift_buffer_, row_bytes);
    pipe_.InitBuffer(row_buffer_, RowNorm::Elements(t_.rows, t_.pitch) * 4);
    norm_.Bind(row_buffer_.template Get<float>(), t_.rows);
  }

  __aicore__ inline void Run() {
    CoreTasks tasks(ModulateTask::Count(t_));
    for (int32_t i = tasks.begin; i < tasks.end; ++i) {
      ModulateTask task(t_, i);
      int32_t segment = task.batch * (t_.tokens / t_.segment) + task.token / t_.segment;
      if (segment != segment_) LoadVectors(task);
      segment_ = segment;
      for (int32_t first = 0; first < task.rows; first += t_.rows) {
        RunTile(task, task.token + first, Min(t_.rows, task.rows - first));
      }
    }
  }

 private:
  // The vectors of a segment: gate; factor = weight (1 + scale); shift + bias (1 + scale).
  __aicore__ inline void LoadVectors(const ModulateTask& task) {
    LocalTensor<float> work = work_buffer_.template Get<float>();
    if (t_.branched && t_.gate.kind) {
      Load(gate_buffer_.template Get<float>(), t_.gate, gate_, task);
    }
    if (!t_.norm) return;
    LocalTensor<float> factor = factored_ ? factor_buffer_.template Get<float>() : work;
    LocalTensor<float> shift = shifted_ ? shift_buffer_.template Get<float>() : work;
    if (t_.scale.kind) {
      Load(factor, t_.scale, scale_, task);
      AscendC::Adds(factor, factor, 1.0f, t_.cols);
      VectorBarrier();
    }
    if (t_.bias.kind) {
      Load(shift, t_.bias, bias_, task);
      if (t_.scale.kind) AscendC::Mul(shift, shift, factor, t_.cols);
      VectorBarrier();
    }
    if (t_.shift.kind) {
      Load(t_.bias.kind ? work : shift, t_.shift, shift_, task);
      if (t_.bias.kind) AscendC::Add(shift, shift, work, t_.cols);
      VectorBarrier();
    }
    if (t_.weight.kind) {
      Load(t_.scale.kind ? work : factor, t_.weight, weight_, task);
      if (t_.scale.kind) AscendC::Mul(factor, factor, work, t_.cols);
      VectorBarrier();
    }
  }

  __aicore__ inline void Load(LocalTensor<float> dst, const ModulateVector& v, GM_ADDR base,
                              const ModulateTask& task) {
    LoadVector<T>(dst, VectorOf(v, base, task), t_.cols, vector_queue_);
  }

  __aicore__ inline void RunTile(const ModulateTask& task, int32_t token, int32_t rows) {
    Tile tile{rows, t_.cols, t_.pitch};
    int64_t row = static_cast<int64_t>(task.batch) * t_.tokens + token;
    LocalTensor<float> x = x_buffer_.template Get<float>(),
                       work = work_buffer_.template Get<float>();
    LoadRows<T>(x_queue_, x_, task.batch * t_.x_batch_stride + token * t_.x_row_stride,
                t_.x_row_stride, tile);
    if (t_.branched) {
      LoadRows<T>(branch_queue_, branch_,
                  task.batch * t_.branch_batch_stride + token * t_.branch_row_stride,
                  t_.branch_row_stride, tile);
    }
    Widen<T>(x, x_queue_, tile);
    if (t_.branched) AddBranch(x, work, row, tile);
    if (!t_.norm) return;
    norm_.Normalise(x, work, tile, t_.norm, t_.eps);
    if (factored_) RowsWithVector<MulOp>(x, factor_buffer_.template Get<float>(), tile);
    if (shifted_) RowsWithVector<AddOp>(x, shift_buffer_.template Get<float>(), tile);
    Narrow<T>(y_queue_, x, tile);
    StoreRows<T>(y_queue_, y_, row * t_.cols, t_.cols, tile);
  }

  // x becomes h, rounded as it is stored: the norm and the backward pass see the same h.
  __aicore__ inline void AddBranch(LocalTensor<float> x, LocalTensor<float> work, int64_t row,
                                   const Tile& tile) {
    Widen<T>(work, branch_queue_, tile);
    if (t_.gate.kind) RowsWithVector<MulOp>(work, gate_buffer_.template Get<float>(), tile);
    AscendC::Add(x, x, work, tile.rows * tile.pitch);
    VectorBarrier();
    LocalTensor<T> h = h_queue_.template AllocTensor<T>();
    AscendC::Cast(h, x, AscendC::RoundMode::CAST_RINT, tile.rows * tile.pitch);
    VectorBarrier();
    if (t_.norm) {
      AscendC::Cast(x, h, AscendC::RoundMode::CAST_NONE, tile.rows * tile.pitch);
      VectorBarrier();
    }
    h_queue_.EnQue(h);
    StoreRows<T>(h_queue_, h_, row * t_.cols, t_.cols, tile);
  }

  Address x_, branch_, gate_, shift_, scale_, weight_, bias_, h_, y_;
  ModulateTiling t_;
  bool factored_, shifted_;
  int32_t segment_ = -1;
  AscendC::TPipe pipe_;
  AscendC::TQue<TPosition::VECIN, 1> x_queue_, branch_queue_, vector_queue_;
  AscendC::TQue<TPosition::VECOUT, 1> h_queue_, y_queue_;
  AscendC::TBuf<TPosition::VECCALC> x_buffer_, work_buffer_, gate_buffer_, factor_buffer_,
      shift_buffer_, row_buffer_;
  RowNorm norm_;
};

}  // namespace mmkern

#define MMKERN_MODULATE(T, name)                                                             \
  MMKERN_VECTOR_ENTRY mmkern_modulate_##name(                                                \
      GM_ADDR x, GM_ADDR branch, GM_ADDR gate, GM_ADDR shift, GM_ADDR scale, GM_ADDR weight, \
      GM_ADDR bias, GM_ADDR h, GM_ADDR y, mmkern::ModulateTiling tiling) {                   \
    MMKERN_ON_VECTOR;                                                                        \
    mmkern::Modulate<T>(x, branch, gate, shift, scale, weight, bias, h, y, tiling).Run();    \
  }
MMKERN_MODULATE(half, float16)
MMKERN_MODULATE(bfloat16_t, bfloat16)
