// The inner product under attention and the matrix products: a tile of rows x vectors of sums that
// stays in registers while the shared dimension is walked once,
//
//   acc[i][j] += broadcast(a[i][step]) * b[step][j]        i < rows, j < vectors
//
// Operands consist of 4-byte cells. A cell is a float or, where the instruction set multiplies bf16
// (AVX512_BF16), a pair of bf16 that are neighbours along the shared dimension: Cell<T> says which
// one element type T uses. Where Cell<T> is float but T is not, values are widened when packed.
//
// The a side is any strided matrix of cells (in place or packed); the b side is a panel whose row
// `step` holds the vectors one after another, at b + step * b_step.
//
// Users: attention (forward, backward), patch_embed, mlp. To try another tile shape, change
// kTileRows and kTileVectors; nothing else depends on their values.
#pragma once

#include <cstddef>
#include <utility>

#include "vec.h"

namespace mmkern::MMKERN_ISA {

// kTileRows * kTileVectors sums + kTileVectors of b + one broadcast must fit the registers: 29 of
// 32 with AVX-512 and NEON, 15 of 16 elsewhere. A 6 x 4 tile makes 24 FMAs per 10 loads. Measured
// on one Zen 4 core with operands in cache: fp32 96 % of peak (AVX-512 and AVX2), bf16 pairs 96 %.
inline constexpr int kTileRows = 6;
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kTileVectors = 4;
#else
inline constexpr int kTileVectors = 2;
#endif

// ---- cells --------------------------------------------------------------------------------------

struct bf16_pair {
  uint32_t bits;  // the value of the even step in the low half
};

template <class T>
struct CellOf {
  using type = float;
};
#if defined(__AVX512BF16__)
template <>
struct CellOf<bf16_t> {
  using type = bf16_pair;
};
#endif
template <class T>
using Cell = typename CellOf<T>::type;

// Values of the shared dimension in one cell, and cells for n values.
template <class C>
inline constexpr int kDepth = 1;
template <>
inline constexpr int kDepth<bf16_pair> = 2;
template <class C>
MMKERN_INLINE int64_t cells(int64_t n) {
  return (n + kDepth<C> - 1) / kDepth<C>;
}

MMKERN_INLINE vf broadcast(const float* p) { return set1(*p); }
MMKERN_INLINE vu broadcast(const bf16_pair* p) { return vu{} + load_bits<uint32_t>(p); }
MMKERN_INLINE vf load_cells(const float* p) { return load_bits<vf>(p); }
MMKERN_INLINE vu load_cells(const bf16_pair* p) { return load_bits<vu>(p); }
MMKERN_INLINE vf multiply_add(vf acc, vf a, vf b) { return fma(a, b, acc); }
MMKERN_INLINE vf multiply_add(vf acc, vu a, vu b) { return dot_bf16_pairs(acc, a, b); }

// ---- the tile -----------------------------------------------------------------------------------

// A stride of one that the compiler sees, so that addresses need no arithmetic.
struct Unit {
  __attribute__((always_inline)) constexpr operator int64_t() const { return 1; }
};

// The a operand: row i at data + i * row_stride, step k at + k * step, in cells.
template <class C, class RowStride, class Step>
struct Rows {
  const C* data;
  RowStride row_stride;
  Step step;
  __attribute__((always_inline)) Rows from_row(int64_t i) const {
    return {data + i * row_stride, row_stride, step};
  }
};
template <class C, class RowStride, class Step>
Rows(const C*, RowStride, Step) -> Rows<C, RowStride, Step>;

template <int R, int NV>
MMKERN_INLINE void clear(vf (&acc)[R][NV]) {
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) acc[i][j] = zero();
  }
}

// acc += a b over `depth` steps, in one chain of additions.
template <int R, int NV, class C, class RowStride, class Step>
MMKERN_INLINE void multiply_tile(vf (&acc)[R][NV], Rows<C, RowStride, Step> a, const C* b,
                                 int64_t b_step, int64_t depth) {
  const C* row = a.data;
  for (int64_t k = 0; k < depth; ++k) {
    decltype(load_cells(b)) column[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) column[j] = load_cells(b + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const auto value = broadcast(row + i * a.row_stride);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[i][j] = multiply_add(acc[i][j], value, column[j]);
    }
    row += a.step;
    b += b_step;
  }
}

// Steps of float cells after which multiply_rows starts a new chain of additions. A single one over
// 512 steps has up to 2.5 times the error of eager products. Next to those of a few rows even 64
// steps are a long chain.
template <class C, int NV>
inline constexpr int64_t kLongestChain = kDepth<C> == 2 ? INT64_MAX
                                         : NV == 1      ? 32
                                                        : 128;

template <int R, int NV, class A, class C, class Epilogue>
static __attribute__((noinline)) void multiply_strip(int64_t row, A a, const C* b, int64_t b_step,
                                                     int64_t depth, int64_t chain,
                                                     const Epilogue& epilogue) {
  a = a.from_row(row);
  if (chain > depth) chain = depth;
  vf acc[R][NV];
  clear(acc);
  multiply_tile(acc, a, b, b_step, chain);
  for (int64_t k = chain; k < depth; k += chain) {
    vf part[R][NV];
    clear(part);
    a.data += chain * a.step;
    b += chain * b_step;
    multiply_tile(part, a, b, b_step, k + chain < depth ? chain : depth - k);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[i][j] += part[i][j];
    }
  }
  epilogue(row, acc);
}

// The product of `rows` rows of a with the NV vectors of b. epilogue(row, acc) takes each strip of
// R <= kTileRows rows that begins at `row`; it is a struct with
//   template <int R, int NV> void operator()(int64_t row, vf (&acc)[R][NV]) const
template <int NV, class A, class C, class Epilogue>
MMKERN_INLINE void multiply_rows(int64_t rows, A a, const C* b, int64_t b_step, int64_t depth,
                                 const Epilogue& epilogue,
                                 int64_t longest_chain = kLongestChain<C, NV>) {
  const int64_t chain = longest_chain < kLongestChain<C, NV> ? longest_chain : kLongestChain<C, NV>;
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) {
    multiply_strip<kTileRows, NV>(i, a, b, b_step, depth, chain, epilogue);
  }
  if (rows - i >= 4) multiply_strip<4, NV>(i, a, b, b_step, depth, chain, epilogue), i += 4;
  if (rows - i >= 2) multiply_strip<2, NV>(i, a, b, b_step, depth, chain, epilogue), i += 2;
  if (rows - i >= 1) multiply_strip<1, NV>(i, a, b, b_step, depth, chain, epilogue);
}

// ---- packing ------------------------------------------------------------------------------------

template <class T>
MMKERN_INLINE vu read_full_cells(const T* row) {
  if constexpr (kDepth<Cell<T>> == 2) return load_bits<vu>(row);
  return bit_cast<vu>(load(row));
}

// kLanes cells of a row of which n values are left; what lies behind them is not read, and is 0.
template <class T>
MMKERN_INLINE vu read_cells(const T* row, int64_t n) {
  if (n >= kLanes * kDepth<Cell<T>>) return read_full_cells(row);
#if defined(__AVX512BF16__)
  if constexpr (kDepth<Cell<T>> == 2) {
    const uint32_t mask = n > 0 ? (uint32_t{1} << n) - 1u : 0u;
    return bit_cast<vu>(_mm512_maskz_loadu_epi16(mask, row));
  }
#endif
  return bit_cast<vu>(load(row, Part{static_cast<int>(n > 0 ? n : 0)}));
}

// Writes the first n cells of a vector.
template <class C>
MMKERN_INLINE void write_cells(C* p, vu v, int64_t n) {
  float* const words = reinterpret_cast<float*>(p);
  if (n >= kLanes) return store(words, bit_cast<vf>(v));
  store(words, bit_cast<vf>(v), Part{static_cast<int>(n)});
}

// A row of n values as cells(n) cells.
template <class T>
MMKERN_INLINE void pack_row(const T* row, int64_t n, Cell<T>* out) {
  const int64_t count = cells<Cell<T>>(n);
  for (int64_t c = 0; c < count; c += kLanes) {
    write_cells(out + c, read_cells(row + c * kDepth<Cell<T>>, n - c * kDepth<Cell<T>>), count - c);
  }
}

MMKERN_INLINE vh read_bits(const bf16_t* p, Full) { return load_bits<vh>(p); }
MMKERN_INLINE vh read_bits(const bf16_t* p, Part w) { return load_part(&p->bits, w); }

// Pairs of the 16-bit elements of two vectors.
MMKERN_INLINE vu interleave(vh low, vh high) {
#if defined(__AVX512BF16__)
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return bit_cast<vu>(_mm512_permutex2var_epi16(_mm512_castsi256_si512(bit_cast<__m256i>(low)),
                                                order,
                                                _mm512_castsi256_si512(bit_cast<__m256i>(high))));
#else
  return __builtin_convertvector(low, vu) | __builtin_convertvector(high, vu) << 16;
#endif
}

// Brings the n values at p into the cache ahead of their use. Rows of one head lie far apart in
// (batch, row, head, d) tensors, where the hardware does not guess the next one.
template <class T>
MMKERN_INLINE void prefetch(const T* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + i);
}

// kDepth rows of n values (absent ones are null and count as 0) as one row of n cells: rows become
// the shared dimension.
template <class T>
MMKERN_INLINE void pack_across_rows(const T* even, const T* odd, int64_t n, Cell<T>* out) {
  if constexpr (kDepth<Cell<T>> == 2) {
    sweep(n, [&](int64_t i, auto width) MMKERN_BODY {
      const vh low = even != nullptr ? read_bits(even + i, width) : vh{};
      const vh high = odd != nullptr ? read_bits(odd + i, width) : vh{};
      store(reinterpret_cast<float*>(out + i), bit_cast<vf>(interleave(low, high)), width);
    });
  } else {
    sweep(n, [&](int64_t i, auto width) MMKERN_BODY {
      store(out + i, even != nullptr ? load(even + i, width) : zero(), width);
    });
  }
}

// kLanes pairs of bf16-rounded sums: of two neighbouring steps, and of 2 kLanes values that are
// neighbours.
MMKERN_INLINE vu make_pairs(vf even, vf odd) {
#if defined(__AVX512BF16__)
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i halves = bit_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
  return bit_cast<vu>(_mm512_permutexvar_epi16(order, halves));
#else
  return interleave(narrow(even, bf16_t{}), narrow(odd, bf16_t{}));
#endif
}
MMKERN_INLINE vu make_pairs_along(vf first, vf second) {
#if defined(__AVX512BF16__)
  return bit_cast<vu>(_mm512_cvtne2ps_pbh(second, first));
#else
  const vh halves[2] = {narrow(first, bf16_t{}), narrow(second, bf16_t{})};
  return load_bits<vu>(halves);
#endif
}

template <int kOffset, class V, std::size_t... I>
MMKERN_INLINE V zip(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (kOffset + (I % 2 ? kLanes + I / 2 : I / 2))...);
}

// Transposes kLanes x kLanes cells: interleaving row i with row i + kLanes/2, log2(kLanes) times.
MMKERN_INLINE void transpose(vu (&rows)[kLanes]) {
  constexpr auto kLaneIndex = std::make_index_sequence<kLanes>();
#pragma GCC unroll 4
  for (int stage = 1; stage < kLanes; stage *= 2) {
    vu next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = zip<0>(rows[i], rows[i + kLanes / 2], kLaneIndex);
      next[2 * i + 1] = zip<kLanes / 2>(rows[i], rows[i + kLanes / 2], kLaneIndex);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

}  // namespace mmkern::MMKERN_ISA
