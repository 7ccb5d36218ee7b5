#include "modulate.h"

#include "modulate_rows.h"

namespace mmkern::MMKERN_ISA {
namespace {

// y of a row of h, whose values value(i, width) gives and whose sum is known.
template <class T, bool kStream, class Value>
MMKERN_INLINE void normalize_row(const ModulateArgs& args, const Coefficients<T>& c, float sum,
                                 const Value& value, T* y) {
  const Moments m = moments_of<T>(args.channels, args.norm, args.eps, sum, value);
  sweep_pairs(args.channels, [&](int64_t i, auto w) MMKERN_BODY {
    const vf2 xhat = m.normalize(value(i, w));
    put<kStream>(y + i, fma(xhat, load_pair(c.gain + i), load_pair(c.offset + i)), w);
  });
}

template <class T, bool kStream>
void modulate_rows(const ModulateArgs& args, int64_t begin, int64_t end, float* scratch) {
  const int64_t n = args.channels;
  Coefficients<T> c(args, scratch);
  for (int64_t row = begin; row < end; ++row) {
    const Token at = token_of(row, args.tokens);
    c.move_to(at);
    const T* x = row_of<T>(args.x, at);
    const auto value = [&](int64_t i, auto w) MMKERN_BODY { return load_pair(x + i, w); };
    const float sum = args.norm == Norm::kLayer ? sum_pairs<T>(n, value) : 0.0f;
    normalize_row<T, kStream>(args, c, sum, value, static_cast<T*>(args.y) + row * n);
  }
}

template <class T, bool kStream>
void gated_modulate_rows(const ModulateArgs& args, int64_t begin, int64_t end, float* scratch) {
  const int64_t n = args.channels;
  float* wide_h = scratch + Coefficients<T>::kRows * scratch_pitch(n);  // h, not yet rounded to T
  Coefficients<T> c(args, scratch);
  for (int64_t row = begin; row < end; ++row) {
    const Token at = token_of(row, args.tokens);
    c.move_to(at);
    const T* x = row_of<T>(args.x, at);
    const T* branch = row_of<T>(args.branch, at);
    T* h = static_cast<T*>(args.h) + row * n;
    const float sum = sum_pairs<T>(n, [&](int64_t i, auto w) MMKERN_BODY {
      const vf2 v = fma(load_pair(c.gate + i), load_pair(branch + i, w), load_pair(x + i, w));
      put<kStream>(h + i, v, w);
      store_pair(wide_h + i, v);
      return v;
    });
    if (args.norm == Norm::kNone) continue;
    const auto value = [&](int64_t i, auto) MMKERN_BODY { return load_pair(wide_h + i); };
    normalize_row<T, kStream>(args, c, sum, value, static_cast<T*>(args.y) + row * n);
  }
}

template <class T, bool kStream>
void choose_branch(const ModulateArgs& args, int64_t begin, int64_t end, float* scratch) {
  if (args.branch.data != nullptr) {
    gated_modulate_rows<T, kStream>(args, begin, end, scratch);
  } else {
    modulate_rows<T, kStream>(args, begin, end, scratch);
  }
  if (kStream) fence();
}

template <class T>
void choose_stream(const ModulateArgs& args, int64_t begin, int64_t end, float* scratch) {
  if (args.stream) {
    choose_branch<T, true>(args, begin, end, scratch);
  } else {
    choose_branch<T, false>(args, begin, end, scratch);
  }
}

}  // namespace

void modulate_forward(const ModulateArgs& args, int64_t begin, int64_t end, float* scratch) {
  with_dtype(args.dtype, [&](auto t) { choose_stream<decltype(t)>(args, begin, end, scratch); });
}

}  // namespace mmkern::MMKERN_ISA
