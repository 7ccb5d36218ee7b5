// Sums over the rows of a matrix, in float32: the gradients of a bias and of a position embedding.
// Groups of rows are folded in halves, so that an instruction takes as many elements as there are.
#include "linear_tiling.h"
#include "rows.h"

namespace mmkern {

using AscendC::TPosition;

template <class T>
class ColumnSums {
 public:
  __aicore__ inline ColumnSums(Address x, Address sums, const ColumnTiling& tiling)
      : x_(x), t_(tiling) {
    sums_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(sums));
    pipe_.InitBuffer(x_queue_, 2, t_.group * t_.tile * 2);
    pipe_.InitBuffer(sum_queue_, 2, t_.tile * 4);
    pipe_.InitBuffer(wide_buffer_, t_.group * t_.tile * 4);
  }

  __aicore__ inline void Run() {
    int64_t chunks = (t_.rows + t_.chunk - 1) / t_.chunk;
    int64_t tasks = chunks * ((t_.cols + t_.tile - 1) / t_.tile);
    for (int64_t i = AscendC::GetBlockIdx(); i < tasks; i += AscendC::GetBlockNum()) {
      RunTask(i % chunks, i / chunks * t_.tile);
    }
  }

 private:
  __aicore__ inline void RunTask(int64_t chunk, int64_t column) {
    int64_t row = chunk * t_.chunk, end = row + t_.chunk < t_.rows ? row + t_.chunk : t_.rows;
    int32_t cols = static_cast<int32_t>(t_.cols - column < t_.tile ? t_.cols - column : t_.tile);
    int32_t pitch = AlignUp(cols, 16);
    LocalTensor<float> sum = sum_queue_.template AllocTensor<float>();
    AscendC::Duplicate(sum, 0.0f, pitch);
    VectorBarrier();
    for (; row < end; row += t_.group) {
      int32_t rows = static_cast<int32_t>(end - row < t_.group ? end - row : t_.group);
      AddRows(sum, row * t_.stride + column, Tile{rows, cols, pitch});
    }
    sum_queue_.EnQue(sum);
    sum = sum_queue_.template DeQue<float>();
    AscendC::DataCopyPad(sums_[chunk * t_.cols + column], sum,
                         AscendC::DataCopyExtParams(1, cols * 4, 0, 0, 0));
    sum_queue_.FreeTensor(sum);
  }

  // sum += the rows that begin at `at`
  __aicore__ inline void AddRows(LocalTensor<float> sum, int64_t at, const Tile& tile) {
    LocalTensor<float> wide = wide_buffer_.template Get<float>();
    LoadRows<T>(x_queue_, x_, at, t_.stride, tile);
    Widen<T>(wide, x_queue_, tile);
    for (int32_t rows = tile.rows; rows > 1;) {
      int32_t half = (rows + 1) / 2;
      AscendC::Add(wide, wide, wide[half * tile.pitch], (rows - half) * tile.pitch);
      VectorBarrier();
      rows = half;
    }
    AscendC::Add(sum, sum, wide, tile.pitch);
    VectorBarrier();
  }

  Address x_;
  ColumnTiling t_;
  GlobalTensor<float> sums_;
  AscendC::TPipe pipe_;
  AscendC::TQue<TPosition::VECIN, 1> x_queue_;
  AscendC::TQue<TPosition::VECOUT, 1> sum_queue_;
  AscendC::TBuf<TPosition::VECCALC> wide_buffer_;
};

}  // namespace mmkern

#define MMKERN_COLUMN_SUMS(T, name)                                            \
  MMKERN_VECTOR_ENTRY mmkern_column_sums_##name(GM_ADDR x, GM_ADDR sums,       \
                                                mmkern::ColumnTiling tiling) { \
    MMKERN_ON_VECTOR;                                                          \
    mmkern::ColumnSums<T>(x, sums, tiling).Run();                              \
  }
MMKERN_COLUMN_SUMS(half, float16)
MMKERN_COLUMN_SUMS(bfloat16_t, bfloat16)
