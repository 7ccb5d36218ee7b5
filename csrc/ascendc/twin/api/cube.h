// The cube core: LoadData from L1 into L0A and L0B, and Mmad.
#pragma once

#include "arithmetic.h"

namespace AscendC {

struct LoadData2DParams {
  LoadData2DParams() {}
  LoadData2DParams(ascendc_twin::Field16 start, ascendc_twin::Field8 repeats,
                   ascendc_twin::Field16 src, ascendc_twin::Field8 sid_, ascendc_twin::Field16 gap,
                   bool transpose, ascendc_twin::Field8 mode)
      : startIndex(start),
        dstGap(gap),
        srcStride(src),
        ifTranspose(transpose),
        repeatTimes(repeats),
        sid(sid_),
        addrMode(mode) {}
  ascendc_twin::Field16 startIndex = 0;
  ascendc_twin::Field16 dstGap = 0;
  ascendc_twin::Field16 srcStride = 0;
  bool ifTranspose = false;
  ascendc_twin::Field8 repeatTimes = 0;
  ascendc_twin::Field8 sid = 0;
  ascendc_twin::Field8 addrMode = 0;
};
using LoadData2dParams = LoadData2DParams;

struct LoadData2dTransposeParams {
  LoadData2dTransposeParams() {}
  LoadData2dTransposeParams(ascendc_twin::Field16 start, ascendc_twin::Field8 repeats,
                            ascendc_twin::Field16 src, ascendc_twin::Field16 gap,
                            ascendc_twin::Field16 fractal_gap, ascendc_twin::Field8 mode = 0)
      : startIndex(start),
        repeatTimes(repeats),
        srcStride(src),
        dstGap(gap),
        dstFracGap(fractal_gap),
        addrMode(mode) {}
  ascendc_twin::Field16 startIndex = 0;
  ascendc_twin::Field8 repeatTimes = 0;
  ascendc_twin::Field16 srcStride = 0;
  ascendc_twin::Field16 dstGap = 0;
  ascendc_twin::Field16 dstFracGap = 0;
  ascendc_twin::Field8 addrMode = 0;
};

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

template <typename T>
struct InitConstValueParams {
  InitConstValueParams() {}
  InitConstValueParams(ascendc_twin::Field16 repeats, ascendc_twin::Field16 blocks,
                       ascendc_twin::Field16 gap, T value)
      : repeatTimes(repeats), blockNum(blocks), dstGap(gap), initValue(value) {}
  InitConstValueParams(ascendc_twin::Field16 repeats, T value)
      : repeatTimes(repeats), initValue(value) {}
  ascendc_twin::Field16 repeatTimes = 0;
  ascendc_twin::Field16 blockNum = 0;
  ascendc_twin::Field16 dstGap = 0;
  T initValue = T(0);
};

}  // namespace AscendC

namespace ascendc_twin {

constexpr uint32_t kFractal = 512;
// The edges between M and FIX that unitFlag gives instead of event flags.
struct UnitTokens {
  Token to_fix, to_m;
};
inline UnitTokens& UnitFlags() {
  static thread_local UnitTokens tokens;
  return tokens;
}

// A move of pieces that carries validity along: `move(f)` calls f(dst offset, src offset, length).
template <typename From, typename Move>
void RunMove(Instruction& instruction, const Operand& to, const From& from, double cycles,
             Move move) {
  move([&](uint64_t dst, uint64_t src, uint64_t length) {
    Touch(instruction, from, src, length, Kind::kRead);
    Touch(instruction, to, dst, length, Kind::kWrite);
  });
  for (Range& range : instruction.ranges) range.carry = true;
  bool inside = instruction.runnable;
  for (const Range& range : instruction.ranges)
    inside &= range.offset + range.length <= range.space->size;
  if (inside)
    move([&](uint64_t dst, uint64_t src, uint64_t length) {
      uint8_t* target = to.space->valid.data() + (to.data() - to.space->data) + dst;
      const uint8_t* source = from.space->valid.data() + (from.data() - from.space->data) + src;
      std::memmove(target, source, length);
    });
  Issue(instruction, cycles, [=] {
    move([&](uint64_t dst, uint64_t src, uint64_t length) {
      std::memmove(to.data() + dst, from.data() + src, length);
    });
  });
}

inline void Touch(Instruction& instruction, const GlobalOperand& operand, uint64_t offset,
                  uint64_t length, Kind kind, bool) {
  Touch(instruction, operand, offset, length, kind);
}

template <typename T, typename From>
void LoadFractals(Instruction& instruction, const LocalTensor<T>& dst, const From& from,
                  const AscendC::LoadData2DParams& p, uint64_t& bytes) {
  const Operand to = Use(instruction, dst, "dst", {Hardware::L0A, Hardware::L0B, Hardware::L1},
                         AscendC::GetPhyType(dst.position()) == Hardware::L1 ? kBlock : kFractal);
  const bool b = AscendC::GetPhyType(dst.position()) == Hardware::L0B;
  bytes = p.repeatTimes * uint64_t(kFractal);
  Count(instruction, b ? "L1->L0B" : "L1->L0A", bytes);
  CountElements(instruction, bytes / sizeof(T));
  if (p.ifTranspose && sizeof(T) != 2)
    instruction.Refuse("dtype", "ifTranspose works on 16-bit elements");
  const AscendC::LoadData2DParams params = p;
  const auto source_of = [params](uint32_t i) {
    const int64_t step = static_cast<int64_t>(i) * params.srcStride;
    return static_cast<uint64_t>((params.startIndex + (params.addrMode ? -step : step)) *
                                 int64_t(kFractal));
  };
  RunMove(instruction, to, from, bytes / (b ? 128.0 : 256.0), [=](auto&& move) {
    for (uint32_t i = 0; i < params.repeatTimes; ++i) {
      const uint64_t src = source_of(i), at = i * uint64_t(params.dstGap + 1) * kFractal;
      if (!params.ifTranspose) {
        move(at, src, kFractal);
        continue;
      }
      for (uint32_t row = 0; row < 16; ++row)
        for (uint32_t column = 0; column < 16; ++column)
          move(at + (row * 16 + column) * 2, src + (column * 16 + row) * 2, 2);
    }
  });
}

}  // namespace ascendc_twin

namespace AscendC {

template <typename T>
void LoadData(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LoadData2DParams& params,
              Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte1, "LoadData", loc);
  const Operand from = Use(instruction, src, "src", {Hardware::L1});
  uint64_t bytes;
  LoadFractals(instruction, dst, from, params, bytes);
}
template <typename T>
void LoadData(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const LoadData2DParams& params,
              Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte2, "LoadData", loc);
  const GlobalOperand from = Use(instruction, src, "src");
  uint64_t bytes;
  LoadFractals(instruction, dst, from, params, bytes);
}

// Squares of 16x16 (16- and 32-bit) or 32x32 (8-bit) elements, transposed.
template <typename T>
void LoadDataWithTranspose(const LocalTensor<T>& dst, const LocalTensor<T>& src,
                           const LoadData2dTransposeParams& params, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte1, "LoadDataWithTranspose", loc);
  const Operand from = Use(instruction, src, "src", {Hardware::L1});
  const Operand to = Use(instruction, dst, "dst", {Hardware::L0A, Hardware::L0B}, kFractal);
  constexpr uint32_t side = sizeof(T) == 1 ? 32 : 16;
  constexpr uint32_t c0 = kBlock / sizeof(T);
  constexpr uint64_t square = side * side * sizeof(T);
  const LoadData2dTransposeParams p = params;
  const uint64_t bytes = p.repeatTimes * square;
  const bool b = GetPhyType(dst.position()) == Hardware::L0B;
  Count(instruction, b ? "L1->L0B" : "L1->L0A", bytes);
  CountElements(instruction, bytes / sizeof(T));
  RunMove(instruction, to, from, bytes / (b ? 128.0 : 256.0), [=](auto&& move) {
    for (uint32_t i = 0; i < p.repeatTimes; ++i) {
      const int64_t step = static_cast<int64_t>(i) * p.srcStride;
      const uint64_t in = (p.startIndex + (p.addrMode ? -step : step)) * square;
      const uint64_t out = i * uint64_t(p.dstGap + 1) * kFractal;
      for (uint32_t row = 0; row < side; ++row)
        for (uint32_t column = 0; column < side; ++column) {
          // Target: element (row, column) of the transposed square, in fractals of 16 x c0.
          const uint32_t part = sizeof(T) == 1 ? row / 16 : column / c0;
          const uint32_t inner =
              sizeof(T) == 1 ? (row % 16) * c0 + column : (row % 16) * c0 + column % c0;
          const uint64_t target =
              out + part * uint64_t(p.dstFracGap + 1) * kFractal + inner * sizeof(T);
          // Source: element (column, row) of the square, laid out as its fractals follow.
          const uint32_t from_part = sizeof(T) == 1 ? column / 16 : row / c0;
          const uint32_t from_inner =
              sizeof(T) == 1 ? (column % 16) * c0 + row : column * c0 + row % c0;
          const uint64_t source = in + from_part * uint64_t(kFractal) + from_inner * sizeof(T);
          move(target, source, sizeof(T));
        }
    }
  });
}

}  // namespace AscendC

namespace ascendc_twin {

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

template <typename C, typename A, typename B>
void RunMmad(Instruction& instruction, const LocalTensor<C>& dst, const LocalTensor<A>& fm,
             const LocalTensor<B>& filter, const LocalTensor<float>* bias,
             const AscendC::MmadParams& p) {
  using S = std::conditional_t<std::is_same<C, float>::value, float, int32_t>;
  if (CubeDepth<C, A, B>() == 0) {
    instruction.Refuse("dtype", "Atlas A2 has no Mmad of these types");
    return;
  }
  if (p.m > 4095 || p.n > 4095 || p.k > 4095)
    instruction.Report("field-range", "m, n and k go up to 4095");
  if (p.m == 0 || p.n == 0 || p.k == 0) return;
  if (p.unitFlag == 1 || p.unitFlag > 3) instruction.Report("field-range", "unitFlag is 0, 2 or 3");
  const Operand a = Use(instruction, fm, "fm", {Hardware::L0A}, kFractal);
  const Operand b = Use(instruction, filter, "filter", {Hardware::L0B}, kFractal);
  const Operand c = Use(instruction, dst, "dst", {Hardware::L0C}, 1024);
  Operand offset;
  if (bias) offset = Use(instruction, *bias, "bias", {Hardware::BIAS}, 64);
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

template <typename T, typename U, typename S>
void Mmad(const LocalTensor<T>& dst, const LocalTensor<U>& fm, const LocalTensor<S>& filter,
          const MmadParams& params, Loc loc = Loc::Here()) {
  ascendc_twin::Instruction instruction(ascendc_twin::kM, "Mmad", loc);
  if (params.cmatrixSource)
    instruction.Report("field-range", "cmatrixSource names the bias table, and no bias was given");
  ascendc_twin::RunMmad(instruction, dst, fm, filter, nullptr, params);
}

template <typename T, typename U, typename S, typename V>
void Mmad(const LocalTensor<T>& dst, const LocalTensor<U>& fm, const LocalTensor<S>& filter,
          const LocalTensor<V>& bias, const MmadParams& params, Loc loc = Loc::Here()) {
  ascendc_twin::Instruction instruction(ascendc_twin::kM, "Mmad", loc);
  if (GetPhyType(bias.position()) == Hardware::L0C) {
    ascendc_twin::Instruction copy(ascendc_twin::kM, "Mmad", loc);
    copy.Report("unsupported", "a bias in L0C is not modelled");
  }
  const LocalTensor<float> table = bias.template ReinterpretCast<float>();
  ascendc_twin::RunMmad(instruction, dst, fm, filter, &table, params);
}

// Fills L0A, L0B or L1 with a value: blocks of 512 bytes (32 in L1) with gaps between repeats.
template <typename T>
void InitConstValue(const LocalTensor<T>& dst, const InitConstValueParams<T>& params,
                    Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  const bool l1 = GetPhyType(dst.position()) == Hardware::L1;
  Instruction instruction(l1 ? kMte2 : kMte1, "InitConstValue", loc);
  const Operand to = Use(instruction, dst, "dst", {Hardware::L0A, Hardware::L0B, Hardware::L1},
                         l1 ? kBlock : kFractal);
  const uint64_t unit = l1 ? kBlock : kFractal;
  const InitConstValueParams<T> p = params;
  const uint64_t length = (p.blockNum ? uint64_t(p.blockNum) : 1) * unit;
  const uint64_t step = length + p.dstGap * unit;
  for (uint32_t i = 0; i < p.repeatTimes; ++i)
    Touch(instruction, to, i * step, length, Kind::kWrite);
  CountElements(instruction, p.repeatTimes * length / sizeof(T));
  Issue(instruction, p.repeatTimes * length / 256.0, [=] {
    for (uint32_t i = 0; i < p.repeatTimes; ++i)
      for (uint64_t at = 0; at < length; at += sizeof(T))
        std::memcpy(to.data() + i * step + at, &p.initValue, sizeof(T));
  });
}
template <typename T>
void Fill(const LocalTensor<T>& dst, const InitConstValueParams<T>& params, Loc loc = Loc::Here()) {
  InitConstValue(dst, params, loc);
}

inline void SetHF32Mode(bool) { ascendc_twin::Unchecked("SetHF32Mode"); }
inline void SetHF32TransMode(bool) { ascendc_twin::Unchecked("SetHF32TransMode"); }
inline void SetMMLayoutTransform(bool) { ascendc_twin::Unchecked("SetMMLayoutTransform"); }

}  // namespace AscendC
