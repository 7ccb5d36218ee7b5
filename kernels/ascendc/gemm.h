// The cube core's half of a linear layer: tiles of a (m x k) times b (n x k) transposed, or of
// either as it lies turned, in float32, into a ring of two tiles in global memory from which the
// two vector cores take them.
//
// Operands go to L1 in depths of 256, from there to L0A and L0B in depths of 128, both twice, so
// that a depth is on its way while another is multiplied. A tile is multiplied and stored in pieces
// of 128 columns, each with a half of L0C of its own: one is stored while the other is multiplied,
// across tiles too.
#pragma once

#include "linear_tiling.h"
#include "shim.h"

namespace mmkern {

using AscendC::HardEvent;
using AscendC::TPosition;

// Flags between the cube core and its vector cores.
constexpr uint16_t kPieceReady = 0, kTileFree = 1;
constexpr int32_t kFractal = 256;  // elements of 16 x 16

// Tile `index` of the product.
struct GemmTile {
  int64_t row;
  int32_t column;
  int32_t m;
  int32_t n;

  __aicore__ GemmTile(const LinearTiling& t, int64_t index) {
    int64_t down = (t.m + t.tile_m - 1) / t.tile_m, across = CeilDiv(t.n, t.tile_n);
    row = (t.in_runs ? index / across : index % down) * t.tile_m;
    column = static_cast<int32_t>(t.in_runs ? index % across : index / down) * t.tile_n;
    m = static_cast<int32_t>(t.m - row < t.tile_m ? t.m - row : t.tile_m);
    n = Min(t.tile_n, t.n - column);
  }
  __aicore__ static int64_t Count(const LinearTiling& t) {
    return (t.m + t.tile_m - 1) / t.tile_m * CeilDiv(t.n, t.tile_n);
  }
  __aicore__ int32_t Pieces() const { return CeilDiv(n, kPieceN); }
  __aicore__ int32_t PieceColumns(int32_t piece) const { return Min(kPieceN, n - piece * kPieceN); }
};

// The tiles of a cube core and its vector cores.
struct CoreTiles {
  int64_t begin;
  int64_t end;
  int64_t step;

  __aicore__ CoreTiles(const LinearTiling& t, int64_t core) {
    int64_t count = GemmTile::Count(t), cores = AscendC::GetBlockNum();
    begin = t.in_runs ? count * core / cores : core;
    end = t.in_runs ? count * (core + 1) / cores : count;
    step = t.in_runs ? 1 : cores;
  }
};

// rows x depth elements of a row-major matrix into L1, in columns of 16 elements, `pitch` rows
// long.
template <class T>
__aicore__ inline void LoadColumns(LocalTensor<T> dst, GlobalTensor<T> src, int32_t rows,
                                   int32_t depth, int64_t stride, int32_t pitch) {
  AscendC::Nd2NzParams p;
  p.ndNum = 1;
  p.nValue = static_cast<uint16_t>(rows);
  p.dValue = static_cast<uint16_t>(depth);
  p.srcNdMatrixStride = 0;
  p.srcDValue = static_cast<uint16_t>(stride);
  p.dstNzC0Stride = static_cast<uint16_t>(pitch);
  p.dstNzNStride = 1;
  p.dstNzMatrixStride = 0;
  AscendC::DataCopy(dst, src, p);
}

// L1 to L0A, of a that lies in columns `pitch` rows long: fractals row by row.
template <class T>
__aicore__ inline void LoadL0A(LocalTensor<T> dst, LocalTensor<T> src, int32_t m, int32_t depth,
                               int32_t pitch) {
  int32_t down = CeilDiv(m, 16), across = CeilDiv(depth, 16);
  for (int32_t i = 0; i < down; ++i) {
    AscendC::LoadData(dst[i * across * kFractal], src[i * kFractal],
                      AscendC::LoadData2DParams(0, across, pitch / 16, 0, 0, false, 0));
  }
}

// L1 to L0B, of b as (n x k): fractals lie as L0B wants them.
template <class T>
__aicore__ inline void LoadL0B(LocalTensor<T> dst, LocalTensor<T> src, int32_t n, int32_t depth) {
  int32_t fractals = CeilDiv(n, 16) * CeilDiv(depth, 16);
  AscendC::LoadData(dst, src, AscendC::LoadData2DParams(0, fractals, 1, 0, 0, false, 0));
}

// L1 to L0A of a that lies as (k x m), `pitch` rows long: each fractal is turned.
template <class T>
__aicore__ inline void LoadTurnedA(LocalTensor<T> dst, LocalTensor<T> src, int32_t m, int32_t depth,
                                   int32_t pitch) {
  int32_t across = CeilDiv(depth, 16);
  for (int32_t i = 0; i < CeilDiv(m, 16); ++i) {
    AscendC::LoadData(dst[i * across * kFractal], src[i * pitch * 16],
                      AscendC::LoadData2DParams(0, across, 1, 0, 0, true, 0));
  }
}

// L1 to L0B of b as (k x n), `pitch` rows long.
template <class T>
__aicore__ inline void LoadTurnedB(LocalTensor<T> dst, LocalTensor<T> src, int32_t n, int32_t depth,
                                   int32_t pitch) {
  int32_t across = CeilDiv(n, 16);
  for (int32_t k = 0; k < CeilDiv(depth, 16); ++k) {
    AscendC::LoadData(dst[k * across * kFractal], src[k * kFractal],
                      AscendC::LoadData2DParams(0, across, pitch / 16, 0, 0, true, 0));
  }
}

// What stores m x n of L0C in rows of global memory that lie `stride` apart.
__aicore__ inline AscendC::FixpipeParamsV220 StoreRowsOf(int32_t m, int32_t n, int32_t stride) {
  AscendC::FixpipeParamsV220 p;
  p.nSize = static_cast<uint16_t>(n);
  p.mSize = static_cast<uint16_t>(m);
  p.srcStride = static_cast<uint16_t>(AlignUp(m, 16));
  p.dstStride = stride;
  p.quantPre = QuantMode_t::NoQuant;
  return p;
}

// c (+)= a * b. Products of few fractals need a barrier between two that add to one c.
__aicore__ inline AscendC::MmadParams Product(int32_t m, int32_t n, int32_t k, bool first) {
  AscendC::MmadParams p;
  p.m = static_cast<uint16_t>(Max(m, 2));  // one row would be read as a vector
  p.n = static_cast<uint16_t>(n);
  p.k = static_cast<uint16_t>(k);
  p.cmatrixInitVal = first;
  return p;
}

// Both operands, and their way from L1 into L0. a is (m x k), turned (k x m); b (n x k), turned
// (k x n).
template <class T, bool kTurnedA, bool kTurnedB>
struct Operands {
  GlobalTensor<T> a;
  GlobalTensor<T> b;

  __aicore__ inline void Bind(Address a_base, Address b_base) {
    a.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(a_base));
    b.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(b_base));
  }
  // `part` of a chunk's `depth`, from `k` on.
  __aicore__ inline void ToL0A(LocalTensor<T> dst, LocalTensor<T> src, int32_t m, int32_t k,
                               int32_t part, int32_t depth) const {
    if constexpr (kTurnedA) {
      LoadTurnedA<T>(dst, src[k * 16], m, part, AlignUp(depth, 16));
    } else {
      LoadL0A<T>(dst, src[k * AlignUp(m, 16)], m, part, AlignUp(m, 16));
    }
  }
  __aicore__ inline void ToL0B(LocalTensor<T> dst, LocalTensor<T> src, int32_t n, int32_t k,
                               int32_t part, int32_t depth) const {
    if constexpr (kTurnedB) {
      LoadTurnedB<T>(dst, src[k * 16], n, part, AlignUp(depth, 16));
    } else {
      LoadL0B<T>(dst, src[k * AlignUp(n, 16)], n, part);
    }
  }
};

// Operands that lie in memory as rows.
template <class T, bool kTurnedA = false, bool kTurnedB = false>
struct PlainRows : Operands<T, kTurnedA, kTurnedB> {
  __aicore__ inline int32_t Chunks(const LinearTiling& t) const { return CeilDiv(t.k, kDepthL1); }
  // Chunks alike: the pieces of a last one that is short would be multiplied faster than stored.
  __aicore__ inline int32_t Step(const LinearTiling& t) const {
    return AlignUp(CeilDiv(t.k, Chunks(t)), 16);
  }
  __aicore__ inline int32_t Depth(const LinearTiling& t, int32_t chunk) const {
    return Min(Step(t), t.k - chunk * Step(t));
  }
  // Of a that is not turned, one row is loaded twice, since a product has at least two; a turned
  // one is followed by zeros.
  __aicore__ inline void LoadA(LocalTensor<T> dst, const LinearTiling& t, const GemmTile& tile,
                               int32_t chunk) {
    int64_t first = static_cast<int64_t>(chunk) * Step(t);
    int32_t depth = Depth(t, chunk);
    if constexpr (kTurnedA) {
      LoadColumns<T>(dst, this->a[first * t.a_stride + tile.row], depth, tile.m, t.a_stride,
                     AlignUp(depth, 16));
    } else {
      int64_t at = tile.row * t.a_stride + first;
      int32_t pitch = AlignUp(tile.m, 16);
      LoadColumns<T>(dst, this->a[at], tile.m, depth, t.a_stride, pitch);
      if (tile.m == 1) LoadColumns<T>(dst[16], this->a[at], 1, depth, t.a_stride, pitch);
    }
  }
  // `columns` columns of the product from `column` on.
  __aicore__ inline void LoadB(LocalTensor<T> dst, const LinearTiling& t, int32_t column,
                               int32_t columns, int32_t chunk) {
    int64_t first = static_cast<int64_t>(chunk) * Step(t);
    int32_t depth = Depth(t, chunk);
    if constexpr (kTurnedB) {
      LoadColumns<T>(dst, this->b[first * t.b_stride + column], depth, columns, t.b_stride,
                     AlignUp(depth, 16));
    } else {
      LoadColumns<T>(dst, this->b[column * t.b_stride + first], columns, depth, t.b_stride,
                     AlignUp(columns, 16));
    }
  }
};

template <class T, class Source>
class Gemm {
 public:
  __aicore__ inline Gemm(const Source& source, Address ring, const LinearTiling& tiling)
      : source_(source), t_(tiling) {
    int32_t core = AscendC::GetBlockIdx();
    ring_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(ring) +
                          static_cast<int64_t>(core) * 2 * t_.tile_m * t_.tile_n);
    pipe_.InitBuffer(l1_, 2 * kSlotL1 * 2);
    pipe_.InitBuffer(l0a_, 2 * kMaxTileM * kDepthL0 * 2);
    pipe_.InitBuffer(l0b_, 2 * kPieceN * kDepthL0 * 2);
    pipe_.InitBuffer(l0c_, kMaxTileM * kMaxTileN * 4);
  }

  __aicore__ inline void Run() {
    for (int32_t i = 0; i < 2; ++i) {
      AscendC::SetFlag<HardEvent::MTE1_MTE2>(i);
      AscendC::SetFlag<HardEvent::M_MTE1>(i);
      AscendC::SetFlag<HardEvent::FIX_M>(i);
    }
    CoreTiles tiles(t_, AscendC::GetBlockIdx());
    int32_t done = 0;
    for (int64_t i = tiles.begin; i < tiles.end; i += tiles.step) {
      GemmTile tile(t_, i);
      int32_t chunks = source_.Chunks(t_);
      for (int32_t chunk = 0; chunk < chunks; ++chunk) {
        RunChunk(tile, chunk, chunks, done);
      }
      ++done;
    }
    for (int32_t i = 0; i < Min(done, 2); ++i) AscendC::CrossCoreWaitFlag(kTileFree);
    for (int32_t i = 0; i < 2; ++i) {
      AscendC::WaitFlag<HardEvent::MTE1_MTE2>(i);
      AscendC::WaitFlag<HardEvent::M_MTE1>(i);
      AscendC::WaitFlag<HardEvent::FIX_M>(i);
    }
  }

 private:
  // Elements of a slot of L1: rows of a, and of b for each piece.
  static constexpr int32_t kSlotL1 = (kMaxTileM + kMaxTileN) * kDepthL1;

  // One depth of the operands, for all pieces of a tile. The first piece is multiplied as soon as
  // its columns are there.
  __aicore__ inline void RunChunk(const GemmTile& tile, int32_t chunk, int32_t chunks,
                                  int32_t done) {
    LocalTensor<T> a = l1_.template Get<T>()[l1_slot_ * kSlotL1];
    AscendC::WaitFlag<HardEvent::MTE1_MTE2>(l1_slot_);
    source_.LoadA(a, t_, tile, chunk);
    for (int32_t piece = 0; piece < tile.Pieces(); ++piece) {
      source_.LoadB(a[(kMaxTileM + piece * kPieceN) * kDepthL1], t_, tile.column + piece * kPieceN,
                    tile.PieceColumns(piece), chunk);
      AscendC::SetFlag<HardEvent::MTE2_MTE1>(l1_slot_ * 2 + piece);
    }
    for (int32_t piece = 0; piece < tile.Pieces(); ++piece) {
      if (chunk == 0) AscendC::WaitFlag<HardEvent::FIX_M>(piece);
      AscendC::WaitFlag<HardEvent::MTE2_MTE1>(l1_slot_ * 2 + piece);
      int32_t n = tile.PieceColumns(piece), depth = source_.Depth(t_, chunk);
      LocalTensor<T> b = a[(kMaxTileM + piece * kPieceN) * kDepthL1];
      for (int32_t k = 0; k < depth; k += kDepthL0) {
        Multiply(Piece(piece), a, b, tile.m, n, k, depth, chunk == 0 && k == 0);
      }
      if (chunk < chunks - 1) continue;
      if (piece == 0 && done >= 2) AscendC::CrossCoreWaitFlag(kTileFree);
      Store(tile, piece, done % 2);
    }
    AscendC::SetFlag<HardEvent::MTE1_MTE2>(l1_slot_);
    l1_slot_ ^= 1;
  }

  __aicore__ inline LocalTensor<float> Piece(int32_t piece) {
    return l0c_.template Get<float>()[piece * kMaxTileM * kPieceN];
  }

  // c (+)= the part of a chunk from `k` on.
  __aicore__ inline void Multiply(LocalTensor<float> c, LocalTensor<T> a, LocalTensor<T> b,
                                  int32_t m, int32_t n, int32_t k, int32_t depth, bool first) {
    int32_t part = Min(kDepthL0, depth - k);
    LocalTensor<T> l0a = l0a_.template Get<T>()[l0_slot_ * kMaxTileM * kDepthL0];
    LocalTensor<T> l0b = l0b_.template Get<T>()[l0_slot_ * kPieceN * kDepthL0];
    AscendC::WaitFlag<HardEvent::M_MTE1>(l0_slot_);
    source_.ToL0A(l0a, a, m, k, part, depth);
    source_.ToL0B(l0b, b, n, k, part, depth);
    AscendC::SetFlag<HardEvent::MTE1_M>(l0_slot_);
    AscendC::WaitFlag<HardEvent::MTE1_M>(l0_slot_);
    AscendC::Mmad(c, l0a, l0b, Product(m, n, part, first));
    AscendC::PipeBarrier<PIPE_M>();
    AscendC::SetFlag<HardEvent::M_MTE1>(l0_slot_);
    l0_slot_ ^= 1;
  }

  __aicore__ inline void Store(const GemmTile& tile, int32_t piece, int32_t slot) {
    AscendC::SetFlag<HardEvent::M_FIX>(piece);
    AscendC::WaitFlag<HardEvent::M_FIX>(piece);
    AscendC::Fixpipe<float, float, AscendC::CFG_ROW_MAJOR>(
        ring_[slot * t_.tile_m * t_.tile_n + piece * kPieceN], Piece(piece),
        StoreRowsOf(tile.m, tile.PieceColumns(piece), t_.tile_n));
    AscendC::SetFlag<HardEvent::FIX_M>(piece);
    AscendC::CrossCoreSetFlag<2, PIPE_FIX>(kPieceReady);
  }

  Source source_;
  LinearTiling t_;
  int32_t l1_slot_ = 0, l0_slot_ = 0;
  GlobalTensor<float> ring_;
  AscendC::TPipe pipe_;
  AscendC::TBuf<TPosition::A1> l1_;
  AscendC::TBuf<TPosition::A2> l0a_;
  AscendC::TBuf<TPosition::B2> l0b_;
  AscendC::TBuf<TPosition::CO1> l0c_;
};

}  // namespace mmkern
