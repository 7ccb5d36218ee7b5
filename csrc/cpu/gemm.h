// Blocked matrix products around the micro-kernel, with the caller's rows going in and the caller's
// store coming out, so that patches and activations need no matrix of their own. For kernel files.
//
//   ByRow<T, Source>    rows of the source are rows of A or columns of B: they run along the depth
//   ByDepth<T, Source>  row k of the source is column k of A or row k of B
//   Source: const T* row(r, c, n, T* room) gives elements [c, c + n) of row r, in place or in room
//   Store:  store(i, rows, j, n, sums) takes D[i .. i + rows, j .. j + n); rows of sums are
//           kTileCols apart
#pragma once

#include "gemm_args.h"
#include "microkernel.h"

namespace mmkern::MMKERN_ISA {

inline constexpr int kTileCols = kTileVectors * kLanes;

MMKERN_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
MMKERN_INLINE int64_t round_to(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// body(an element of the dtype)
template <class Body>
MMKERN_INLINE void with_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(float{});
    case DType::kBFloat16:
      return body(bf16_t{});
    case DType::kFloat16:
      return body(fp16_t{});
  }
}

// ---- sources and stores -------------------------------------------------------------------------

template <class T>
struct MatrixRows {
  RowsView view;
  const T* row(int64_t r, int64_t c, int64_t, T*) const {
    return static_cast<const T*>(view.data) + r / view.inner * view.outer_stride +
           r % view.inner * view.inner_stride + c;
  }
};

template <class T>
struct StoreRows {
  T* out;
  int64_t row_stride;
  void operator()(int64_t i, int64_t rows, int64_t j, int64_t n, const float* sums) const {
    for (int64_t r = 0; r < rows; ++r, sums += kTileCols) {
      T* const to = out + (i + r) * row_stride + j;
      sweep(n, [&](int64_t c, auto width)
                   MMKERN_BODY { store(to + c, load(sums + c, width), width); });
    }
  }
};

// Values of the depth in one chain of sums. Long chains lose accuracy, which float32 has no later
// rounding to hide: these keep the largest error of 100 random products of one row below 0.75 of
// what the accuracy rule allows (chains of 128 at a depth of 126: 1.8), and cost 1 % (128) to 20 %
// (16) of the multiplications' time.
template <class T>
MMKERN_INLINE int64_t depth_block(int64_t depth) {
  if constexpr (sizeof(T) < sizeof(float)) return kGemmSteps * kDepth<Cell<T>>;
  if (depth <= 96) return 16;
  if (depth <= 256) return 32;
  return depth <= 512 ? 64 : 128;
}

// ---- packing ------------------------------------------------------------------------------------

template <class T, class Source>
struct ByRow {
  using C = Cell<T>;
  Source source;

  // A packed for nk values of the depth, from cell `step` on.
  static auto a_rows(const C* packed, int64_t, int64_t nk, int64_t step) {
    return Rows<C, int64_t, Unit>{packed + step, row_stride(nk), Unit{}};
  }

  // to[i][cell]
  void pack_a(int64_t i0, int64_t ni, int64_t k0, int64_t nk, C* to, T* room) const {
    for (int64_t i = 0; i < ni; ++i) {
      pack_row(source.row(i0 + i, k0, nk, room), nk, to + i * row_stride(nk));
    }
  }

  // to[panel][cell][kTileCols], by transposing kLanes rows at a time.
  void pack_b(int64_t j0, int64_t nj, int64_t k0, int64_t nk, C* to, T* room) const {
    const int64_t steps = cells<C>(nk);
    for (int64_t j = 0; j < nj; j += kLanes) {
      const T* rows[kLanes];
      for (int64_t r = 0; r < kLanes; ++r) {
        rows[r] = source.row(j0 + least(j + r, nj - 1), k0, nk, room);
      }
      C* out = to + j / kTileCols * kTileCols * steps + j % kTileCols;
      for (int64_t s = 0; s < steps; s += kLanes, out += kLanes * kTileCols) {
        vu block[kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
          block[r] = read_cells(rows[r] + s * kDepth<C>, nk - s * kDepth<C>);
        }
        transpose(block);
        if (s + kLanes <= steps) {
#pragma GCC unroll 16
          for (int r = 0; r < kLanes; ++r) store_bits(out + r * kTileCols, block[r]);
        } else {
          for (int r = 0; r < steps - s; ++r) store_bits(out + r * kTileCols, block[r]);
        }
      }
    }
  }

 private:
  static int64_t row_stride(int64_t nk) { return round_to(cells<C>(nk), kGemmPad) + kGemmPad; }
};

template <class T, class Source>
struct ByDepth {
  using C = Cell<T>;
  Source source;

  static auto a_rows(const C* packed, int64_t ni, int64_t, int64_t step) {
    const int64_t stride = round_to(ni, kLanes);
    return Rows<C, Unit, int64_t>{packed + step * stride, Unit{}, stride};
  }
  void pack_a(int64_t i0, int64_t ni, int64_t k0, int64_t nk, C* to, T* room) const {
    pack(i0, ni, k0, nk, round_to(ni, kLanes), to, room);
  }
  void pack_b(int64_t j0, int64_t nj, int64_t k0, int64_t nk, C* to, T* room) const {
    pack(j0, nj, k0, nk, kTileCols, to, room);
  }

 private:
  // to[c / panel][cell][c % panel]
  void pack(int64_t c0, int64_t nc, int64_t k0, int64_t nk, int64_t panel, C* to, T* room) const {
    const int64_t steps = cells<C>(nk);
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t k = s * kDepth<C>;
      const T* even = source.row(k0 + k, c0, nc, room);
      const bool paired = kDepth<C> == 2 && k + 1 < nk;
      const T* odd = paired ? source.row(k0 + k + 1, c0, nc, room + nc) : nullptr;
      for (int64_t c = 0; c < nc; c += panel) {
        pack_across_rows(even + c, paired ? odd + c : nullptr, least(panel, nc - c),
                         to + c * steps + s * panel);
      }
    }
  }
};

// ---- one task -----------------------------------------------------------------------------------

// Adds a strip of the tile to the sums of the depth blocks before; the last one goes to the store.
template <class Store>
struct BlockSum {
  const Store& store;
  float* sums;  // of row 0 of the block, at the tile's first column
  int64_t row_stride;
  int64_t i0, j0, columns;
  bool first, last;

  template <int R, int NV>
  MMKERN_BODY void operator()(int64_t row, vf (&acc)[R][NV]) const {
    float* const to = sums + row * row_stride;
    if (!first) {
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) acc[i][j] += load(to + i * row_stride + j * kLanes);
      }
    }
    alignas(64) float strip[R * kTileCols];
    float* const out = last ? strip : to;
    const int64_t out_stride = last ? kTileCols : row_stride;
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j)
        mmkern::MMKERN_ISA::store(out + i * out_stride + j * kLanes, acc[i][j]);
    }
    if (last) store(i0 + row, R, j0, columns, strip);
  }
};

template <class A, class C, class Epilogue>
MMKERN_INLINE void multiply_panel(int64_t vectors, int64_t rows, A a, const C* b, int64_t steps,
                                  const Epilogue& epilogue) {
  if constexpr (kTileVectors == 4) {
    if (vectors == 4) return multiply_rows<4>(rows, a, b, kTileCols, steps, epilogue);
    if (vectors == 3) return multiply_rows<3>(rows, a, b, kTileCols, steps, epilogue);
  }
  if (vectors == 2) return multiply_rows<2>(rows, a, b, kTileCols, steps, epilogue);
  multiply_rows<1>(rows, a, b, kTileCols, steps, epilogue);
}

// Columns [index * kGemmColumnUnit, + kGemmColumnUnit) of the chunk, for the whole depth:
// packed[panel][depth block][cell][kTileCols].
template <class T, class B>
void gemm_pack(const GemmPlan& plan, const GemmTask& task, const B& b, float* scratch) {
  using C = Cell<T>;
  T* const gathered = reinterpret_cast<T*>(scratch + plan.gathered);
  const int64_t block = depth_block<T>(plan.depth);
  const int64_t begin = task.index * kGemmColumnUnit;
  const int64_t end = least(begin + kGemmColumnUnit, task.nj);
  for (int64_t j = begin; j < end; j += kTileCols) {
    C* const panel = reinterpret_cast<C*>(task.packed) + j * cells<C>(plan.depth);
    for (int64_t k0 = 0; k0 < plan.depth; k0 += block) {
      b.pack_b(task.j0 + j, least(kTileCols, end - j), k0, least(block, plan.depth - k0),
               panel + cells<C>(k0) * kTileCols, gathered);
    }
  }
}

template <class T, class A, class B, class Store>
void gemm_task(const GemmPlan& plan, const GemmTask& task, const A& a, const B& b,
               const Store& store, float* scratch) {
  using C = Cell<T>;
  if (task.pack) return gemm_pack<T>(plan, task, b, scratch);
  const int64_t col_blocks = (task.nj + plan.block_cols - 1) / plan.block_cols;
  const int64_t i0 = task.index / col_blocks * plan.block_rows;
  const int64_t j0 = task.index % col_blocks * plan.block_cols;  // in the chunk
  const int64_t ni = least(plan.block_rows, plan.rows - i0);
  const int64_t nj = least(plan.block_cols, task.nj - j0);

  C* const packed_a = reinterpret_cast<C*>(scratch);
  float* const sums = scratch + plan.sums;
  T* const gathered = reinterpret_cast<T*>(scratch + plan.gathered);

  const int64_t block = depth_block<T>(plan.depth);

  const auto multiply = [&](int64_t j, int64_t k0, auto rows, const C* panel, float* to) {
    const int64_t nk = least(block, plan.depth - k0);
    const int64_t columns = least(kTileCols, nj - j);
    const BlockSum<Store> epilogue{store,   to,      plan.sums_stride,     i0, task.j0 + j0 + j,
                                   columns, k0 == 0, k0 + nk == plan.depth};
    multiply_panel(round_to(columns, kLanes) / kLanes, ni, rows, panel, cells<C>(nk), epilogue);
  };

  if (plan.shared) {
    a.pack_a(i0, ni, 0, plan.depth, packed_a, gathered);
    const C* const packed_b = reinterpret_cast<const C*>(task.packed);
    for (int64_t j = 0; j < nj; j += kTileCols) {
      const C* const panel = packed_b + (j0 + j) * cells<C>(plan.depth);
      for (int64_t k0 = 0; k0 == 0 || k0 < plan.depth; k0 += block) {
        const auto rows = A::a_rows(packed_a, ni, plan.depth, cells<C>(k0));
        multiply(j, k0, rows, panel + cells<C>(k0) * kTileCols, sums);
      }
    }
    return;
  }
  C* const packed_b = reinterpret_cast<C*>(scratch + plan.packed_b);
  for (int64_t k0 = 0; k0 == 0 || k0 < plan.depth; k0 += block) {
    const int64_t nk = least(block, plan.depth - k0);
    a.pack_a(i0, ni, k0, nk, packed_a, gathered);
    b.pack_b(j0, nj, k0, nk, packed_b, gathered);
    for (int64_t j = 0; j < nj; j += kTileCols) {
      multiply(j, k0, A::a_rows(packed_a, ni, nk, 0), packed_b + j * cells<C>(nk), sums + j);
    }
  }
}

}  // namespace mmkern::MMKERN_ISA
