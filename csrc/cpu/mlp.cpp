#include "mlp.h"

#include "gemm.h"
#include "vecmath.h"

namespace mmkern::MMKERN_ISA {
namespace {

// Each gives the value of an activation, and its derivative, of a vector.
struct Identity {
  static MMKERN_MEMBER vf value(vf x) { return x; }
  static MMKERN_MEMBER vf slope(vf) { return set1(1.0f); }
};

struct Gelu {
  static MMKERN_MEMBER vf value(vf x) { return x * normal_cdf(x); }
  static MMKERN_MEMBER vf slope(vf x) {
    const vf density = exp(x * x * -0.5f) * 0.398942280f;
    return fma(x, density, normal_cdf(x));
  }
};

// sigmoid'(x) = sigmoid(x) (1 - sigmoid(x)), whose second factor would cancel for large x.
MMKERN_INLINE vf sigmoid_slope(vf x) {
  const vf e = exp(-abs(x));
  return e / ((1.0f + e) * (1.0f + e));
}

// (1 + tanh(u)) / 2 = sigmoid(2u), without the cancellation for negative u.
struct GeluTanh {
  static constexpr float kScale = 1.59576912f;  // 2 sqrt(2 / pi)
  static constexpr float kCubic = 0.044715f;
  static MMKERN_MEMBER vf twice_u(vf x) {
    return x * fma(x * x, set1(kCubic), set1(1.0f)) * kScale;
  }
  static MMKERN_MEMBER vf value(vf x) { return x * sigmoid(twice_u(x)); }
  static MMKERN_MEMBER vf slope(vf x) {
    const vf v = twice_u(x);
    const vf inner = fma(x * x, set1(3.0f * kCubic), set1(1.0f)) * kScale;
    return fma(x * inner, sigmoid_slope(v), sigmoid(v));
  }
};

struct QuickGelu {
  static constexpr float kScale = 1.702f;
  static MMKERN_MEMBER vf value(vf x) { return x * sigmoid(x * kScale); }
  static MMKERN_MEMBER vf slope(vf x) {
    const vf v = x * kScale;
    return fma(v, sigmoid_slope(v), sigmoid(v));
  }
};

struct Silu {
  static MMKERN_MEMBER vf value(vf x) { return x * sigmoid(x); }
  static MMKERN_MEMBER vf slope(vf x) { return fma(x, sigmoid_slope(x), sigmoid(x)); }
};

struct Relu {
  static MMKERN_MEMBER vf value(vf x) { return select(x < 0.0f, zero(), x); }
  static MMKERN_MEMBER vf slope(vf x) { return select(x > 0.0f, set1(1.0f), zero()); }
};

template <class Body>
MMKERN_INLINE void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::kNone:
      return body(Identity{});
    case Activation::kGelu:
      return body(Gelu{});
    case Activation::kGeluTanh:
      return body(GeluTanh{});
    case Activation::kQuickGelu:
      return body(QuickGelu{});
    case Activation::kSilu:
      return body(Silu{});
    case Activation::kRelu:
      return body(Relu{});
  }
}

template <class T>
MMKERN_INLINE vf rounded(vf x) {
  if constexpr (sizeof(T) == sizeof(float))
    return x;
  else
    return widen(narrow(x, T{}), T{});
}

// Adds the bias, keeps the pre-activation, and activates it as it was kept: rounded to T.
template <class T>
struct ActivatedRow {
  const MlpProductArgs& args;

  template <class F>
  MMKERN_BODY void row(int64_t i, int64_t j, int64_t n, const float* sums) const {
    const T* const bias = static_cast<const T*>(args.bias);
    const int64_t offset = i * args.plan.cols + j;
    T* const z = args.pre_activation ? static_cast<T*>(args.pre_activation) + offset : nullptr;
    T* const out = static_cast<T*>(args.out) + offset;
    sweep(n, [&](int64_t c, auto width) MMKERN_BODY {
      vf value = load(sums + c, width);
      if (bias != nullptr) value += load(bias + j + c, width);
      if (z != nullptr) {
        store(z + c, value, width);
        value = load(z + c, width);
      } else {
        value = rounded<T>(value);
      }
      store(out + c, F::value(value), width);
    });
  }
};

template <class T>
struct HiddenGradRow {
  const MlpProductArgs& args;

  template <class F>
  MMKERN_BODY void row(int64_t i, int64_t j, int64_t n, const float* sums) const {
    const int64_t offset = i * args.plan.cols + j;
    const T* const z = static_cast<const T*>(args.z) + offset;
    T* const out = static_cast<T*>(args.out) + offset;
    T* const hidden = args.hidden ? static_cast<T*>(args.hidden) + offset : nullptr;
    sweep(n, [&](int64_t c, auto width) MMKERN_BODY {
      const vf value = load(z + c, width);
      store(out + c, load(sums + c, width) * F::slope(value), width);
      if (hidden != nullptr) store(hidden + c, F::value(value), width);
    });
  }
};

// A store that calls store.row<F>(i, j, n, sums) for each row, F being the activation.
template <template <class> class Row, class T>
struct StoreWithActivation {
  Row<T> store;
  void prefetch(int64_t i, int64_t rows, int64_t j, int64_t n) const {
    const int64_t cols = store.args.plan.cols;
    prefetch_to_write(static_cast<const T*>(store.args.out) + i * cols + j, rows, cols, n);
  }
  void operator()(int64_t i, int64_t rows, int64_t j, int64_t n, const float* sums) const {
    with_activation(store.args.activation, [&](auto f) MMKERN_BODY {
      for (int64_t r = 0; r < rows; ++r) {
        store.template row<decltype(f)>(i + r, j, n, sums + r * kTileCols);
      }
    });
  }
};

template <class T, class F>
void activate_elements(const MlpActivateArgs& args, int64_t begin, int64_t end) {
  const T* const z = static_cast<const T*>(args.z) + begin;
  T* const out = static_cast<T*>(args.out) + begin;
  sweep(end - begin, [&](int64_t c, auto width)
                         MMKERN_BODY { store(out + c, F::value(load(z + c, width)), width); });
}

}  // namespace

void mlp_linear(const MlpProductArgs& args, const GemmTask& task, float* scratch) {
  with_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    const ByRow<T, MatrixRows<T>> a{{args.a}}, b{{args.b}};
    const StoreWithActivation<ActivatedRow, T> store{{args}};
    gemm_task<T>(args.plan, task, a, b, store, scratch);
  });
}

void mlp_grad_hidden(const MlpProductArgs& args, const GemmTask& task, float* scratch) {
  with_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    const ByRow<T, MatrixRows<T>> a{{args.a}};
    const ByDepth<T, MatrixRows<T>> b{{args.b}};
    const StoreWithActivation<HiddenGradRow, T> store{{args}};
    gemm_task<T>(args.plan, task, a, b, store, scratch);
  });
}

void mlp_grad_input(const MlpProductArgs& args, const GemmTask& task, float* scratch) {
  with_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    const ByRow<T, MatrixRows<T>> a{{args.a}};
    const ByDepth<T, MatrixRows<T>> b{{args.b}};
    if (args.out_is_float32) {
      const StoreRows<float> store{static_cast<float*>(args.out), args.plan.cols};
      gemm_task<T>(args.plan, task, a, b, store, scratch);
    } else {
      const StoreRows<T> store{static_cast<T*>(args.out), args.plan.cols};
      gemm_task<T>(args.plan, task, a, b, store, scratch);
    }
  });
}

void mlp_grad_weight(const MlpProductArgs& args, const GemmTask& task, float* scratch) {
  with_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    const ByDepth<T, MatrixRows<T>> a{{args.a}}, b{{args.b}};
    const StoreRows<T> store{static_cast<T*>(args.out), args.plan.cols};
    gemm_task<T>(args.plan, task, a, b, store, scratch);
  });
}

void mlp_activate(const MlpActivateArgs& args, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&](auto t) {
    with_activation(args.activation,
                    [&](auto f) { activate_elements<decltype(t), decltype(f)>(args, begin, end); });
  });
}

}  // namespace mmkern::MMKERN_ISA
