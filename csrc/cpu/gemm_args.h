// What the hosts and the kernels of blocked matrix products share.
//
//   D[i, j] = sum over k of A(i, k) B(k, j),   i < rows, j < cols, k < depth
//
// Two ways to cut it, by size (see gemm_plan):
//   shared      B is packed once, a chunk of columns at a time, by all threads; then each task
//               packs some rows of A for the whole depth and multiplies them with every panel.
//   not shared  for few rows or a very long depth: each task packs what it needs of both, one
//               piece of the depth at a time.
// The sum over k runs in a fixed order (one block of the depth at a time, block sums added up in
// order) that follows from `depth` alone: an element of D has the same bits whatever the blocks,
// the threads and the other rows.
#pragma once

#include <cstdint>

#include "types.h"

namespace mmkern {

struct GemmPlan {
  int64_t rows, cols, depth;
  bool shared;
  int64_t chunk_cols;              // of B packed at a time, if shared
  int64_t block_rows, block_cols;  // of D in one task
  // A task's scratch, in floats: packed A, then these, `scratch` in all.
  int64_t packed_b, sums, gathered, scratch;
  int64_t sums_stride;
};

// One call of a kernel. Columns [j0, j0 + nj) of B are packed in `packed`, or, with `pack`, panel
// `index` of them is to be packed there. If not shared, packed is null and the columns are all.
struct GemmTask {
  bool pack;
  int64_t index;
  int64_t j0, nj;
  float* packed;
};

// Longest chain of sums in one accumulator, in cells of the micro-kernel (see depth_block).
inline constexpr int64_t kGemmSteps = 256;
inline constexpr int64_t kGemmColumnUnit = 64;
// Cells past the end of each packed row, so that rows do not all fall on the same cache sets.
inline constexpr int64_t kGemmPad = 16;

// Rows of a matrix, in up to two levels: row r is at
// data + (r / inner) * outer_stride + (r % inner) * inner_stride; its elements are consecutive.
struct RowsView {
  const void* data;
  int64_t inner;
  int64_t outer_stride;
  int64_t inner_stride;
};

}  // namespace mmkern
