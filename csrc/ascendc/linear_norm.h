// The norm in front of a linear layer, inside its kernel (kernels/ascendc/linear_norm.h) or in a
// launch of its own: which of the two is done first.
#pragma once

#include <limits>

#include "linear.h"

namespace mmkern::ascendc {

// By the estimate of benchmarks/ascendc_estimate.py, cycles of one vector core for an element of a
// norm, and of an epilogue with GELU. HBM: bytes a cycle, for all cores. The head of a launch on
// all cores is 20 us by CANN's guide (performance analysis), for Atlas A2.
constexpr double kNormCycles = 0.16, kEpilogueCycles = 0.36, kHbmBytes = 889, kLaunchCycles = 36000;

// Rows that pass from the vector cores to the cube cores are to stay in L2, whose half this is.
constexpr int64_t kMostRingBytes = int64_t{96} << 20;

struct NormedLinear {
  LinearTiling linear;
  NormTiling norm;
};

// Until all cores are done where the vector cores normalise: the cube cores wait for their first
// rows, one part of them after the other; others are made while the cube multiplies. Several cores
// may make the same rows. Moving these is left out: were every read one of HBM, all cores would
// read an element in 2 * 24 / kHbmBytes = 0.054 cycles, and the two vector cores of each need
// kNormCycles / 2 = 0.08 to normalise it; what they write stays in L2.
inline double normed_cycles(const LinearTiling& t, const NormTiling& n) {
  const double rows = static_cast<double>(std::min<int64_t>(t.tile_m, t.m));
  const double norm = rows * t.k * kNormCycles / 2;
  const double epilogue = rows * t.tile_n * kEpilogueCycles / 2;
  const int64_t tiles = tiles_of_core(t), across = ceil_div(t.n, t.tile_n);
  const int64_t rows_of_tiles = std::min(ceil_div(t.m, t.tile_m), ceil_div(tiles - 1, across) + 1);
  const double vector =
      static_cast<double>(rows_of_tiles) * norm + static_cast<double>(tiles) * epilogue;
  const double hidden = tile_cycles(t) * (n.flags - 1) / n.flags;
  return std::max(std::max(norm / n.flags, norm - hidden) + cycles_of(t), vector);
}

// The same with a pass over all rows before, of which each is read and written.
inline double separate_cycles(LinearTiling t) {
  const double element = std::max(kNormCycles / chip().vector_cores, 4 / kHbmBytes);
  return kLaunchCycles + static_cast<double>(t.m) * t.k * element + choose_tiles(t);
}

// Elements of the ring of rows: kRowSlots rows of tiles for each cube core.
inline int64_t row_ring_of(const LinearTiling& t) {
  return int64_t{blocks_of(t)} * kRowSlots * t.tile_m * t.k;
}

// The most rows at once for which a vector core has room beside the epilogue; false if for none.
inline bool choose_rows(NormTiling& n, const LinearTiling& t) {
  const int64_t piece = kEpilogueRows * std::min<int64_t>(align_up(t.tile_n, 16), kPieceN);
  const int64_t epilogue = piece * (12 + 4 * t.saves) + 2 * align_up(t.tile_n, 16) * 4 + 128;
  const int64_t pitch = align_up(n.cols, 16);
  const int64_t most = ceil_div(std::min<int64_t>(t.tile_m, t.m), 2);
  for (n.buffers = 2; n.buffers >= 1; --n.buffers) {
    for (n.rows = static_cast<int32_t>(most); n.rows >= 1; --n.rows) {
      const int64_t work = std::max(n.rows * pitch * 8, piece * 12);
      const int64_t rows = n.rows * pitch * 4 * n.buffers + 2 * pitch * 4;
      const int64_t bytes = epilogue + work + rows + row_norm_bytes(n.rows, pitch);
      if (bytes <= chip().unified_buffer) return true;
    }
  }
  return false;
}

// The kernel that normalises too, for the rows of x, of which `members` are one of t's; nothing if
// it does not take them, or a launch more is faster.
inline std::optional<NormedLinear> fold_norm(LinearTiling t, const Tensor& x,
                                             const OptionalTensor& weight,
                                             const OptionalTensor& bias, std::string_view norm,
                                             double eps, int64_t members) {
  const int64_t stride = row_stride(x);
  if (!has_rows(x) || stride * members >= (int64_t{1} << 30) || !is_row_stride(t.k) ||
      x.size(1) > kMaxChannels || !is_vector(weight, x) || !is_vector(bias, x)) {
    return {};
  }
  NormTiling n{};
  n.x_stride = stride;
  n.cols = static_cast<int32_t>(x.size(1));
  n.members = static_cast<int32_t>(members);
  n.flags = members <= kMostRowFlags ? n.members : 1;
  n.norm = norm_of(norm);
  n.eps = static_cast<float>(eps);
  t.in_runs = 1;
  const double cycles = choose_tiles(t, [&](const LinearTiling& tiles) {
    const bool fits = row_ring_of(tiles) * 2 <= kMostRingBytes && choose_rows(n, tiles);
    return fits ? normed_cycles(tiles, n) : std::numeric_limits<double>::infinity();
  });
  if (cycles > separate_cycles(t)) return {};
  choose_rows(n, t);  // of the tiles that were chosen
  return NormedLinear{t, n};
}

}  // namespace mmkern::ascendc
