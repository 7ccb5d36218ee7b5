// Gather, Gatherb and GatherMask.
#pragma once

#include "select.h"

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

struct GatherRepeatParams {
  GatherRepeatParams() {}
  GatherRepeatParams(ascendc_twin::Field8 block, ascendc_twin::Field8 repeat)
      : dstBlkStride(block), dstRepStride(repeat) {}
  ascendc_twin::Field8 dstBlkStride = 1;
  ascendc_twin::Field8 dstRepStride = 8;
};

}  // namespace AscendC

namespace ascendc_twin {

// Runs what V has been given or has waited for, so that the data which an instruction's accesses
// depend on is there.
inline void Settle(const Instruction& instruction) {
  Core* core = instruction.core;
  Clock known = core->pipes[kV].clock;
  Join(known, core->pipes[kS].clock);
  ForceAll(core->launch, known);
  Force(core->launch, core->Thread(kV), core->pipes[kV].issued);
}

inline uint32_t OffsetAt(const Operand& offsets, uint64_t index) {
  uint32_t offset;
  std::memcpy(&offset, offsets.data() + index * 4, 4);
  return offset;
}

// One bit of a repeat says whether its element is taken. In normal mode a repeat is 256 bytes, in
// counter mode `mask` elements.
template <typename T, typename Picked>
void RunGatherMask(Instruction& instruction, const LocalTensor<T>& dst, const LocalTensor<T>& src0,
                   const bool counter, const uint32_t mask, const AscendC::GatherMaskParams& p,
                   uint64_t& kept, Picked picked) {
  CheckType<T, int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t, float>(instruction);
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB});
  const VectorOperand from =
      UseVector(instruction, src0, "src0", p.src0BlockStride, p.src0RepeatStride);
  const uint32_t lanes = counter ? mask : LanesOf(sizeof(T));
  const uint32_t repeats = p.repeatTimes;
  std::vector<std::pair<uint32_t, uint32_t>> taken;
  for (uint32_t r = 0; instruction.runnable && r < repeats; ++r)
    for (uint32_t i = 0; i < lanes; ++i)
      if (picked(r, i)) taken.push_back({r, i});
  for (const auto& [r, i] : taken)
    Touch(instruction, from.where, from.Offset(r, i), sizeof(T), Kind::kRead);
  kept = taken.size();
  Touch(instruction, to, 0, kept * sizeof(T), Kind::kWrite);
  CountElements(instruction, kept);
  instruction.core->mask = MaskRegister();
  Issue(instruction, repeats * (lanes * sizeof(T) / 256.0) * 2, [=] {
    uint64_t at = 0;
    for (const auto& [r, i] : taken) {
      const T value = from.Load<T>(r, i);
      std::memcpy(to.data() + at++ * sizeof(T), &value, sizeof(T));
    }
  });
}

}  // namespace ascendc_twin

namespace AscendC {

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
    Settle(instruction);
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t offset = OffsetAt(offsets, i);
      if (offset % sizeof(T)) instruction.Report("misaligned", "an offset is not whole elements");
      Touch(instruction, from, srcBaseOffset + int64_t(offset), sizeof(T), Kind::kRead);
    }
  }
  TouchLanes(instruction, d, lanes, Kind::kWrite);
  CountElements(instruction, count);
  Issue(instruction, VectorCycles(VectorRate::kGather, lanes.repeats, lanes.lanes), [=] {
    for (uint32_t i = 0; i < count; ++i) {
      const uint64_t at = srcBaseOffset + uint64_t(OffsetAt(offsets, i));
      std::memcpy(d.where.data() + i * sizeof(T), from.data() + at, sizeof(T));
    }
  });
}

// Each of 8 offsets per repeat names a block of src.
template <typename T>
void Gatherb(const LocalTensor<T>& dst, const LocalTensor<T>& src,
             const LocalTensor<uint32_t>& offset, const ascendc_twin::Field8 repeatTime,
             const GatherRepeatParams& p, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Gatherb", loc);
  CheckType<T, uint16_t, uint32_t>(instruction);
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB});
  const Operand from = Use(instruction, src, "src", {Hardware::UB});
  const Operand offsets = Use(instruction, offset, "offset", {Hardware::UB});
  const uint64_t block = p.dstBlkStride ? uint64_t(p.dstBlkStride) : 1, step = p.dstRepStride;
  const uint64_t blocks = repeatTime * 8ull;
  Touch(instruction, offsets, 0, blocks * 4, Kind::kRead);
  if (!instruction.runnable) return;
  Settle(instruction);
  std::vector<uint32_t> places(blocks);
  for (uint64_t i = 0; i < blocks; ++i) {
    places[i] = OffsetAt(offsets, i);
    if ((from.address + places[i]) % kBlock)
      instruction.Report("misaligned", "an offset does not name a whole block");
    Touch(instruction, from, places[i], kBlock, Kind::kRead);
    Touch(instruction, to, (i / 8 * step + i % 8 * block) * kBlock, kBlock, Kind::kWrite);
  }
  CountElements(instruction, blocks * kBlock / sizeof(T));
  Issue(instruction, VectorCycles(VectorRate::kFull, repeatTime, LanesOf(sizeof(T))), [=] {
    for (uint64_t i = 0; i < blocks; ++i)
      std::memcpy(to.data() + (i / 8 * step + i % 8 * block) * kBlock, from.data() + places[i],
                  kBlock);
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
  const uint32_t number = pattern;
  RunGatherMask(instruction, dst, src0, reduceMode, mask, p, rsvdCnt,
                [number](uint32_t, uint32_t i) {
                  if (number == 7) return true;
                  if (number <= 2) return i % 2 == number - 1;
                  return i % 4 == number - 3;
                });
}

// The same by the bits of a tensor, whose repeats lie src1RepeatStride blocks apart.
template <typename T, typename U>
void GatherMask(const LocalTensor<T>& dst, const LocalTensor<T>& src0,
                const LocalTensor<U>& src1Pattern, const bool reduceMode, const uint32_t mask,
                const GatherMaskParams& p, uint64_t& rsvdCnt, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  static_assert(sizeof(T) == sizeof(U) && std::is_unsigned<U>::value,
                "the pattern is of unsigned integers as wide as the data");
  Instruction instruction(kV, "GatherMask", loc);
  const Operand bits = Use(instruction, src1Pattern, "src1Pattern", {Hardware::UB});
  const uint64_t lanes = reduceMode ? mask : LanesOf(sizeof(T));
  const uint64_t step = p.src1RepeatStride * uint64_t(kBlock);
  for (uint32_t r = 0; r < p.repeatTimes; ++r)
    Touch(instruction, bits, r * step, (lanes + 7) / 8, Kind::kRead);
  if (!instruction.runnable) return;
  Settle(instruction);
  RunGatherMask(instruction, dst, src0, reduceMode, mask, p, rsvdCnt,
                [bits, step](uint32_t r, uint32_t i) { return BitOf(bits.data() + r * step, i); });
}

}  // namespace AscendC
