// Mmad, and the edges that unitFlag gives.
#pragma once

#include "load.h"

namespace AscendC {

struct MmadParams {
  MmadParams() {}
  MmadParams(ascendc_twin::Field16 m_, ascendc_twin::Field16 n_, ascendc_twin::Field16 k_,
             ascendc_twin::Field8 unit, bool source, bool init)
      : m(m_), n(n_), k(k_), unitFlag(unit), cmatrixSource(source), cmatrixInitVal(init) {}
  MmadParams(ascendc_twin::Field16 m_, ascendc_twin::Field16 n_, ascendc_twin::Field16 k_,
             bool bias, int32_t offset, bool sparse, bool winograd_a, bool winograd_b)
      : m(m_),
        n(n_),
        k(k_),
        isBias(bias),
        fmOffset(offset),
        enSsparse(sparse),
        enWinogradA(winograd_a),
        enWinogradB(winograd_b) {}
  ascendc_twin::Field16 m = 0;
  ascendc_twin::Field16 n = 0;
  ascendc_twin::Field16 k = 0;
  bool isBias = false;
  int32_t fmOffset = 0;
  bool enSsparse = false;
  bool enWinogradA = false;
  bool enWinogradB = false;
  ascendc_twin::Field8 unitFlag = 0;
  bool kDirectionAlign = false;
  bool cmatrixSource = false;
  bool cmatrixInitVal = true;
};

}  // namespace AscendC

namespace ascendc_twin {

// The edges between M and FIX that unitFlag gives instead of event flags.
struct UnitTokens {
  Token to_fix, to_m;
};
inline UnitTokens& UnitFlags() {
  static thread_local UnitTokens tokens;
  return tokens;
}

// The element types of one Mmad, and how many k steps of it a cycle takes.
template <typename C, typename A, typename B>
constexpr int CubeDepth() {
  if (!std::is_same<A, B>::value) return 0;
  if (std::is_same<A, int8_t>::value) return std::is_same<C, int32_t>::value ? 32 : 0;
  if (!std::is_same<C, float>::value) return 0;
  if (std::is_same<A, half>::value || std::is_same<A, bfloat16_t>::value) return 16;
  return std::is_same<A, float>::value ? 4 : 0;
}

inline uint32_t Up16(uint32_t x) { return (x + 15) / 16; }

// Whether the twin has a product of these types.
template <typename C, typename A, typename B>
bool CheckProduct(Instruction& instruction) {
  if constexpr (std::is_same<A, AscendC::int4b_t>::value) {
    instruction.Refuse("unsupported", "products of int4b_t are not modelled");
    return false;
  } else if constexpr (CubeDepth<C, A, B>() == 0) {
    instruction.Refuse("dtype", "Atlas A2 has no Mmad of these types");
    return false;
  }
  return true;
}

template <typename C, typename A, typename B>
void RunMmad(Instruction& instruction, const LocalTensor<C>& dst, const LocalTensor<A>& fm,
             const LocalTensor<B>& filter, const Operand* bias, const AscendC::MmadParams& p) {
  using S = std::conditional_t<std::is_same<C, float>::value, float, int32_t>;
  if (p.m > 4095 || p.n > 4095 || p.k > 4095)
    instruction.Report("field-range", "m, n and k go up to 4095");
  if (p.m == 0 || p.n == 0 || p.k == 0) return;
  if (p.unitFlag == 1 || p.unitFlag > 3) instruction.Report("field-range", "unitFlag is 0, 2 or 3");
  const Operand a = Use(instruction, fm, "fm", {Hardware::L0A}, kFractal);
  const Operand b = Use(instruction, filter, "filter", {Hardware::L0B}, kFractal);
  const Operand c = Use(instruction, dst, "dst", {Hardware::L0C}, 1024);
  const Operand offset = bias ? *bias : Operand();
  constexpr uint32_t c0 = kBlock / sizeof(A);
  const uint32_t m = p.m, n = p.n, k = p.k;
  const uint32_t k1 = p.kDirectionAlign && sizeof(A) == 4 ? Up16(k) * 2 : (k + c0 - 1) / c0;
  const uint32_t m1 = Up16(m), n1 = Up16(n);
  const bool gemv = m == 1;
  const auto at_a = [=](uint32_t row, uint32_t column) -> uint64_t {
    if (gemv) return column * sizeof(A);
    return ((row / 16 * k1 + column / c0) * 16 * c0 + row % 16 * c0 + column % c0) * sizeof(A);
  };
  const auto at_b = [=](uint32_t depth, uint32_t column) -> uint64_t {
    return ((depth / c0 * n1 + column / 16) * 16 * c0 + column % 16 * c0 + depth % c0) * sizeof(B);
  };
  const auto at_c = [=](uint32_t row, uint32_t column) -> uint64_t {
    return ((column / 16 * m1 + row / 16) * 256 + row % 16 * 16 + column % 16) * sizeof(C);
  };
  for (uint32_t row = 0; row < m; ++row)
    for (uint32_t column = 0; column < k; column += c0)
      Touch(instruction, a, at_a(row, column), std::min(c0, k - column) * sizeof(A), Kind::kRead);
  for (uint32_t depth = 0; depth < k; depth += c0)
    for (uint32_t column = 0; column < n; ++column)
      Touch(instruction, b, at_b(depth, column), std::min(c0, k - depth) * sizeof(B), Kind::kRead);
  const bool from_bias = bias != nullptr;
  const bool accumulate = !from_bias && !p.cmatrixInitVal;
  for (uint32_t column = 0; column < n; column += 16)
    for (uint32_t row = 0; row < m; ++row) {
      const uint64_t length = std::min(16u, n - column) * sizeof(C);
      if (accumulate) Touch(instruction, c, at_c(row, column), length, Kind::kRead);
    }
  for (uint32_t column = 0; column < n; column += 16)
    for (uint32_t row = 0; row < m; ++row)
      Touch(instruction, c, at_c(row, column), std::min(16u, n - column) * sizeof(C), Kind::kWrite);
  if (from_bias) Touch(instruction, offset, 0, n * sizeof(C), Kind::kRead);
  instruction.core->macs += static_cast<uint64_t>(m) * n * k;
  CountElements(instruction, static_cast<uint64_t>(m) * n);
  // Below this size the hardware does not order one Mmad after another on the same L0C.
  instruction.in_order = (m / 16) * (n / 16) >= 10;
  if (p.unitFlag && !UnitFlags().to_m.clock.empty()) {
    Acquire(instruction.core, kM, UnitFlags().to_m);
    UnitFlags().to_m = Token();
  }
  const double cycles =
      static_cast<double>(m1) * n1 * ((k + 15) / 16 * 16.0 / CubeDepth<C, A, B>());
  Launch* launch = instruction.core->launch;
  const Core* core = instruction.core;
  const char* call = instruction.call;
  const Loc loc = instruction.loc;
  Issue(instruction, cycles, [=] {
    std::vector<S> left(static_cast<size_t>(m) * k), right(static_cast<size_t>(k) * n);
    for (uint32_t row = 0; row < m; ++row)
      for (uint32_t depth = 0; depth < k; ++depth) {
        A value;
        std::memcpy(&value, a.data() + at_a(row, depth), sizeof(A));
        left[row * k + depth] = static_cast<S>(value);
      }
    for (uint32_t depth = 0; depth < k; ++depth)
      for (uint32_t column = 0; column < n; ++column) {
        B value;
        std::memcpy(&value, b.data() + at_b(depth, column), sizeof(B));
        right[depth * n + column] = static_cast<S>(value);
      }
    std::vector<S> sums(n);
    bool broken = false;
    for (uint32_t row = 0; row < m; ++row) {
      for (uint32_t column = 0; column < n; ++column) {
        sums[column] = 0;
        if (from_bias) std::memcpy(&sums[column], offset.data() + column * sizeof(C), sizeof(C));
        if (accumulate) std::memcpy(&sums[column], c.data() + at_c(row, column), sizeof(C));
      }
      for (uint32_t depth = 0; depth < k; ++depth) {
        const S factor = left[row * k + depth];
        const S* line = &right[static_cast<size_t>(depth) * n];
        for (uint32_t column = 0; column < n; ++column) sums[column] += factor * line[column];
      }
      for (uint32_t column = 0; column < n; ++column) {
        broken |= !Finite(sums[column]);
        std::memcpy(c.data() + at_c(row, column), &sums[column], sizeof(C));
      }
    }
    if (broken)
      launch->Report(core, call, loc, "non-finite", "a product has an infinity or NaN in it");
  });
  if (p.unitFlag == 3) UnitFlags().to_fix = Release(instruction.core, kM, 0);
}

}  // namespace ascendc_twin

namespace AscendC {

// With cmatrixSource the product starts from the bias table's first numbers.
template <typename T, typename U, typename S>
void Mmad(const LocalTensor<T>& dst, const LocalTensor<U>& fm, const LocalTensor<S>& filter,
          const MmadParams& params, Loc loc = Loc::Here()) {
  ascendc_twin::Instruction instruction(ascendc_twin::kM, "Mmad", loc);
  if (!ascendc_twin::CheckProduct<T, U, S>(instruction)) return;
  ascendc_twin::Operand table;
  table.space = instruction.core->Memory(Hardware::BIAS);
  table.end = table.space ? static_cast<uint32_t>(table.space->size) : 0;
  const bool from_table = params.cmatrixSource && !params.cmatrixInitVal;
  if constexpr (ascendc_twin::CubeDepth<T, U, S>() != 0)
    ascendc_twin::RunMmad(instruction, dst, fm, filter, from_table ? &table : nullptr, params);
}

template <typename T, typename U, typename S, typename V>
void Mmad(const LocalTensor<T>& dst, const LocalTensor<U>& fm, const LocalTensor<S>& filter,
          const LocalTensor<V>& bias, const MmadParams& params, Loc loc = Loc::Here()) {
  ascendc_twin::Instruction instruction(ascendc_twin::kM, "Mmad", loc);
  if (GetPhyType(bias.position()) == Hardware::L0C) {
    instruction.Refuse("unsupported", "a bias in L0C is not modelled");
    return;
  }
  if (!ascendc_twin::CheckProduct<T, U, S>(instruction)) return;
  const ascendc_twin::Operand table =
      ascendc_twin::Use(instruction, bias, "bias", {Hardware::BIAS}, 64);
  if constexpr (ascendc_twin::CubeDepth<T, U, S>() != 0)
    ascendc_twin::RunMmad(instruction, dst, fm, filter, &table, params);
}

inline void SetHF32Mode(bool) { ascendc_twin::Unchecked("SetHF32Mode"); }
inline void SetHF32TransMode(bool) { ascendc_twin::Unchecked("SetHF32TransMode"); }
inline void SetMMLayoutTransform(bool) { ascendc_twin::Unchecked("SetMMLayoutTransform"); }

}  // namespace AscendC
