#include "gemm.h"

namespace mmkern::MMKERN_ISA {
namespace {

template <int N>
struct Count {
  static constexpr int value = N;
};

struct AddSums {
  const Sums& sums;
  int64_t column;

  template <int R, int NV>
  MMKERN_BODY void operator()(int64_t row, vf (&acc)[R][NV]) const {
    const float* const add = sums.add ? sums.add + row * kTileCols + column : nullptr;
    float* const out = sums.out + row * kTileCols + column;
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        if (add != nullptr) acc[i][j] += load(add + i * kTileCols + j * kLanes);
        store(out + i * kTileCols + j * kLanes, acc[i][j]);
      }
    }
  }
};

}  // namespace

template <class A, class C>
void multiply_panel(int64_t rows, int64_t vectors, A a, const C* b, int64_t steps,
                    const Sums& sums) {
  const auto multiply = [&](auto width, int64_t first) MMKERN_BODY {
    constexpr int kVectors = decltype(width)::value;
    const AddSums add{sums, first * kLanes};
    multiply_rows<kVectors>(rows, a, b + first * kLanes, kTileCols, steps, add, sums.chain);
  };
  if constexpr (kTileVectors == 4) {
    // Two halves, where the sums of a chain and of all chains together fit the registers.
    constexpr int64_t kShortChain = 32;
    if (vectors == 4 && sums.chain <= kShortChain)
      return multiply(Count<2>(), 0), multiply(Count<2>(), 2);
    if (vectors == 4) return multiply(Count<4>(), 0);
    if (vectors == 3) return multiply(Count<3>(), 0);
  }
  if (vectors == 2) return multiply(Count<2>(), 0);
  multiply(Count<1>(), 0);
}

int64_t gemm_steps(DType dtype, int64_t depth) {
  return dtype == DType::kBFloat16 ? cells<Cell<bf16_t>>(depth) : depth;
}

template <class C>
using RowsByRow = Rows<C, int64_t, Unit>;
template <class C>
using RowsByDepth = Rows<C, Unit, int64_t>;

template void multiply_panel(int64_t, int64_t, RowsByRow<float>, const float*, int64_t,
                             const Sums&);
template void multiply_panel(int64_t, int64_t, RowsByDepth<float>, const float*, int64_t,
                             const Sums&);
#if defined(__AVX512BF16__)
template void multiply_panel(int64_t, int64_t, RowsByRow<bf16_pair>, const bf16_pair*, int64_t,
                             const Sums&);
template void multiply_panel(int64_t, int64_t, RowsByDepth<bf16_pair>, const bf16_pair*, int64_t,
                             const Sums&);
#endif

}  // namespace mmkern::MMKERN_ISA
