// DataCopy and DataCopyPad between global memory, UB, L1 and the bias table.
#pragma once

#include "cost.h"
#include "system.h"

namespace AscendC {

struct DataCopyParams {
  DataCopyParams() {}
  DataCopyParams(ascendc_twin::Field16 count, ascendc_twin::Field16 len, ascendc_twin::Field16 src,
                 ascendc_twin::Field16 dst)
      : blockCount(count), blockLen(len), srcStride(src), dstStride(dst) {}
  ascendc_twin::Field16 blockCount = 1;
  ascendc_twin::Field16 blockLen = 0;
  union {
    ascendc_twin::Field16 srcGap = 0;
    ascendc_twin::Field16 srcStride;
  };
  union {
    ascendc_twin::Field16 dstGap = 0;
    ascendc_twin::Field16 dstStride;
  };
};

struct DataCopyEnhancedParams {
  bool isRelu = false;
};

struct DataCopyExtParams {
  DataCopyExtParams() {}
  DataCopyExtParams(ascendc_twin::Field16 count, ascendc_twin::Field32 len,
                    ascendc_twin::Field32 src, ascendc_twin::Field32 dst, uint32_t reserved)
      : blockCount(count), blockLen(len), srcStride(src), dstStride(dst), rsv(reserved) {}
  ascendc_twin::Field16 blockCount = 1;
  ascendc_twin::Field32 blockLen = 0;
  ascendc_twin::Field32 srcStride = 0;
  ascendc_twin::Field32 dstStride = 0;
  uint32_t rsv = 0;
};

struct DataCopyPadParams {
  DataCopyPadParams() {}
  DataCopyPadParams(bool pad, ascendc_twin::Field8 left, ascendc_twin::Field8 right, uint64_t value)
      : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}
  bool isPad = false;
  ascendc_twin::Field8 leftPadding = 0;
  ascendc_twin::Field8 rightPadding = 0;
  uint64_t paddingValue = 0;
};

template <typename T>
struct DataCopyPadExtParams {
  DataCopyPadExtParams() {}
  DataCopyPadExtParams(bool pad, ascendc_twin::Field8 left, ascendc_twin::Field8 right, T value)
      : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}
  bool isPad = false;
  ascendc_twin::Field8 leftPadding = 0;
  ascendc_twin::Field8 rightPadding = 0;
  T paddingValue = T(0);
};

struct Nd2NzParams {
  Nd2NzParams() {}
  Nd2NzParams(ascendc_twin::Field16 nd, ascendc_twin::Field16 n, ascendc_twin::Field16 d,
              ascendc_twin::Field16 src_matrix, ascendc_twin::Field16 src_d,
              ascendc_twin::Field16 c0, ascendc_twin::Field16 dst_n,
              ascendc_twin::Field16 dst_matrix)
      : ndNum(nd),
        nValue(n),
        dValue(d),
        srcNdMatrixStride(src_matrix),
        srcDValue(src_d),
        dstNzC0Stride(c0),
        dstNzNStride(dst_n),
        dstNzMatrixStride(dst_matrix) {}
  ascendc_twin::Field16 ndNum = 0;
  ascendc_twin::Field16 nValue = 0;
  ascendc_twin::Field16 dValue = 0;
  ascendc_twin::Field16 srcNdMatrixStride = 0;
  ascendc_twin::Field16 srcDValue = 0;
  ascendc_twin::Field16 dstNzC0Stride = 0;
  ascendc_twin::Field16 dstNzNStride = 0;
  ascendc_twin::Field16 dstNzMatrixStride = 0;
};

struct CopyRepeatParams {
  CopyRepeatParams() {}
  CopyRepeatParams(ascendc_twin::Field16 dst, ascendc_twin::Field16 src,
                   ascendc_twin::Field16 dst_repeat, ascendc_twin::Field16 src_repeat)
      : dstStride(dst), srcStride(src), dstRepeatSize(dst_repeat), srcRepeatSize(src_repeat) {}
  ascendc_twin::Field16 dstStride = 1;
  ascendc_twin::Field16 srcStride = 1;
  ascendc_twin::Field16 dstRepeatSize = 8;
  ascendc_twin::Field16 srcRepeatSize = 8;
};

}  // namespace AscendC

namespace ascendc_twin {

// Writes `length` bytes as the core's atomic mode says: stored, or combined with what is there.
template <typename T>
void StoreAs(AtomicOp op, uint8_t* to, const uint8_t* from, uint64_t length) {
  if (op == AtomicOp::kNone) {
    std::memmove(to, from, length);
    return;
  }
  for (uint64_t i = 0; i + sizeof(T) <= length; i += sizeof(T)) {
    T a, b;
    std::memcpy(&a, to + i, sizeof(T));
    std::memcpy(&b, from + i, sizeof(T));
    const T c = op == AtomicOp::kAdd   ? static_cast<T>(a + b)
                : op == AtomicOp::kMax ? (a < b ? b : a)
                                       : (b < a ? b : a);
    std::memcpy(to + i, &c, sizeof(T));
  }
}

template <typename T>
AtomicOp AtomicFor(const Instruction& instruction) {
  const Core* core = instruction.core;
  if (core->atomic != AtomicOp::kNone && core->atomic_type != AscendC::AtomicType<T>())
    instruction.Report("atomic-type", "the atomic mode is of another type than the data");
  return core->atomic;
}

// How many bytes each of `count` pieces has and how far their starts lie apart, on each side.
struct Bursts {
  uint32_t count;
  uint64_t length;
  uint64_t src_step, dst_step;
};

inline const char* PathName(Hardware from, Hardware to) {
  if (from == Hardware::GM) return to == Hardware::UB ? "GM->UB" : "GM->L1";
  if (to == Hardware::GM) return from == Hardware::UB ? "UB->GM" : "L1->GM";
  if (from == Hardware::UB) return "UB->UB";
  return to == Hardware::BIAS ? "L1->BT" : "L1->FB";
}

template <typename T>
void CopyIn(Instruction& instruction, const LocalTensor<T>& dst, const GlobalTensor<T>& src,
            const Bursts& bursts) {
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB, Hardware::L1});
  const GlobalOperand from = Use(instruction, src, "src");
  for (uint32_t i = 0; i < bursts.count; ++i) {
    Touch(instruction, from, i * bursts.src_step, bursts.length, Kind::kRead);
    Touch(instruction, to, i * bursts.dst_step, bursts.length, Kind::kWrite);
  }
  const uint64_t bytes = bursts.count * bursts.length;
  Count(instruction, PathName(Hardware::GM, AscendC::GetPhyType(dst.position())), bytes);
  CountElements(instruction, bytes / sizeof(T));
  Issue(instruction, GlobalReadCycles(bytes), [=] {
    for (uint32_t i = 0; i < bursts.count; ++i)
      std::memcpy(to.data() + i * bursts.dst_step, from.data() + i * bursts.src_step,
                  bursts.length);
  });
}

template <typename T>
void CopyOut(Instruction& instruction, const GlobalTensor<T>& dst, const LocalTensor<T>& src,
             const Bursts& bursts) {
  const GlobalOperand to = Use(instruction, dst, "dst");
  const Operand from = Use(instruction, src, "src", {Hardware::UB, Hardware::L1});
  const AtomicOp op = AtomicFor<T>(instruction);
  for (uint32_t i = 0; i < bursts.count; ++i) {
    Touch(instruction, from, i * bursts.src_step, bursts.length, Kind::kRead);
    Touch(instruction, to, i * bursts.dst_step, bursts.length,
          op == AtomicOp::kNone ? Kind::kWrite : Kind::kAtomic);
  }
  const uint64_t bytes = bursts.count * bursts.length;
  Count(instruction, PathName(AscendC::GetPhyType(src.position()), Hardware::GM), bytes);
  CountElements(instruction, bytes / sizeof(T));
  Issue(instruction, GlobalWriteCycles(bytes), [=] {
    for (uint32_t i = 0; i < bursts.count; ++i)
      StoreAs<T>(op, to.data() + i * bursts.dst_step, from.data() + i * bursts.src_step,
                 bursts.length);
  });
}

template <typename T>
bool WholeBlocks(const Instruction& instruction, uint64_t count) {
  if (count * sizeof(T) % kBlock == 0) return true;
  instruction.Report("not-whole-blocks", std::to_string(count) + " elements are " +
                                             std::to_string(count * sizeof(T)) +
                                             " bytes, not a multiple of 32");
  return false;
}

inline Bursts InBlocks(const AscendC::DataCopyParams& params) {
  const uint64_t length = params.blockLen * 32ull;
  return {params.blockCount, length, length + params.srcStride * 32ull,
          length + params.dstStride * 32ull};
}

inline void CheckBursts(const Instruction& instruction, const AscendC::DataCopyParams& params) {
  if (params.blockCount == 0 || params.blockCount > 4095)
    instruction.Report("field-range",
                       "blockCount " + std::to_string(params.blockCount) + "; wanted 1..4095");
  if (params.blockLen == 0) instruction.Report("field-range", "blockLen 0; wanted 1..65535");
}

inline void CheckPad(const Instruction& instruction, const AscendC::DataCopyExtParams& params,
                     uint64_t left, uint64_t right) {
  if (params.blockCount == 0 || params.blockCount > 4095)
    instruction.Report("field-range",
                       "blockCount " + std::to_string(params.blockCount) + "; wanted 1..4095");
  if (params.blockLen == 0 || params.blockLen > 2097151)
    instruction.Report("field-range",
                       "blockLen " + std::to_string(params.blockLen) + "; wanted 1..2097151 bytes");
  if (left > kBlock || right > kBlock)
    instruction.Report("field-range", "more than 32 bytes of padding on one side");
}

// UB to UB runs on V; L1 to the bias table on MTE1 and to the fixpipe buffer on FIX.
template <typename T, typename U>
void CopyLocal(const char* call, Loc loc, const LocalTensor<T>& dst, const LocalTensor<U>& src,
               Bursts bursts) {
  const Hardware from_type = AscendC::GetPhyType(src.position());
  const Hardware to_type = AscendC::GetPhyType(dst.position());
  const Pipe pipe = to_type == Hardware::BIAS ? kMte1 : to_type == Hardware::FIXBUF ? kFix : kV;
  Instruction instruction(pipe, call, loc);
  if (from_type != (pipe == kV ? Hardware::UB : Hardware::L1) ||
      (pipe == kV && to_type != Hardware::UB)) {
    instruction.Refuse("wrong-position", "Atlas A2 has no path between these two memories");
  }
  const bool widen = !std::is_same<T, U>::value;
  const Operand to = Use(instruction, dst, "dst", {Hardware::UB, Hardware::BIAS, Hardware::FIXBUF},
                         pipe == kMte1 ? 64 : 32);
  const Operand from = Use(instruction, src, "src", {Hardware::UB, Hardware::L1});
  const uint64_t elements = bursts.length / sizeof(U);
  for (uint32_t i = 0; i < bursts.count; ++i) {
    Touch(instruction, from, i * bursts.src_step, bursts.length, Kind::kRead);
    Touch(instruction, to, i * bursts.dst_step, elements * sizeof(T), Kind::kWrite);
  }
  const uint64_t bytes = bursts.count * bursts.length;
  Count(instruction, PathName(from_type, to_type), bytes);
  CountElements(instruction, bursts.count * elements);
  Issue(instruction, pipe == kV ? bytes / 256.0 : bytes / 128.0, [=] {
    for (uint32_t i = 0; i < bursts.count; ++i) {
      if (!widen) {
        std::memmove(to.data() + i * bursts.dst_step, from.data() + i * bursts.src_step,
                     bursts.length);
        continue;
      }
      for (uint64_t k = 0; k < elements; ++k) {
        U value;
        std::memcpy(&value, from.data() + i * bursts.src_step + k * sizeof(U), sizeof(U));
        const T wide = static_cast<T>(value);
        std::memcpy(to.data() + i * bursts.dst_step + k * sizeof(T), &wide, sizeof(T));
      }
    }
  });
}

}  // namespace ascendc_twin

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const uint32_t count,
              Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte2, "DataCopy", loc);
  WholeBlocks<T>(instruction, count);
  const uint64_t bytes = count * sizeof(T) / 32 * 32;
  CopyIn(instruction, dst, src, {1, bytes, 0, 0});
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count,
              Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte3, "DataCopy", loc);
  WholeBlocks<T>(instruction, count);
  CopyOut(instruction, dst, src, {1, count * sizeof(T) / 32 * 32, 0, 0});
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& params,
              Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte2, "DataCopy", loc);
  CheckBursts(instruction, params);
  CopyIn(instruction, dst, src, InBlocks(params));
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& params,
              Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte3, "DataCopy", loc);
  CheckBursts(instruction, params);
  CopyOut(instruction, dst, src, InBlocks(params));
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count,
              Loc loc = Loc::Here()) {
  ascendc_twin::CopyLocal("DataCopy", loc, dst, src, {1, count * sizeof(T) / 32 * 32, 0, 0});
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& params,
              Loc loc = Loc::Here()) {
  ascendc_twin::CopyLocal("DataCopy", loc, dst, src, ascendc_twin::InBlocks(params));
}

// L1 to the bias table, where half becomes float on the way.
template <typename T, typename U,
          typename = typename std::enable_if<!std::is_same<T, U>::value>::type>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const DataCopyParams& params,
              Loc loc = Loc::Here()) {
  ascendc_twin::Bursts bursts = ascendc_twin::InBlocks(params);
  bursts.dst_step = bursts.length * sizeof(T) / sizeof(U) + params.dstStride * 32ull;
  ascendc_twin::CopyLocal("DataCopy", loc, dst, src, bursts);
}

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
  // for, and nothing that one may read otherwise.
  const bool filled = left == 0 && pad.rightPadding == 0;
  for (uint32_t i = 0; i < params.blockCount; ++i) {
    Touch(instruction, from, i * src_step, params.blockLen, Kind::kRead);
    if (pad.isPad)
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
  const DataCopyPadExtParams<T> fill = pad;
  Issue(instruction, GlobalReadCycles(bytes), [=] {
    for (uint32_t i = 0; i < p.blockCount; ++i) {
      uint8_t* out = to.data() + i * dst_step;
      const uint8_t* in = from.data() + i * src_step;
      if (fill.isPad || filled) {
        T value = fill.paddingValue;
        if (filled && p.blockLen >= sizeof(T)) std::memcpy(&value, in, sizeof(T));
        const uint64_t upto = filled ? row : used;
        for (uint64_t at = 0; at + sizeof(T) <= upto; at += sizeof(T))
          std::memcpy(out + at, &value, sizeof(T));
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
