// Two vectors at a time, in the lane order that is cheapest for the element type: for bf16 the even
// elements and the odd ones (a shift and a mask widen them, without moving anything across lanes;
// measured 1.3x faster than widening half vectors in the adaLN kernel), else the first half and the
// second. For row kernels that do the same to every element. A row of float that takes part in such
// a loop is either scratch, kept in that order (load_pair and store_pair of float), or the caller's
// memory (load_pair_as and store_pair_as, which put it in order).
#pragma once

#include "vec.h"

namespace mmkern::MMKERN_ISA {

inline constexpr int kPairLanes = 2 * kLanes;

// Floats of a scratch row for n values, a multiple of every kPairLanes.
MMKERN_INLINE int64_t scratch_pitch(int64_t n) {
  return (n + kScratchPad - 1) / kScratchPad * kScratchPad;
}

struct vf2 {
  vf a, b;
};

MMKERN_INLINE vf2 pair(float value) { return {set1(value), set1(value)}; }
MMKERN_INLINE vf2 operator+(vf2 x, vf2 y) { return {x.a + y.a, x.b + y.b}; }
MMKERN_INLINE vf2 operator-(vf2 x, vf2 y) { return {x.a - y.a, x.b - y.b}; }
MMKERN_INLINE vf2 operator*(vf2 x, vf2 y) { return {x.a * y.a, x.b * y.b}; }
MMKERN_INLINE vf2 operator+(vf2 x, float y) { return {x.a + y, x.b + y}; }
MMKERN_INLINE vf2 operator-(vf2 x, float y) { return {x.a - y, x.b - y}; }
MMKERN_INLINE vf2 operator*(vf2 x, float y) { return {x.a * y, x.b * y}; }
MMKERN_INLINE vf2 fma(vf2 x, vf2 y, vf2 z) { return {fma(x.a, y.a, z.a), fma(x.b, y.b, z.b)}; }
MMKERN_INLINE vf2 rounded(vf2 x) { return {rounded(x.a), rounded(x.b)}; }

// A Part of a pair has 0 <= n <= kPairLanes.
MMKERN_INLINE Part first_half(Part w) { return {w.n < kLanes ? w.n : kLanes}; }
MMKERN_INLINE Part second_half(Part w) { return {w.n < kLanes ? 0 : w.n - kLanes}; }

// As sweep, kPairLanes at a time.
template <class Body>
MMKERN_INLINE void sweep_pairs(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kPairLanes <= n; i += kPairLanes) body(i, Full{});
  if (i < n) body(i, Part{static_cast<int>(n - i)});
}

// ---- bf16: even and odd elements ----------------------------------------------------------------

// 2 kLanes elements, each even one in the low half of its 32-bit lane.
MMKERN_INLINE vf2 split_bf16(vu both) {
  return {bit_cast<vf>(both << 16), bit_cast<vf>(both & 0xffff0000u)};
}

MMKERN_INLINE vu round_bf16(vf x) {
  const vu bits = bit_cast<vu>(x);
  return x == x ? bits + 0x7fffu + ((bits >> 16) & 1u) : bits | 0x400000u;
}
MMKERN_INLINE vu join_bf16_by_bits(vf2 v) {
  return (round_bf16(v.a) >> 16) | (round_bf16(v.b) & 0xffff0000u);
}

#if defined(__AVX512BF16__)
MMKERN_INLINE vu interleave_bf16(__m512bh odd_above_even) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return bit_cast<vu>(_mm512_permutexvar_epi16(order, bit_cast<__m512i>(odd_above_even)));
}
#endif

MMKERN_INLINE vu join_bf16(vf2 v) {
#if defined(__AVX512BF16__)
  const __m512bh halves = _mm512_cvtne2ps_pbh(v.b, v.a);
  // It takes denormals as zero. Zeros are rare enough to look at where they come from.
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  if (__builtin_expect(_mm512_testn_epi16_mask(bit_cast<__m512i>(halves), magnitude) != 0, 0)) {
    constexpr int kDenormal = 0x20;
    const __mmask16 a = _mm512_fpclass_ps_mask(v.a, kDenormal);
    const __mmask16 b = _mm512_fpclass_ps_mask(v.b, kDenormal);
    if (a | b) return join_bf16_by_bits(v);
  }
  return interleave_bf16(halves);
#else
  return join_bf16_by_bits(v);
#endif
}

#if defined(__AVX512F__)
MMKERN_INLINE vu load_bf16_part(const bf16_t* p, Part w) {
  const auto mask = static_cast<__mmask32>((uint64_t{1} << w.n) - 1);
  return bit_cast<vu>(_mm512_maskz_loadu_epi16(mask, p));
}
MMKERN_INLINE void store_bf16_part(bf16_t* p, vu v, Part w) {
  const auto mask = static_cast<__mmask32>((uint64_t{1} << w.n) - 1);
  _mm512_mask_storeu_epi16(p, mask, bit_cast<__m512i>(v));
}
#else
MMKERN_INLINE vu load_bf16_part(const bf16_t* p, Part w) {
  bf16_t elements[kPairLanes] = {};
  for (int i = 0; i < w.n; ++i) elements[i] = p[i];
  return load_bits<vu>(elements);
}
MMKERN_INLINE void store_bf16_part(bf16_t* p, vu v, Part w) {
  bf16_t elements[kPairLanes];
  store_bits(elements, v);
  for (int i = 0; i < w.n; ++i) p[i] = elements[i];
}
#endif

// (first half, second half) of memory -> (even, odd), and back.
MMKERN_INLINE vf2 unzip(vf2 v) {
#if defined(__AVX512F__)
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return {_mm512_permutex2var_ps(v.a, even, v.b), _mm512_permutex2var_ps(v.a, odd, v.b)};
#else
  vf2 result = {};
  for (int i = 0; i < kLanes; ++i) {
    result.a[i] = i < kLanes / 2 ? v.a[2 * i] : v.b[2 * i - kLanes];
    result.b[i] = i < kLanes / 2 ? v.a[2 * i + 1] : v.b[2 * i + 1 - kLanes];
  }
  return result;
#endif
}
MMKERN_INLINE vf2 zip(vf2 v) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  return {_mm512_permutex2var_ps(v.a, low, v.b), _mm512_permutex2var_ps(v.a, high, v.b)};
#else
  vf2 result = {};
  for (int i = 0; i < kLanes / 2; ++i) {
    result.a[2 * i] = v.a[i];
    result.a[2 * i + 1] = v.b[i];
    result.b[2 * i] = v.a[i + kLanes / 2];
    result.b[2 * i + 1] = v.b[i + kLanes / 2];
  }
  return result;
#endif
}

// ---- memory -------------------------------------------------------------------------------------

template <class T>
MMKERN_INLINE vf2 load_pair(const T* p, Full = {}) {
  if constexpr (__is_same(T, bf16_t)) {
    return split_bf16(load_bits<vu>(p));
  } else {
    return {load(p), load(p + kLanes)};
  }
}
template <class T>
MMKERN_INLINE vf2 load_pair(const T* p, Part w) {
  if constexpr (__is_same(T, bf16_t)) {
    return split_bf16(load_bf16_part(p, w));
  } else {
    return {load(p, first_half(w)), load(p + kLanes, second_half(w))};
  }
}

// A pair as it lies in memory, rounded to its type.
struct vh2 {
  vh a, b;
};

MMKERN_INLINE vf2 pack(vf2 v, float) { return v; }
MMKERN_INLINE vu pack(vf2 v, bf16_t) { return join_bf16(v); }
MMKERN_INLINE vh2 pack(vf2 v, fp16_t) { return {narrow(v.a, fp16_t{}), narrow(v.b, fp16_t{})}; }
MMKERN_INLINE vf2 unpack(vf2 v, float) { return v; }
MMKERN_INLINE vf2 unpack(vu v, bf16_t) { return split_bf16(v); }
MMKERN_INLINE vf2 unpack(vh2 v, fp16_t) { return {widen(v.a, fp16_t{}), widen(v.b, fp16_t{})}; }

// v rounded to T and back, for values of the order of one: denormals may count as zero.
template <class T>
MMKERN_INLINE vf2 round_pair(vf2 v) {
#if defined(__AVX512BF16__)
  if constexpr (__is_same(T, bf16_t)) {
    return split_bf16(interleave_bf16(_mm512_cvtne2ps_pbh(v.b, v.a)));
  }
#endif
  return unpack(pack(v, T{}), T{});
}

MMKERN_INLINE void store_packed(bf16_t* p, vu v, Full = {}) { store_bits(p, v); }
MMKERN_INLINE void store_packed(bf16_t* p, vu v, Part w) { store_bf16_part(p, v, w); }
// Half by half: GCC takes a structure of two vectors through the stack.
MMKERN_INLINE void store_packed(fp16_t* p, vh2 v, Full = {}) {
  store_bits(p, v.a);
  store_bits(p + kLanes, v.b);
}
MMKERN_INLINE void store_packed(fp16_t* p, vh2 v, Part w) {
  store_part(&p->bits, v.a, first_half(w));
  store_part(&p[kLanes].bits, v.b, second_half(w));
}
MMKERN_INLINE void store_packed(float* p, vf2 v, Full = {}) {
  store(p, v.a);
  store(p + kLanes, v.b);
}
MMKERN_INLINE void store_packed(float* p, vf2 v, Part w) {
  store(p, v.a, first_half(w));
  store(p + kLanes, v.b, second_half(w));
}

template <class T, class Width = Full>
MMKERN_INLINE void store_pair(T* p, vf2 v, Width w = {}) {
  store_packed(p, pack(v, T{}), w);
}

// Brings the pair at p + i into the cache; nothing where p is null.
template <class T>
MMKERN_INLINE void prefetch_pair(const T* p, int64_t i) {
  if (p == nullptr) return;
  const char* bytes = reinterpret_cast<const char*>(p + i);
  for (int64_t at = 0; at < static_cast<int64_t>(kPairLanes * sizeof(T)); at += 64) {
    __builtin_prefetch(bytes + at);
  }
}

// Non-temporal: as stream() in vec.h.
MMKERN_INLINE void stream_packed(float* p, vf2 v) {
  stream(p, v.a);
  stream(p + kLanes, v.b);
}
MMKERN_INLINE void stream_packed(bf16_t* p, vu v) {
  stream(reinterpret_cast<float*>(p), bit_cast<vf>(v));
}
MMKERN_INLINE void stream_packed(fp16_t* p, vh2 v) {
  stream(p, v.a);
  stream(p + kLanes, v.b);
}

// One or the other: a Part is never streamed.
template <bool kStream, class T, class Packed, class Width>
MMKERN_INLINE void put_packed(T* p, Packed v, Width w) {
  if constexpr (kStream && __is_same(Width, Full)) {
    stream_packed(p, v);
  } else {
    store_packed(p, v, w);
  }
}
template <bool kStream, class T, class Width>
MMKERN_INLINE void put(T* p, vf2 v, Width w) {
  put_packed<kStream>(p, pack(v, T{}), w);
}

// The caller's elements of type From, in the lane order of T.
template <class T, class From, class Width>
MMKERN_INLINE vf2 load_pair_as(const From* p, Width w) {
  const vf2 v = load_pair(p, w);
  return __is_same(T, bf16_t) && !__is_same(From, bf16_t) ? unzip(v) : v;
}
template <class T, class To, class Width>
MMKERN_INLINE void store_pair_as(To* p, vf2 v, Width w) {
  store_pair(p, __is_same(T, bf16_t) && !__is_same(To, bf16_t) ? zip(v) : v, w);
}

// ---- sums ---------------------------------------------------------------------------------------

// v in the lane order of T, with the elements beyond the width set to zero.
template <class T>
MMKERN_INLINE vf2 keep_pair(vf2 v, Full) {
  return v;
}
template <class T>
MMKERN_INLINE vf2 keep_pair(vf2 v, Part w) {
  constexpr bool kZipped = __is_same(T, bf16_t);
  vi a, b;
  for (int i = 0; i < kLanes; ++i) {
    a[i] = kZipped ? 2 * i : i;
    b[i] = kZipped ? 2 * i + 1 : i + kLanes;
  }
  return {select(a < w.n, v.a, zero()), select(b < w.n, v.b, zero())};
}

// Calls body(i, width, k) as sweep_pairs calls body(i, width), with k = 0 and 1 in turn: for sums
// that keep two accumulators, to hide the latency of the addition and to keep its chains short.
template <class Body>
MMKERN_INLINE void sweep_pairs_in_turn(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + 2 * kPairLanes <= n; i += 2 * kPairLanes) {
    body(i, Full{}, 0);
    body(i + kPairLanes, Full{}, 1);
  }
  sweep_pairs(n - i, [&](int64_t j, auto w) MMKERN_BODY { body(i + j, w, 0); });
}

MMKERN_INLINE float hsum(vf2 even, vf2 odd) { return hsum((even.a + odd.a) + (even.b + odd.b)); }

// The sum over [0, n) of value(i, width), pairs in the lane order of T.
template <class T, class Value>
MMKERN_INLINE float sum_pairs(int64_t n, const Value& value) {
  vf2 sums[2] = {};
  sweep_pairs_in_turn(n, [&](int64_t i, auto w, int k)
                             MMKERN_BODY { sums[k] = sums[k] + keep_pair<T>(value(i, w), w); });
  return hsum(sums[0], sums[1]);
}

// Calls body(bits of kPairLanes elements, k) for a row of bf16, zeros after its last element, with
// k = 0 ... kChains - 1 in turn.
template <int kChains, class Body>
MMKERN_INLINE void sweep_bf16_bits(const bf16_t* x, int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kChains * kPairLanes <= n; i += kChains * kPairLanes) {
#pragma GCC unroll 4
    for (int k = 0; k < kChains; ++k) body(load_bits<vu>(x + i + k * kPairLanes), k);
  }
  for (; i + kPairLanes <= n; i += kPairLanes) body(load_bits<vu>(x + i), 0);
  if (i < n) body(load_bf16_part(x + i, Part{static_cast<int>(n - i)}), 1);
}

// The sum of the squares of n values in memory.
template <class T>
MMKERN_INLINE float sum_of_squares(const T* x, int64_t n) {
  if constexpr (__is_same(T, bf16_t)) {
    vf sums[4] = {};  // they hide the latency of the product
    sweep_bf16_bits<4>(x, n,
                       [&](vu v, int k) MMKERN_BODY { sums[k] = dot_bf16_pairs(sums[k], v, v); });
    return hsum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  } else {
    vf2 sums[2] = {};
    sweep_pairs_in_turn(n, [&](int64_t i, auto w, int k) MMKERN_BODY {
      const vf2 v = load_pair(x + i, w);
      sums[k] = fma(v, v, sums[k]);
    });
    return hsum(sums[0], sums[1]);
  }
}

}  // namespace mmkern::MMKERN_ISA
