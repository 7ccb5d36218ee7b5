#include "gemm.h"
#include "mlp.h"

namespace mmkern::MMKERN_ISA {
namespace {

// What normalises a row: ((x - mean) - shift) * rstd, where shift is what rounding left of the mean
// of x - mean. It matters where a row varies little around a value far from zero.
struct Moments {
  float mean, shift, rstd;
  MMKERN_MEMBER vf normalize(vf x) const { return (x - mean - shift) * rstd; }
};

template <class T>
Moments moments(const MlpRowsArgs& args, const T* x) {
  const int64_t n = args.channels;
  const float count = static_cast<float>(n);
  Moments m{0.0f, 0.0f, 1.0f};
  if (args.norm == RowNorm::kNone || n == 0) return m;
  if (args.norm == RowNorm::kLayer) {
    m.mean = sum_over(n, [&](int64_t i, auto w) MMKERN_BODY { return load(x + i, w); }) / count;
    m.shift =
        sum_over(n, [&](int64_t i, auto w) MMKERN_BODY { return load(x + i, w) - m.mean; }) / count;
  }
  const float square = sum_over(n, [&](int64_t i, auto w) MMKERN_BODY {
    const vf d = m.normalize(load(x + i, w));
    return d * d;
  });
  m.rstd = 1.0f / __builtin_sqrtf(square / count + args.eps);
  return m;
}

template <class T>
void normalize_rows(const MlpRowsArgs& args, int64_t begin, int64_t end) {
  const MatrixRows<T> source{args.x};
  const T* const weight = static_cast<const T*>(args.weight);
  const T* const bias = static_cast<const T*>(args.bias);
  for (int64_t r = begin; r < end; ++r) {
    const T* const x = source.row(args.rows ? args.rows[r] : r, 0, args.channels, nullptr);
    T* const out = static_cast<T*>(args.out) + r * args.channels;
    const Moments m = moments(args, x);
    sweep(args.channels, [&](int64_t c, auto width) MMKERN_BODY {
      vf value = m.normalize(load(x + c, width));
      if (weight != nullptr) value *= load(weight + c, width);
      if (bias != nullptr) value += load(bias + c, width);
      store(out + c, value, width);
    });
  }
}

// The sum of the gradients of a row's copies: in place if there is one, else in room.
const float* copies_sum(const MlpRowsGradArgs& args, int64_t row, float* room) {
  const int64_t n = args.forward.channels;
  if (args.starts == nullptr) return args.grad + row * n;
  const int64_t begin = args.starts[row], end = args.starts[row + 1];
  if (end - begin == 1) return args.grad + args.copies[begin] * n;
  sweep(n, [&](int64_t c, auto width) MMKERN_BODY {
    vf sum = zero();
    for (int64_t k = begin; k < end; ++k) sum += load(args.grad + args.copies[k] * n + c, width);
    store(room + c, sum, width);
  });
  return room;
}

template <class T>
void normalize_row_grad(const MlpRowsArgs& args, const T* x, Moments m, const float* grad, T* out) {
  const int64_t n = args.channels;
  const T* const weight = static_cast<const T*>(args.weight);
  const auto scaled = [&](int64_t c, auto width) MMKERN_BODY {
    const vf g = load(grad + c, width);
    return weight == nullptr ? g : g * load(weight + c, width);
  };
  const auto normal = [&](int64_t c, auto width)
                          MMKERN_BODY { return m.normalize(load(x + c, width)); };
  float along = 0.0f, mean = 0.0f;
  if (args.norm != RowNorm::kNone) {
    const float scale = 1.0f / static_cast<float>(n);
    along = scale *
            sum_over(n, [&](int64_t c, auto w) MMKERN_BODY { return scaled(c, w) * normal(c, w); });
    if (args.norm == RowNorm::kLayer) {
      mean = scale * sum_over(n, [&](int64_t c, auto w) MMKERN_BODY { return scaled(c, w); });
    }
  }
  sweep(n, [&](int64_t c, auto width) MMKERN_BODY {
    store(out + c, (scaled(c, width) - normal(c, width) * along - mean) * m.rstd, width);
  });
}

template <class T>
void rows_grad_task(const MlpRowsGradArgs& args, int64_t task, float* room) {
  const MlpRowsArgs& forward = args.forward;
  const MatrixRows<T> source{forward.x};
  const int64_t n = forward.channels;
  float* const weight_sum = args.weight_sums ? args.weight_sums + task * n : nullptr;
  float* const bias_sum = args.bias_sums ? args.bias_sums + task * n : nullptr;
  const int64_t begin = task * kMlpTaskRows;
  const int64_t end = least<int64_t>(begin + kMlpTaskRows, args.count);
  for (int64_t r = begin; r < end; ++r) {
    const T* const x = source.row(r, 0, n, nullptr);
    const float* const grad = copies_sum(args, r, room);
    const Moments m = moments(forward, x);
    if (forward.out != nullptr) {
      normalize_row_grad(forward, x, m, grad, static_cast<T*>(forward.out) + r * n);
    }
    const auto add = [&](float* sum, int64_t c, vf value, auto width) MMKERN_BODY {
      store(sum + c, r == begin ? value : load(sum + c, width) + value, width);
    };
    if (weight_sum == nullptr && bias_sum == nullptr) continue;
    sweep(n, [&](int64_t c, auto width) MMKERN_BODY {
      const vf g = load(grad + c, width);
      const vf normal = m.normalize(load(x + c, width));
      if (weight_sum != nullptr) add(weight_sum, c, g * normal, width);
      if (bias_sum != nullptr) add(bias_sum, c, g, width);
    });
  }
}

}  // namespace

void mlp_rows(const MlpRowsArgs& args, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&](auto t) { normalize_rows<decltype(t)>(args, begin, end); });
}

void mlp_rows_grad(const MlpRowsGradArgs& args, int64_t begin, int64_t end, float* scratch) {
  with_dtype(args.forward.dtype, [&](auto t) {
    for (int64_t task = begin; task < end; ++task) rows_grad_task<decltype(t)>(args, task, scratch);
  });
}

}  // namespace mmkern::MMKERN_ISA
