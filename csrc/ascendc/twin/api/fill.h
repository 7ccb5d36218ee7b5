// Duplicate, CreateVecIndex, Copy, Brcb.
#pragma once

#include "cast.h"

namespace AscendC {

struct BrcbRepeatParams {
  BrcbRepeatParams() {}
  BrcbRepeatParams(ascendc_twin::Field16 block, ascendc_twin::Field16 repeat)
      : dstRepStride(repeat), dstBlkStride(block) {}
  uint32_t blockNumber = DEFAULT_BLK_NUM;
  ascendc_twin::Field16 dstRepStride = 8;
  ascendc_twin::Field16 dstBlkStride = 1;
};

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

// In counter mode a Copy's mask is the number of elements of each repeat, and the repeats hold.
template <typename T, typename Mask>
void RunCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, Mask mask, int64_t repeats,
             bool set, const AscendC::CopyRepeatParams& p, Loc loc) {
  Instruction instruction(kV, "Copy", loc);
  CheckType<T, int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t, float>(instruction);
  Lanes lanes = MaskLanes(instruction, mask, repeats, sizeof(T), set);
  if (lanes.counter) {
    lanes.lanes = static_cast<uint32_t>(lanes.total);
    lanes.repeats = static_cast<uint32_t>(repeats);
    lanes.total *= lanes.repeats;
  }
  const auto d = UseVector(instruction, dst, "dst", p.dstStride, p.dstRepeatSize);
  const auto s = UseVector(instruction, src, "src", p.srcStride, p.srcRepeatSize);
  RunUnary<T, T>(instruction, lanes, d, s, VectorRate::kFull, [](T a, T) { return a; });
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
  ascendc_twin::RunCopy(dst, src, mask, repeatTime, isSetMask, p, loc);
}
template <typename T, bool isSetMask = true>
void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask[],
          ascendc_twin::Field8 repeatTime, const CopyRepeatParams& p, Loc loc = Loc::Here()) {
  ascendc_twin::RunCopy(dst, src, mask, repeatTime, isSetMask, p, loc);
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

}  // namespace AscendC
