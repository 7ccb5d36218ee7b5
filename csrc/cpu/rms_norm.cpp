#include "rms_norm.h"

#include "modulate_rows.h"
#include "strided_rows_inl.h"

namespace mmkern::MMKERN_ISA {
namespace {

// v as it comes back from memory of type T.
template <class T>
MMKERN_INLINE vf2 round_to(vf2 v) {
  if constexpr (__is_same(T, float)) {
    return v;
  } else if constexpr (__is_same(T, bf16_t)) {
    return split_bf16(join_bf16(v));
  } else {
    return {widen(narrow(v.a, T{}), T{}), widen(narrow(v.b, T{}), T{})};
  }
}

// The weight (ones where there is none) as floats in the lane order of T.
template <class T>
void widen_weight(const RmsNormArgs& args, float* out) {
  if (args.weight == nullptr) return fill(out, 1.0f, args.channels);
  with_elements<T>({args.weight, args.weight_is_float32}, [&](const auto* weight) MMKERN_BODY {
    sweep_pairs(args.channels, [&](int64_t i, auto w) MMKERN_BODY {
      store_pair(out + i, load_pair_as<T>(weight + i, w));
    });
  });
}

// The mean square plus eps.
MMKERN_INLINE double power_of(const RmsNormArgs& args, float squares) {
  return static_cast<double>(squares) / static_cast<double>(args.channels) + args.eps;
}
MMKERN_INLINE float rstd_of(double power) {
  return static_cast<float>(1.0 / __builtin_sqrt(power));
}

// y of a row of h, whose values value(i, width) gives.
template <class T, class Out, Cast kCast, bool kStream, class Value>
MMKERN_INLINE void scale_row(int64_t n, const float* weight, float rstd, const Value& value,
                             Out* y) {
  sweep_pairs(n, [&](int64_t i, auto w) MMKERN_BODY {
    vf2 xhat = value(i, w) * rstd;
    if constexpr (kCast != Cast::kLast) xhat = round_to<T>(xhat);
    const vf2 result = xhat * load_pair(weight + i);
    constexpr bool kZip = __is_same(T, bf16_t) && !__is_same(Out, bf16_t);
    put<kStream>(y + i, kZip ? zip(result) : result, w);
  });
}

template <class T, class Out, Cast kCast, bool kStream>
void norm_rows(const RmsNormArgs& args, int64_t begin, int64_t end, const float* weight) {
  const int64_t n = args.channels;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = row_at<T>(args.x, args.shape, row);
    const float rstd = rstd_of(power_of(args, sum_of_squares(x, n)));
    const auto value = [&](int64_t i, auto w) MMKERN_BODY { return load_pair(x + i, w); };
    scale_row<T, Out, kCast, kStream>(n, weight, rstd, value, static_cast<Out*>(args.y) + row * n);
  }
}

template <class T, class Out, Cast kCast, bool kStream>
void add_and_norm_rows(const RmsNormArgs& args, int64_t begin, int64_t end, const float* weight,
                       float* wide_h) {
  const int64_t n = args.channels;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = row_at<T>(args.x, args.shape, row);
    const T* residual = row_at<T>(args.residual, args.shape, row);
    T* h = static_cast<T*>(args.h) + row * n;
    const float squares = sum_pairs<T>(n, [&](int64_t i, auto w) MMKERN_BODY {
      const vf2 v = round_to<T>(load_pair(x + i, w) + load_pair(residual + i, w));
      put<kStream>(h + i, v, w);
      store_pair(wide_h + i, v);
      return v * v;
    });
    const auto value = [&](int64_t i, auto) MMKERN_BODY { return load_pair(wide_h + i); };
    scale_row<T, Out, kCast, kStream>(n, weight, rstd_of(power_of(args, squares)), value,
                                      static_cast<Out*>(args.y) + row * n);
  }
}

template <class T, class Out, Cast kCast, bool kStream>
void run_rows(const RmsNormArgs& args, int64_t begin, int64_t end, float* scratch) {
  float* weight = scratch;
  widen_weight<T>(args, weight);
  if (args.residual.data == nullptr) {
    norm_rows<T, Out, kCast, kStream>(args, begin, end, weight);
  } else {
    float* wide_h = scratch + scratch_pitch(args.channels);
    add_and_norm_rows<T, Out, kCast, kStream>(args, begin, end, weight, wide_h);
  }
  if (kStream) fence();
}

template <class T, class Out, Cast kCast>
void choose_stream(const RmsNormArgs& args, int64_t begin, int64_t end, float* scratch) {
  if (args.stream) {
    run_rows<T, Out, kCast, true>(args, begin, end, scratch);
  } else {
    run_rows<T, Out, kCast, false>(args, begin, end, scratch);
  }
}

template <class T>
void choose_cast(const RmsNormArgs& args, int64_t begin, int64_t end, float* scratch) {
  switch (args.cast) {
    case Cast::kLast:
      return choose_stream<T, T, Cast::kLast>(args, begin, end, scratch);
    case Cast::kFirst:
      return choose_stream<T, T, Cast::kFirst>(args, begin, end, scratch);
    case Cast::kFirstToFloat32:
      return choose_stream<T, float, Cast::kFirstToFloat32>(args, begin, end, scratch);
  }
}

// With xhat = h * rstd and g = dy * weight:
//   dx = grad_h + rstd * (g - xhat * mean(g * xhat)), dweight = sum over rows of dy * xhat
//
// The difference is taken as g - h * slope with slope = mean(g * h) * rstd^2 in twice the precision
// of float: it cancels in short rows, down to a share of eps where there is one channel.
//
// Rows go in blocks: first each row's means, then all rows of the block column by column, which
// touches the weight and its sum once for kBlockRows rows.
template <class T, class Dy, bool kStream>
class RowGradients {
 public:
  RowGradients(const RmsNormGradArgs& args, float* scratch)
      : args_(args),
        n_(args.forward.channels),
        weight_(scratch),
        sum_(args.weight, args.tasks, n_, scratch + scratch_pitch(n_)) {
    widen_weight<T>(args.forward, scratch);
  }

  void run_task(int64_t task) {
    const RowRange range = rows_of_task(args_.tasks, task);
    for (int64_t row = range.begin; row < range.end; row += kBlockRows) {
      const int64_t count = range.end - row < kBlockRows ? range.end - row : kBlockRows;
      Row rows[kBlockRows];
      for (int64_t r = 0; r < count; ++r) rows[r] = survey(row + r);
      sweep_pairs(n_, [&](int64_t i, auto w) MMKERN_BODY { write_columns(rows, count, i, w); });
      const int64_t last = row + count - 1;
      sum_.row_done(task, {0, last}, last + 1 == range.end);
    }
  }

 private:
  static constexpr int64_t kBlockRows = 4;

  struct Row {
    const T *h, *grad_h;
    const Dy* dy;
    T* grad_x;
    float rstd, slope, slope_rest;
  };

  Row survey(int64_t row) const {
    const RowShape& shape = args_.forward.shape;
    const T* h = row_at<T>(args_.forward.x, shape, row);
    const Dy* dy = row_at<Dy>(args_.grad_y, shape, row);
    vf2 squares[2] = {}, g_h[2] = {};
    sweep_pairs_in_turn(n_, [&](int64_t i, auto w, int k) MMKERN_BODY {
      const vf2 v = load_pair(h + i, w);
      squares[k] = fma(v, v, squares[k]);
      g_h[k] = fma(load_pair_as<T>(dy + i, w) * load_pair(weight_ + i), v, g_h[k]);
    });
    const double power = power_of(args_.forward, hsum(squares[0], squares[1]));
    const double slope = hsum(g_h[0], g_h[1]) / static_cast<double>(n_) / power;
    const float slope_high = static_cast<float>(slope);
    const T* grad_h = args_.grad_h.data ? row_at<T>(args_.grad_h, shape, row) : nullptr;
    T* grad_x = args_.grad_x ? static_cast<T*>(args_.grad_x) + row * n_ : nullptr;
    const float slope_rest = static_cast<float>(slope - slope_high);
    return {h, grad_h, dy, grad_x, rstd_of(power), slope_high, slope_rest};
  }

  // The columns from i on of every row of a block.
  template <class Width>
  MMKERN_MEMBER void write_columns(const Row* rows, int64_t count, int64_t i, Width w) {
    const vf2 weight = load_pair(weight_ + i);
    vf2 dy_xhat_sum = pair(0.0f);
    for (int64_t r = 0; r < count; ++r) {
      const Row& row = rows[r];
      const vf2 h = load_pair(row.h + i, w);
      const vf2 dy = load_pair_as<T>(row.dy + i, w);
      dy_xhat_sum = fma(dy, h * row.rstd, dy_xhat_sum);
      if (row.grad_x == nullptr) continue;
      // Where the difference cancels, a fused g would leave its rounding error for rstd to magnify.
      const vf2 g = rounded(dy * weight);
      const vf2 projected = fma(h, pair(-row.slope_rest), fma(h, pair(-row.slope), g));
      vf2 dh = projected * row.rstd;
      if (row.grad_h) dh = dh + load_pair(row.grad_h + i, w);
      put<kStream>(row.grad_x + i, dh, w);
    }
    if (sum_) sum_.add(i, dy_xhat_sum);
  }

  const RmsNormGradArgs& args_;
  const int64_t n_;
  const float* const weight_;
  GroupAccumulator<T> sum_;
};

template <class T, class Dy, bool kStream>
void run_tasks(const RmsNormGradArgs& args, int64_t begin, int64_t end, float* scratch) {
  RowGradients<T, Dy, kStream> gradients(args, scratch);
  for (int64_t task = begin; task < end; ++task) gradients.run_task(task);
  if (kStream) fence();
}

template <class T, class Dy>
void choose_stream(const RmsNormGradArgs& args, int64_t begin, int64_t end, float* scratch) {
  if (args.forward.stream) {
    run_tasks<T, Dy, true>(args, begin, end, scratch);
  } else {
    run_tasks<T, Dy, false>(args, begin, end, scratch);
  }
}

template <class T>
void choose_dy(const RmsNormGradArgs& args, int64_t begin, int64_t end, float* scratch) {
  if (args.grad_y_is_float32) {
    choose_stream<T, float>(args, begin, end, scratch);
  } else {
    choose_stream<T, T>(args, begin, end, scratch);
  }
}

}  // namespace

void rms_norm_forward(const RmsNormArgs& args, int64_t begin, int64_t end, float* scratch) {
  switch (args.dtype) {
    case DType::kFloat32:
      return choose_stream<float, float, Cast::kLast>(args, begin, end, scratch);
    case DType::kBFloat16:
      return choose_cast<bf16_t>(args, begin, end, scratch);
    case DType::kFloat16:
      return choose_cast<fp16_t>(args, begin, end, scratch);
  }
}

void rms_norm_backward(const RmsNormGradArgs& args, int64_t begin, int64_t end, float* scratch) {
  switch (args.forward.dtype) {
    case DType::kFloat32:
      return choose_stream<float, float>(args, begin, end, scratch);
    case DType::kBFloat16:
      return choose_dy<bf16_t>(args, begin, end, scratch);
    case DType::kFloat16:
      return choose_dy<fp16_t>(args, begin, end, scratch);
  }
}

}  // namespace mmkern::MMKERN_ISA
