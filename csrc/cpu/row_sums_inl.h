// For the kernels that fill partial sums: an accumulator row and where it goes. See row_sums.h.
#pragma once

#include "pair.h"
#include "row_sums.h"

namespace mmkern::MMKERN_ISA {

struct Token {
  int64_t batch, token;
};

MMKERN_INLINE Token token_of(int64_t row, int64_t tokens) { return {row / tokens, row % tokens}; }

struct RowRange {
  int64_t begin, end;
};

// The rows of a task, numbered batch * tokens + token.
MMKERN_INLINE RowRange rows_of_task(const RowTasks& tasks, int64_t task) {
  const int64_t sample = task / tasks.tasks_per_sample * tasks.samples_per_task;
  if (tasks.samples_per_task > 1) {
    const int64_t last = sample + tasks.samples_per_task;
    return {sample * tasks.tokens, (last < tasks.batch ? last : tasks.batch) * tasks.tokens};
  }
  const int64_t first = task % tasks.tasks_per_sample * kTaskRows;
  const int64_t last = first + kTaskRows < tasks.tokens ? first + kTaskRows : tasks.tokens;
  return {sample * tasks.tokens + first, sample * tasks.tokens + last};
}

// A task that ends where a group ends, or begins in one, takes a partial row (group + chunk): both
// only grow along a sample, so that no two pieces share one.
MMKERN_INLINE int64_t slots_per_sample(const RowSum& sum, const RowTasks& tasks) {
  return sum.groups + tasks.tasks_per_sample - 1;
}

// The running sum of one group, a scratch row; or nothing, where the sum is not asked for.
template <class T>
class GroupAccumulator {
 public:
  GroupAccumulator(const RowSum& sum, const RowTasks& tasks, int64_t channels, float* scratch)
      : sum_(sum), tasks_(tasks), channels_(channels), row_(sum.result ? scratch : nullptr) {
    if (row_) clear();
  }

  explicit operator bool() const { return row_ != nullptr; }

  // Adds v to the elements from i on.
  MMKERN_MEMBER void add(int64_t i, vf2 v) { store_pair(row_ + i, load_pair(row_ + i) + v); }

  // Call after each row of a task.
  void row_done(int64_t task, Token at, bool last_of_task) {
    if (row_ == nullptr) return;
    const bool last_of_group =
        sum_.tokens_per_group > 0 && (at.token + 1) % sum_.tokens_per_group == 0;
    if (!last_of_task && !last_of_group) return;
    if (sum_.partials != nullptr) {
      write_partial(task, at);
    } else {
      const int64_t group = at.batch * sum_.groups + at.token / sum_.tokens_per_group;
      if (sum_.is_float32) {
        write(static_cast<float*>(sum_.result) + group * channels_);
      } else {
        write(static_cast<T*>(sum_.result) + group * channels_);
      }
    }
    clear();
  }

 private:
  void clear() {
    for (int64_t i = 0; i < channels_; i += kPairLanes) store_pair(row_ + i, pair(0.0f));
  }

  void write_partial(int64_t task, Token at) {
    int64_t slot = task;
    if (sum_.tokens_per_group > 0) {
      slot = at.batch * slots_per_sample(sum_, tasks_) + at.token / sum_.tokens_per_group +
             at.token / kTaskRows;
    }
    float* out = sum_.partials + slot * scratch_pitch(channels_);
    for (int64_t i = 0; i < channels_; i += kPairLanes) store_pair(out + i, load_pair(row_ + i));
  }

  template <class To>
  void write(To* out) {
    sweep_pairs(channels_, [&](int64_t i, auto w)
                               MMKERN_BODY { store_pair_as<T>(out + i, load_pair(row_ + i), w); });
  }

  const RowSum& sum_;
  const RowTasks& tasks_;
  const int64_t channels_;
  float* const row_;
};

}  // namespace mmkern::MMKERN_ISA
