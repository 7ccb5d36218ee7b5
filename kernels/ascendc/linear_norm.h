// A norm in the linear layer behind it. The vector cores normalise the rows of a row of tiles into
// a ring of two in L2, from which the cube core multiplies them with the columns of one tile after
// the other; the rows of the next are made while it does, between two epilogues. A core takes a run
// of tiles, so that it makes the rows of each row of tiles once.
#pragma once

#include "epilogue.h"
#include "row_norm.h"

namespace mmkern {

// Besides those of gemm.h. Of each row of tiles the cube core is told in parts, a part being the
// normalised rows of x that lie at one place in the rows of a. No flag says that a slot is free:
// the last kPieceReady of a row of tiles does, as the products before it have read all of its rows.
constexpr uint16_t kRowsReady = 2;

// Where a core's ring begins: kRowSlots times tile_m rows of k elements.
template <class T>
__aicore__ inline Address RowRing(Address ring, const LinearTiling& t, int64_t core) {
  return ring + core * kRowSlots * t.tile_m * t.k * static_cast<int64_t>(sizeof(T));
}

// The cube core's side: a comes out of the ring.
template <class T>
struct NormedRows : PlainRows<T> {
  NormTiling norm;

  __aicore__ inline void LoadA(LocalTensor<T> dst, const LinearTiling& t, const GemmTile& tile,
                               int32_t chunk) {
    if (tile.row != row_) {
      row_ = tile.row;
      slot_ = (slot_ + 1) % kRowSlots;
      ready_ = 0;
    }
    int32_t last = chunk * this->Step(t) + this->Depth(t, chunk) - 1;
    int32_t wanted = norm.flags == 1 ? 1 : last / norm.cols + 1;
    for (; ready_ < wanted; ++ready_) AscendC::CrossCoreWaitFlag(kRowsReady);
    GemmTile in_ring = tile;
    in_ring.row = slot_ * t.tile_m;
    PlainRows<T>::LoadA(dst, t, in_ring, chunk);
  }

 private:
  int64_t row_ = -1;
  int32_t slot_ = kRowSlots - 1;
  int32_t ready_ = 0;  // parts
};

// The vector cores' side; each takes half of the rows.
template <class T>
class RowsIntoRing {
 public:
  // `work`: float32, for the rows that are worked on twice over.
  __aicore__ inline RowsIntoRing(AscendC::TPipe& pipe, LocalTensor<float> work, Address x,
                                 Address weight, Address bias, Address ring,
                                 const LinearTiling& tiling, const NormTiling& norm)
      : work_(work), x_(x), weight_(weight), bias_(bias), t_(tiling), n_(norm) {
    int64_t core = AscendC::GetBlockIdx() / 2;
    ring_ = RowRing<T>(ring, t_, core);
    end_ = GemmTile(t_, CoreTiles(t_, core).end - 1).row + t_.tile_m;
    pitch_ = AlignUp(n_.cols, 16);
    pipe.InitBuffer(x_queue_, n_.buffers, n_.rows * pitch_ * 2);
    pipe.InitBuffer(y_queue_, n_.buffers, n_.rows * pitch_ * 2);
    pipe.InitBuffer(row_buffer_, RowNorm::Elements(n_.rows, pitch_) * 4);
    row_norm_.Bind(row_buffer_.template Get<float>(), n_.rows);
    if (weight_) {
      pipe.InitBuffer(weight_buffer_, pitch_ * 4);
      LoadVector<T>(weight_buffer_.template Get<float>(), Vector{weight_, 0, false}, n_.cols,
                    x_queue_);
    }
    if (bias_) {
      pipe.InitBuffer(bias_buffer_, pitch_ * 4);
      LoadVector<T>(bias_buffer_.template Get<float>(), Vector{bias_, 0, false}, n_.cols, x_queue_);
    }
  }

  // Before the first tile of a row of them, its own rows if nobody made them, and the next ones:
  // every piece of the row before has come by then, so that its slot is free.
  __aicore__ inline void Before(const GemmTile& tile) {
    if (tile.row == row_) return;
    if (made_ == 0) Make(tile.row);
    row_ = tile.row;
    int64_t next = row_ + t_.tile_m;
    if (next < end_) Make(next);
  }

 private:
  // The rows of the tiles at `row`.
  __aicore__ inline void Make(int64_t row) {
    int32_t slot = made_ % kRowSlots, half = AscendC::GetSubBlockIdx();
    int32_t m = static_cast<int32_t>(t_.m - row < t_.tile_m ? t_.m - row : t_.tile_m);
    int32_t middle = CeilDiv(m, 2), end = half ? m : middle;
    for (int32_t member = 0; member < n_.members; ++member) {
      for (int32_t r = half ? middle : 0; r < end; r += n_.rows) {
        Normalise(row + r, slot * t_.tile_m + r, member, Min(n_.rows, end - r));
      }
      if (n_.flags > 1 || member == n_.members - 1) {
        AscendC::CrossCoreSetFlag<2, PIPE_MTE3>(kRowsReady);
      }
    }
    ++made_;
  }

  // A member of some rows of a, from `row` on, to those of the ring from `at` on.
  __aicore__ inline void Normalise(int64_t row, int64_t at, int32_t member, int32_t rows) {
    Tile tile{rows, n_.cols, pitch_};
    LocalTensor<float> x = work_, squares = work_[n_.rows * pitch_];
    LoadRows<T>(x_queue_, x_, (row * n_.members + member) * n_.x_stride, n_.members * n_.x_stride,
                tile);
    Widen<T>(x, x_queue_, tile);
    row_norm_.Normalise(x, squares, tile, n_.norm, n_.eps);
    if (weight_) RowsWithVector<MulOp>(x, weight_buffer_.template Get<float>(), tile);
    if (bias_) RowsWithVector<AddOp>(x, bias_buffer_.template Get<float>(), tile);
    Narrow<T>(y_queue_, x, tile);
    StoreRows<T>(y_queue_, ring_, at * t_.k + member * n_.cols, t_.k, tile);
  }

  LocalTensor<float> work_;
  Address x_, weight_, bias_, ring_;
  LinearTiling t_;
  NormTiling n_;
  int64_t row_ = -1;
  int64_t end_;  // of the rows of this core's tiles
  int32_t pitch_;
  int32_t made_ = 0;  // rows of tiles
  AscendC::TQue<TPosition::VECIN, 1> x_queue_;
  AscendC::TQue<TPosition::VECOUT, 1> y_queue_;
  AscendC::TBuf<TPosition::VECCALC> row_buffer_, weight_buffer_, bias_buffer_;
  RowNorm row_norm_;
};

}  // namespace mmkern
