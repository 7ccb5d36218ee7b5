#include "column_sum.h"

#include "gemm.h"

namespace mmkern::MMKERN_ISA {
namespace {

// Kahan's sum: a single chain over thousands of rows that loses no more than eager's cascade does.
template <class T, class Out>
void sum_block(const ColumnSumArgs& args, int64_t outer, int64_t c0, int64_t n, Out* out) {
  const MatrixRows<T> source{args.from};
  alignas(64) float total[kColumnSumColumns] = {};
  alignas(64) float excess[kColumnSumColumns] = {};
  for (int64_t r = 0; r < args.rows; ++r) {
    const T* row = source.row(outer * args.outer_step + r * args.row_step, c0, n, nullptr);
    sweep(n, [&](int64_t c, auto width) MMKERN_BODY {
      const vf old = load(total + c);
      const vf value = load(row + c, width) - load(excess + c);
      const vf sum = old + value;
      store(excess + c, (sum - old) - value);
      store(total + c, sum);
    });
  }
  sweep(n, [&](int64_t c, auto width) MMKERN_BODY { store(out + c, load(total + c), width); });
}

template <class T>
void sum_tasks(const ColumnSumArgs& args, int64_t begin, int64_t end) {
  const int64_t blocks = (args.columns + kColumnSumColumns - 1) / kColumnSumColumns;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t outer = task / blocks;
    const int64_t c0 = task % blocks * kColumnSumColumns;
    const int64_t n = least<int64_t>(kColumnSumColumns, args.columns - c0);
    const int64_t offset = outer * args.columns + c0;
    if (args.out_is_float32) {
      sum_block<T>(args, outer, c0, n, static_cast<float*>(args.out) + offset);
    } else {
      sum_block<T>(args, outer, c0, n, static_cast<T*>(args.out) + offset);
    }
  }
}

}  // namespace

void column_sum(const ColumnSumArgs& args, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&](auto t) { sum_tasks<decltype(t)>(args, begin, end); });
}

}  // namespace mmkern::MMKERN_ISA
