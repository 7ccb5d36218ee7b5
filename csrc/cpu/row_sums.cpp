#include "row_sums.h"

#include "row_sums_inl.h"

namespace mmkern::MMKERN_ISA {
namespace {

// Adds partial rows in blocks, so that the rounding error grows with the square root of their
// number.
class BlockedSum {
 public:
  MMKERN_MEMBER void add(vf2 v) {
    block_ = block_ + v;
    if (++count_ % kBlock == 0) {
      total_ = total_ + block_;
      block_ = pair(0.0f);
    }
  }
  MMKERN_MEMBER vf2 total() const { return total_ + block_; }

 private:
  static constexpr int kBlock = 16;
  vf2 total_ = pair(0.0f);
  vf2 block_ = pair(0.0f);
  int64_t count_ = 0;
};

struct Slots {
  int64_t first, last;
};

// The partial rows of a group within one sample.
Slots slots_of(const RowSum& sum, const RowTasks& tasks, int64_t batch, int64_t group) {
  if (sum.tokens_per_group == 0) return {0, tasks.count};
  const int64_t first_token = group * sum.tokens_per_group;
  const int64_t last_token = first_token + sum.tokens_per_group - 1;
  const int64_t start = batch * slots_per_sample(sum, tasks) + group;
  return {start + first_token / kTaskRows, start + last_token / kTaskRows + 1};
}

template <class T>
void add_rows(const PartialSums& args, int64_t begin, int64_t end) {
  const RowSum& sum = args.sum;
  const int64_t pitch = scratch_pitch(args.channels);
  const int64_t strips = (args.channels + kSumColumns - 1) / kSumColumns;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task / strips;
    const int64_t column = task % strips * kSumColumns;
    const int64_t columns =
        args.channels - column < kSumColumns ? args.channels - column : kSumColumns;
    const int64_t batch = sum.over_batch ? 0 : row / sum.groups;
    const int64_t batch_end = sum.over_batch ? args.tasks.batch : batch + 1;
    sweep_pairs(columns, [&](int64_t i, auto w) MMKERN_BODY {
      BlockedSum total;
      for (int64_t b = batch; b < batch_end; ++b) {
        const Slots slots = slots_of(sum, args.tasks, b, row % sum.groups);
        for (int64_t slot = slots.first; slot < slots.last; ++slot) {
          total.add(load_pair(sum.partials + slot * pitch + column + i));
        }
      }
      const int64_t at = row * args.channels + column + i;
      if (sum.is_float32) {
        store_pair_as<T>(static_cast<float*>(sum.result) + at, total.total(), w);
      } else {
        store_pair_as<T>(static_cast<T*>(sum.result) + at, total.total(), w);
      }
    });
  }
}

}  // namespace

void add_partial_sums(const PartialSums& args, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&](auto t) { add_rows<decltype(t)>(args, begin, end); });
}

}  // namespace mmkern::MMKERN_ISA
