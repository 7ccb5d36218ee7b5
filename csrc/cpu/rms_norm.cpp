#include "rms_norm.h"

#include "modulate_rows.h"
#include "strided_rows_inl.h"

namespace mmkern::MMKERN_ISA {
namespace {

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

// h = x + residual for a row; the sum of its squares. A second copy goes where it is asked for.
template <class T, bool kStream>
MMKERN_INLINE float add_row(int64_t n, const T* x, const T* residual, T* h, T* copy) {
  return sum_pairs<T>(n, [&](int64_t i, auto w) MMKERN_BODY {
    const auto packed = pack(load_pair(x + i, w) + load_pair(residual + i, w), T{});
    put_packed<kStream>(h + i, packed, w);
    if (copy) store_packed(copy + i, packed, w);
    const vf2 v = unpack(packed, T{});
    return v * v;
  });
}

// y of a row of h. Beside it the rows that are summed next come into the cache.
template <class T, class Out, Cast kCast, bool kStream, class Fetch>
MMKERN_INLINE void scale_row(int64_t n, const T* h, float rstd, const float* weight, Out* y,
                             const Fetch& fetch) {
  sweep_pairs(n, [&](int64_t i, auto w) MMKERN_BODY {
    fetch(i);
    vf2 xhat = load_pair(h + i, w) * rstd;
    if constexpr (kCast != Cast::kLast) xhat = round_pair<T>(xhat);
    const vf2 result = xhat * load_pair(weight + i);
    constexpr bool kZip = __is_same(T, bf16_t) && !__is_same(Out, bf16_t);
    put<kStream>(y + i, kZip ? zip(result) : result, w);
  });
}

constexpr int64_t kBlockRows = 4;

// The rows of a block, whose roots hide each other's latency: as many as stay in the first cache
// until they are scaled. One where memory is the limit, which likes its loads and stores mixed.
template <class T, bool kStream>
MMKERN_INLINE int64_t rows_of_block(int64_t channels) {
  constexpr int64_t kBlockValues = 8192;
  if (kStream || __is_same(T, float) || channels > kBlockValues / 2) return 1;
  return least(kBlockRows, kBlockValues / channels);
}

template <class T, class Out, Cast kCast, bool kStream>
void run_rows(const RmsNormArgs& args, int64_t begin, int64_t end, float* scratch) {
  const int64_t n = args.channels;
  const int64_t pitch = scratch_pitch(n);
  const float* weight = scratch;
  widen_weight<T>(args, scratch);
  const int64_t step = rows_of_block<T, kStream>(n);
  const bool adds = args.residual.data != nullptr;
  // From memory 1.04-1.4 x, from the last cache 1.1 x; 0.9 x where the loads are the limit already.
  constexpr bool kFetches = kStream || sizeof(T) < sizeof(float);
  const bool fetches = kStream || (kFetches && !adds);
  for (int64_t block = begin; block < end; block += step) {
    const int64_t rows = least(step, end - block);
    const T* h[kBlockRows];
    float rstd[kBlockRows];
    for (int64_t r = 0; r < rows; ++r) {
      h[r] = row_at<T>(args.x, args.shape, block + r);
      float squares;
      if (adds) {
        // What is streamed leaves the cache: scale_row reads a copy.
        T* copy = kStream ? reinterpret_cast<T*>(scratch + pitch) : nullptr;
        T* sum = static_cast<T*>(args.h) + (block + r) * n;
        const T* residual = row_at<T>(args.residual, args.shape, block + r);
        squares = add_row<T, kStream>(n, h[r], residual, sum, copy);
        h[r] = kStream ? copy : sum;
      } else {
        squares = sum_of_squares(h[r], n);
      }
      rstd[r] = rstd_of(power_of(args, squares));
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t next = least(block + r + step, end - 1);
      const T* next_x = fetches ? row_at<T>(args.x, args.shape, next) : nullptr;
      const T* next_residual =
          fetches && adds ? row_at<T>(args.residual, args.shape, next) : nullptr;
      const auto fetch = [&](int64_t i) MMKERN_BODY {
        if constexpr (!kFetches) return;
        prefetch_pair(next_x, i);
        prefetch_pair(next_residual, i);
      };
      Out* y = static_cast<Out*>(args.y) + (block + r) * n;
      scale_row<T, Out, kCast, kStream>(n, h[r], rstd[r], weight, y, fetch);
    }
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
// touches the weight and its sum once for the whole block.
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
      const int64_t count = least<int64_t>(kBlockRows, range.end - row);
      Row rows[kBlockRows];
      for (int64_t r = 0; r < count; ++r) rows[r] = survey(row + r);
      sweep_pairs(n_, [&](int64_t i, auto w) MMKERN_BODY { write_columns(rows, count, i, w); });
      const int64_t last = row + count - 1;
      sum_.row_done(task, {0, last}, last + 1 == range.end);
    }
  }

 private:
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
