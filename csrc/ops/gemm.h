// Host side of the blocked matrix products of csrc/cpu/gemm.h: cutting into tasks, and the loop.
#pragma once

#include <limits>
#include <optional>

#include "../cpu/gemm_args.h"
#include "host.h"

namespace mmkern {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// The rows of t, (..., C), if the elements of each are consecutive and two strides reach them all.
inline std::optional<RowsView> rows_view(const at::Tensor& t) {
  if (!has_unit_last_stride(t)) return std::nullopt;
  RowsView view{data_or_null(t), 1, 0, 0};
  if (t.numel() == 0) return view;
  int64_t outer = 1;
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    const int64_t size = t.size(d), stride = t.stride(d);
    if (size == 1) continue;
    if (view.inner == 1) {
      view.inner = size;
      view.inner_stride = stride;
    } else if (outer == 1 && stride == view.inner * view.inner_stride) {
      view.inner *= size;
    } else if (outer == 1 || stride == outer * view.outer_stride) {
      view.outer_stride = outer == 1 ? stride : view.outer_stride;
      outer *= size;
    } else {
      return std::nullopt;
    }
  }
  return view;
}

// The same for rows that may have to be copied first; t then holds the copy.
inline RowsView rows_view_or_copy(at::Tensor& t) {
  if (const auto view = rows_view(t)) return *view;
  t = t.contiguous();
  return *rows_view(t);
}

inline RowsView contiguous_rows(const void* data, int64_t row_stride) {
  return {data, std::numeric_limits<int64_t>::max(), 0, row_stride};
}

inline void gemm_lay_out_scratch(GemmPlan& plan) {
  const int64_t rows = round_up(plan.block_rows, kGemmPad);
  const int64_t steps = round_up(plan.shared ? plan.depth : kGemmSteps, kGemmPad) + kGemmPad;
  const int64_t sums_cols = plan.shared ? kGemmColumnUnit : plan.block_cols;
  const int64_t gathered =
      2 * std::max({plan.shared ? plan.depth : 2 * kGemmSteps, rows, plan.block_cols});
  plan.sums_stride = sums_cols + kGemmPad;
  plan.packed_b = rows * steps;
  plan.sums = plan.packed_b + (plan.shared ? 0 : plan.block_cols * steps);
  plan.gathered = plan.sums + rows * plan.sums_stride;
  plan.scratch = plan.gathered + gathered;
}

// Blocks sized so that what a task packs, and its sums, stay in an L2 of 1 MiB.
inline GemmPlan gemm_plan(int64_t rows, int64_t cols, int64_t depth) {
  constexpr int64_t kMaxRows = 240, kMaxCols = 256, kRowUnit = 12;
  constexpr int64_t kMaxSharedDepth = 6144;
  constexpr int64_t kPackedRows = 160 * 1024;        // floats of A in a task, if shared
  constexpr int64_t kPackedChunk = 2 * 1024 * 1024;  // floats of B, shared by all tasks
  GemmPlan plan{};
  plan.rows = rows;
  plan.cols = cols;
  plan.depth = depth;
  if (rows == 0 || cols == 0) return plan;
  plan.shared = rows > kMaxRows && depth > 0 && depth <= kMaxSharedDepth;
  int64_t max_rows = kMaxRows, max_cols = kMaxCols;
  plan.chunk_cols = cols;
  if (plan.shared) {
    const int64_t chunks = ceil_div(cols * depth, kPackedChunk);
    plan.chunk_cols = round_up(ceil_div(cols, chunks), kGemmColumnUnit);
    max_cols = plan.chunk_cols;
    max_rows = std::clamp(kPackedRows / (depth + kGemmPad) / kRowUnit, int64_t{2}, int64_t{20});
    max_rows *= kRowUnit;
    // A shallow product mostly writes: a block of few rows is written in whole pages.
    if (depth <= kGemmSteps / 2) max_rows = 4 * kRowUnit;
  }
  const auto cut = [&](int64_t row_blocks, int64_t col_blocks) {
    plan.block_rows = round_up(ceil_div(rows, row_blocks), kRowUnit);
    plan.block_cols = round_up(ceil_div(plan.chunk_cols, col_blocks), kGemmColumnUnit);
  };
  const auto row_blocks = [&] { return ceil_div(rows, plan.block_rows); };
  const auto col_blocks = [&] { return ceil_div(plan.chunk_cols, plan.block_cols); };
  cut(ceil_div(rows, max_rows), ceil_div(plan.chunk_cols, max_cols));
  constexpr int64_t kTasksPerThread = 4;
  const int64_t threads = at::get_num_threads();
  while (threads > 1 && row_blocks() * col_blocks() < kTasksPerThread * threads) {
    if (plan.block_rows > 8 * kRowUnit && plan.block_rows >= plan.block_cols) {
      cut(2 * row_blocks(), col_blocks());
    } else if (plan.block_cols > kGemmColumnUnit) {
      cut(row_blocks(), 2 * col_blocks());
    } else {
      break;
    }
  }
  gemm_lay_out_scratch(plan);
  return plan;
}

// kernel(args, task, scratch) for every task of args.plan.
template <class Args>
void run_gemm(const Args& args, void (*kernel)(const Args&, const GemmTask&, float*)) {
  const GemmPlan& plan = args.plan;
  if (plan.rows == 0 || plan.cols == 0) return;
  const auto run = [&](GemmTask task, int64_t tasks, int64_t work) {
    parallel_dynamic(tasks, work, 1, [&](const auto& next) {
      const Scratch<float> scratch(plan.scratch);
      GemmTask mine = task;
      int64_t end;
      while (next(mine.index, end)) kernel(args, mine, scratch.get());
    });
  };
  const int64_t row_blocks = ceil_div(plan.rows, plan.block_rows);
  const int64_t work = plan.block_rows * plan.block_cols * std::max<int64_t>(plan.depth / 16, 1);
  if (!plan.shared) {
    const GemmTask all{false, 0, 0, plan.cols, nullptr};
    return run(all, row_blocks * ceil_div(plan.cols, plan.block_cols), work);
  }
  const Scratch<float> packed(plan.chunk_cols * plan.depth);
  for (int64_t j0 = 0; j0 < plan.cols; j0 += plan.chunk_cols) {
    GemmTask task{true, 0, j0, std::min(plan.chunk_cols, plan.cols - j0), packed.get()};
    run(task, ceil_div(task.nj, kGemmColumnUnit), plan.depth * kGemmColumnUnit);
    task.pack = false;
    run(task, row_blocks * ceil_div(task.nj, plan.block_cols), work);
  }
}

}  // namespace mmkern
