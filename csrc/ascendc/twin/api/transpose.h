// Transpose and TransDataTo5HD.
#pragma once

#include "fill.h"

namespace AscendC {

struct TransDataTo5HDParams {
  TransDataTo5HDParams() {}
  TransDataTo5HDParams(bool dst_high, bool src_high, ascendc_twin::Field8 repeat,
                       ascendc_twin::Field16 dst, ascendc_twin::Field16 src)
      : dstHighHalf(dst_high),
        srcHighHalf(src_high),
        repeatTimes(repeat),
        dstRepStride(dst),
        srcRepStride(src) {}
  bool dstHighHalf = false;
  bool srcHighHalf = false;
  ascendc_twin::Field8 repeatTimes = 1;
  ascendc_twin::Field16 dstRepStride = 0;
  ascendc_twin::Field16 srcRepStride = 0;
};

enum class TransposeType : uint8_t {
  TRANSPOSE_TYPE_NONE = 0,
  TRANSPOSE_NCHW2NHWC = 12,
  TRANSPOSE_NHWC2NCHW,
};

struct TransposeParamsExt {
  TransposeParamsExt() {}
  TransposeParamsExt(ascendc_twin::Field16 n, ascendc_twin::Field16 c, ascendc_twin::Field16 h,
                     ascendc_twin::Field16 w, TransposeType type)
      : nSize(n), cSize(c), hSize(h), wSize(w), transposeType(type) {}
  ascendc_twin::Field16 nSize = 0;
  ascendc_twin::Field16 cSize = 0;
  ascendc_twin::Field16 hSize = 0;
  ascendc_twin::Field16 wSize = 0;
  TransposeType transposeType = TransposeType::TRANSPOSE_TYPE_NONE;
};

}  // namespace AscendC

namespace ascendc_twin {

struct BlockLists {
  Operand dst[16], src[16];
};

// A place in UB that is known by its address alone.
inline Operand AtAddress(Instruction& instruction, uint64_t address, const char* role) {
  Operand operand;
  operand.space = instruction.core->Memory(Hardware::UB);
  if (!operand.space) {
    instruction.Refuse("wrong-position", std::string(role) + " is not in the UB of this core");
    return operand;
  }
  operand.address = static_cast<uint32_t>(address);
  operand.end = static_cast<uint32_t>(operand.space->size);
  if (address % kBlock)
    instruction.Report("misaligned", std::string(role) + " starts at byte " +
                                         std::to_string(address) + ", not a multiple of 32");
  return operand;
}

// 16 rows of one block each become, per repeat, the columns of 16 (16-bit) or 8 (32-bit) rows.
template <typename T>
void RunTrans(Instruction& instruction, const BlockLists& lists,
              const AscendC::TransDataTo5HDParams& p) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "16- and 32-bit elements");
  const AscendC::TransDataTo5HDParams params = p;
  const uint32_t columns = kBlock / sizeof(T);
  for (uint32_t r = 0; r < params.repeatTimes; ++r)
    for (int i = 0; i < 16; ++i) {
      Touch(instruction, lists.src[i], r * uint64_t(params.srcRepStride) * kBlock, kBlock,
            Kind::kRead);
      Touch(instruction, lists.dst[i], r * uint64_t(params.dstRepStride) * kBlock, kBlock,
            Kind::kWrite);
    }
  CountElements(instruction, params.repeatTimes * 16ull * columns);
  Issue(instruction, params.repeatTimes * 2.0 * sizeof(T) / 2, [=] {
    for (uint32_t r = 0; r < params.repeatTimes; ++r) {
      T in[16][16], out[16][16];
      for (int i = 0; i < 16; ++i)
        std::memcpy(in[i], lists.src[i].data() + r * uint64_t(params.srcRepStride) * kBlock,
                    kBlock);
      // 32-bit: each of the 8 columns takes two destination rows of 8.
      for (uint32_t i = 0; i < 16; ++i)
        for (uint32_t j = 0; j < columns; ++j) {
          if (sizeof(T) == 2)
            out[j][i] = in[i][j];
          else
            out[2 * j + i / 8][i % 8] = in[i][j];
        }
      for (int i = 0; i < 16; ++i)
        std::memcpy(lists.dst[i].data() + r * uint64_t(params.dstRepStride) * kBlock, out[i],
                    kBlock);
    }
  });
}

}  // namespace ascendc_twin

namespace AscendC {

// A 16x16 matrix of 16-bit elements.
template <typename T>
void Transpose(const LocalTensor<T>& dst, const LocalTensor<T>& src, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  static_assert(sizeof(T) == 2, "Transpose works on a 16x16 matrix of 16-bit elements");
  Instruction instruction(kV, "Transpose", loc);
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB});
  const Operand from = Use(instruction, src, "src", {Hardware::UB});
  Touch(instruction, from, 0, 512, Kind::kRead);
  Touch(instruction, to, 0, 512, Kind::kWrite);
  CountElements(instruction, 256);
  Issue(instruction, 2, [=] {
    uint16_t in[256], out[256];
    std::memcpy(in, from.data(), 512);
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 16; ++j) out[j * 16 + i] = in[i * 16 + j];
    std::memcpy(to.data(), out, 512);
  });
}

template <typename T>
void TransDataTo5HD(const LocalTensor<T> (&dstList)[16], const LocalTensor<T> (&srcList)[16],
                    const TransDataTo5HDParams& p, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "TransDataTo5HD", loc);
  BlockLists lists;
  for (int i = 0; i < 16; ++i) {
    lists.dst[i] = Use(instruction, dstList[i], "dst", {Hardware::UB});
    lists.src[i] = Use(instruction, srcList[i], "src", {Hardware::UB});
  }
  RunTrans<T>(instruction, lists, p);
}

// The same by addresses, which GetPhyAddr gives.
template <typename T>
void TransDataTo5HD(uint64_t dstList[16], uint64_t srcList[16], const TransDataTo5HDParams& p,
                    Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "TransDataTo5HD", loc);
  BlockLists lists;
  for (int i = 0; i < 16; ++i) {
    lists.dst[i] = AtAddress(instruction, dstList[i], "dst");
    lists.src[i] = AtAddress(instruction, srcList[i], "src");
  }
  RunTrans<T>(instruction, lists, p);
}

// A tensor of four dimensions whose channels move to the end, or back. The temporary tensor holds
// C + 2 squares of 16 (of 8-bit elements: 32) blocks, or 2 C + 1.
template <typename T>
void Transpose(const LocalTensor<T>& dst, const LocalTensor<T>& src,
               const LocalTensor<uint8_t>& sharedTmpBuffer, const TransposeParamsExt& params,
               Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kV, "Transpose", loc);
  const bool back = params.transposeType == TransposeType::TRANSPOSE_NHWC2NCHW;
  if (!back && params.transposeType != TransposeType::TRANSPOSE_NCHW2NHWC) {
    instruction.Refuse("unsupported", "this transposeType is not modelled");
    return;
  }
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB});
  const Operand from = Use(instruction, src, "src", {Hardware::UB});
  const Operand scratch = Use(instruction, sharedTmpBuffer, "sharedTmpBuffer", {Hardware::UB});
  const uint64_t n = params.nSize, c = params.cSize, plane = params.hSize * uint64_t(params.wSize);
  const uint64_t length = n * c * plane * sizeof(T);
  Touch(instruction, from, 0, length, Kind::kRead);
  const uint64_t rows = sizeof(T) == 1 ? 32 : 16;
  Touch(instruction, scratch, 0, (back ? 2 * c + 1 : c + 2) * rows * kBlock, Kind::kWrite);
  Touch(instruction, to, 0, length, Kind::kWrite);
  CountElements(instruction, length / sizeof(T));
  Issue(instruction, length / 128.0, [=] {
    for (uint64_t i = 0; i < n; ++i)
      for (uint64_t channel = 0; channel < c; ++channel)
        for (uint64_t at = 0; at < plane; ++at) {
          const uint64_t first = (i * c + channel) * plane + at;
          const uint64_t last = (i * plane + at) * c + channel;
          std::memcpy(to.data() + (back ? first : last) * sizeof(T),
                      from.data() + (back ? last : first) * sizeof(T), sizeof(T));
        }
  });
}

}  // namespace AscendC
