// The vector layer: one float vector type of the instruction set's native width, in GCC/Clang
// vector extensions, so that +, -, *, / and comparisons are operators on every architecture.
// For kernel files only (see isa.h). Elements are float, bf16_t or fp16_t in memory and always
// float in registers. Loads and stores of a Part never touch memory past its last element.
#pragma once

#include <cstdint>

#include "types.h"

#if defined(__x86_64__)
// GCC 12 warns of _mm512_undefined_ps() in its own header (bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define MMKERN_INLINE static inline __attribute__((always_inline))
#define MMKERN_CALL static inline __attribute__((noinline))
#define MMKERN_MEMBER inline __attribute__((always_inline))
// Goes after a lambda's parameters, so that a loop body given to sweep() is inlined into its loop.
#define MMKERN_BODY __attribute__((always_inline))

namespace mmkern::MMKERN_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif
inline constexpr int kLanes = kVectorBytes / 4;

typedef float vf __attribute__((vector_size(kVectorBytes)));
typedef int32_t vi __attribute__((vector_size(kVectorBytes)));
typedef uint32_t vu __attribute__((vector_size(kVectorBytes)));
typedef uint16_t vh __attribute__((vector_size(kVectorBytes / 2)));  // kLanes 16-bit elements

template <class X>
MMKERN_INLINE constexpr X least(X a, X b) {
  return a < b ? a : b;
}

// body(an element of the dtype)
template <class Body>
MMKERN_INLINE auto with_dtype(DType dtype, const Body& body) {
  if (dtype == DType::kFloat32) return body(float{});
  if (dtype == DType::kBFloat16) return body(bf16_t{});
  return body(fp16_t{});
}

// How much of a vector an access touches: all of it, or its first n elements (0 <= n <= kLanes).
struct Full {};
struct Part {
  int n;
};

// Calls body(i, width) for i = 0, kLanes, 2 kLanes, ... so that [0, n) is covered once.
template <class Body>
MMKERN_INLINE void sweep(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, Full{});
  if (i < n) body(i, Part{static_cast<int>(n - i)});
}

// ---- bits, constants, selection -----------------------------------------------------------------

template <class To, class From>
MMKERN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, from);
}

MMKERN_INLINE vf set1(float value) { return value - vf{}; }
MMKERN_INLINE vi set1(int32_t value) { return value - vi{}; }
MMKERN_INLINE vf zero() { return vf{}; }

// Lane by lane mask ? a : b, for a mask that a comparison made.
MMKERN_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }

// Both give b where either operand is NaN, as minps and maxps do: max(limit, x) lets a NaN in x
// through and max(x, limit) replaces it by limit.
MMKERN_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
MMKERN_INLINE vf min(vf a, vf b) { return a < b ? a : b; }

MMKERN_INLINE vf abs(vf x) { return bit_cast<vf>(bit_cast<vi>(x) & set1(0x7fffffff)); }
MMKERN_INLINE vf copysign(vf magnitude, vf sign) {
  const vi mask = set1(INT32_MIN);
  return bit_cast<vf>((bit_cast<vi>(magnitude) & ~mask) | (bit_cast<vi>(sign) & mask));
}

// a * b + c in one rounding where the instruction set has FMA (everything but x86 baseline).
MMKERN_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }

// x, in a way that keeps the compiler from fusing the operation that made it into the next one.
MMKERN_INLINE vf rounded(vf x) {
#if defined(__x86_64__)
  __asm__("" : "+v"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#endif
  return x;
}

MMKERN_INLINE vf sqrt(vf x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#elif defined(__x86_64__)
  return _mm_sqrt_ps(x);
#elif defined(__aarch64__)
  return bit_cast<vf>(vsqrtq_f32(bit_cast<float32x4_t>(x)));
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
MMKERN_INLINE vf rsqrt(vf x) { return 1.0f / sqrt(x); }

// ---- reductions, in a fixed order (pairwise halves) ---------------------------------------------

template <class V, class Op>
MMKERN_INLINE float reduce_halves(V v, Op op) {
  if constexpr (sizeof(V) == 8) {
    return op(v[0], v[1]);
  } else {
    typedef float Half __attribute__((vector_size(sizeof(V) / 2)));
    Half halves[2];
    __builtin_memcpy(halves, &v, sizeof(V));
    return reduce_halves(op(halves[0], halves[1]), op);
  }
}
MMKERN_INLINE float hsum(vf x) {
  return reduce_halves(x, [](auto a, auto b) MMKERN_BODY { return a + b; });
}
// NaN lanes may or may not be seen.
MMKERN_INLINE float hmax(vf x) {
  return reduce_halves(x, [](auto a, auto b) MMKERN_BODY { return a > b ? a : b; });
}

// v with the lanes beyond the width set to zero.
MMKERN_INLINE vf keep(vf v, Full) { return v; }
MMKERN_INLINE vf keep(vf v, Part w) {
  vi lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return select(lane < w.n, v, zero());
}

// The sum of value(i, width) over [0, n). Four accumulators hide the latency of the addition and
// keep the chains short: the error grows with n / (4 kLanes).
template <class Value>
MMKERN_INLINE float sum_over(int64_t n, const Value& value) {
  vf s0{}, s1{}, s2{}, s3{};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    s0 += value(i, Full{});
    s1 += value(i + kLanes, Full{});
    s2 += value(i + 2 * kLanes, Full{});
    s3 += value(i + 3 * kLanes, Full{});
  }
  for (; i + kLanes <= n; i += kLanes) s0 += value(i, Full{});
  if (i < n) {
    const Part rest{static_cast<int>(n - i)};
    s1 += keep(value(i, rest), rest);
  }
  return hsum((s0 + s1) + (s2 + s3));
}

// ---- 16-bit formats <-> float -------------------------------------------------------------------

// Zero extension and its inverse. GCC 12 splits __builtin_convertvector into half vectors here.
MMKERN_INLINE vu extend(vh bits) {
#if defined(__AVX512F__)
  return bit_cast<vu>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(bits)));
#elif defined(__AVX2__)
  return bit_cast<vu>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(bits)));
#else
  return __builtin_convertvector(bits, vu);
#endif
}
MMKERN_INLINE vh truncate(vu bits) {
#if defined(__AVX512F__)
  return bit_cast<vh>(_mm512_cvtepi32_epi16(bit_cast<__m512i>(bits)));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32(bit_cast<__m256i>(bits), bit_cast<__m256i>(bits));
  return bit_cast<vh>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0xd8)));
#else
  return __builtin_convertvector(bits, vh);
#endif
}

MMKERN_INLINE vf widen(vh bits, bf16_t) { return bit_cast<vf>(extend(bits) << 16); }

MMKERN_INLINE vh narrow_bf16_by_bits(vf x) {
  const vu bits = bit_cast<vu>(x);
  const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vu quiet_nan = (bits >> 16) | 0x40u;
  return truncate(x == x ? rounded : quiet_nan);
}

MMKERN_INLINE vh narrow(vf x, bf16_t) {
#if defined(__AVX512BF16__)
  // vcvtneps2bf16 takes denormals as zero; they are rare enough to pay for a branch.
  constexpr int kDenormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask(x, kDenormal) != 0, 0)) return narrow_bf16_by_bits(x);
  return bit_cast<vh>(_mm512_cvtneps_pbh(x));
#else
  return narrow_bf16_by_bits(x);
#endif
}

#if defined(__AVX512F__)
MMKERN_INLINE vf widen(vh bits, fp16_t) { return _mm512_cvtph_ps(bit_cast<__m256i>(bits)); }
MMKERN_INLINE vh narrow(vf x, fp16_t) {
  return bit_cast<vh>(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
MMKERN_INLINE vf widen(vh bits, fp16_t) { return _mm256_cvtph_ps(bit_cast<__m128i>(bits)); }
MMKERN_INLINE vh narrow(vf x, fp16_t) {
  return bit_cast<vh>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__aarch64__)
MMKERN_INLINE vf widen(vh bits, fp16_t) {
  return bit_cast<vf>(vcvt_f32_f16(bit_cast<float16x4_t>(bits)));
}
MMKERN_INLINE vh narrow(vf x, fp16_t) {
  return bit_cast<vh>(vcvt_f16_f32(bit_cast<float32x4_t>(x)));
}
#else
// Calls: inlined everywhere they would be a fifth of the build.
MMKERN_CALL vf widen(vh bits, fp16_t) {
  const vu wide = extend(bits);
  const vu magnitude = (wide & 0x7fffu) << 13;
  const vu exponent_shift = vu{} + ((127u - 15u) << 23);
  const vu normal = magnitude + exponent_shift;
  const vu inf_or_nan = normal + exponent_shift;
  // A denormal is mantissa * 2^-24: put it below the exponent of 2^-14 and take that away again.
  const vf denormal = bit_cast<vf>(normal + (1u << 23)) - bit_cast<vf>(vu{} + (113u << 23));
  vu result = magnitude < (vu{} + (1u << 23)) ? bit_cast<vu>(denormal) : normal;
  result = magnitude >= (vu{} + (31u << 23)) ? inf_or_nan : result;
  return bit_cast<vf>(result | (wide & 0x8000u) << 16);
}
MMKERN_CALL vh narrow(vf x, fp16_t) {
  const vu bits = bit_cast<vu>(x);
  const vu sign = (bits >> 16) & 0x8000u;
  const vu magnitude = bits & 0x7fffffffu;
  const vu normal = (magnitude - ((127u - 15u) << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 makes the hardware round at 2^-24, the spacing of fp16 denormals.
  const vu denormal = bit_cast<vu>(bit_cast<vf>(magnitude) + 0.5f) - (126u << 23);
  vu result = magnitude < (vu{} + (113u << 23)) ? denormal : normal;
  result = magnitude >= (vu{} + (143u << 23)) ? vu{} + 0x7c00u : result;
  result = magnitude > (vu{} + (255u << 23)) ? (magnitude >> 13 & 0x3ffu) | 0x7e00u : result;
  return truncate(result | sign);
}
#endif

// ---- memory -------------------------------------------------------------------------------------

template <class V>
MMKERN_INLINE V load_bits(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
MMKERN_INLINE void store_bits(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

#if defined(__AVX512F__)
MMKERN_INLINE __mmask16 first(Part w) { return static_cast<__mmask16>((1u << w.n) - 1u); }
MMKERN_INLINE vf load_part(const float* p, Part w) { return _mm512_maskz_loadu_ps(first(w), p); }
MMKERN_INLINE void store_part(float* p, vf v, Part w) { _mm512_mask_storeu_ps(p, first(w), v); }
MMKERN_INLINE vh load_part(const uint16_t* p, Part w) {
  return bit_cast<vh>(_mm256_maskz_loadu_epi16(first(w), p));
}
MMKERN_INLINE void store_part(uint16_t* p, vh v, Part w) {
  _mm256_mask_storeu_epi16(p, first(w), bit_cast<__m256i>(v));
}
#else
template <class Element>
MMKERN_INLINE auto load_part(const Element* p, Part w) {
  typedef Element V __attribute__((vector_size(kLanes * sizeof(Element))));
  V v{};
  for (int i = 0; i < w.n; ++i) v[i] = p[i];
  return v;
}
template <class Element, class V>
MMKERN_INLINE void store_part(Element* p, V v, Part w) {
  for (int i = 0; i < w.n; ++i) p[i] = v[i];
}
#endif

MMKERN_INLINE vf load(const float* p, Full = {}) { return load_bits<vf>(p); }
MMKERN_INLINE vf load(const float* p, Part w) { return load_part(p, w); }
MMKERN_INLINE void store(float* p, vf v, Full = {}) { store_bits(p, v); }
MMKERN_INLINE void store(float* p, vf v, Part w) { store_part(p, v, w); }

template <class T>
MMKERN_INLINE vf load(const T* p, Full = {}) {
  return widen(load_bits<vh>(p), T{});
}
template <class T>
MMKERN_INLINE vf load(const T* p, Part w) {
  return widen(load_part(&p->bits, w), T{});
}
template <class T>
MMKERN_INLINE void store(T* p, vf v, Full = {}) {
  store_bits(p, narrow(v, T{}));
}
template <class T>
MMKERN_INLINE void store(T* p, vf v, Part w) {
  store_part(&p->bits, narrow(v, T{}), w);
}

// One element, by way of a vector: for edges, not for inner loops.
template <class T>
MMKERN_INLINE float to_float(T value) {
  return load(&value, Part{1})[0];
}
template <class T>
MMKERN_INLINE T from_float(float value) {
  T result;
  store(&result, set1(value), Part{1});
  return result;
}

// Non-temporal stores bypass the caches; they need p aligned to the vector and fence() at the end.
// They pay only when the output does not fit the last-level cache (1.3-1.7x; else 1.5-2x slower).
MMKERN_INLINE void stream(float* p, vf v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, v);
#elif defined(__x86_64__)
  _mm_stream_ps(p, v);
#else
  store(p, v);
#endif
}
MMKERN_INLINE void stream(fp16_t* p, vh v) {
#if defined(__AVX512F__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(v));
#elif defined(__AVX2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), bit_cast<__m128i>(v));
#else
  store_bits(p, v);
#endif
}
MMKERN_INLINE void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// ---- bf16 dot products --------------------------------------------------------------------------

// acc[i] + a[2i] * b[2i] + a[2i+1] * b[2i+1], each of a and b holding 2 kLanes bf16 in memory
// order. With AVX512_BF16 one instruction (denormal inputs count as zero), elsewhere two FMAs.
MMKERN_INLINE vf dot_bf16_pairs(vf acc, vu a, vu b) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(acc, bit_cast<__m512bh>(a), bit_cast<__m512bh>(b));
#else
  acc = fma(bit_cast<vf>(a << 16), bit_cast<vf>(b << 16), acc);
  return fma(bit_cast<vf>(a & 0xffff0000u), bit_cast<vf>(b & 0xffff0000u), acc);
#endif
}

}  // namespace mmkern::MMKERN_ISA
