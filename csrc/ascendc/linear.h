// One linear layer on the kernels of kernels/ascendc/gemm.h: its tiles, and its ring.
#pragma once

#include "host.h"

namespace mmkern::ascendc {

// Bytes per cycle that a cube core gets from L2 and puts there, and products of 16 x 16 x 16 a
// cycle. From the public figures for Atlas A2; they choose among tiles and claim nothing.
constexpr double kLoadBytes = 110, kStoreBytes = 86, kCubeWork = 4096, kTileCycles = 500;

inline int64_t tiles_of(const LinearTiling& t) {
  return ceil_div(t.m, t.tile_m) * ceil_div(t.n, t.tile_n);
}
// Of the core that has most.
inline int64_t tiles_of_core(const LinearTiling& t) {
  return ceil_div(tiles_of(t), chip().cube_cores);
}

// Of the cube core, for one tile.
inline double tile_cycles(const LinearTiling& t) {
  const double product = double(t.tile_m) * t.tile_n * align_up(t.k, 16) / kCubeWork;
  const double load = double(t.tile_m + t.tile_n) * t.k * 2 / kLoadBytes;
  const double store = double(t.tile_m) * t.tile_n * 4 / kStoreBytes;
  return std::max({product, load, store}) + kTileCycles;
}

// Until the cube cores are done.
inline double cycles_of(const LinearTiling& t) {
  return static_cast<double>(tiles_of_core(t)) * tile_cycles(t);
}

// The tiles for which cost(t) is least, and that.
template <class Cost>
double choose_tiles(LinearTiling& t, const Cost& cost) {
  double best = 0;
  LinearTiling candidate = t;
  for (int32_t m : {kMaxTileM, 96, 64, 32, 16}) {
    for (int32_t n : {kMaxTileN, 192, 128, 64}) {
      candidate.tile_m = m;
      candidate.tile_n = n;
      const double cycles = cost(candidate);
      if (best == 0 || cycles < best) {
        best = cycles;
        t.tile_m = m;
        t.tile_n = n;
      }
    }
  }
  return best;
}
inline double choose_tiles(LinearTiling& t) { return choose_tiles(t, cycles_of); }

inline uint32_t blocks_of(const LinearTiling& t) {
  return static_cast<uint32_t>(std::min<int64_t>(chip().cube_cores, tiles_of(t)));
}

// Two tiles for each cube core.
inline Tensor ring_of(const LinearTiling& t, const Tensor& like) {
  return at::empty({int64_t{blocks_of(t)} * 2 * t.tile_m * t.tile_n},
                   like.options().dtype(at::kFloat));
}

// A matrix whose rows the kernels load: contiguous along the last dimension, rows apart by a stride
// that fits its field.
inline bool is_matrix(const Tensor& t) {
  return t.numel() > 0 && has_unit_last_stride(t) && (t.size(0) == 1 || is_row_stride(t.stride(0)));
}
inline int64_t row_stride(const Tensor& t) { return t.size(0) == 1 ? t.size(1) : t.stride(0); }
inline bool is_vector(const OptionalTensor& t, const Tensor& like) {
  return !t.has_value() || (t->scalar_type() == like.scalar_type() && has_unit_last_stride(*t));
}

}  // namespace mmkern::ascendc
