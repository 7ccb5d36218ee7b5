// DataCopy from ND to NZ, and DataCopyPad.
#pragma once

#include "copy.h"

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const Nd2NzParams& params,
              Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte2, "DataCopy(Nd2Nz)", loc);
  const Operand to = Use(instruction, dst, "dst", {Hardware::L1});
  const GlobalOperand from = Use(instruction, src, "src");
  if (params.nValue > 16384 || params.dstNzC0Stride > 16384 || params.dstNzNStride > 16384)
    instruction.Report("field-range", "nValue, dstNzC0Stride and dstNzNStride go up to 16384");
  const uint32_t c0 = kBlock / sizeof(T);
  const uint32_t columns = (params.dValue + c0 - 1) / c0;
  const Nd2NzParams p = params;
  uint64_t bytes = 0;
  for (uint32_t nd = 0; nd < p.ndNum; ++nd)
    for (uint32_t row = 0; row < p.nValue; ++row) {
      Touch(instruction, from,
            (nd * uint64_t(p.srcNdMatrixStride) + row * uint64_t(p.srcDValue)) * sizeof(T),
            p.dValue * sizeof(T), Kind::kRead);
      bytes += p.dValue * sizeof(T);
    }
  for (uint32_t nd = 0; nd < p.ndNum; ++nd)
    for (uint32_t column = 0; column < columns; ++column)
      for (uint32_t row = 0; row < p.nValue; ++row)
        Touch(instruction, to,
              nd * uint64_t(p.dstNzMatrixStride) * sizeof(T) +
                  column * uint64_t(p.dstNzC0Stride) * kBlock +
                  row * uint64_t(p.dstNzNStride) * kBlock,
              kBlock, Kind::kWrite);
  Count(instruction, "GM->L1", bytes);
  CountElements(instruction, bytes / sizeof(T));
  Issue(instruction, GlobalReadCycles(bytes), [=] {
    for (uint32_t nd = 0; nd < p.ndNum; ++nd)
      for (uint32_t column = 0; column < columns; ++column)
        for (uint32_t row = 0; row < p.nValue; ++row) {
          uint8_t* block = to.data() + nd * uint64_t(p.dstNzMatrixStride) * sizeof(T) +
                           column * uint64_t(p.dstNzC0Stride) * kBlock +
                           row * uint64_t(p.dstNzNStride) * kBlock;
          const uint32_t first = column * c0;
          const uint32_t live = std::min<uint32_t>(c0, p.dValue - first);
          std::memset(block, 0, kBlock);
          std::memcpy(block,
                      from.data() + (nd * uint64_t(p.srcNdMatrixStride) +
                                     row * uint64_t(p.srcDValue) + first) *
                                        sizeof(T),
                      live * sizeof(T));
        }
  });
}

template <typename T, TPosition position = TPosition::MAX>
void SetPadValue(T paddingValue) {
  ascendc_twin::Core* core = ascendc_twin::CurrentCore();
  std::memcpy(&core->pad_value, &paddingValue, sizeof(T));
  core->pad_value_set = true;
}

template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src,
                 const DataCopyExtParams& params, const DataCopyPadExtParams<T>& pad,
                 Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte2, "DataCopyPad", loc);
  CheckPad(instruction, params, pad.leftPadding * sizeof(T), pad.rightPadding * sizeof(T));
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB, Hardware::L1});
  const GlobalOperand from = Use(instruction, src, "src");
  const uint64_t left = pad.leftPadding * sizeof(T);
  const uint64_t used = left + params.blockLen + pad.rightPadding * sizeof(T);
  const uint64_t row = (used + kBlock - 1) / kBlock * kBlock;
  const uint64_t dst_step = row + params.dstStride * uint64_t(kBlock);
  const uint64_t src_step = params.blockLen + uint64_t(params.srcStride);
  // What lies beyond the asked-for padding holds the row's first element when no padding was asked
  // for, and nothing that one may read otherwise. Padding that was asked for without isPad takes
  // the value of SetPadValue.
  const bool filled = left == 0 && pad.rightPadding == 0;
  const bool padded = pad.isPad || instruction.core->pad_value_set;
  for (uint32_t i = 0; i < params.blockCount; ++i) {
    Touch(instruction, from, i * src_step, params.blockLen, Kind::kRead);
    if (padded)
      Touch(instruction, to, i * dst_step, filled ? row : used, Kind::kWrite);
    else if (filled)
      Touch(instruction, to, i * dst_step, row, Kind::kWrite);
    else
      Touch(instruction, to, i * dst_step + left, params.blockLen, Kind::kWrite);
  }
  const uint64_t bytes = uint64_t(params.blockCount) * params.blockLen;
  Count(instruction, PathName(Hardware::GM, GetPhyType(dst.position())), bytes);
  CountElements(instruction, bytes / sizeof(T));
  const DataCopyExtParams p = params;
  T value = pad.paddingValue;
  if (!pad.isPad) std::memcpy(&value, &instruction.core->pad_value, sizeof(T));
  Issue(instruction, GlobalReadCycles(bytes), [=] {
    for (uint32_t i = 0; i < p.blockCount; ++i) {
      uint8_t* out = to.data() + i * dst_step;
      const uint8_t* in = from.data() + i * src_step;
      if (padded || filled) {
        T around = value;
        if (filled && p.blockLen >= sizeof(T)) std::memcpy(&around, in, sizeof(T));
        const uint64_t upto = filled ? row : used;
        for (uint64_t at = 0; at + sizeof(T) <= upto; at += sizeof(T))
          std::memcpy(out + at, &around, sizeof(T));
      }
      std::memcpy(out + left, in, p.blockLen);
    }
  });
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src,
                 const DataCopyExtParams& params, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte3, "DataCopyPad", loc);
  CheckPad(instruction, params, 0, 0);
  const uint64_t row = (params.blockLen + uint64_t(kBlock) - 1) / kBlock * kBlock;
  CopyOut(instruction, dst, src,
          {params.blockCount, params.blockLen, row + params.srcStride * uint64_t(kBlock),
           params.blockLen + uint64_t(params.dstStride)});
}

template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src,
                 const DataCopyParams& params, const DataCopyPadParams& pad,
                 Loc loc = Loc::Here()) {
  T value;
  std::memcpy(&value, &pad.paddingValue, sizeof(T));
  DataCopyPad(
      dst, src,
      DataCopyExtParams(params.blockCount, params.blockLen, params.srcStride, params.dstStride, 0),
      DataCopyPadExtParams<T>(pad.isPad, pad.leftPadding, pad.rightPadding, value), loc);
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src,
                 const DataCopyParams& params, Loc loc = Loc::Here()) {
  DataCopyPad(
      dst, src,
      DataCopyExtParams(params.blockCount, params.blockLen, params.srcStride, params.dstStride, 0),
      loc);
}

}  // namespace AscendC
