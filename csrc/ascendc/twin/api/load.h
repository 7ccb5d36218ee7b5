// LoadData in its forms, from L1 into L0A and L0B, and InitConstValue.
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

namespace AscendC {

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

}  // namespace AscendC
