// Host side of csrc/cpu/column_sum.h.
#pragma once

#include "../cpu/column_sum.h"
#include "gemm.h"

namespace mmkern {

// out[o, :] = sum over r < rows of row o * outer_step + r * row_step of `from`, which has the dtype
// `from_type`; out is contiguous with one row per o.
inline void sum_rows(at::ScalarType from_type, const RowsView& from, int64_t rows, int64_t row_step,
                     int64_t outer, int64_t outer_step, const at::Tensor& out) {
  const int64_t columns = outer ? out.numel() / outer : 0;
  const ColumnSumArgs args{kernel_dtype(from_type),
                           from,
                           outer,
                           rows,
                           columns,
                           outer_step,
                           row_step,
                           out.data_ptr(),
                           out.scalar_type() == at::kFloat};
  const int64_t tasks = outer * ceil_div(columns, kColumnSumColumns);
  parallel_even(tasks, rows * std::min(columns, kColumnSumColumns),
                [&](int64_t begin, int64_t end) { MMKERN_PICK(column_sum)(args, begin, end); });
}

}  // namespace mmkern
