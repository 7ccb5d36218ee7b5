// Host side of csrc/cpu/row_sums.h: gradients that are sums over rows.
#pragma once

#include <ATen/ops/zero.h>

#include "../cpu/row_sums.h"
#include "host.h"

namespace mmkern {

inline RowTasks row_tasks(int64_t batch, int64_t tokens) {
  RowTasks t{};
  t.batch = batch;
  t.tokens = tokens;
  if (batch == 0 || tokens == 0) return t;
  t.samples_per_task = std::max<int64_t>(1, kTaskRows / tokens);
  t.tasks_per_sample = at::divup(tokens, kTaskRows);
  t.count = at::divup(batch, t.samples_per_task) * t.tasks_per_sample;
  return t;
}

// One gradient: allocates result and partial rows, tells the kernel about them, adds them up.
class RowSumGradient {
 public:
  // A sum with the shape and dtype of `like`, (C), (B, C), (B, F, C) or (B, F, 1, C) with B 1 or
  // the batch; nothing if `like` is not given.
  RowSumGradient(const std::optional<at::Tensor>& like, const at::Tensor& x, const RowTasks& tasks)
      : tasks_(tasks) {
    if (!like.has_value()) {
      result = no_tensor(x);
      return;
    }
    result = at::empty(like->sizes(), like->options());
    const int64_t channels = like->size(-1);
    const int64_t samples = like->dim() > 1 ? like->size(0) : 1;
    sum.groups = like->dim() > 2 ? like->size(1) : 1;
    sum.result = result.mutable_data_ptr();
    sum.is_float32 = like->scalar_type() == at::kFloat;
    rows_ = samples * sum.groups;
    channels_ = channels;
    if (tasks.count == 0 || rows_ == 0) {
      at::zero_(result);
      sum.result = nullptr;
      return;
    }
    const bool one_group = rows_ == 1;
    sum.tokens_per_group = one_group ? 0 : tasks.tokens / sum.groups;
    sum.over_batch = !one_group && samples < tasks.batch;
    const bool whole =
        !one_group && (tasks.tasks_per_sample == 1 || kTaskRows % sum.tokens_per_group == 0);
    if (sum.over_batch || !whole) {
      const int64_t slots =
          one_group ? tasks.count : tasks.batch * (sum.groups + tasks.tasks_per_sample - 1);
      partials_ = Scratch<float>(slots * scratch_pitch(channels));
      sum.partials = partials_.get();
    }
  }

  // After the kernel that filled the partial rows.
  void finish(DType dtype) {
    if (sum.partials == nullptr) return;
    const PartialSums args{sum, tasks_, dtype, channels_};
    const auto kernel = MMKERN_PICK(add_partial_sums);
    const int64_t strips = at::divup(channels_, kSumColumns);
    const int64_t work = kSumColumns * std::max<int64_t>(1, tasks_.count / rows_);
    parallel_even(rows_ * strips, work,
                  [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }

  at::Tensor result;
  RowSum sum{};

 private:
  const RowTasks& tasks_;
  int64_t rows_ = 0;
  int64_t channels_ = 0;
  Scratch<float> partials_{0};
};

}  // namespace mmkern
