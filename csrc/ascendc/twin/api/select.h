// Compare and Select.
#pragma once

#include "reduce_all.h"

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

// Of one repeat, into the register that GetCmpMask reads.
template <typename T, bool isSetMask = true, typename Mask = uint64_t>
void Compare(const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE mode, const Mask mask,
             const BinaryRepeatParams& p, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Compare", loc);
  CheckType<T, half, float>(instruction);
  const Lanes lanes = MaskLanes(instruction, mask, 1, sizeof(T), isSetMask);
  const VectorOperand a = UseVector(instruction, src0, "src0", p.src0BlkStride, p.src0RepStride);
  const VectorOperand b = UseVector(instruction, src1, "src1", p.src1BlkStride, p.src1RepStride);
  TouchLanes(instruction, a, lanes, Kind::kRead);
  TouchLanes(instruction, b, lanes, Kind::kRead);
  CountElements(instruction, LiveCount(lanes));
  Core* core = instruction.core;
  Issue(instruction, VectorCycles(VectorRate::kFull, 1, lanes.lanes), [=] {
    core->compare_mask[0] = core->compare_mask[1] = 0;
    ForLanes(lanes, [&](uint32_t r, uint32_t lane) {
      if (ascendc_twin::Compares<Wide<T>>(mode, a.Load<T>(r, lane), b.Load<T>(r, lane)))
        core->compare_mask[lane / 64] |= uint64_t(1) << (lane % 64);
    });
  });
}

template <typename T>
void GetCmpMask(const LocalTensor<T>& dst, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "GetCmpMask", loc);
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB}, 16);
  Touch(instruction, to, 0, 16, Kind::kWrite);
  CountElements(instruction, 16 / sizeof(T));
  Core* core = instruction.core;
  Issue(instruction, 1, [=] { std::memcpy(to.data(), core->compare_mask, 16); });
}

template <typename T>
void SetCmpMask(const LocalTensor<T>& src, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "SetCmpMask", loc);
  const Operand from = Use(instruction, src, "src", {Hardware::UB}, 16);
  Touch(instruction, from, 0, 16, Kind::kRead);
  CountElements(instruction, 16 / sizeof(T));
  Core* core = instruction.core;
  Issue(instruction, 1, [=] { std::memcpy(core->compare_mask, from.data(), 16); });
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

// By the bits of the register that SetCmpMask or Compare filled, the same for every repeat.
template <typename T, SELMODE selMode = SELMODE::VSEL_CMPMASK_SPR>
void Select(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
            ascendc_twin::Field8 repeatTime, const BinaryRepeatParams& p, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  static_assert(selMode == SELMODE::VSEL_CMPMASK_SPR,
                "Atlas A2 selects two tensors by the register");
  Instruction instruction(kV, "Select", loc);
  CheckType<T, half, float>(instruction);
  const Lanes lanes = MaskLanes(instruction, uint64_t(0), repeatTime, sizeof(T), false);
  const VectorOperand d = UseVector(instruction, dst, "dst", p.dstBlkStride, p.dstRepStride);
  const VectorOperand a = UseVector(instruction, src0, "src0", p.src0BlkStride, p.src0RepStride);
  const VectorOperand b = UseVector(instruction, src1, "src1", p.src1BlkStride, p.src1RepStride);
  TouchLanes(instruction, a, lanes, Kind::kRead);
  TouchLanes(instruction, b, lanes, Kind::kRead);
  TouchLanes(instruction, d, lanes, Kind::kWrite);
  CountElements(instruction, LiveCount(lanes));
  const Core* core = instruction.core;
  Issue(instruction, VectorCycles(VectorRate::kFull, lanes.repeats, lanes.lanes), [=] {
    ForLanes(lanes, [&](uint32_t r, uint32_t lane) {
      const bool take = core->compare_mask[lane / 64] >> (lane % 64) & 1;
      d.Store<T>(r, lane, take ? a.Load<T>(r, lane) : b.Load<T>(r, lane));
    });
  });
}

}  // namespace AscendC
