// Reductions of a block, of neighbours, of a repeat.
#pragma once

#include "fill.h"

namespace ascendc_twin {

using AscendC::ReduceOrder;
using AscendC::ReduceType;

// Sums go up a binary tree and round at each step, as the documentation describes.
template <typename T>
T TreeSum(std::vector<T>& values) {
  if (values.empty()) return T(0);
  size_t n = 1;
  while (n < values.size()) n *= 2;
  values.resize(n, T(0));
  for (; n > 1; n /= 2)
    for (size_t i = 0; i < n / 2; ++i)
      values[i] = static_cast<T>(static_cast<Wide<T>>(values[2 * i]) +
                                 static_cast<Wide<T>>(values[2 * i + 1]));
  return values[0];
}

struct Extreme {
  double value;
  uint32_t index;
};

template <typename T>
Extreme FindExtreme(const std::vector<T>& values, const std::vector<uint32_t>& lanes,
                    bool largest) {
  Extreme best{static_cast<double>(static_cast<Wide<T>>(values[0])), lanes[0]};
  for (size_t i = 1; i < values.size(); ++i) {
    const double value = static_cast<double>(static_cast<Wide<T>>(values[i]));
    if (largest ? value > best.value : value < best.value) best = {value, lanes[i]};
  }
  return best;
}

template <typename T>
T ReduceValues(ReduceType type, std::vector<T>& values, const std::vector<uint32_t>& lanes) {
  if (type == ReduceType::SUM) return TreeSum(values);
  return static_cast<T>(
      static_cast<Wide<T>>(FindExtreme(values, lanes, type == ReduceType::MAX).value));
}

// Reduces groups of `group` neighbouring lanes: 32-byte blocks or pairs. Groups without a live lane
// write nothing.
template <typename T, typename Mask>
void ReduceGroups(const char* call, Loc loc, ReduceType type, const LocalTensor<T>& dst,
                  const LocalTensor<T>& src, Mask mask, bool set, int64_t repeats, int64_t dst_rep,
                  int64_t src_blk, int64_t src_rep, uint32_t group) {
  Instruction instruction(kV, call, loc);
  CheckType<T, half, float>(instruction);
  const Lanes lanes = MaskLanes(instruction, mask, repeats, sizeof(T), set);
  const VectorOperand in = UseVector(instruction, src, "src", src_blk, src_rep);
  const uint32_t results = lanes.lanes / group;
  const Operand out = Use(instruction, dst, "dst", {Hardware::UB}, group == 2 ? 32 : 16);
  const uint64_t step = static_cast<uint64_t>(dst_rep) * results * sizeof(T);
  TouchLanes(instruction, in, lanes, Kind::kRead);
  for (uint32_t r = 0; r < lanes.repeats; ++r)
    for (uint32_t g = 0; g < results; ++g) {
      bool live = false;
      for (uint32_t i = 0; i < group; ++i) live |= lanes.Live(r, g * group + i);
      if (live) Touch(instruction, out, r * step + g * sizeof(T), sizeof(T), Kind::kWrite);
    }
  CountElements(instruction, LiveCount(lanes));
  const VectorRate rate = sizeof(T) == 2 && group != 2 ? VectorRate::kReduce : VectorRate::kFull;
  Launch* launch = instruction.core->launch;
  const Core* core = instruction.core;
  Issue(instruction, VectorCycles(rate, lanes.repeats, lanes.lanes), [=] {
    FiniteCheck check;
    for (uint32_t r = 0; r < lanes.repeats; ++r)
      for (uint32_t g = 0; g < results; ++g) {
        std::vector<T> values;
        std::vector<uint32_t> live;
        bool finite = true;
        for (uint32_t i = 0; i < group; ++i)
          if (lanes.Live(r, g * group + i)) {
            values.push_back(in.Load<T>(r, g * group + i));
            live.push_back(g * group + i);
            finite &= Finite(values.back());
          }
        if (values.empty()) continue;
        const T result = ReduceValues(type, values, live);
        if (finite) check.See(result, T(0));
        std::memcpy(out.data() + r * step + g * sizeof(T), &result, sizeof(T));
      }
    ReportFinite(launch, core, call, loc, check);
  });
}

// Reduces each repeat to a value, an index, or both.
template <typename T, typename Mask>
void ReduceRepeats(const char* call, Loc loc, ReduceType type, const LocalTensor<T>& dst,
                   const LocalTensor<T>& src, Mask mask, bool set, int64_t repeats, int64_t dst_rep,
                   int64_t src_blk, int64_t src_rep, ReduceOrder order) {
  Instruction instruction(kV, call, loc);
  CheckType<T, half, float>(instruction);
  const Lanes lanes = MaskLanes(instruction, mask, repeats, sizeof(T), set);
  const VectorOperand in = UseVector(instruction, src, "src", src_blk, src_rep);
  const bool both = type != ReduceType::SUM && (order == ReduceOrder::ORDER_VALUE_INDEX ||
                                                order == ReduceOrder::ORDER_INDEX_VALUE);
  const bool only_index = type != ReduceType::SUM && order == ReduceOrder::ORDER_ONLY_INDEX;
  const uint32_t size = only_index ? 4 : both ? 2 * sizeof(T) : sizeof(T);
  const Operand out = Use(instruction, dst, "dst", {Hardware::UB}, size);
  const uint64_t step = static_cast<uint64_t>(dst_rep) * size;
  TouchLanes(instruction, in, lanes, Kind::kRead);
  for (uint32_t r = 0; r < lanes.repeats; ++r)
    Touch(instruction, out, r * step, size, Kind::kWrite);
  CountElements(instruction, LiveCount(lanes));
  Launch* launch = instruction.core->launch;
  Core* core = instruction.core;
  Issue(instruction, VectorCycles(VectorRate::kReduce, lanes.repeats, lanes.lanes), [=] {
    FiniteCheck check;
    double spr_sum = 0;
    for (uint32_t r = 0; r < lanes.repeats; ++r) {
      std::vector<T> values;
      std::vector<uint32_t> live;
      bool finite = true;
      for (uint32_t lane = 0; lane < lanes.lanes; ++lane)
        if (lanes.Live(r, lane)) {
          values.push_back(in.Load<T>(r, lane));
          live.push_back(lane);
          finite &= Finite(values.back());
        }
      uint8_t* to = out.data() + r * step;
      if (type == ReduceType::SUM) {
        const T sum = TreeSum(values);
        spr_sum = static_cast<double>(static_cast<Wide<T>>(sum));
        if (finite) check.See(sum, T(0));
        std::memcpy(to, &sum, sizeof(T));
        continue;
      }
      if (values.empty()) continue;
      const Extreme best = FindExtreme(values, live, type == ReduceType::MAX);
      const T value = static_cast<T>(static_cast<Wide<T>>(best.value));
      core->reduce_value = best.value;
      core->reduce_index = best.index;
      const uint32_t index = best.index;
      const size_t index_at = order == ReduceOrder::ORDER_VALUE_INDEX ? sizeof(T) : 0;
      const size_t value_at = order == ReduceOrder::ORDER_INDEX_VALUE ? sizeof(T) : 0;
      if (only_index) {
        std::memcpy(to, &index, 4);
      } else {
        std::memcpy(to + value_at, &value, sizeof(T));
        if (both) std::memcpy(to + index_at, &index, sizeof(T));
      }
    }
    core->reduce_sum = spr_sum;
    ReportFinite(launch, core, call, loc, check);
  });
}

}  // namespace ascendc_twin

namespace AscendC {

// Names up to CANN 8.x: BlockReduce* and PairReduceSum take the repeat before the mask.
#define ASCENDC_TWIN_REDUCE(NAME, TYPE)                                                            \
  template <typename T, bool isSetMask = true>                                                     \
  void BlockReduce##NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src,                     \
                         const int32_t repeatTime, const int32_t mask, const int32_t dstRepStride, \
                         const int32_t srcBlkStride, const int32_t srcRepStride,                   \
                         Loc loc = Loc::Here()) {                                                  \
    ascendc_twin::ReduceGroups<T, uint64_t>(                                                       \
        "BlockReduce" #NAME, loc, ReduceType::TYPE, dst, src, static_cast<uint64_t>(mask),         \
        isSetMask, repeatTime, dstRepStride, srcBlkStride, srcRepStride, 32 / sizeof(T));          \
  }                                                                                                \
  template <typename T, bool isSetMask = true>                                                     \
  void BlockReduce##NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src,                     \
                         const int32_t repeatTime, const uint64_t mask[],                          \
                         const int32_t dstRepStride, const int32_t srcBlkStride,                   \
                         const int32_t srcRepStride, Loc loc = Loc::Here()) {                      \
    ascendc_twin::ReduceGroups<T, const uint64_t*>(                                                \
        "BlockReduce" #NAME, loc, ReduceType::TYPE, dst, src, mask, isSetMask, repeatTime,         \
        dstRepStride, srcBlkStride, srcRepStride, 32 / sizeof(T));                                 \
  }

ASCENDC_TWIN_REDUCE(Sum, SUM)
ASCENDC_TWIN_REDUCE(Max, MAX)
ASCENDC_TWIN_REDUCE(Min, MIN)
#undef ASCENDC_TWIN_REDUCE

#define ASCENDC_TWIN_WHOLE(NAME, TYPE, ...)                                                       \
  template <typename T, bool isSetMask = true>                                                    \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t mask,             \
            const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,     \
            const int32_t srcRepStride, __VA_ARGS__ Loc loc = Loc::Here()) {                      \
    ascendc_twin::ReduceRepeats<T, uint64_t>(#NAME, loc, ReduceType::TYPE, dst, src,              \
                                             static_cast<uint64_t>(mask), isSetMask, repeatTime,  \
                                             dstRepStride, srcBlkStride, srcRepStride, order);    \
  }                                                                                               \
  template <typename T, bool isSetMask = true>                                                    \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask[],          \
            const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,     \
            const int32_t srcRepStride, __VA_ARGS__ Loc loc = Loc::Here()) {                      \
    ascendc_twin::ReduceRepeats<T, const uint64_t*>(#NAME, loc, ReduceType::TYPE, dst, src, mask, \
                                                    isSetMask, repeatTime, dstRepStride,          \
                                                    srcBlkStride, srcRepStride, order);           \
  }

ASCENDC_TWIN_WHOLE(WholeReduceMax, MAX, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX, )
ASCENDC_TWIN_WHOLE(WholeReduceMin, MIN, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX, )
#undef ASCENDC_TWIN_WHOLE

template <typename T, bool isSetMask = true>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t mask,
                    const int32_t repeatTime, const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, Loc loc = Loc::Here()) {
  ascendc_twin::ReduceRepeats<T, uint64_t>(
      "WholeReduceSum", loc, ReduceType::SUM, dst, src, static_cast<uint64_t>(mask), isSetMask,
      repeatTime, dstRepStride, srcBlkStride, srcRepStride, ReduceOrder::ORDER_ONLY_VALUE);
}
template <typename T, bool isSetMask = true>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask[],
                    const int32_t repeatTime, const int32_t dstRepStride,
                    const int32_t srcBlkStride, const int32_t srcRepStride, Loc loc = Loc::Here()) {
  ascendc_twin::ReduceRepeats<T, const uint64_t*>(
      "WholeReduceSum", loc, ReduceType::SUM, dst, src, mask, isSetMask, repeatTime, dstRepStride,
      srcBlkStride, srcRepStride, ReduceOrder::ORDER_ONLY_VALUE);
}
template <typename T, bool isSetMask = true>
void RepeatReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime,
                     const int32_t mask, const int32_t, const int32_t srcBlkStride,
                     const int32_t dstRepStride, const int32_t srcRepStride,
                     Loc loc = Loc::Here()) {
  ascendc_twin::ReduceRepeats<T, uint64_t>(
      "RepeatReduceSum", loc, ReduceType::SUM, dst, src, static_cast<uint64_t>(mask), isSetMask,
      repeatTime, dstRepStride, srcBlkStride, srcRepStride, ReduceOrder::ORDER_ONLY_VALUE);
}
template <typename T, bool isSetMask = true>
void PairReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime,
                   const int32_t mask, const int32_t dstRepStride, const int32_t srcBlkStride,
                   const int32_t srcRepStride, Loc loc = Loc::Here()) {
  ascendc_twin::ReduceGroups<T, uint64_t>("PairReduceSum", loc, ReduceType::SUM, dst, src,
                                          static_cast<uint64_t>(mask), isSetMask, repeatTime,
                                          dstRepStride, srcBlkStride, srcRepStride, 2);
}
template <typename T, bool isSetMask = true>
void PairReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime,
                   const uint64_t mask[], const int32_t dstRepStride, const int32_t srcBlkStride,
                   const int32_t srcRepStride, Loc loc = Loc::Here()) {
  ascendc_twin::ReduceGroups<T, const uint64_t*>("PairReduceSum", loc, ReduceType::SUM, dst, src,
                                                 mask, isSetMask, repeatTime, dstRepStride,
                                                 srcBlkStride, srcRepStride, 2);
}

// Names from CANN 9.x on: the mask, a number of lanes or their bits, comes before the repeat.
#define ASCENDC_TWIN_REDUCE(NAME, GROUP)                                                        \
  template <ReduceType type, typename T, typename U, bool isSetMask = true>                     \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<U>& src, const int32_t mask,           \
            const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,   \
            const int32_t srcRepStride, Loc loc = Loc::Here()) {                                \
    ascendc_twin::ReduceGroups<T, uint64_t>(#NAME, loc, type, dst, src,                         \
                                            static_cast<uint64_t>(mask), isSetMask, repeatTime, \
                                            dstRepStride, srcBlkStride, srcRepStride, GROUP);   \
  }                                                                                             \
  template <ReduceType type, typename T, typename U, bool isSetMask = true>                     \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<U>& src, const uint64_t mask[],        \
            const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,   \
            const int32_t srcRepStride, Loc loc = Loc::Here()) {                                \
    ascendc_twin::ReduceGroups<T, const uint64_t*>(#NAME, loc, type, dst, src, mask, isSetMask, \
                                                   repeatTime, dstRepStride, srcBlkStride,      \
                                                   srcRepStride, GROUP);                        \
  }
ASCENDC_TWIN_REDUCE(ReduceDataBlock, 32 / sizeof(T))
ASCENDC_TWIN_REDUCE(ReducePairElem, 2)
#undef ASCENDC_TWIN_REDUCE

template <ReduceType type, typename T, typename U, bool isSetMask = true>
void ReduceRepeat(const LocalTensor<T>& dst, const LocalTensor<U>& src, const int32_t mask,
                  const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,
                  const int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX,
                  Loc loc = Loc::Here()) {
  ascendc_twin::ReduceRepeats<T, uint64_t>("ReduceRepeat", loc, type, dst, src,
                                           static_cast<uint64_t>(mask), isSetMask, repeatTime,
                                           dstRepStride, srcBlkStride, srcRepStride, order);
}
template <ReduceType type, typename T, typename U, bool isSetMask = true>
void ReduceRepeat(const LocalTensor<T>& dst, const LocalTensor<U>& src, const uint64_t mask[],
                  const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,
                  const int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX,
                  Loc loc = Loc::Here()) {
  ascendc_twin::ReduceRepeats<T, const uint64_t*>("ReduceRepeat", loc, type, dst, src, mask,
                                                  isSetMask, repeatTime, dstRepStride, srcBlkStride,
                                                  srcRepStride, order);
}

}  // namespace AscendC
