// DataCopy of a slice of a tensor of several dimensions.
#pragma once

#include "copy_pad.h"

namespace AscendC {

constexpr uint32_t K_MAX_DIM = 8;

// One dimension of a slice: bursts between two indices, both taken, and the gap between them.
struct SliceInfo {
  SliceInfo() {}
  SliceInfo(uint32_t start, uint32_t end, uint32_t gap, uint32_t burst, uint32_t shape)
      : startIndex(start), endIndex(end), stride(gap), burstLen(burst), shapeValue(shape) {}
  uint32_t startIndex = 0;
  uint32_t endIndex = 0;
  uint32_t stride = 0;
  uint32_t burstLen = 0;  // of the innermost dimension, in blocks
  uint32_t shapeValue = 0;
};

}  // namespace AscendC

namespace ascendc_twin {

// Where the bursts of a slice start, in elements.
template <typename T>
std::vector<uint64_t> SliceStarts(const Instruction& instruction, const AscendC::SliceInfo* slices,
                                  uint32_t dims) {
  std::vector<uint64_t> starts{0};
  uint64_t pitch = 1;
  for (uint32_t dim = 0; dim < dims; ++dim) {
    const AscendC::SliceInfo& slice = slices[dim];
    const uint64_t burst = dim == 0 ? slice.burstLen * uint64_t(kBlock) / sizeof(T) : 1;
    if (burst == 0 || slice.endIndex >= slice.shapeValue)
      instruction.Report("field-range", "dimension " + std::to_string(dim) +
                                            " of a slice ends at " +
                                            std::to_string(slice.endIndex) + " of " +
                                            std::to_string(slice.shapeValue));
    std::vector<uint64_t> next;
    for (uint64_t at = slice.startIndex; burst && at + burst <= slice.endIndex + uint64_t(1);
         at += burst + slice.stride)
      for (uint64_t start : starts) next.push_back(at * pitch + start);
    starts.swap(next);
    pitch *= slice.shapeValue;
  }
  return starts;
}

template <typename T, typename To, typename From>
void RunSlice(Instruction& instruction, const To& to, const From& from,
              const AscendC::SliceInfo* dst, const AscendC::SliceInfo* src, uint32_t dims,
              bool reads) {
  if (dims == 0 || dims > AscendC::K_MAX_DIM) {
    instruction.Refuse("field-range", "a slice has 1 to 8 dimensions");
    return;
  }
  const std::vector<uint64_t> out = SliceStarts<T>(instruction, dst, dims);
  const std::vector<uint64_t> in = SliceStarts<T>(instruction, src, dims);
  if (out.size() != in.size() || dst[0].burstLen != src[0].burstLen) {
    instruction.Refuse("field-range", "the two slices have different bursts");
    return;
  }
  const uint64_t length = src[0].burstLen * uint64_t(kBlock);
  for (size_t i = 0; i < in.size(); ++i) {
    Touch(instruction, from, in[i] * sizeof(T), length, Kind::kRead);
    Touch(instruction, to, out[i] * sizeof(T), length, Kind::kWrite);
  }
  const uint64_t bytes = in.size() * length;
  Count(instruction, reads ? "GM->UB" : "UB->GM", bytes);
  CountElements(instruction, bytes / sizeof(T));
  Issue(instruction, reads ? GlobalReadCycles(bytes) : GlobalWriteCycles(bytes), [=] {
    for (size_t i = 0; i < in.size(); ++i)
      std::memcpy(to.data() + out[i] * sizeof(T), from.data() + in[i] * sizeof(T), length);
  });
}

}  // namespace ascendc_twin

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const SliceInfo dstSliceInfo[],
              const SliceInfo srcSliceInfo[], const uint32_t dimValue = 1, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte2, "DataCopy(slice)", loc);
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB});
  const GlobalOperand from = Use(instruction, src, "src");
  RunSlice<T>(instruction, to, from, dstSliceInfo, srcSliceInfo, dimValue, true);
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const SliceInfo dstSliceInfo[],
              const SliceInfo srcSliceInfo[], const uint32_t dimValue = 1, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte3, "DataCopy(slice)", loc);
  const GlobalOperand to = Use(instruction, dst, "dst");
  const Operand from = Use(instruction, src, "src", {Hardware::UB});
  RunSlice<T>(instruction, to, from, dstSliceInfo, srcSliceInfo, dimValue, false);
}

}  // namespace AscendC
