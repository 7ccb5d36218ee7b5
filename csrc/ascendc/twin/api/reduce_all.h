// Reductions of a whole tensor, and the registers that a reduction leaves.
#pragma once

#include "reduce.h"

namespace ascendc_twin {

// A whole tensor, by repeats of repeats through the temporary tensor.
template <typename T>
void ReduceAll(Instruction& instruction, ReduceType type, const LocalTensor<T>& dst,
               const VectorOperand& in, const Lanes& lanes, const LocalTensor<T>& tmp, bool index) {
  CheckType<T, half, float>(instruction);
  const uint32_t size = index ? 2 * sizeof(T) : sizeof(T);
  const Operand out = Use(instruction, dst, "dst", {Hardware::UB}, size);
  const Operand scratch = Use(instruction, tmp, "sharedTmpBuffer", {Hardware::UB});
  TouchLanes(instruction, in, lanes, Kind::kRead);
  const uint32_t per_repeat = type == ReduceType::SUM ? 1 : 2;
  const uint64_t total = LiveCount(lanes);
  if (total) {
    Touch(instruction, scratch, 0,
          (lanes.repeats * per_repeat * sizeof(T) + kBlock - 1) / kBlock * kBlock, Kind::kWrite);
    Touch(instruction, out, 0, size, Kind::kWrite);
  }
  CountElements(instruction, total);
  double cycles = 0;
  for (uint64_t rest = total; rest > 1;) {
    const uint64_t repeats = (rest + lanes.lanes - 1) / lanes.lanes;
    cycles += VectorCycles(VectorRate::kReduce, repeats, lanes.lanes);
    rest = repeats;
  }
  Launch* launch = instruction.core->launch;
  Core* core = instruction.core;
  const char* call = instruction.call;
  const Loc loc = instruction.loc;
  Issue(instruction, cycles, [=] {
    if (total == 0) return;
    std::vector<T> values;
    std::vector<uint32_t> positions;
    bool finite = true;
    ForLanes(lanes, [&](uint32_t r, uint32_t lane) {
      positions.push_back(static_cast<uint32_t>(in.Offset(r, lane) / sizeof(T)));
      values.push_back(in.Load<T>(r, lane));
      finite &= Finite(values.back());
    });
    FiniteCheck check;
    if (type == ReduceType::SUM) {
      size_t width = lanes.counter ? lanes.lanes : total / lanes.repeats;
      while (values.size() > 1) {
        std::vector<T> next;
        for (size_t start = 0; start < values.size(); start += width) {
          std::vector<T> part(values.begin() + start,
                              values.begin() + std::min(start + width, values.size()));
          next.push_back(TreeSum(part));
        }
        values.swap(next);
        width = lanes.lanes;
      }
      if (finite) check.See(values[0], T(0));
      core->reduce_sum = static_cast<double>(static_cast<Wide<T>>(values[0]));
      std::memcpy(out.data(), &values[0], sizeof(T));
    } else {
      const Extreme best = FindExtreme(values, positions, type == ReduceType::MAX);
      const T value = static_cast<T>(static_cast<Wide<T>>(best.value));
      std::memcpy(out.data(), &value, sizeof(T));
      if (index) std::memcpy(out.data() + sizeof(T), &best.index, sizeof(T));
      core->reduce_value = best.value;
      core->reduce_index = best.index;
    }
    ReportFinite(launch, core, call, loc, check);
  });
}

template <typename T>
void ReduceAll(const char* call, Loc loc, ReduceType type, const LocalTensor<T>& dst,
               const LocalTensor<T>& src, const LocalTensor<T>& tmp, int64_t count, bool index) {
  Instruction instruction(kV, call, loc);
  const Lanes lanes = CountLanes(instruction, count, sizeof(T));
  const VectorOperand in = UseVector(instruction, src, "src", lanes);
  ReduceAll(instruction, type, dst, in, lanes, tmp, index);
}

template <typename T, typename Mask>
void ReduceAll(const char* call, Loc loc, ReduceType type, const LocalTensor<T>& dst,
               const LocalTensor<T>& src, const LocalTensor<T>& tmp, Mask mask, int64_t repeats,
               int64_t src_rep, bool index) {
  Instruction instruction(kV, call, loc);
  const Lanes lanes = MaskLanes(instruction, mask, repeats, sizeof(T), true);
  const VectorOperand in = UseVector(instruction, src, "src", 1, src_rep);
  ReduceAll(instruction, type, dst, in, lanes, tmp, index);
}

}  // namespace ascendc_twin

namespace AscendC {

#define ASCENDC_TWIN_REDUCE(NAME, TYPE)                                                          \
  template <typename T>                                                                          \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src,                                \
            const LocalTensor<T>& sharedTmpBuffer, const int32_t mask, const int32_t repeatTime, \
            const int32_t srcRepStride, bool calIndex = false, Loc loc = Loc::Here()) {          \
    ascendc_twin::ReduceAll(#NAME, loc, ReduceType::TYPE, dst, src, sharedTmpBuffer,             \
                            static_cast<uint64_t>(mask), repeatTime, srcRepStride, calIndex);    \
  }                                                                                              \
  template <typename T>                                                                          \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src,                                \
            const LocalTensor<T>& sharedTmpBuffer, const uint64_t mask[],                        \
            const int32_t repeatTime, const int32_t srcRepStride, bool calIndex = false,         \
            Loc loc = Loc::Here()) {                                                             \
    ascendc_twin::ReduceAll(#NAME, loc, ReduceType::TYPE, dst, src, sharedTmpBuffer, mask,       \
                            repeatTime, srcRepStride, calIndex);                                 \
  }
ASCENDC_TWIN_REDUCE(ReduceMax, MAX)
ASCENDC_TWIN_REDUCE(ReduceMin, MIN)
#undef ASCENDC_TWIN_REDUCE

template <typename T>
void ReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src,
               const LocalTensor<T>& sharedTmpBuffer, const int32_t count, bool calIndex = false,
               Loc loc = Loc::Here()) {
  ascendc_twin::ReduceAll("ReduceMax", loc, ReduceType::MAX, dst, src, sharedTmpBuffer, count,
                          calIndex);
}
template <typename T>
void ReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src,
               const LocalTensor<T>& sharedTmpBuffer, const int32_t count, bool calIndex = false,
               Loc loc = Loc::Here()) {
  ascendc_twin::ReduceAll("ReduceMin", loc, ReduceType::MIN, dst, src, sharedTmpBuffer, count,
                          calIndex);
}
template <typename T, bool isSetMask = true>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src,
               const LocalTensor<T>& sharedTmpBuffer, const int32_t count, Loc loc = Loc::Here()) {
  ascendc_twin::ReduceAll("ReduceSum", loc, ReduceType::SUM, dst, src, sharedTmpBuffer, count,
                          false);
}
template <typename T>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src,
               const LocalTensor<T>& sharedTmpBuffer, const int32_t mask, const int32_t repeatTime,
               const int32_t srcRepStride, Loc loc = Loc::Here()) {
  ascendc_twin::ReduceAll("ReduceSum", loc, ReduceType::SUM, dst, src, sharedTmpBuffer,
                          static_cast<uint64_t>(mask), repeatTime, srcRepStride, false);
}
template <typename T>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src,
               const LocalTensor<T>& sharedTmpBuffer, const uint64_t mask[],
               const int32_t repeatTime, const int32_t srcRepStride, Loc loc = Loc::Here()) {
  ascendc_twin::ReduceAll("ReduceSum", loc, ReduceType::SUM, dst, src, sharedTmpBuffer, mask,
                          repeatTime, srcRepStride, false);
}

// The registers that the last reduction left; the compiler orders V before this.
template <typename T>
T GetAccVal() {
  ascendc_twin::Core* core = ascendc_twin::CurrentCore();
  ascendc_twin::Force(core->launch, core->Thread(ascendc_twin::kV),
                      core->pipes[ascendc_twin::kV].issued);
  return static_cast<T>(static_cast<ascendc_twin::Wide<T>>(core->reduce_sum));
}
template <typename T>
T GetReduceRepeatSumSpr() {
  return GetAccVal<T>();
}
template <typename T>
void GetReduceMaxMinCount(T& value, T& index) {
  ascendc_twin::Core* core = ascendc_twin::CurrentCore();
  ascendc_twin::Force(core->launch, core->Thread(ascendc_twin::kV),
                      core->pipes[ascendc_twin::kV].issued);
  value = static_cast<T>(static_cast<ascendc_twin::Wide<T>>(core->reduce_value));
  const uint32_t bits = static_cast<uint32_t>(core->reduce_index);
  std::memcpy(&index, &bits, sizeof(T));
}
template <typename T>
void GetReduceRepeatMaxMinSpr(T& value, T& index) {
  GetReduceMaxMinCount(value, index);
}

}  // namespace AscendC
