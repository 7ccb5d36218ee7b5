// Sums over rows that come out bitwise the same whatever the number of threads: the rows are cut
// into tasks in a way that depends on the shape alone, each task leaves partial sums in float32,
// and a second kernel adds the partial sums up in order.
//
// A task is kTaskRows tokens of one sample (the last one of a sample may be shorter) or, where a
// sample has fewer, as many whole samples as fit. A result row is the sum over a group: a run of
// tokens_per_group tokens of a sample, in one sample or in all of them, or everything there is.
#pragma once

#include "isa.h"
#include "types.h"

namespace mmkern {

inline constexpr int64_t kTaskRows = 32;

struct RowTasks {
  int64_t batch;
  int64_t tokens;
  int64_t samples_per_task;  // 1 where a sample has more than one task
  int64_t tasks_per_sample;  // 1 where a task has more than one sample
  int64_t count;
};

// Where a task leaves the sum of each group that it meets. Scratch rows are in the lane order of
// the op's dtype (pair.h); so are partial rows, of scratch_pitch(channels) floats.
struct RowSum {
  void* result;              // contiguous, a row per group; null if the sum is not asked for
  bool is_float32;           // of the result; else of the op's dtype
  bool over_batch;           // the result has one sample, which sums over all of them
  int64_t tokens_per_group;  // 0: a single group, everything
  int64_t groups;            // per sample
  float* partials;           // null if every group lies in one task, which then writes the result
};

// Adds up the partial rows; a task is kSumColumns columns of one result row.
inline constexpr int64_t kSumColumns = 256;

struct PartialSums {
  RowSum sum;
  RowTasks tasks;
  DType dtype;
  int64_t channels;
};

}  // namespace mmkern

MMKERN_KERNEL(void, add_partial_sums, (const PartialSums& args, int64_t begin, int64_t end))
