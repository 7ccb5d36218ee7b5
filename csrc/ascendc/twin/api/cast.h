// Cast between all the types that Atlas A2 converts.
#pragma once

#include "arithmetic.h"

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
  if (is_same<From, half>::value && is_same<To, AscendC::int4b_t>::value) return none | rounds;
  if (is_same<From, AscendC::int4b_t>::value && is_same<To, half>::value) return none;
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

// Lanes count elements, and a byte of int4b_t has two.
template <typename T>
constexpr uint32_t CastWidth() {
  return std::is_same<T, AscendC::int4b_t>::value ? 1 : sizeof(T);
}

inline int SignedNibble(uint8_t pair, uint32_t index) {
  const int value = index % 2 ? pair >> 4 : pair & 15;
  return value < 8 ? value : value - 16;
}

inline bool PairsAreWhole(const Lanes& lanes) {
  for (uint32_t r = 0; r < lanes.repeats; ++r)
    if (lanes.Prefix(r) < 0 || lanes.Prefix(r) % 2) return false;
  return true;
}

// `packed` is the tensor of int4b_t, whose lanes are pairs: half as many, of one byte.
template <typename F>
void RunInt4(Instruction& instruction, const Lanes& lanes, const VectorOperand& packed,
             const VectorOperand& wide, bool narrows, F each) {
  if (!PairsAreWhole(lanes)) {
    instruction.Refuse("field-range", "int4b_t come in pairs");
    return;
  }
  TouchLanes(instruction, wide, lanes, narrows ? Kind::kRead : Kind::kWrite);
  for (uint32_t r = 0; r < lanes.repeats; ++r)
    for (int pair = 0; pair < lanes.Prefix(r) / 2; ++pair)
      Touch(instruction, packed.where, packed.Offset(r, pair), 1,
            narrows ? Kind::kWrite : Kind::kRead);
  CountElements(instruction, LiveCount(lanes));
  Issue(instruction, VectorCycles(VectorRate::kFull, lanes.repeats, lanes.lanes), [=] {
    for (uint32_t r = 0; r < lanes.repeats; ++r)
      for (int pair = 0; pair < lanes.Prefix(r) / 2; ++pair) each(r, pair);
  });
}

inline void NarrowToInt4(Instruction& instruction, const Lanes& lanes, const VectorOperand& dst,
                         const VectorOperand& src, Rounding mode) {
  RunInt4(instruction, lanes, dst, src, true, [=](uint32_t r, uint32_t pair) {
    uint8_t both = 0;
    for (uint32_t i = 0; i < 2; ++i) {
      const int value = Convert<int8_t, half>(src.Load<half>(r, 2 * pair + i), mode);
      both |= (std::max(-8, std::min(7, value)) & 15) << (4 * i);
    }
    dst.Store<uint8_t>(r, pair, both);
  });
}

inline void WidenInt4(Instruction& instruction, const Lanes& lanes, const VectorOperand& dst,
                      const VectorOperand& src) {
  RunInt4(instruction, lanes, src, dst, false, [=](uint32_t r, uint32_t pair) {
    const uint8_t both = src.Load<uint8_t>(r, pair);
    for (uint32_t i = 0; i < 2; ++i) dst.Store<half>(r, 2 * pair + i, half(SignedNibble(both, i)));
  });
}

template <typename T, typename U>
void RunCast(Instruction& instruction, const Lanes& lanes, const VectorOperand& dst,
             const VectorOperand& src, Rounding mode) {
  if constexpr (std::is_same<T, AscendC::int4b_t>::value)
    NarrowToInt4(instruction, lanes, dst, src, mode);
  else if constexpr (std::is_same<U, AscendC::int4b_t>::value)
    WidenInt4(instruction, lanes, dst, src);
  else
    RunUnary<T, U>(instruction, lanes, dst, src, VectorRate::kFull,
                   [mode](U a, T) { return Convert<T, U>(a, mode); });
}

template <typename T, typename U, typename Mask>
void RunCast(const LocalTensor<T>& dst, const LocalTensor<U>& src, AscendC::RoundMode round,
             Mask mask, bool set, int64_t repeats, const AscendC::UnaryRepeatParams& p, Loc loc) {
  Instruction instruction(kV, "Cast", loc);
  const Lanes lanes =
      MaskLanes(instruction, mask, repeats, std::max(CastWidth<T>(), CastWidth<U>()), set);
  RunCast<T, U>(instruction, lanes,
                UseVector(instruction, dst, "dst", p.dstBlkStride, p.dstRepStride),
                UseVector(instruction, src, "src", p.srcBlkStride, p.srcRepStride),
                CheckCast<T, U>(loc, round));
}

}  // namespace ascendc_twin

namespace AscendC {

template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode,
          const uint32_t count, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Cast", loc);
  const Lanes lanes = CountLanes(instruction, count, std::max(CastWidth<T>(), CastWidth<U>()));
  VectorOperand d = UseVector(instruction, dst, "dst", lanes);
  VectorOperand s = UseVector(instruction, src, "src", lanes);
  if (std::is_same<T, int4b_t>::value) d.repeat /= 2;
  if (std::is_same<U, int4b_t>::value) s.repeat /= 2;
  CheckOverlap(instruction, d, s, lanes);
  RunCast<T, U>(instruction, lanes, d, s, CheckCast<T, U>(loc, roundMode));
}
template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode,
          const uint64_t mask, ascendc_twin::Field8 repeatTime,
          const UnaryRepeatParams& repeatParams, Loc loc = Loc::Here()) {
  ascendc_twin::RunCast(dst, src, roundMode, mask, isSetMask, repeatTime, repeatParams, loc);
}
template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode,
          const uint64_t mask[], ascendc_twin::Field8 repeatTime,
          const UnaryRepeatParams& repeatParams, Loc loc = Loc::Here()) {
  ascendc_twin::RunCast(dst, src, roundMode, mask, isSetMask, repeatTime, repeatParams, loc);
}

}  // namespace AscendC
