// What the hosts and the kernels of blocked matrix products share.
//
//   D[i, j] = sum over k of A(i, k) B(k, j),   i < rows, j < cols, k < depth
//
// Three ways to cut it (gemm_plan says which). One operand is packed once by all threads, a chunk
// at a time, and each task packs what it needs of the other:
//   tall    B is shared; a task packs some rows of A for the whole depth and multiplies them with
//           every panel of columns.
//   wide    for few rows or a very long depth: A is shared; a task packs a panel of B, a block of
//           the depth at a time, and multiplies its rows with it before it packs the next.
//   turned  where columns of B lie in memory as the micro-kernel takes its rows (bfloat16 weights):
//           the transpose of D is computed. A is shared, packed as columns; B is read where it is.
// The sum over k runs in a fixed order (one block of the depth at a time, block sums added up in
// order) that follows from `depth` alone: an element of D has the same bits whatever the blocks,
// the threads and the other rows.
#pragma once

#include <cstdint>

#include "isa.h"
#include "types.h"

namespace mmkern {

enum class GemmCut : int32_t { kTall, kWide, kTurned };

struct GemmPlan {
  int64_t rows, cols, depth;
  int64_t steps;  // of the micro-kernel for the whole depth
  GemmCut cut;
  int64_t chunk;                   // columns of B (tall) or rows of A packed at a time
  int64_t block_rows, block_cols;  // of D in one task
  // A task's scratch, in floats: what it packs, then these, `scratch` in all.
  int64_t sums, gathered, scratch;
};

// One call of a kernel, on columns (tall) or rows [begin, begin + count). Those are packed
// in `packed`, or, with `pack`, unit `index` of them is to be packed there.
struct GemmTask {
  bool pack;
  int64_t index;
  int64_t begin, count;
  float* packed;
};

// Steps of the micro-kernel in one block of the depth.
inline constexpr int64_t kGemmSteps = 256;
// Rows and columns are packed and cut in units of these.
inline constexpr int64_t kGemmRowUnit = 48;
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

// Steps of the micro-kernel for `depth` values of the dtype: half as many where it takes pairs.
MMKERN_KERNEL(int64_t, gemm_steps, (DType dtype, int64_t depth))
