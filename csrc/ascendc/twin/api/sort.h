// Sort32 and MrgSort: pairs of a value and an index, 8 bytes each, from the largest down.
#pragma once

#include "fill.h"

namespace AscendC {

struct MrgSort4Info {
  MrgSort4Info() {}
  MrgSort4Info(const uint16_t lengths[4], bool suspends, ascendc_twin::Field16 valid,
               ascendc_twin::Field16 repeats)
      : ifExhaustedSuspension(suspends), validBit(valid), repeatTimes(repeats) {
    for (int i = 0; i < 4; ++i) elementLengths[i] = lengths[i];
  }
  ascendc_twin::Field16 elementLengths[4] = {0, 0, 0, 0};
  bool ifExhaustedSuspension = false;
  ascendc_twin::Field16 validBit = 0;
  ascendc_twin::Field16 repeatTimes = 1;
};

template <typename T>
struct MrgSortSrcList {
  MrgSortSrcList() {}
  MrgSortSrcList(const LocalTensor<T>& first, const LocalTensor<T>& second,
                 const LocalTensor<T>& third, const LocalTensor<T>& fourth)
      : src1(first), src2(second), src3(third), src4(fourth) {}
  LocalTensor<T> src1, src2, src3, src4;
};

}  // namespace AscendC

namespace ascendc_twin {

struct Proposal {
  uint64_t bits;  // the value in its low bytes, the index in the high four
  template <typename T>
  float Value() const {
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return static_cast<float>(value);
  }
};

// Equal values keep their order.
template <typename T>
void SortDown(std::vector<Proposal>& proposals) {
  std::stable_sort(proposals.begin(), proposals.end(), [](const Proposal& a, const Proposal& b) {
    return a.Value<T>() > b.Value<T>();
  });
}

}  // namespace ascendc_twin

namespace AscendC {

// 32 values and their indices per repeat become 32 sorted pairs.
template <typename T>
void Sort32(const LocalTensor<T>& dst, const LocalTensor<T>& src0,
            const LocalTensor<uint32_t>& src1, const int32_t repeatTime, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Sort32", loc);
  CheckType<T, half, float>(instruction);
  if (repeatTime < 0 || repeatTime > 255)
    instruction.Refuse("field-range",
                       "repeatTime " + std::to_string(repeatTime) + "; wanted 0..255");
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB}, 256);
  const Operand values = Use(instruction, src0, "src0", {Hardware::UB}, 32 * sizeof(T));
  const Operand indices = Use(instruction, src1, "src1", {Hardware::UB}, 128);
  const uint64_t count = repeatTime > 0 ? repeatTime * 32ull : 0;
  Touch(instruction, values, 0, count * sizeof(T), Kind::kRead);
  Touch(instruction, indices, 0, count * 4, Kind::kRead);
  Touch(instruction, to, 0, count * 8, Kind::kWrite);
  CountElements(instruction, count);
  Issue(instruction, VectorCycles(VectorRate::kSlow, count / 32, 32), [=] {
    for (uint64_t first = 0; first < count; first += 32) {
      std::vector<Proposal> proposals(32, Proposal{0});
      for (uint64_t i = 0; i < 32; ++i) {
        uint8_t* pair = reinterpret_cast<uint8_t*>(&proposals[i].bits);
        std::memcpy(pair, values.data() + (first + i) * sizeof(T), sizeof(T));
        std::memcpy(pair + 4, indices.data() + (first + i) * 4, 4);
      }
      SortDown<T>(proposals);
      std::memcpy(to.data() + first * 8, proposals.data(), 32 * 8);
    }
  });
}

// Up to four sorted queues become one. Several repeats want four equal queues that lie together.
template <typename T>
void MrgSort(const LocalTensor<T>& dst, const MrgSortSrcList<T>& src, const MrgSort4Info& params,
             Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "MrgSort", loc);
  CheckType<T, half, float>(instruction);
  const uint32_t valid = params.validBit;
  if (valid != 3 && valid != 7 && valid != 15)
    instruction.Refuse("field-range", "validBit " + std::to_string(valid) + "; wanted 3, 7 or 15");
  if (params.ifExhaustedSuspension)
    instruction.Refuse("unsupported", "a merge that ends with its first queue is not modelled");
  if (!instruction.runnable) return;
  const int queues = valid == 15 ? 4 : valid == 7 ? 3 : 2;
  const LocalTensor<T>* tensors[] = {&src.src1, &src.src2, &src.src3, &src.src4};
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB});
  struct Queues {
    Operand from[4];
    uint64_t length[4];
  } q;
  uint64_t total = 0;
  bool together = queues == 4;
  for (int i = 0; i < queues; ++i) {
    q.from[i] = Use(instruction, *tensors[i], "src", {Hardware::UB}, 8);
    q.length[i] = params.elementLengths[i];
    if (q.length[i] > 4095) instruction.Report("field-range", "a queue has up to 4095 elements");
    together &= q.length[i] == q.length[0] && q.from[i].address == q.from[0].address + total * 8;
    total += q.length[i];
  }
  const uint64_t repeats = params.repeatTimes;
  if (repeats > 255 || (repeats > 1 && !together))
    instruction.Report("field-range",
                       "repeatTimes is up to 255, and 1 unless four equal queues lie together");
  for (uint64_t r = 0; r < repeats; ++r)
    for (int i = 0; i < queues; ++i)
      Touch(instruction, q.from[i], r * total * 8, q.length[i] * 8, Kind::kRead);
  Touch(instruction, to, 0, repeats * total * 8, Kind::kWrite);
  CountElements(instruction, repeats * total);
  Issue(instruction, repeats * total / 4.0, [=] {
    for (uint64_t r = 0; r < repeats; ++r) {
      std::vector<Proposal> proposals;
      for (int i = 0; i < queues; ++i) {
        const size_t before = proposals.size();
        proposals.resize(before + q.length[i]);
        std::memcpy(proposals.data() + before, q.from[i].data() + r * total * 8, q.length[i] * 8);
      }
      SortDown<T>(proposals);
      std::memcpy(to.data() + r * total * 8, proposals.data(), total * 8);
    }
  });
}

}  // namespace AscendC
