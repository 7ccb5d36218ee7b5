// Sums over rows, for the gradients of biases and position embeddings.
#pragma once

#include "gemm_args.h"
#include "isa.h"

namespace mmkern {

// out[o, c] = sum over r < rows of row o * rows_apart + r * row_step of `from`, element c. Columns
// are cut into tasks; the order of the sum depends on `rows` alone.
struct ColumnSumArgs {
  DType dtype;
  RowsView from;
  int64_t outer, rows, columns;
  int64_t outer_step, row_step;
  void* out;  // (outer, columns), contiguous
  bool out_is_float32;
};

inline constexpr int64_t kColumnSumColumns = 256;

}  // namespace mmkern

// Task: o * ceil(columns / kColumnSumColumns) + block of columns.
MMKERN_KERNEL(void, column_sum, (const ColumnSumArgs& args, int64_t begin, int64_t end))
