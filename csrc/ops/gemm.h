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

inline int64_t gemm_packed_row(const GemmPlan& plan) {
  return round_up(plan.steps, kGemmPad) + kGemmPad;
}

inline constexpr int64_t kTallRowUnit = 12;       // rows of a task, if tall
inline constexpr int64_t kTurnedColumnUnit = 96;  // columns of a task, if turned: whole lines
inline constexpr int64_t kPackedChunk = 2 * 1024 * 1024;  // floats of the shared operand at a time

// Halves the blocks until there are enough of them for the threads to share evenly.
inline void gemm_cut(GemmPlan& plan, int64_t rows, int64_t cols, int64_t min_rows,
                     int64_t tasks_per_thread = 4) {
  const int64_t threads = at::get_num_threads();
  const int64_t wanted = threads > 1 ? tasks_per_thread * threads : 1;
  const int64_t row_unit = plan.cut == GemmCut::kTall   ? kTallRowUnit
                           : plan.cut == GemmCut::kWide ? kGemmRowUnit
                                                        : kGemmColumnUnit;
  const auto blocks = [](int64_t n, int64_t block) { return ceil_div(n, block); };
  while (blocks(rows, plan.block_rows) * blocks(cols, plan.block_cols) < wanted) {
    const bool by_rows = plan.block_rows > min_rows && plan.block_rows >= plan.block_cols;
    if (!by_rows && plan.block_cols <= kGemmColumnUnit) break;
    int64_t& block = by_rows ? plan.block_rows : plan.block_cols;
    const int64_t unit = by_rows ? row_unit : kGemmColumnUnit;
    const int64_t extent = by_rows ? rows : cols;
    block = round_up(ceil_div(extent, 2 * blocks(extent, block)), unit);
  }
}

// Rows of a task, a multiple of kTallRowUnit up to `most`: those with which the threads, who take
// the next task when they are done with one, are done with all rows soonest.
inline int64_t gemm_balanced_rows(int64_t rows, int64_t most) {
  constexpr int64_t kReadingB = 4;  // what a task spends on that, in rows; from the cache's rate
  const int64_t threads = at::get_num_threads();
  const auto cost = [&](int64_t block) {
    const int64_t tasks = ceil_div(rows, block), rounds = ceil_div(tasks, threads);
    const bool short_round = tasks % threads == 1 || threads == 1;  // of the last rows alone
    return rounds * (block + kReadingB) - (short_round ? tasks * block - rows : 0);
  };
  most = std::min(most, round_up(rows, kTallRowUnit));
  int64_t best = most;
  for (int64_t block = most; block > most / 2; block -= kTallRowUnit) {
    if (cost(block) <= cost(best)) best = block;
  }
  return best;
}

// Rows of A packed for the whole depth, and the sums, stay in an L2 of 1 MiB.
inline void gemm_plan_tall(GemmPlan& plan) {
  constexpr int64_t kPackedRows = 160 * 1024;  // floats of A in a task
  const int64_t chunks = ceil_div(plan.cols * plan.steps, kPackedChunk);
  plan.chunk = round_up(ceil_div(plan.cols, std::max<int64_t>(chunks, 1)), kGemmColumnUnit);
  int64_t max_rows =
      std::clamp(kPackedRows / gemm_packed_row(plan) / kTallRowUnit, int64_t{2}, int64_t{20}) *
      kTallRowUnit;
  // A shallow product mostly writes: a block of few rows is written in whole pages.
  if (plan.depth <= kGemmSteps / 2) max_rows = 4 * kTallRowUnit;
  plan.block_rows = gemm_balanced_rows(plan.rows, max_rows);
  plan.block_cols = plan.chunk;
  gemm_cut(plan, plan.rows, plan.chunk, 8 * kTallRowUnit);
  plan.sums = round_up(plan.block_rows, kGemmPad) * gemm_packed_row(plan);
}

inline void gemm_plan_wide(GemmPlan& plan) {
  constexpr int64_t kMaxRows = 720;
  const int64_t fitting = kPackedChunk / gemm_packed_row(plan) / kGemmRowUnit * kGemmRowUnit;
  const int64_t max_rows = std::clamp(fitting, kGemmRowUnit, kMaxRows);
  plan.chunk = round_up(ceil_div(plan.rows, ceil_div(plan.rows, max_rows)), kGemmRowUnit);
  plan.block_rows = plan.chunk;
  plan.block_cols = kGemmColumnUnit;
  gemm_cut(plan, plan.chunk, plan.cols, 2 * kGemmRowUnit);
  plan.sums = kGemmColumnUnit * kGemmSteps;
}

// Sums of a task, and its part of the columns of B, stay in an L2 of 1 MiB.
inline void gemm_plan_turned(GemmPlan& plan) {
  constexpr int64_t kMaxRows = 768;
  const int64_t fitting = kPackedChunk / plan.steps / kGemmColumnUnit * kGemmColumnUnit;
  const int64_t max_rows = std::clamp(fitting, kGemmColumnUnit, kMaxRows);
  plan.chunk = round_up(ceil_div(plan.rows, ceil_div(plan.rows, max_rows)), kGemmColumnUnit);
  plan.block_rows = plan.chunk;
  plan.block_cols = kTurnedColumnUnit;
  gemm_cut(plan, plan.chunk, plan.cols, 2 * kGemmColumnUnit, 8);
  plan.sums = 0;
}

// Whether the columns of B, rows of `b`, are made of cells where they lie: of bfloat16 pairs.
inline bool gemm_in_place(DType dtype, int64_t cols, int64_t depth, const RowsView& b) {
  const bool pairs = dtype == DType::kBFloat16 && MMKERN_PICK(gemm_steps)(dtype, 2) == 1;
  const bool aligned = reinterpret_cast<uintptr_t>(b.data) % 4 == 0 && b.inner_stride % 2 == 0;
  return pairs && depth > 0 && depth % 2 == 0 && b.inner >= cols && aligned;
}

// b: the rows that are the columns of B, if they are such and rows of A are not gathered.
inline GemmPlan gemm_plan(DType dtype, int64_t rows, int64_t cols, int64_t depth,
                          const RowsView* b = nullptr) {
  constexpr int64_t kFewRows = 720, kManyColumns = 512, kLongDepth = 6144;
  constexpr int64_t kTurnedLanes = 16, kDeepTurned = 1024;
  GemmPlan plan{};
  plan.rows = rows;
  plan.cols = cols;
  plan.depth = depth;
  plan.steps = MMKERN_PICK(gemm_steps)(dtype, depth);
  if (rows == 0 || cols == 0) return plan;
  // Rows that leave few lanes of a panel empty, and products deep enough to pay for transposing.
  const bool full_lanes = round_up(rows, kTurnedLanes) * 20 <= rows * 21;
  const bool turned = b != nullptr && full_lanes && plan.steps >= kDeepTurned;
  if (turned && gemm_in_place(dtype, cols, depth, *b)) {
    plan.cut = GemmCut::kTurned;
    gemm_plan_turned(plan);
  } else if (plan.steps > kLongDepth || (rows <= kFewRows && cols >= kManyColumns)) {
    plan.cut = GemmCut::kWide;
    gemm_plan_wide(plan);
  } else {
    plan.cut = GemmCut::kTall;
    gemm_plan_tall(plan);
  }
  const int64_t sum_cols = plan.cut == GemmCut::kTurned ? plan.block_cols : kGemmColumnUnit;
  plan.gathered = plan.sums + round_up(plan.block_rows, kGemmPad) * sum_cols;
  plan.scratch = plan.gathered + 2 * std::max({depth, plan.block_rows, kGemmColumnUnit});
  return plan;
}

// A permutation of the tasks with which `threads` that take them in turns walk one stretch each.
// Threads that write rows next to each other are slower, shallow products by a quarter at times:
// hardware prefetches of one take lines from the other.
inline int64_t far_apart(int64_t k, int64_t tasks, int64_t threads) {
  const int64_t stretch = k % threads;
  return stretch * (tasks / threads) + std::min(stretch, tasks % threads) + k / threads;
}

// kernel(args, task, scratch) for every task of args.plan.
template <class Args>
void run_gemm(const Args& args, void (*kernel)(const Args&, const GemmTask&, float*)) {
  const GemmPlan& plan = args.plan;
  if (plan.rows == 0 || plan.cols == 0) return;
  const auto run = [&](GemmTask task, int64_t tasks, int64_t work) {
    const int64_t threads = worthwhile_threads(tasks, work);
    parallel_dynamic(tasks, work, 1, [&](const auto& next) {
      const Scratch<float> scratch(plan.scratch);
      GemmTask mine = task;
      int64_t end;
      for (int64_t k; next(k, end);) {
        mine.index = far_apart(k, tasks, threads);
        kernel(args, mine, scratch.get());
      }
    });
  };
  const int64_t work = plan.block_rows * plan.block_cols * std::max<int64_t>(plan.depth / 16, 1);
  const bool tall = plan.cut == GemmCut::kTall;
  const int64_t total = tall ? plan.cols : plan.rows;
  const int64_t unit = plan.cut == GemmCut::kWide ? kGemmRowUnit : kGemmColumnUnit;
  const Scratch<float> packed(plan.chunk * gemm_packed_row(plan));
  for (int64_t begin = 0; begin < total; begin += plan.chunk) {
    GemmTask task{true, 0, begin, std::min(plan.chunk, total - begin), packed.get()};
    run(task, ceil_div(task.count, unit), plan.depth * unit);
    task.pack = false;
    run(task,
        ceil_div(tall ? plan.rows : task.count, plan.block_rows) *
            ceil_div(tall ? task.count : plan.cols, plan.block_cols),
        work);
  }
}

}  // namespace mmkern
