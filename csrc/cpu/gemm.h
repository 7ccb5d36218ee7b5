// Blocked matrix products around the micro-kernel, with the caller's rows going in and the caller's
// store coming out, so that patches and activations need no matrix of their own. For kernel files.
//
//   ByRow<T, Source>    rows of the source are rows of A or columns of B: they run along the depth
//   ByDepth<T, Source>  row k of the source is column k of A or row k of B
//   Source: const T* row(r, c, n, T* room) gives elements [c, c + n) of row r, in place or in room;
//           prefetch(r, c, n) may bring them into the cache; kInPlace: never in room
//   Store:  store(i, rows, j, n, sums) takes D[i .. i + rows, j .. j + n); rows of sums are
//           kTileCols apart. store.prefetch(i, rows, j, n) is called before they are computed
#pragma once

#include "gemm_args.h"
#include "microkernel.h"

namespace mmkern::MMKERN_ISA {

inline constexpr int kTileCols = kTileVectors * kLanes;

MMKERN_INLINE int64_t round_to(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// ---- sources and stores -------------------------------------------------------------------------

template <class T>
struct MatrixRows {
  static constexpr bool kInPlace = true;
  RowsView view;
  const T* row(int64_t r, int64_t c, int64_t, T*) const {
    return static_cast<const T*>(view.data) + r / view.inner * view.outer_stride +
           r % view.inner * view.inner_stride + c;
  }
  void prefetch(int64_t r, int64_t c, int64_t n) const {
    const T* const begin = row(r, c, n, nullptr);
    for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(begin + i, 0, 2);
    }
  }
};

// Fetches what is going to be written beside the products: 1.3 x on shallow ones.
template <class T>
MMKERN_INLINE void prefetch_to_write(const T* out, int64_t rows, int64_t row_stride, int64_t n) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < n; c += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(out + r * row_stride + c, 1);
    }
  }
}

template <class T>
struct StoreRows {
  T* out;
  int64_t row_stride;
  void prefetch(int64_t i, int64_t rows, int64_t j, int64_t n) const {
    prefetch_to_write(out + i * row_stride + j, rows, row_stride, n);
  }
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
// what the accuracy rule allows (chains of 128 at a depth of 126: 1.8).
template <class T>
MMKERN_INLINE int64_t longest_chain(int64_t depth) {
  if (sizeof(T) < sizeof(float)) return kGemmSteps;
  if (depth <= 96) return 16;
  if (depth <= 256) return 32;
  return depth <= 512 ? 64 : 128;
}

// Values of the depth in one block, which is multiplied before the next one is touched.
template <class T>
inline constexpr int64_t kDepthBlock = kGemmSteps * kDepth<Cell<T>>;

// Whether elements lie in memory as cells of one chain whatever the tile: the transpose of a
// product of floats, whose chains are shorter in narrow tiles, would have other bits.
template <class T>
inline constexpr bool kTurns = kDepth<Cell<T>> == 2;

// ---- packing ------------------------------------------------------------------------------------

template <class T, class Source>
struct ByRow {
  using C = Cell<T>;
  Source source;

  // Rows are made of cells as they lie in memory.
  static constexpr bool kInPlace = Source::kInPlace && kTurns<T>;

  // Rows of A from row i and value k on, where they are; the host saw to even strides.
  auto rows_in_place(int64_t i, int64_t k) const {
    const int64_t stride = source.view.inner_stride / kDepth<C>;
    return Rows<C, int64_t, Unit>{reinterpret_cast<const C*>(source.row(i, k, 0, nullptr)), stride,
                                  Unit{}};
  }

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

  // to[panel][cell][kTileCols], by transposing kLanes rows at a time. Of a source that leaves rows
  // where they are: the others would share one room.
  void pack_b(int64_t j0, int64_t nj, int64_t k0, int64_t nk, C* to, T* room) const {
    const int64_t steps = cells<C>(nk);
    for (int64_t j = 0; j < nj; j += kLanes) {
      const T* rows[kLanes];
      for (int64_t r = 0; r < kLanes; ++r) {
        rows[r] = source.row(j0 + least<int64_t>(j + r, nj - 1), k0, nk, room);
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

  // Part `part` of `parts` of what pack_b will read.
  void prefetch_b(int64_t j0, int64_t nj, int64_t k0, int64_t nk, int64_t part,
                  int64_t parts) const {
    for (int64_t j = nj * part / parts; j < nj * (part + 1) / parts; ++j) {
      source.prefetch(j0 + j, k0, nk);
    }
  }

 private:
  static int64_t row_stride(int64_t nk) { return round_to(cells<C>(nk), kGemmPad) + kGemmPad; }
};

template <class T, class Source>
struct ByDepth {
  using C = Cell<T>;
  static constexpr bool kInPlace = false;
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

  void prefetch_b(int64_t j0, int64_t nj, int64_t k0, int64_t nk, int64_t part,
                  int64_t parts) const {
    for (int64_t k = nk * part / parts; k < nk * (part + 1) / parts; ++k) {
      source.prefetch(k0 + k, j0, nj);
    }
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
        pack_across_rows(even + c, paired ? odd + c : nullptr, least<int64_t>(panel, nc - c),
                         to + c * steps + s * panel);
      }
    }
  }
};

// ---- one task -----------------------------------------------------------------------------------

// Where the sums of a product go: out = add + a b, kTileCols to a row; add null: nothing is added.
struct Sums {
  const float* add;
  float* out;
  int64_t chain;  // steps in one chain of additions, at most
};

// `rows` rows of a times a panel of `vectors` <= kTileVectors vectors, over `steps` cells. Compiled
// once, in gemm.cpp, for the a of ByRow and of ByDepth and each type of cell.
template <class A, class C>
void multiply_panel(int64_t rows, int64_t vectors, A a, const C* b, int64_t steps,
                    const Sums& sums);

// Cells of kGemmRowUnit packed rows of the whole depth.
MMKERN_INLINE int64_t packed_unit(const GemmPlan& plan) {
  return kGemmRowUnit * (round_to(plan.steps, kGemmPad) + kGemmPad);
}

// Columns of B or rows of A, from `begin` on, as one panel: [depth block][cell][kTileCols].
template <class T, class Operand>
void pack_panel(const GemmPlan& plan, const Operand& operand, int64_t begin, int64_t count,
                Cell<T>* panel, float* scratch) {
  for (int64_t k0 = 0; k0 < plan.depth; k0 += kDepthBlock<T>) {
    operand.pack_b(begin, count, k0, least<int64_t>(kDepthBlock<T>, plan.depth - k0),
                   panel + cells<Cell<T>>(k0) * kTileCols,
                   reinterpret_cast<T*>(scratch + plan.gathered));
  }
}

// Tall: columns [index * kGemmColumnUnit, + kGemmColumnUnit) of the chunk.
template <class T, class B>
void pack_columns(const GemmPlan& plan, const GemmTask& task, const B& b, float* scratch) {
  const int64_t begin = task.index * kGemmColumnUnit;
  const int64_t end = least<int64_t>(begin + kGemmColumnUnit, task.count);
  for (int64_t j = begin; j < end; j += kTileCols) {
    pack_panel<T>(plan, b, task.begin + j, least<int64_t>(kTileCols, end - j),
                  reinterpret_cast<Cell<T>*>(task.packed) + j * cells<Cell<T>>(plan.depth),
                  scratch);
  }
}

struct Span {
  int64_t begin, count;
};

// Turned: the rows of panel p, of a chunk of n rows. Where a single vector would be left for the
// last panel, which multiplies at half the rate, it takes one from the panel before.
MMKERN_INLINE Span turned_panel(int64_t n, int64_t p) {
  const int64_t last = (n - 1) / kTileCols, begin = p * kTileCols;
  const int64_t moved = last > 0 && n - last * kTileCols <= kLanes ? kLanes : 0;
  if (p == last) return {begin - moved, n - begin + moved};
  return {begin, kTileCols - (p == last - 1 ? moved : 0)};
}

template <class T, class A>
void pack_turned(const GemmPlan& plan, const GemmTask& task, const A& a, float* scratch) {
  static_assert(!kTurns<T> || kTileCols == kGemmColumnUnit);
  const Span rows = turned_panel(task.count, task.index);
  Cell<T>* const panels = reinterpret_cast<Cell<T>*>(task.packed);
  pack_panel<T>(plan, a, task.begin + rows.begin, rows.count,
                panels + task.index * kTileCols * cells<Cell<T>>(plan.depth), scratch);
}

// Wide: rows [index * kGemmRowUnit, + kGemmRowUnit) of the chunk, as pack_a leaves each unit.
template <class T, class A>
void pack_rows(const GemmPlan& plan, const GemmTask& task, const A& a, float* scratch) {
  const int64_t i = task.index * kGemmRowUnit;
  a.pack_a(task.begin + i, least<int64_t>(kGemmRowUnit, task.count - i), 0, plan.depth,
           reinterpret_cast<Cell<T>*>(task.packed) + task.index * packed_unit(plan),
           reinterpret_cast<T*>(scratch + plan.gathered));
}

template <class T, class A, class B>
void gemm_pack(const GemmPlan& plan, const GemmTask& task, const A& a, const B& b, float* scratch) {
  if (plan.cut == GemmCut::kWide) return pack_rows<T>(plan, task, a, scratch);
  if (plan.cut == GemmCut::kTurned) return pack_turned<T>(plan, task, a, scratch);
  pack_columns<T>(plan, task, b, scratch);
}

// D[i .. i + rows, j .. j + columns), from one block of the depth at a time.
template <class T, class Store>
struct BlockProduct {
  using C = Cell<T>;
  const GemmPlan& plan;
  const Store& store;
  int64_t i, rows, j, columns;
  float* sums;  // of the blocks before; kTileCols to a row

  // Adds the block at k0, a strip at a time, calling beside(strip) at each; the last block's sums
  // go to the store.
  template <class ARows, class Beside>
  void add(int64_t k0, ARows a, const C* panel, const Beside& beside) const {
    const int64_t nk = least<int64_t>(kDepthBlock<T>, plan.depth - k0);
    const int64_t vectors = round_to(columns, kLanes) / kLanes;
    const int64_t chain = longest_chain<T>(plan.depth);
    const bool last = k0 + nk == plan.depth;
    for (int64_t s = 0; s * kTileRows < rows; ++s) {
      beside(s);
      const int64_t row = s * kTileRows, count = least<int64_t>(kTileRows, rows - row);
      float* const so_far = sums + row * kTileCols;
      alignas(64) float strip[kTileRows * kTileCols];
      if (last) store.prefetch(i + row, count, j, columns);
      multiply_panel(count, vectors, a.from_row(row), panel, cells<C>(nk),
                     Sums{k0 > 0 ? so_far : nullptr, last ? strip : so_far, chain});
      if (last) store(i + row, count, j, columns, strip);
    }
  }
};

// The block of D that a task computes: rows [i, i + rows), columns [j, j + cols).
struct Block {
  int64_t i, j, rows, cols;
};
MMKERN_INLINE Block block_of(const GemmTask& task, int64_t rows, int64_t cols,
                             const GemmPlan& plan) {
  const int64_t across = (cols + plan.block_cols - 1) / plan.block_cols;
  const int64_t i = task.index / across * plan.block_rows;
  const int64_t j = task.index % across * plan.block_cols;
  return {i, j, least<int64_t>(plan.block_rows, rows - i),
          least<int64_t>(plan.block_cols, cols - j)};
}

template <class T, class A, class B, class Store>
void gemm_tall(const GemmPlan& plan, const GemmTask& task, const A& a, const B&, const Store& store,
               float* scratch) {
  using C = Cell<T>;
  const auto [i0, j0, ni, nj] = block_of(task, plan.rows, task.count, plan);
  C* const packed_a = reinterpret_cast<C*>(scratch);
  a.pack_a(i0, ni, 0, plan.depth, packed_a, reinterpret_cast<T*>(scratch + plan.gathered));
  for (int64_t j = j0; j < j0 + nj; j += kTileCols) {
    const C* const panel = reinterpret_cast<const C*>(task.packed) + j * cells<C>(plan.depth);
    const BlockProduct<T, Store> product{plan,
                                         store,
                                         i0,
                                         ni,
                                         task.begin + j,
                                         least<int64_t>(kTileCols, j0 + nj - j),
                                         scratch + plan.sums};
    for (int64_t k0 = 0; k0 == 0 || k0 < plan.depth; k0 += kDepthBlock<T>) {
      product.add(k0, A::a_rows(packed_a, ni, plan.depth, cells<C>(k0)),
                  panel + cells<C>(k0) * kTileCols, [](int64_t) {});
    }
  }
}

template <class T, class A, class B, class Store>
void gemm_wide(const GemmPlan& plan, const GemmTask& task, const A&, const B& b, const Store& store,
               float* scratch) {
  using C = Cell<T>;
  const auto [i0, j0, ni, nj] = block_of(task, task.count, plan.cols, plan);
  const int64_t end = j0 + nj;
  C* const packed_b = reinterpret_cast<C*>(scratch);
  T* const gathered = reinterpret_cast<T*>(scratch + plan.gathered);
  for (int64_t j = j0; j < end; j += kTileCols) {
    const int64_t columns = least<int64_t>(kTileCols, end - j);
    for (int64_t k0 = 0; k0 == 0 || k0 < plan.depth; k0 += kDepthBlock<T>) {
      const int64_t next = k0 + kDepthBlock<T>;
      b.pack_b(j, columns, k0, least<int64_t>(kDepthBlock<T>, plan.depth - k0), packed_b, gathered);
      for (int64_t i = 0; i < ni; i += kGemmRowUnit) {
        const int64_t rows = least<int64_t>(kGemmRowUnit, ni - i);
        const C* const packed_a =
            reinterpret_cast<const C*>(task.packed) + (i0 + i) / kGemmRowUnit * packed_unit(plan);
        const BlockProduct<T, Store> product{plan,
                                             store,
                                             task.begin + i0 + i,
                                             rows,
                                             j,
                                             columns,
                                             scratch + plan.sums + i * kTileCols};
        product.add(
            k0, A::a_rows(packed_a, rows, plan.depth, cells<C>(k0)), packed_b, [&](int64_t strip) {
              // What is packed next comes from memory beside the products. Packed cold,
              // bf16 took 4.7 instead of 1.5 ms for 40 MB.
              if (next < plan.depth) {
                b.prefetch_b(j, columns, next, least<int64_t>(kDepthBlock<T>, plan.depth - next),
                             i / kTileRows + strip, (ni + kTileRows - 1) / kTileRows);
              }
            });
      }
    }
  }
}

// D[i .. i + rows, j .. j + columns) to the store; sums holds its transpose, kTileCols to a row.
template <class Store>
void store_turned(const Store& store, int64_t i, int64_t rows, int64_t j, int64_t columns,
                  const float* sums) {
  alignas(64) float piece[kTileCols * kTileCols];
  for (int64_t c0 = 0; c0 < columns; c0 += kTileCols) {
    const int64_t count = least<int64_t>(kTileCols, columns - c0);
    for (int64_t c = 0; c < count; c += kLanes) {
      for (int64_t r = 0; r < rows; r += kLanes) {
        vu block[kLanes];
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) {
          block[l] = load_bits<vu>(sums + (c0 + c + l) * kTileCols + r);
        }
        transpose(block);
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) store_bits(piece + (r + l) * kTileCols + c, block[l]);
      }
    }
    store(i, rows, j + c0, count, piece);
  }
}

// One block of the depth at a time: its part of every panel of A's rows, times the same of B's
// columns, while the next part of those comes from memory.
template <class T, class B, class Store>
__attribute__((noinline)) void gemm_turned(const GemmPlan& plan, const GemmTask& task, const B& b,
                                           const Store& store, float* scratch) {
  using C = Cell<T>;
  const auto [i0, j0, ni, nj] = block_of(task, task.count, plan.cols, plan);
  const int64_t strips = (nj + kTileRows - 1) / kTileRows;
  const int64_t panels = (ni + kTileCols - 1) / kTileCols;
  for (int64_t k0 = 0; k0 == 0 || k0 < plan.depth; k0 += kDepthBlock<T>) {
    const int64_t next = k0 + kDepthBlock<T>;
    const bool last = next >= plan.depth;
    const int64_t nk = least<int64_t>(kDepthBlock<T>, plan.depth - k0);
    const auto columns = b.rows_in_place(j0, k0);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t index = i0 / kTileCols + p;
      const Span rows = turned_panel(task.count, index);
      const C* const panel = reinterpret_cast<const C*>(task.packed) +
                             (index * cells<C>(plan.depth) + cells<C>(k0)) * kTileCols;
      float* const sums = scratch + plan.sums + p * kTileCols * plan.block_cols;
      if (last) store.prefetch(task.begin + rows.begin, rows.count, j0, nj);
      for (int64_t s = 0; s < strips; ++s) {
        if (!last) {
          b.prefetch_b(j0, nj, next, least<int64_t>(kDepthBlock<T>, plan.depth - next),
                       p * strips + s, panels * strips);
        }
        float* const strip = sums + s * kTileRows * kTileCols;
        multiply_panel(least<int64_t>(kTileRows, nj - s * kTileRows),
                       round_to(rows.count, kLanes) / kLanes, columns.from_row(s * kTileRows),
                       panel, cells<C>(nk),
                       Sums{k0 > 0 ? strip : nullptr, strip, longest_chain<T>(plan.depth)});
      }
      if (last) store_turned(store, task.begin + rows.begin, rows.count, j0, nj, sums);
    }
  }
}

template <class T, class A, class B, class Store>
void gemm_task(const GemmPlan& plan, const GemmTask& task, const A& a, const B& b,
               const Store& store, float* scratch) {
  if (task.pack) return gemm_pack<T>(plan, task, a, b, scratch);
  if (plan.cut == GemmCut::kWide) return gemm_wide<T>(plan, task, a, b, store, scratch);
  if constexpr (B::kInPlace) {
    if (plan.cut == GemmCut::kTurned) return gemm_turned<T>(plan, task, b, store, scratch);
  }
  gemm_tall<T>(plan, task, a, b, store, scratch);
}

}  // namespace mmkern::MMKERN_ISA
