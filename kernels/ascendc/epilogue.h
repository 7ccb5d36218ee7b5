// The vector cores' half of a linear layer: bias, position embedding and activation, or in backward
// the activation's derivative, on tiles that gemm.h leaves in the ring, a piece as soon as it is
// there; the two vector cores of a cube core take half the rows each.
#pragma once

#include "activation_gradient.h"
#include "gemm.h"
#include "rows.h"

namespace mmkern {

// Columns in 64s, all rows at once: rows of src and dst begin every src_pitch and dst_pitch
// elements.
template <class To, class From>
__aicore__ inline void CastRows(LocalTensor<To> dst, LocalTensor<From> src, int32_t rows,
                                int32_t cols, int32_t dst_pitch, int32_t src_pitch,
                                AscendC::RoundMode mode) {
  AscendC::UnaryRepeatParams strides(1, 1, static_cast<uint8_t>(dst_pitch * sizeof(To) / kBlock),
                                     static_cast<uint8_t>(src_pitch * sizeof(From) / kBlock));
  for (int32_t c = 0; c < cols; c += kRepeatFloats) {
    AscendC::Cast(dst[c], src[c], mode, static_cast<uint64_t>(Min(kRepeatFloats, cols - c)),
                  static_cast<uint8_t>(rows), strides);
  }
  VectorBarrier();
}

// What the vector cores do before the epilogue of a tile: nothing, where its rows lie in memory.
struct NoRows {
  __aicore__ inline void Before(const GemmTile&) {}
};

template <class T>
class Epilogue {
 public:
  // work_bytes: that Work() is to have at least.
  __aicore__ inline Epilogue(Address ring, Address bias, Address pos, Address z, Address saved,
                             Address y, const LinearTiling& tiling, int32_t work_bytes = 0)
      : bias_(bias), pos_(pos), z_(z), t_(tiling) {
    int32_t core = AscendC::GetBlockIdx() / 2;
    ring_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(ring) +
                          static_cast<int64_t>(core) * 2 * t_.tile_m * t_.tile_n);
    saved_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(saved));
    y_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(y));
    int32_t elements = kEpilogueRows * AlignUp(Min(t_.tile_n, kPieceN), 16);
    pipe_.InitBuffer(tile_queue_, 2, elements * 4);
    pipe_.InitBuffer(y_queue_, 2, elements * 2);
    pipe_.InitBuffer(work_buffer_, Max((t_.gradient ? 4 : 3) * elements * 4, work_bytes));
    pipe_.InitBuffer(constants_buffer_, kConstants * 4);
    FillConstants(constants_buffer_.template Get<float>());
    if (t_.saves) pipe_.InitBuffer(saved_queue_, 2, elements * 2);
    if (t_.gradient) {
      pipe_.InitBuffer(z_queue_, 2, elements * 2);
      pipe_.InitBuffer(z_buffer_, elements * 4);
    }
    if (t_.pos_kind) pipe_.InitBuffer(pos_queue_, 1, elements * 4);
    if (!t_.has_bias) return;
    pipe_.InitBuffer(vector_queue_, 1, AlignUp(t_.tile_n, 16) * 4);
    pipe_.InitBuffer(bias_buffer_, AlignUp(t_.tile_n, 16) * 4);
  }

  // For who shares this core's memory; what is in Work() is lost at the next tile.
  __aicore__ inline AscendC::TPipe& Pipe() { return pipe_; }
  __aicore__ inline LocalTensor<float> Work() { return work_buffer_.template Get<float>(); }

  __aicore__ inline void Run() {
    NoRows none;
    Run(none);
  }

  template <class Rows>
  __aicore__ inline void Run(Rows& before) {
    CoreTiles tiles(t_, AscendC::GetBlockIdx() / 2);
    int32_t done = 0, half = AscendC::GetSubBlockIdx(), column = -1;
    for (int64_t i = tiles.begin; i < tiles.end; i += tiles.step) {
      GemmTile tile(t_, i);
      before.Before(tile);
      if (t_.has_bias && tile.column != column) {
        LoadVector<T>(bias_buffer_.template Get<float>(), Vector{bias_, tile.column, false}, tile.n,
                      vector_queue_);
        column = tile.column;
      }
      int32_t middle = CeilDiv(tile.m, 2), end = half ? tile.m : middle;
      for (int32_t piece = 0; piece < tile.Pieces(); ++piece) {
        AscendC::CrossCoreWaitFlag(kPieceReady);
        for (int32_t row = half ? middle : 0; row < end;) {
          int32_t rows = PassRows(tile.row + row, end - row);
          RunRows(tile, piece, done % 2, row, rows);
          row += rows;
        }
      }
      AscendC::CrossCoreSetFlag<2, PIPE_MTE2>(kTileFree);
      ++done;
    }
  }

 private:
  // Rows that one pass takes: position embeddings begin again after pos_rows.
  __aicore__ inline int32_t PassRows(int64_t row, int32_t left) const {
    int32_t rows = Min(kEpilogueRows, left);
    if (!t_.pos_kind) return rows;
    int64_t until = t_.pos_rows - row % t_.pos_rows;
    return until < rows ? static_cast<int32_t>(until) : rows;
  }

  __aicore__ inline void RunRows(const GemmTile& tile, int32_t piece, int32_t slot, int32_t row,
                                 int32_t rows) {
    int32_t first = piece * kPieceN, n = tile.PieceColumns(piece);
    Tile shape{rows, n, AlignUp(n, 8)};
    LocalTensor<float> c = TakeRows(
        tile_queue_, ring_[(slot * t_.tile_m + row) * t_.tile_n + first], t_.tile_n, shape);
    int64_t at = (tile.row + row) * t_.n + tile.column + first;
    if (t_.has_bias) RowsWithVector<AddOp>(c, bias_buffer_.template Get<float>()[first], shape);
    if (t_.pos_kind) {
      int64_t pos = (tile.row + row) % t_.pos_rows * t_.pos_stride + tile.column + first;
      if (t_.pos_kind == 2) AddPositions<float>(c, pos, shape);
      if (t_.pos_kind == 1) AddPositions<T>(c, pos, shape);
    }
    if (t_.gradient) {
      TimesDerivative(c, at, shape);
    } else {
      if (t_.saves) Store(saved_queue_, saved_[at], c, shape);
      Activate(t_.activation, c, work_buffer_.template Get<float>(),
               constants_buffer_.template Get<float>(), shape.rows * shape.pitch);
    }
    Store(y_queue_, y_[at], c, shape);
    tile_queue_.FreeTensor(c);
  }

  // c times the activation's derivative at z, which lies at `at`; and the activation itself.
  __aicore__ inline void TimesDerivative(LocalTensor<float> c, int64_t at, const Tile& shape) {
    int32_t pitch = AlignUp(shape.cols, 16);
    LoadRows<T>(z_queue_, z_, at, t_.n, Tile{shape.rows, shape.cols, pitch});
    LocalTensor<T> raw = z_queue_.template DeQue<T>();
    LocalTensor<float> z = z_buffer_.template Get<float>();
    CastRows<float, T>(z, raw, shape.rows, shape.pitch, shape.pitch, pitch,
                       AscendC::RoundMode::CAST_NONE);
    z_queue_.FreeTensor(raw);
    ActivationGradient(t_.activation, c, z, work_buffer_.template Get<float>(),
                       constants_buffer_.template Get<float>(), shape.rows * shape.pitch);
    if (t_.saves) Store(saved_queue_, saved_[at], z, shape);
  }

  // `at`: where the position embedding of the first row begins.
  template <class P>
  __aicore__ inline void AddPositions(LocalTensor<float> c, int64_t at, const Tile& shape) {
    constexpr int32_t kLine = kBlock / sizeof(P);
    int32_t pitch = AlignUp(shape.cols, kLine), count = shape.rows * shape.pitch;
    LoadRows<P>(pos_queue_, pos_, at, t_.pos_stride, Tile{shape.rows, shape.cols, pitch});
    LocalTensor<P> pos = pos_queue_.template DeQue<P>();
    if constexpr (sizeof(P) == 4) {
      AscendC::Add(c, c, pos, count);
      VectorBarrier();
    } else {
      // the ends of rows, up to eight elements, are added too: zeros
      LocalTensor<float> wide = work_buffer_.template Get<float>();
      CastRows<float, P>(wide, pos, shape.rows, shape.pitch, shape.pitch, pitch,
                         AscendC::RoundMode::CAST_NONE);
      AscendC::Add(c, c, wide, count);
      VectorBarrier();
    }
    pos_queue_.FreeTensor(pos);
  }

  __aicore__ inline void Store(AscendC::TQue<TPosition::VECOUT, 1>& queue, GlobalTensor<T> to,
                               LocalTensor<float> c, const Tile& shape) {
    LocalTensor<T> out = queue.template AllocTensor<T>();
    CastRows<T, float>(out, c, shape.rows, shape.cols, AlignUp(shape.cols, 16), shape.pitch,
                       AscendC::RoundMode::CAST_RINT);
    queue.EnQue(out);
    out = queue.template DeQue<T>();
    AscendC::DataCopyPad(to, out,
                         AscendC::DataCopyExtParams(static_cast<uint16_t>(shape.rows),
                                                    shape.cols * 2, 0, (t_.n - shape.cols) * 2, 0));
    queue.FreeTensor(out);
  }

  Address bias_, pos_, z_;
  LinearTiling t_;
  GlobalTensor<float> ring_;
  GlobalTensor<T> saved_, y_;
  AscendC::TPipe pipe_;
  AscendC::TQue<TPosition::VECIN, 1> tile_queue_, pos_queue_, vector_queue_, z_queue_;
  AscendC::TQue<TPosition::VECOUT, 1> y_queue_, saved_queue_;
  AscendC::TBuf<TPosition::VECCALC> work_buffer_, bias_buffer_, z_buffer_, constants_buffer_;
};

}  // namespace mmkern
