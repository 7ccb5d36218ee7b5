#include "glu.h"

#include "pair.h"
#include "strided_rows_inl.h"
#include "vecmath.h"

namespace mmkern::MMKERN_ISA {
namespace {

struct ValueAndSlope {
  vf value, slope;
};

constexpr float kSqrt2OverPi = 0.797884561f;
constexpr float kGeluCubic = 0.044715f;
constexpr float kQuickGelu = 1.702f;

// sigmoid(x) * x without a second rounding: the division comes last. -inf gives NaN, as in eager.
MMKERN_INLINE vf times_sigmoid(vf x, vf argument) { return x / (1.0f + exp(-argument)); }

// The argument of the sigmoid that GELU's tanh formula is: (1 + tanh(u)) / 2 = sigmoid(2 u), which
// does not cancel for negative u.
MMKERN_INLINE vf gelu_tanh_argument(vf x) {
  return x * fma(x * x, set1(2.0f * kSqrt2OverPi * kGeluCubic), set1(2.0f * kSqrt2OverPi));
}

template <Activation kActivation>
MMKERN_INLINE vf activate(vf x) {
  if constexpr (kActivation == Activation::kSilu) return times_sigmoid(x, x);
  if constexpr (kActivation == Activation::kGelu) return x * normal_cdf(x);
  if constexpr (kActivation == Activation::kGeluTanh)
    return times_sigmoid(x, gelu_tanh_argument(x));
  if constexpr (kActivation == Activation::kQuickGelu) return times_sigmoid(x, x * kQuickGelu);
  if constexpr (kActivation == Activation::kRelu) return max(zero(), x);
  if constexpr (kActivation == Activation::kSigmoid) return sigmoid(x);
}

template <Activation kActivation>
MMKERN_INLINE ValueAndSlope differentiate(vf x) {
  if constexpr (kActivation == Activation::kSilu) {
    const vf s = sigmoid(x);
    return {x * s, s * fma(x, 1.0f - s, set1(1.0f))};
  }
  if constexpr (kActivation == Activation::kGelu) {
    const vf cdf = normal_cdf(x);
    const vf density = 0.398942280f * exp(-0.5f * (x * x));
    return {x * cdf, fma(x, density, cdf)};
  }
  if constexpr (kActivation == Activation::kGeluTanh) {
    const vf s = sigmoid(gelu_tanh_argument(x));
    const vf argument_slope =
        fma(x * x, set1(6.0f * kSqrt2OverPi * kGeluCubic), set1(2.0f * kSqrt2OverPi));
    return {x * s, fma(x * (s * (1.0f - s)), argument_slope, s)};
  }
  if constexpr (kActivation == Activation::kQuickGelu) {
    const vf argument = x * kQuickGelu;
    const vf s = sigmoid(argument);
    return {x * s, s * fma(argument, 1.0f - s, set1(1.0f))};
  }
  if constexpr (kActivation == Activation::kRelu) {
    return {max(zero(), x), select(x > 0.0f, set1(1.0f), zero())};
  }
  if constexpr (kActivation == Activation::kSigmoid) {
    const vf s = sigmoid(x);
    return {s, s * (1.0f - s)};
  }
}

// Calls body(row, first column, number of columns) for each task.
template <class Body>
MMKERN_INLINE void for_each_strip(int64_t columns, int64_t begin, int64_t end, const Body& body) {
  const int64_t strips = (columns + kGluColumns - 1) / kGluColumns;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t column = task % strips * kGluColumns;
    body(task / strips, column, columns - column < kGluColumns ? columns - column : kGluColumns);
  }
}

template <class T, Activation kActivation, bool kStream>
void multiply(const GluArgs& args, int64_t begin, int64_t end) {
  const auto strip = [&](int64_t row, int64_t column, int64_t count) MMKERN_BODY {
    const T* gate = row_at<T>(args.gate, args.shape, row) + column;
    const T* up = row_at<T>(args.up, args.shape, row) + column;
    T* out = static_cast<T*>(args.out) + row * args.columns + column;
    sweep_pairs(count, [&](int64_t i, auto w) MMKERN_BODY {
      const vf2 x = load_pair(gate + i, w);
      const vf2 activated = {activate<kActivation>(x.a), activate<kActivation>(x.b)};
      put<kStream>(out + i, activated * load_pair(up + i, w), w);
    });
  };
  for_each_strip(args.columns, begin, end, strip);
  if (kStream) fence();
}

template <class T, Activation kActivation, bool kStream>
void multiply_gradients(const GluGradArgs& args, int64_t begin, int64_t end) {
  const GluArgs& forward = args.forward;
  const auto strip = [&](int64_t row, int64_t column, int64_t count) MMKERN_BODY {
    const T* gate = row_at<T>(forward.gate, forward.shape, row) + column;
    const T* up = row_at<T>(forward.up, forward.shape, row) + column;
    const T* grad = row_at<T>(args.grad, forward.shape, row) + column;
    T* grad_gate = static_cast<T*>(args.grad_gate) + row * args.row_stride + column;
    T* grad_up = static_cast<T*>(args.grad_up) + row * args.row_stride + column;
    sweep_pairs(count, [&](int64_t i, auto w) MMKERN_BODY {
      const vf2 x = load_pair(gate + i, w), dy = load_pair(grad + i, w);
      const ValueAndSlope a = differentiate<kActivation>(x.a);
      const ValueAndSlope b = differentiate<kActivation>(x.b);
      put<kStream>(grad_up + i, dy * vf2{a.value, b.value}, w);
      put<kStream>(grad_gate + i, dy * load_pair(up + i, w) * vf2{a.slope, b.slope}, w);
    });
  };
  for_each_strip(forward.columns, begin, end, strip);
  if (kStream) fence();
}

template <class T, Activation kActivation>
void choose_stream(const GluArgs& args, int64_t begin, int64_t end) {
  if (args.stream) {
    multiply<T, kActivation, true>(args, begin, end);
  } else {
    multiply<T, kActivation, false>(args, begin, end);
  }
}

template <class T, Activation kActivation>
void choose_stream(const GluGradArgs& args, int64_t begin, int64_t end) {
  if (args.forward.stream) {
    multiply_gradients<T, kActivation, true>(args, begin, end);
  } else {
    multiply_gradients<T, kActivation, false>(args, begin, end);
  }
}

template <class T, class Args>
void choose_activation(Activation activation, const Args& args, int64_t begin, int64_t end) {
  switch (activation) {
    case Activation::kSilu:
      return choose_stream<T, Activation::kSilu>(args, begin, end);
    case Activation::kGelu:
      return choose_stream<T, Activation::kGelu>(args, begin, end);
    case Activation::kGeluTanh:
      return choose_stream<T, Activation::kGeluTanh>(args, begin, end);
    case Activation::kQuickGelu:
      return choose_stream<T, Activation::kQuickGelu>(args, begin, end);
    case Activation::kRelu:
      return choose_stream<T, Activation::kRelu>(args, begin, end);
    case Activation::kSigmoid:
      return choose_stream<T, Activation::kSigmoid>(args, begin, end);
  }
}

template <class Args>
void choose_dtype(const GluArgs& forward, const Args& args, int64_t begin, int64_t end) {
  with_dtype(forward.dtype,
             [&](auto t) { choose_activation<decltype(t)>(forward.activation, args, begin, end); });
}

}  // namespace

void glu_forward(const GluArgs& args, int64_t begin, int64_t end) {
  choose_dtype(args, args, begin, end);
}

void glu_backward(const GluGradArgs& args, int64_t begin, int64_t end) {
  choose_dtype(args.forward, args, begin, end);
}

}  // namespace mmkern::MMKERN_ISA
