// Compare, Select, Gather and GatherMask.
#pragma once

#include "reduce.h"

namespace AscendC {

struct GatherMaskParams {
  GatherMaskParams() {}
  GatherMaskParams(ascendc_twin::Field8 block, ascendc_twin::Field16 repeats,
                   ascendc_twin::Field16 repeat_stride, ascendc_twin::Field8 pattern_stride)
      : src0BlockStride(block),
        repeatTimes(repeats),
        src0RepeatStride(repeat_stride),
        src1RepeatStride(pattern_stride) {}
  ascendc_twin::Field8 src0BlockStride = 1;
  ascendc_twin::Field16 repeatTimes = 1;
  ascendc_twin::Field16 src0RepeatStride = 0;
  ascendc_twin::Field8 src1RepeatStride = 8;
};

}  // namespace AscendC

namespace ascendc_twin {

template <typename W>
bool Compares(AscendC::CMPMODE mode, W a, W b) {
  switch (mode) {
    case AscendC::CMPMODE::LT:
      return a < b;
    case AscendC::CMPMODE::GT:
      return a > b;
    case AscendC::CMPMODE::EQ:
      return a == b;
    case AscendC::CMPMODE::LE:
      return a <= b;
    case AscendC::CMPMODE::GE:
      return a >= b;
    default:
      return a != b;
  }
}

inline bool BitOf(const uint8_t* bits, uint64_t index) {
  return bits[index / 8] >> (index % 8) & 1;
}

// One bit per lane, repeat after repeat. `other` gives the right side of the comparison.
template <typename T, typename U, typename Other>
void RunCompare(Instruction& instruction, const Lanes& lanes, const LocalTensor<U>& dst,
                const VectorOperand& src0, AscendC::CMPMODE mode, Other other) {
  static_assert(sizeof(U) == 1, "the result of a comparison is bytes of bits");
  CheckType<T, half, float, int32_t>(instruction);
  if (std::is_same<T, int32_t>::value && mode != AscendC::CMPMODE::EQ)
    instruction.Report("dtype", "int32_t is compared for equality alone");
  const Operand out = Use(instruction, dst, "dst", {Hardware::UB});
  TouchLanes(instruction, src0, lanes, Kind::kRead);
  const uint64_t step = lanes.lanes / 8;
  Touch(instruction, out, 0, lanes.repeats * step, Kind::kWrite);
  CountElements(instruction, LiveCount(lanes));
  Issue(instruction, VectorCycles(VectorRate::kFull, lanes.repeats, lanes.lanes), [=] {
    std::memset(out.data(), 0, lanes.repeats * step);
    ForLanes(lanes, [&](uint32_t r, uint32_t lane) {
      using W = Wide<T>;
      if (Compares<W>(mode, src0.Load<T>(r, lane), other(r, lane)))
        out.data()[r * step + lane / 8] |= static_cast<uint8_t>(1u << (lane % 8));
    });
  });
}

template <typename T>
void CheckCompareCount(const Instruction& instruction, uint32_t count) {
  if (count * sizeof(T) % 256)
    instruction.Report("field-range", "a comparison's count fills whole repeats of 256 bytes");
}

// dst = bit ? src0 : other. In mode 0 the bits of one repeat serve all repeats.
template <typename T, typename Other>
void RunSelect(Instruction& instruction, const Lanes& lanes, const VectorOperand& dst,
               const Operand& bits, const VectorOperand& src0, AscendC::SELMODE mode, Other other) {
  CheckType<T, half, float>(instruction);
  if (instruction.core->ub_in_use > AscendC::TOTAL_UB_SIZE - 8 * 1024)
    instruction.Report("reserved-ub", "Select needs 8 KB of UB for itself, and " +
                                          std::to_string(instruction.core->ub_in_use) +
                                          " bytes are taken");
  const bool per_repeat = mode == AscendC::SELMODE::VSEL_CMPMASK_SPR;
  const uint64_t step = per_repeat ? 0 : lanes.lanes / 8;
  TouchLanes(instruction, src0, lanes, Kind::kRead);
  const uint64_t live = lanes.counter && !per_repeat ? (lanes.total + 7) / 8 : lanes.repeats * step;
  Touch(instruction, bits, 0, per_repeat ? lanes.lanes / 8 : live, Kind::kRead);
  TouchLanes(instruction, dst, lanes, Kind::kWrite);
  CountElements(instruction, LiveCount(lanes));
  Issue(instruction, VectorCycles(VectorRate::kFull, lanes.repeats, lanes.lanes), [=] {
    ForLanes(lanes, [&](uint32_t r, uint32_t lane) {
      const bool take = BitOf(bits.data() + r * step, lane);
      dst.Store<T>(r, lane, take ? src0.Load<T>(r, lane) : other(r, lane));
    });
  });
}

}  // namespace ascendc_twin

namespace AscendC {

template <typename T, typename U>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
             CMPMODE mode, uint32_t count, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Compare", loc);
  CheckCompareCount<T>(instruction, count);
  const Lanes lanes = CountLanes(instruction, count, sizeof(T));
  const VectorOperand a = UseVector(instruction, src0, "src0", lanes);
  const VectorOperand b = UseVector(instruction, src1, "src1", lanes);
  TouchLanes(instruction, b, lanes, Kind::kRead);
  RunCompare<T>(instruction, lanes, dst, a, mode,
                [b](uint32_t r, uint32_t lane) { return b.Load<T>(r, lane); });
}
template <typename T, typename U, bool isSetMask = true>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
             CMPMODE mode, const uint64_t mask, ascendc_twin::Field8 repeatTime,
             const BinaryRepeatParams& p, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Compare", loc);
  const Lanes lanes = MaskLanes(instruction, mask, repeatTime, sizeof(T), isSetMask);
  const VectorOperand a = UseVector(instruction, src0, "src0", p.src0BlkStride, p.src0RepStride);
  const VectorOperand b = UseVector(instruction, src1, "src1", p.src1BlkStride, p.src1RepStride);
  TouchLanes(instruction, b, lanes, Kind::kRead);
  RunCompare<T>(instruction, lanes, dst, a, mode,
                [b](uint32_t r, uint32_t lane) { return b.Load<T>(r, lane); });
}

template <typename T, typename U>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T scalar,
                   CMPMODE mode, uint32_t count, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "CompareScalar", loc);
  CheckCompareCount<T>(instruction, count);
  const Lanes lanes = CountLanes(instruction, count, sizeof(T));
  const VectorOperand a = UseVector(instruction, src0, "src0", lanes);
  RunCompare<T>(instruction, lanes, dst, a, mode, [scalar](uint32_t, uint32_t) { return scalar; });
}
template <typename T, typename U, bool isSetMask = true>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T scalar,
                   CMPMODE mode, const uint64_t mask, ascendc_twin::Field8 repeatTime,
                   const UnaryRepeatParams& p, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "CompareScalar", loc);
  const Lanes lanes = MaskLanes(instruction, mask, repeatTime, sizeof(T), isSetMask);
  const VectorOperand a = UseVector(instruction, src0, "src0", p.srcBlkStride, p.srcRepStride);
  RunCompare<T>(instruction, lanes, dst, a, mode, [scalar](uint32_t, uint32_t) { return scalar; });
}
template <typename T, typename U>
void Compares(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T scalar, CMPMODE mode,
              uint32_t count, Loc loc = Loc::Here()) {
  CompareScalar(dst, src0, scalar, mode, count, loc);
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, SELMODE mode, uint32_t count, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Select", loc);
  const Lanes lanes = CountLanes(instruction, count, sizeof(T));
  const VectorOperand d = UseVector(instruction, dst, "dst", lanes);
  const VectorOperand a = UseVector(instruction, src0, "src0", lanes);
  const VectorOperand b = UseVector(instruction, src1, "src1", lanes);
  const Operand bits = Use(instruction, selMask, "selMask", {Hardware::UB});
  TouchLanes(instruction, b, lanes, Kind::kRead);
  RunSelect<T>(instruction, lanes, d, bits, a, mode,
               [b](uint32_t r, uint32_t lane) { return b.Load<T>(r, lane); });
}
template <typename T, typename U, bool isSetMask = true>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, SELMODE mode, uint64_t mask,
            ascendc_twin::Field8 repeatTime, const BinaryRepeatParams& p, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Select", loc);
  const Lanes lanes = MaskLanes(instruction, mask, repeatTime, sizeof(T), isSetMask);
  const VectorOperand d = UseVector(instruction, dst, "dst", p.dstBlkStride, p.dstRepStride);
  const VectorOperand a = UseVector(instruction, src0, "src0", p.src0BlkStride, p.src0RepStride);
  const VectorOperand b = UseVector(instruction, src1, "src1", p.src1BlkStride, p.src1RepStride);
  const Operand bits = Use(instruction, selMask, "selMask", {Hardware::UB});
  TouchLanes(instruction, b, lanes, Kind::kRead);
  RunSelect<T>(instruction, lanes, d, bits, a, mode,
               [b](uint32_t r, uint32_t lane) { return b.Load<T>(r, lane); });
}
template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            T src1, SELMODE mode, uint32_t count, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Select", loc);
  const Lanes lanes = CountLanes(instruction, count, sizeof(T));
  const VectorOperand d = UseVector(instruction, dst, "dst", lanes);
  const VectorOperand a = UseVector(instruction, src0, "src0", lanes);
  const Operand bits = Use(instruction, selMask, "selMask", {Hardware::UB});
  RunSelect<T>(instruction, lanes, d, bits, a, mode, [src1](uint32_t, uint32_t) { return src1; });
}
template <typename T, typename U, bool isSetMask = true>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            T src1, SELMODE mode, uint64_t mask, ascendc_twin::Field8 repeatTime,
            const BinaryRepeatParams& p, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Select", loc);
  const Lanes lanes = MaskLanes(instruction, mask, repeatTime, sizeof(T), isSetMask);
  const VectorOperand d = UseVector(instruction, dst, "dst", p.dstBlkStride, p.dstRepStride);
  const VectorOperand a = UseVector(instruction, src0, "src0", p.src0BlkStride, p.src0RepStride);
  const Operand bits = Use(instruction, selMask, "selMask", {Hardware::UB});
  RunSelect<T>(instruction, lanes, d, bits, a, mode, [src1](uint32_t, uint32_t) { return src1; });
}

// dst[i] = the element at byte srcBaseOffset + srcOffset[i] of src. The offsets are data, so the
// twin reads them when the call is issued, and V must have written them by then.
template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src,
            const LocalTensor<uint32_t>& srcOffset, const uint32_t srcBaseOffset,
            const uint32_t count, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Gather", loc);
  const Lanes lanes = CountLanes(instruction, count, std::max<uint32_t>(sizeof(T), 4));
  const VectorOperand d = UseVector(instruction, dst, "dst", lanes);
  const Operand from = Use(instruction, src, "src", {Hardware::UB});
  const Operand offsets = Use(instruction, srcOffset, "srcOffset", {Hardware::UB});
  Touch(instruction, offsets, 0, count * 4ull, Kind::kRead);
  if (instruction.runnable) {
    Force(instruction.core->launch, instruction.core->Thread(kV),
          instruction.core->pipes[kV].issued);
    for (uint32_t i = 0; i < count; ++i) {
      uint32_t offset;
      std::memcpy(&offset, offsets.data() + i * 4, 4);
      if (offset % sizeof(T)) instruction.Report("misaligned", "an offset is not whole elements");
      Touch(instruction, from, srcBaseOffset + int64_t(offset), sizeof(T), Kind::kRead);
    }
  }
  TouchLanes(instruction, d, lanes, Kind::kWrite);
  CountElements(instruction, count);
  Issue(instruction, VectorCycles(VectorRate::kGather, lanes.repeats, lanes.lanes), [=] {
    for (uint32_t i = 0; i < count; ++i) {
      uint32_t offset;
      std::memcpy(&offset, offsets.data() + i * 4, 4);
      std::memcpy(d.where.data() + i * sizeof(T), from.data() + srcBaseOffset + offset, sizeof(T));
    }
  });
}

// The elements of src0 that a fixed pattern names, packed: 1 even, 2 odd, 3..6 every fourth from
// 0..3, 7 all.
template <typename T>
void GatherMask(const LocalTensor<T>& dst, const LocalTensor<T>& src0, ascendc_twin::Field8 pattern,
                const bool reduceMode, const uint32_t mask, const GatherMaskParams& p,
                uint64_t& rsvdCnt, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "GatherMask", loc);
  if (pattern < 1 || pattern > 7) {
    instruction.Refuse("field-range", "pattern " + std::to_string(pattern) + "; wanted 1..7");
    return;
  }
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB});
  const VectorOperand from =
      UseVector(instruction, src0, "src0", p.src0BlockStride, p.src0RepeatStride);
  const uint32_t lanes = reduceMode ? mask : LanesOf(sizeof(T));
  auto picked = [pattern](uint32_t i) {
    if (pattern == 7) return true;
    if (pattern <= 2) return i % 2 == static_cast<uint32_t>(pattern - 1);
    return i % 4 == static_cast<uint32_t>(pattern - 3);
  };
  uint64_t count = 0;
  for (uint32_t r = 0; r < p.repeatTimes; ++r)
    for (uint32_t i = 0; i < lanes; ++i) {
      if (!picked(i)) continue;
      Touch(instruction, from.where, from.Offset(r, i), sizeof(T), Kind::kRead);
      ++count;
    }
  Touch(instruction, to, 0, count * sizeof(T), Kind::kWrite);
  CountElements(instruction, count);
  rsvdCnt = count;
  const uint32_t repeats = p.repeatTimes;
  Issue(instruction, repeats * (lanes * sizeof(T) / 256.0) * (sizeof(T) == 2 ? 2 : 2), [=] {
    uint64_t at = 0;
    for (uint32_t r = 0; r < repeats; ++r)
      for (uint32_t i = 0; i < lanes; ++i)
        if (picked(i)) {
          const T value = from.Load<T>(r, i);
          std::memcpy(to.data() + at++ * sizeof(T), &value, sizeof(T));
        }
  });
}

}  // namespace AscendC
