// exp, log, tanh, erf and what activations need of them, lane by lane in float.
// Largest errors over a scan of all finite floats, every instruction set, denormal results
// included: exp 0.98, exp2 1.01, log 0.78, tanh 1.25, erf 1.10 ulp. NaN and inf behave as in libm.
#pragma once

#include "vec.h"

namespace mmkern::MMKERN_ISA {

// Nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
inline constexpr float kRoundingShift = 12582912.0f;

// x * 2^n for integer-valued n in [-252, 254]: two factors, so that results may be denormal.
MMKERN_INLINE vf scale_by_power(vf x, vf n) {
#if defined(__AVX512F__)
  return _mm512_scalef_ps(x, n);
#else
  const vi exponent = __builtin_convertvector(n, vi);
  const vi half = exponent >> 1;
  const vf first = bit_cast<vf>((half + 127) << 23);
  const vf second = bit_cast<vf>((exponent - half + 127) << 23);
  return x * first * second;
#endif
}

// e^r for |r| <= ln(2)/2, the polynomial of Cephes' expf.
MMKERN_INLINE vf exp_reduced(vf r) {
  vf p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  return fma(p, r * r, r) + 1.0f;
}

// Overflows to inf above 88.72, passes through denormals to 0 below -87.3, keeps NaN.
MMKERN_INLINE vf exp(vf x) {
  x = max(set1(-110.0f), min(set1(90.0f), x));
  const vf n = fma(x, set1(1.44269504f), set1(kRoundingShift)) - kRoundingShift;
  vf r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  return scale_by_power(exp_reduced(r), n);
}

MMKERN_INLINE vf exp2(vf x) {
  x = max(set1(-160.0f), min(set1(130.0f), x));
  const vf n = (x + kRoundingShift) - kRoundingShift;
  return scale_by_power(exp_reduced((x - n) * 0.693147181f), n);
}

// Natural logarithm: -inf at 0, NaN below, the polynomial of Cephes' logf.
MMKERN_INLINE vf log(vf x) {
  const vi tiny = x < 1.17549435e-38f;
  const vf normal = select(tiny, x * 8388608.0f, x);
  // Mantissa in [sqrt(1/2), sqrt(2)), so that the result near x = 1 does not cancel.
  const vi biased = bit_cast<vi>(normal) - 0x3f3504f3;
  const vf e = __builtin_convertvector(biased >> 23, vf) - select(tiny, set1(23.0f), zero());
  const vf m = bit_cast<vf>((biased & 0x007fffff) + 0x3f3504f3) - 1.0f;
  vf p = set1(7.0376836292e-2f);
  p = fma(p, m, set1(-1.1514610310e-1f));
  p = fma(p, m, set1(1.1676998740e-1f));
  p = fma(p, m, set1(-1.2420140846e-1f));
  p = fma(p, m, set1(1.4249322787e-1f));
  p = fma(p, m, set1(-1.6668057665e-1f));
  p = fma(p, m, set1(2.0000714765e-1f));
  p = fma(p, m, set1(-2.4999993993e-1f));
  p = fma(p, m, set1(3.3333331174e-1f));
  const vf square = m * m;
  vf result = fma(p * m, square, e * -2.12194440e-4f);
  result = fma(square, set1(-0.5f), result);
  result = (m + result) + e * 0.693359375f;
  const float inf = __builtin_inff();
  result = select(x == inf, x, result);
  result = select(x == 0.0f, set1(-inf), result);
  return select(x >= 0.0f, result, set1(__builtin_nanf("")));
}

MMKERN_INLINE vf tanh(vf x) {
  const vf square = x * x;
  vf p = set1(-5.70498872745e-3f);
  p = fma(p, square, set1(2.06390887954e-2f));
  p = fma(p, square, set1(-5.37397155531e-2f));
  p = fma(p, square, set1(1.33314422036e-1f));
  p = fma(p, square, set1(-3.33332819422e-1f));
  const vf small = fma(p * square, x, x);
  const vf large = 1.0f - 2.0f / (exp(2.0f * abs(x)) + 1.0f);
  return select(abs(x) < 0.625f, small, copysign(large, x));
}

// log(1 - erf(t)) for t >= 0.92 (fit by N. Juffa); the argument of exp() in the tail of erf.
MMKERN_INLINE vf log_erfc(vf t) {
  const vf square = t * t;
  vf low = fma(set1(-0x1.220000p-16f), t, set1(0x1.91cfb2p-12f));
  const vf high = fma(set1(-0x1.fd1438p-9f), t, set1(0x1.8d6342p-6f));
  low = fma(low, square, high);
  low = fma(low, t, set1(-0x1.b55cb8p-4f));
  low = fma(low, t, set1(-0x1.450aa0p-1f));
  low = fma(low, t, set1(-0x1.079d0cp-3f));
  return fma(low, t, -t);
}
inline constexpr float kErfTail = 0.927734375f;

// erf(x) for |x| < kErfTail.
MMKERN_INLINE vf erf_center(vf x) {
  const vf square = x * x;
  vf p = set1(-0x1.38e000p-11f);
  p = fma(p, square, set1(0x1.471a58p-8f));
  p = fma(p, square, set1(-0x1.b691b2p-6f));
  p = fma(p, square, set1(0x1.ce1c44p-4f));
  p = fma(p, square, set1(-0x1.812700p-2f));
  p = fma(p, square, set1(0x1.06eba8p-3f));
  return fma(p, x, x);
}

MMKERN_INLINE vf erf(vf x) {
  const vf t = abs(x);
  const vf tail = 1.0f - exp(log_erfc(t));
  return select(t < kErfTail, erf_center(x), copysign(tail, x));
}

// (1 + erf(x / sqrt(2))) / 2 without the cancellation of that formula for negative x: the absolute
// error is below 6e-8, and at x = -5 (where the value is 2.9e-7) 3e-11.
MMKERN_INLINE vf normal_cdf(vf x) {
  const vf u = x * 0.707106781f;
  const vf t = abs(u);
  const vf tail = 0.5f * exp(log_erfc(t));
  return select(t < kErfTail, fma(erf_center(u), set1(0.5f), set1(0.5f)),
                select(x < 0.0f, tail, 1.0f - tail));
}

// 0 for x < -88.7, where exp(-x) overflows.
MMKERN_INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exp(-x)); }

}  // namespace mmkern::MMKERN_ISA
