// DataCopy out of L0C: Fixpipe with its settings in registers.
#pragma once

#include "fixpipe.h"

namespace AscendC {

struct DataCopyCO12DstParams {
  DataCopyCO12DstParams() {}
  uint8_t sid = 0;
  ascendc_twin::Field16 nSize = 0;
  ascendc_twin::Field16 mSize = 0;
  ascendc_twin::Field32 dstStride = 0;
  ascendc_twin::Field16 srcStride = 0;
  ascendc_twin::Field8 unitFlag = 0;
  ascendc_twin::Field8 clipReluPre = 0;
  ascendc_twin::Field8 eltWiseOp = 0;
  QuantMode_t quantPre = QuantMode_t::NoQuant;
  ascendc_twin::Field8 reluPre = 0;
  bool channelSplit = false;
  bool nz2ndEn = false;
};

inline void SetFixpipePreQuantFlag(uint64_t config) {
  ascendc_twin::CurrentCore()->fixpipe.scalar = config;
}
inline void SetFixpipeNz2ndFlag(ascendc_twin::Field16 ndNum, ascendc_twin::Field16 srcNdStride,
                                ascendc_twin::Field32 dstNdStride) {
  ascendc_twin::FixpipeRegisters& registers = ascendc_twin::CurrentCore()->fixpipe;
  registers.matrices = ndNum;
  registers.src_stride = srcNdStride;
  registers.dst_stride = dstNdStride;
}

// Names the scales in the fixpipe buffer. Its form for unitFlag has nothing that the twin needs.
template <typename T, bool setRelu = false>
inline void SetFixPipeConfig(const LocalTensor<T>& preData, bool isUnitFlag = false,
                             Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  if (isUnitFlag) return;
  Instruction instruction(kFix, "SetFixPipeConfig", loc);
  if (setRelu) instruction.Report("unsupported", "ReLU by a tensor is not modelled");
  Use(instruction, preData, "preData", {Hardware::FIXBUF}, 128);
  instruction.core->fixpipe.scales = preData.address();
}

}  // namespace AscendC

namespace ascendc_twin {

template <typename T, typename U, typename To>
void RunL0cCopy(Instruction& instruction, const To& to, const LocalTensor<U>& src,
                const AscendC::DataCopyCO12DstParams& p) {
  if (p.clipReluPre || p.eltWiseOp || p.reluPre > 1)
    instruction.Report("unsupported", "Atlas A2 has no clipReluPre, eltWiseOp or other ReLU");
  const FixpipeRegisters& registers = instruction.core->fixpipe;
  AscendC::FixpipeParamsV220 params(p.nSize, p.mSize, p.srcStride, p.dstStride, p.reluPre == 1);
  params.quantPre = p.quantPre;
  params.deqScalar = registers.scalar;
  params.unitFlag = p.unitFlag;
  params.isChannelSplit = p.channelSplit;
  if (p.nz2ndEn) {
    params.ndNum = registers.matrices;
    params.srcNdStride = registers.src_stride;
    params.dstNdStride = registers.dst_stride;
  }
  Operand scales;
  if (IsTensorQuant(p.quantPre)) {
    scales.space = instruction.core->Memory(Hardware::FIXBUF);
    scales.address = scales.begin = registers.scales;
    if (scales.space) scales.end = static_cast<uint32_t>(scales.space->size);
  }
  RunFixpipe<T, U>(instruction, to, src, params, p.nz2ndEn, scales);
}

}  // namespace ascendc_twin

namespace AscendC {

template <typename T, typename U>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<U>& src,
              const DataCopyCO12DstParams& params, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kFix, "DataCopy(L0C)", loc);
  RunL0cCopy<T, U>(instruction, Use(instruction, dst, "dst"), src, params);
}
template <typename T, typename U>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<U>& src,
              const DataCopyCO12DstParams& params, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kFix, "DataCopy(L0C)", loc);
  RunL0cCopy<T, U>(instruction, Use(instruction, dst, "dst", {Hardware::L1}), src, params);
}

}  // namespace AscendC
