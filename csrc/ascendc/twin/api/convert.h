// Cast, Duplicate, Copy, Brcb, CreateVecIndex, Transpose, TransDataTo5HD.
#pragma once

#include "arithmetic.h"

namespace AscendC {

struct BrcbRepeatParams {
  BrcbRepeatParams() {}
  BrcbRepeatParams(ascendc_twin::Field16 block, ascendc_twin::Field16 repeat)
      : dstRepStride(repeat), dstBlkStride(block) {}
  uint32_t blockNumber = DEFAULT_BLK_NUM;
  ascendc_twin::Field16 dstRepStride = 8;
  ascendc_twin::Field16 dstBlkStride = 1;
};

struct TransDataTo5HDParams {
  TransDataTo5HDParams() {}
  TransDataTo5HDParams(bool dst_high, bool src_high, ascendc_twin::Field8 repeat,
                       ascendc_twin::Field16 dst, ascendc_twin::Field16 src)
      : dstHighHalf(dst_high),
        srcHighHalf(src_high),
        repeatTimes(repeat),
        dstRepStride(dst),
        srcRepStride(src) {}
  bool dstHighHalf = false;
  bool srcHighHalf = false;
  ascendc_twin::Field8 repeatTimes = 1;
  ascendc_twin::Field16 dstRepStride = 0;
  ascendc_twin::Field16 srcRepStride = 0;
};

}  // namespace AscendC

namespace ascendc_twin {

// `to` for a value in `from`, by the mode. Integers saturate.
template <typename To, typename From>
To Convert(From from, Rounding mode) {
  if constexpr (std::is_same<To, From>::value && std::is_same<To, float>::value) {
    return std::fabs(from) < 8388608.0f ? static_cast<float>(RoundInteger(from, mode)) : from;
  } else if constexpr (std::is_same<To, half>::value) {
    if (mode == Rounding::kNone || mode == Rounding::kRint) return half(static_cast<float>(from));
    return half(static_cast<float>(RoundToFormat(static_cast<double>(from), 10, -14, 65504, mode)));
  } else if constexpr (std::is_same<To, bfloat16_t>::value) {
    if (mode == Rounding::kNone || mode == Rounding::kRint)
      return bfloat16_t(static_cast<float>(from));
    return bfloat16_t(static_cast<float>(
        RoundToFormat(static_cast<double>(from), 7, -126, 3.3895313892515355e38, mode)));
  } else if constexpr (std::is_same<To, float>::value) {
    if constexpr (std::is_integral<From>::value) {
      if (mode == Rounding::kNone || mode == Rounding::kRint) return static_cast<float>(from);
      return static_cast<float>(
          RoundToFormat(static_cast<double>(from), 23, -126, 3.4028234663852886e38, mode));
    } else {
      return static_cast<float>(from);
    }
  } else if constexpr (std::is_integral<From>::value) {
    const int64_t wide = static_cast<int64_t>(from);
    const int64_t low = std::numeric_limits<To>::min();
    const int64_t high = std::numeric_limits<To>::max();
    return static_cast<To>(wide < low ? low : wide > high ? high : wide);
  } else {
    const double x = static_cast<double>(static_cast<float>(from));
    if (std::isnan(x)) return To(0);
    const double low = static_cast<double>(std::numeric_limits<To>::min());
    const double high = static_cast<double>(std::numeric_limits<To>::max());
    if (x <= low) return std::numeric_limits<To>::min();
    if (x >= high) return std::numeric_limits<To>::max();
    const double rounded = RoundInteger(x, mode);
    return rounded >= high ? std::numeric_limits<To>::max() : static_cast<To>(rounded);
  }
}

// A bit per RoundMode (CAST_NONE first) that a conversion takes; 0 where there is none.
template <typename To, typename From>
constexpr uint32_t CastModes() {
  constexpr uint32_t none = 1, rounds = 0x3e, odd = 0x40;
  using std::is_same;
  if (is_same<From, half>::value) {
    if (is_same<To, float>::value) return none;
    if (is_same<To, int32_t>::value || is_same<To, int16_t>::value) return rounds;
    if (is_same<To, int8_t>::value || is_same<To, uint8_t>::value) return none | rounds;
  }
  if (is_same<From, bfloat16_t>::value) {
    if (is_same<To, float>::value) return none;
    if (is_same<To, int32_t>::value) return rounds;
  }
  if (is_same<From, float>::value) {
    if (is_same<To, half>::value) return none | rounds | odd;
    if (is_same<To, bfloat16_t>::value || is_same<To, int32_t>::value ||
        is_same<To, int16_t>::value || is_same<To, int64_t>::value || is_same<To, float>::value)
      return rounds;
  }
  if (is_same<From, int16_t>::value) {
    if (is_same<To, half>::value) return none | rounds;
    if (is_same<To, float>::value) return none;
  }
  if (is_same<From, int32_t>::value) {
    if (is_same<To, float>::value) return none | rounds;
    if (is_same<To, int16_t>::value || is_same<To, int64_t>::value || is_same<To, half>::value)
      return none;
  }
  if (is_same<From, int64_t>::value) {
    if (is_same<To, int32_t>::value) return none;
    if (is_same<To, float>::value) return rounds;
  }
  if ((is_same<From, int8_t>::value || is_same<From, uint8_t>::value) && is_same<To, half>::value)
    return none;
  return 0;
}

template <typename T, typename U>
Rounding CheckCast(Loc loc, AscendC::RoundMode mode) {
  const Instruction instruction(kV, "Cast", loc);
  if (CastModes<T, U>() == 0)
    instruction.Report("dtype", "Atlas A2 has no Cast between these two types");
  else if (!(CastModes<T, U>() >> static_cast<int>(mode) & 1))
    instruction.Report("round-mode", "RoundMode " + std::to_string(static_cast<int>(mode)) +
                                         " is not among those of this Cast");
  return static_cast<Rounding>(mode);
}

}  // namespace ascendc_twin

namespace AscendC {

template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode,
          const uint32_t count, Loc loc = Loc::Here()) {
  const ascendc_twin::Rounding mode = ascendc_twin::CheckCast<T, U>(loc, roundMode);
  ascendc_twin::Unary("Cast", loc, dst, src, count, ascendc_twin::VectorRate::kFull,
                      [mode](U a, T) { return ascendc_twin::Convert<T, U>(a, mode); });
}
template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode,
          const uint64_t mask, ascendc_twin::Field8 repeatTime,
          const UnaryRepeatParams& repeatParams, Loc loc = Loc::Here()) {
  const ascendc_twin::Rounding mode = ascendc_twin::CheckCast<T, U>(loc, roundMode);
  ascendc_twin::Unary("Cast", loc, dst, src, mask, isSetMask, repeatTime, repeatParams,
                      ascendc_twin::VectorRate::kFull,
                      [mode](U a, T) { return ascendc_twin::Convert<T, U>(a, mode); });
}
template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode,
          const uint64_t mask[], ascendc_twin::Field8 repeatTime,
          const UnaryRepeatParams& repeatParams, Loc loc = Loc::Here()) {
  const ascendc_twin::Rounding mode = ascendc_twin::CheckCast<T, U>(loc, roundMode);
  ascendc_twin::Unary("Cast", loc, dst, src, mask, isSetMask, repeatTime, repeatParams,
                      ascendc_twin::VectorRate::kFull,
                      [mode](U a, T) { return ascendc_twin::Convert<T, U>(a, mode); });
}

}  // namespace AscendC

namespace ascendc_twin {

template <typename T, typename F>
void Generate(Instruction& instruction, const Lanes& lanes, const VectorOperand& dst, F value) {
  TouchLanes(instruction, dst, lanes, Kind::kWrite);
  CountElements(instruction, LiveCount(lanes));
  Issue(instruction, VectorCycles(VectorRate::kFull, lanes.repeats, lanes.lanes), [=] {
    uint64_t index = 0;
    ForLanes(lanes, [&](uint32_t r, uint32_t lane) { dst.Store<T>(r, lane, value(index++)); });
  });
}

}  // namespace ascendc_twin

namespace AscendC {

template <typename T>
void Duplicate(const LocalTensor<T>& dst, const T& scalar, const int32_t& count,
               Loc loc = Loc::Here()) {
  ascendc_twin::Instruction instruction(ascendc_twin::kV, "Duplicate", loc);
  const ascendc_twin::Lanes lanes = ascendc_twin::CountLanes(instruction, count, sizeof(T));
  const auto d = ascendc_twin::UseVector(instruction, dst, "dst", lanes);
  ascendc_twin::Generate<T>(instruction, lanes, d, [scalar](uint64_t) { return scalar; });
}
template <typename T, bool isSetMask = true>
void Duplicate(const LocalTensor<T>& dst, const T& scalar, uint64_t mask,
               ascendc_twin::Field8 repeatTime, ascendc_twin::Field16 dstBlockStride,
               ascendc_twin::Field8 dstRepeatStride, Loc loc = Loc::Here()) {
  ascendc_twin::Instruction instruction(ascendc_twin::kV, "Duplicate", loc);
  const auto lanes = ascendc_twin::MaskLanes(instruction, mask, repeatTime, sizeof(T), isSetMask);
  const auto d = ascendc_twin::UseVector(instruction, dst, "dst", dstBlockStride, dstRepeatStride);
  ascendc_twin::Generate<T>(instruction, lanes, d, [scalar](uint64_t) { return scalar; });
}
template <typename T, bool isSetMask = true>
void Duplicate(const LocalTensor<T>& dst, const T& scalar, const uint64_t mask[],
               ascendc_twin::Field8 repeatTime, ascendc_twin::Field16 dstBlockStride,
               ascendc_twin::Field8 dstRepeatStride, Loc loc = Loc::Here()) {
  ascendc_twin::Instruction instruction(ascendc_twin::kV, "Duplicate", loc);
  const auto lanes = ascendc_twin::MaskLanes(instruction, mask, repeatTime, sizeof(T), isSetMask);
  const auto d = ascendc_twin::UseVector(instruction, dst, "dst", dstBlockStride, dstRepeatStride);
  ascendc_twin::Generate<T>(instruction, lanes, d, [scalar](uint64_t) { return scalar; });
}

template <typename T>
void CreateVecIndex(LocalTensor<T> dst, const T& first, uint32_t count, Loc loc = Loc::Here()) {
  ascendc_twin::Instruction instruction(ascendc_twin::kV, "CreateVecIndex", loc);
  const ascendc_twin::Lanes lanes = ascendc_twin::CountLanes(instruction, count, sizeof(T));
  const auto d = ascendc_twin::UseVector(instruction, dst, "dst", lanes);
  ascendc_twin::Generate<T>(instruction, lanes, d, [first](uint64_t index) {
    return static_cast<T>(static_cast<float>(first) + static_cast<float>(index));
  });
}

template <typename T, bool isSetMask = true>
void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask,
          ascendc_twin::Field8 repeatTime, const CopyRepeatParams& p, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Copy", loc);
  const Lanes lanes = MaskLanes(instruction, mask, repeatTime, sizeof(T), isSetMask);
  const auto d = UseVector(instruction, dst, "dst", p.dstStride, p.dstRepeatSize);
  const auto s = UseVector(instruction, src, "src", p.srcStride, p.srcRepeatSize);
  RunUnary<T, T>(instruction, lanes, d, s, VectorRate::kFull, [](T a, T) { return a; });
}
template <typename T, bool isSetMask = true>
void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask[],
          ascendc_twin::Field8 repeatTime, const CopyRepeatParams& p, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Copy", loc);
  const Lanes lanes = MaskLanes(instruction, mask, repeatTime, sizeof(T), isSetMask);
  const auto d = UseVector(instruction, dst, "dst", p.dstStride, p.dstRepeatSize);
  const auto s = UseVector(instruction, src, "src", p.srcStride, p.srcRepeatSize);
  RunUnary<T, T>(instruction, lanes, d, s, VectorRate::kFull, [](T a, T) { return a; });
}

// Each of 8 elements per repeat fills one block.
template <typename T>
void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, ascendc_twin::Field8 repeatTime,
          const BrcbRepeatParams& p, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Brcb", loc);
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB});
  const Operand from = Use(instruction, src, "src", {Hardware::UB});
  const BrcbRepeatParams params = p;
  for (uint32_t r = 0; r < repeatTime; ++r) {
    Touch(instruction, from, r * 8 * sizeof(T), 8 * sizeof(T), Kind::kRead);
    for (uint32_t b = 0; b < 8; ++b)
      Touch(instruction, to,
            (r * uint64_t(params.dstRepStride) + b * uint64_t(params.dstBlkStride)) * kBlock,
            kBlock, Kind::kWrite);
  }
  CountElements(instruction, repeatTime * 256ull / sizeof(T));
  Issue(instruction, VectorCycles(VectorRate::kFull, repeatTime, LanesOf(sizeof(T))), [=] {
    for (uint32_t r = 0; r < repeatTime; ++r)
      for (uint32_t b = 0; b < 8; ++b) {
        T value;
        std::memcpy(&value, from.data() + (r * 8 + b) * sizeof(T), sizeof(T));
        uint8_t* block =
            to.data() +
            (r * uint64_t(params.dstRepStride) + b * uint64_t(params.dstBlkStride)) * kBlock;
        for (uint32_t i = 0; i < kBlock / sizeof(T); ++i)
          std::memcpy(block + i * sizeof(T), &value, sizeof(T));
      }
  });
}

// A 16x16 matrix of 16-bit elements.
template <typename T>
void Transpose(const LocalTensor<T>& dst, const LocalTensor<T>& src, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  static_assert(sizeof(T) == 2, "Transpose works on a 16x16 matrix of 16-bit elements");
  Instruction instruction(kV, "Transpose", loc);
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB});
  const Operand from = Use(instruction, src, "src", {Hardware::UB});
  Touch(instruction, from, 0, 512, Kind::kRead);
  Touch(instruction, to, 0, 512, Kind::kWrite);
  CountElements(instruction, 256);
  Issue(instruction, 2, [=] {
    uint16_t in[256], out[256];
    std::memcpy(in, from.data(), 512);
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 16; ++j) out[j * 16 + i] = in[i * 16 + j];
    std::memcpy(to.data(), out, 512);
  });
}

// 16 rows of one block each become, per repeat, the columns of 16 (16-bit) or 8 (32-bit) rows.
template <typename T>
void TransDataTo5HD(const LocalTensor<T> (&dstList)[16], const LocalTensor<T> (&srcList)[16],
                    const TransDataTo5HDParams& p, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "16- and 32-bit elements");
  Instruction instruction(kV, "TransDataTo5HD", loc);
  struct Lists {
    Operand dst[16], src[16];
  } lists;
  for (int i = 0; i < 16; ++i) {
    lists.dst[i] = Use(instruction, dstList[i], "dst", {Hardware::UB});
    lists.src[i] = Use(instruction, srcList[i], "src", {Hardware::UB});
  }
  const TransDataTo5HDParams params = p;
  const uint32_t columns = kBlock / sizeof(T);
  for (uint32_t r = 0; r < params.repeatTimes; ++r)
    for (int i = 0; i < 16; ++i) {
      Touch(instruction, lists.src[i], r * uint64_t(params.srcRepStride) * kBlock, kBlock,
            Kind::kRead);
      Touch(instruction, lists.dst[i], r * uint64_t(params.dstRepStride) * kBlock, kBlock,
            Kind::kWrite);
    }
  CountElements(instruction, params.repeatTimes * 16ull * columns);
  Issue(instruction, params.repeatTimes * 2.0 * sizeof(T) / 2, [=] {
    for (uint32_t r = 0; r < params.repeatTimes; ++r) {
      T in[16][16], out[16][16];
      for (int i = 0; i < 16; ++i)
        std::memcpy(in[i], lists.src[i].data() + r * uint64_t(params.srcRepStride) * kBlock,
                    kBlock);
      // 32-bit: each of the 8 columns takes two destination rows of 8.
      for (uint32_t i = 0; i < 16; ++i)
        for (uint32_t j = 0; j < columns; ++j) {
          if (sizeof(T) == 2)
            out[j][i] = in[i][j];
          else
            out[2 * j + i / 8][i % 8] = in[i][j];
        }
      for (int i = 0; i < 16; ++i)
        std::memcpy(lists.dst[i].data() + r * uint64_t(params.dstRepStride) * kBlock, out[i],
                    kBlock);
    }
  });
}

}  // namespace AscendC
