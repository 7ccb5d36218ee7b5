#include "modulate.h"
#include "modulate_rows.h"

namespace mmkern::MMKERN_ISA {
namespace {

// With xhat = (h - mean) * rstd and g = dy * weight * (1 + scale):
//   dh = grad_h + rstd * (g - mean(g) - xhat * mean(g * xhat)), without mean(g) for RMSNorm
//   dx = dh, dbranch = gate * dh
// and sums over rows, dgate of dh * branch, dshift of dy, dscale of dy * (xhat * weight + bias),
// dweight of dy * (1 + scale) * xhat, dbias of dy * (1 + scale).
//
// Rows go in blocks that share all coefficients and groups: first each row's means, then all rows
// of the block column by column, which touches coefficients and sums once for kBlockRows rows.
template <class T, bool kStream>
class RowGradients {
 public:
  RowGradients(const ModulateGradArgs& args, float* scratch)
      : args_(args),
        n_(args.forward.channels),
        c_(args.forward, scratch),
        gate_(args.gate, args.tasks, n_, sum_row(scratch, 0)),
        shift_(args.shift, args.tasks, n_, sum_row(scratch, 1)),
        scale_(args.scale, args.tasks, n_, sum_row(scratch, 2)),
        weight_(args.weight, args.tasks, n_, sum_row(scratch, 3)),
        bias_(args.bias, args.tasks, n_, sum_row(scratch, 4)) {}

  void run_task(int64_t task) {
    const RowRange rows = rows_of_task(args_.tasks, task);
    for (int64_t row = rows.begin; row < rows.end;) {
      const Token at = token_of(row, args_.forward.tokens);
      const int64_t left_in_run = args_.run - at.token % args_.run;
      int64_t count = rows.end - row < kBlockRows ? rows.end - row : kBlockRows;
      count = left_in_run < count ? left_in_run : count;
      c_.move_to(at);
      if (args_.grad_y.data != nullptr) {
        run_block<true>(row, at, count);
      } else {
        run_block<false>(row, at, count);
      }
      row += count;
      const Token last{at.batch, at.token + count - 1};
      gate_.row_done(task, last, row == rows.end);
      shift_.row_done(task, last, row == rows.end);
      scale_.row_done(task, last, row == rows.end);
      weight_.row_done(task, last, row == rows.end);
      bias_.row_done(task, last, row == rows.end);
    }
  }

 private:
  static constexpr int64_t kBlockRows = 4;

  struct Row {
    const T *h, *dy, *grad_h, *branch;
    const T *next_h, *next_dy;  // of a row of the next block, where there is one
    T *grad_x, *grad_branch;
    Moments moments;
    float mean_g, mean_g_xhat;
  };

  float* sum_row(float* scratch, int64_t i) const {
    return scratch + (Coefficients<T>::kRows + i) * scratch_pitch(n_);
  }

  template <bool kNorm>
  void run_block(int64_t row, Token at, int64_t count) {
    Row rows[kBlockRows];
    for (int64_t r = 0; r < count; ++r) {
      rows[r] = locate(row + r, {at.batch, at.token + r});
      if (kNorm) survey(rows[r]);
    }
    sweep_pairs(n_,
                [&](int64_t i, auto w) MMKERN_BODY { write_columns<kNorm>(rows, count, i, w); });
  }

  Row locate(int64_t row, Token at) const {
    const auto input = [&](const TokenRows& rows) -> const T* {
      return rows.data ? row_of<T>(rows, at) : nullptr;
    };
    const auto output = [&](void* data) -> T* {
      return data ? static_cast<T*>(data) + row * n_ : nullptr;
    };
    return {input(args_.forward.x),
            input(args_.grad_y),
            input(args_.grad_h),
            input(args_.forward.branch),
            ahead(args_.forward.x, row),
            ahead(args_.grad_y, row),
            output(args_.grad_x),
            output(args_.grad_branch),
            {},
            0.0f,
            0.0f};
  }

  // Prefetched while a block is written, which by then reads from the caches alone: 1.4-1.6x where
  // the operands fit the last-level cache, and no gain beyond.
  const T* ahead(const TokenRows& rows, int64_t row) const {
    const int64_t next = row + kBlockRows;
    if (rows.data == nullptr || next >= args_.tasks.batch * args_.tasks.tokens) return nullptr;
    return row_of<T>(rows, token_of(next, args_.tasks.tokens));
  }

  // The moments of h, and the means of g and of g * xhat = g * (deviation * rstd + correction).
  void survey(Row& row) const {
    const T *h = row.h, *dy = row.dy;
    const float* gain = c_.gain;
    const Norm norm = args_.forward.norm;
    const auto value = [&](int64_t i, auto w) MMKERN_BODY { return load_pair(h + i, w); };
    const float count = static_cast<float>(n_);
    const float mean = norm == Norm::kLayer ? sum_pairs<T>(n_, value) / count : 0.0f;
    vf2 squares[2] = {}, g_sum[2] = {}, g_deviation_sum[2] = {};
    sweep_pairs_in_turn(n_, [&](int64_t i, auto w, int k) MMKERN_BODY {
      const vf2 deviation = keep_pair<T>(value(i, w) - mean, w);
      const vf2 g = load_pair(dy + i, w) * load_pair(gain + i);
      squares[k] = fma(deviation, deviation, squares[k]);
      g_sum[k] = g_sum[k] + g;
      g_deviation_sum[k] = fma(g, deviation, g_deviation_sum[k]);
    });
    row.moments =
        finish_moments<T>(n_, args_.forward.eps, mean, hsum(squares[0], squares[1]), value);
    const float mean_g = hsum(g_sum[0], g_sum[1]) / count;
    const float mean_g_deviation = hsum(g_deviation_sum[0], g_deviation_sum[1]) / count;
    row.mean_g = norm == Norm::kLayer ? mean_g : 0.0f;
    row.mean_g_xhat = mean_g_deviation * row.moments.rstd + mean_g * row.moments.correction;
  }

  // The columns from i on of every row of a block.
  template <bool kNorm, class Width>
  MMKERN_MEMBER void write_columns(const Row* rows, int64_t count, int64_t i, Width w) {
    const vf2 gain = load_pair(c_.gain + i), gate = load_pair(c_.gate + i);
    vf2 dy_sum = pair(0.0f), dy_xhat_sum = pair(0.0f), gate_sum = pair(0.0f);
    for (int64_t r = 0; r < count; ++r) {
      const Row& row = rows[r];
      vf2 dh = pair(0.0f);
      if constexpr (kNorm) {
        const vf2 xhat = row.moments.normalize(load_pair(row.h + i, w));
        const vf2 dy = load_pair(row.dy + i, w);
        if (!kStream) {
          prefetch_pair(row.next_h, i);
          prefetch_pair(row.next_dy, i);
        }
        dy_sum = dy_sum + dy;
        dy_xhat_sum = fma(dy, xhat, dy_xhat_sum);
        // Where g - mean(g) cancels, a fused g would leave its rounding error for rstd to magnify.
        dh = (rounded(dy * gain) - row.mean_g - xhat * row.mean_g_xhat) * row.moments.rstd;
      }
      if (row.grad_h) dh = dh + load_pair(row.grad_h + i, w);
      if (row.grad_x) put<kStream>(row.grad_x + i, dh, w);
      if (row.grad_branch) put<kStream>(row.grad_branch + i, dh * gate, w);
      if (gate_) gate_sum = fma(dh, load_pair(row.branch + i, w), gate_sum);
    }
    if (gate_) gate_.add(i, gate_sum);
    if (!kNorm) return;
    const vf2 factor = load_pair(c_.factor + i);
    if (shift_) shift_.add(i, dy_sum);
    if (scale_) {
      const vf2 weighted = dy_xhat_sum * load_pair(c_.weight + i);
      scale_.add(i, fma(dy_sum, load_pair(c_.bias + i), weighted));
    }
    if (weight_) weight_.add(i, dy_xhat_sum * factor);
    if (bias_) bias_.add(i, dy_sum * factor);
  }

  const ModulateGradArgs& args_;
  const int64_t n_;
  Coefficients<T> c_;
  GroupAccumulator<T> gate_, shift_, scale_, weight_, bias_;
};

template <class T, bool kStream>
void run_tasks(const ModulateGradArgs& args, int64_t begin, int64_t end, float* scratch) {
  RowGradients<T, kStream> gradients(args, scratch);
  for (int64_t task = begin; task < end; ++task) gradients.run_task(task);
  if (kStream) fence();
}

template <class T>
void choose_stream(const ModulateGradArgs& args, int64_t begin, int64_t end, float* scratch) {
  if (args.forward.stream) {
    run_tasks<T, true>(args, begin, end, scratch);
  } else {
    run_tasks<T, false>(args, begin, end, scratch);
  }
}

}  // namespace

void modulate_backward(const ModulateGradArgs& args, int64_t begin, int64_t end, float* scratch) {
  with_dtype(args.forward.dtype,
             [&](auto t) { choose_stream<decltype(t)>(args, begin, end, scratch); });
}

}  // namespace mmkern::MMKERN_ISA
