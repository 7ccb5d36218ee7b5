// DataCopy between global memory, UB, L1, the bias table and the fixpipe buffer.
#pragma once

#include "copy_params.h"
#include "cost.h"

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

// The bias table counts in 64 bytes where others count in 32, and the fixpipe buffer in 128. Into
// the latter strides go from start to start.
inline Bursts InBlocksOf(Hardware to, const AscendC::DataCopyParams& params) {
  if (to == Hardware::BIAS) {
    const uint64_t length = params.blockLen * 64ull;
    return {params.blockCount, length, length + params.srcStride * 32ull,
            length + params.dstStride * 64ull};
  }
  if (to == Hardware::FIXBUF)
    return {params.blockCount, params.blockLen * 128ull, params.srcStride * 32ull,
            params.dstStride * 128ull};
  return InBlocks(params);
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
                         pipe == kMte1  ? 64
                         : pipe == kFix ? 128
                                        : 32);
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
  ascendc_twin::WholeBlocks<T>(ascendc_twin::Instruction(ascendc_twin::kV, "DataCopy", loc), count);
  ascendc_twin::CopyLocal("DataCopy", loc, dst, src, {1, count * sizeof(T) / 32 * 32, 0, 0});
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& params,
              Loc loc = Loc::Here()) {
  ascendc_twin::CopyLocal("DataCopy", loc, dst, src,
                          ascendc_twin::InBlocksOf(GetPhyType(dst.position()), params));
}

// L1 to the bias table, where half becomes float on the way.
template <typename T, typename U,
          typename = typename std::enable_if<!std::is_same<T, U>::value>::type>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const DataCopyParams& params,
              Loc loc = Loc::Here()) {
  ascendc_twin::Bursts bursts = ascendc_twin::InBlocksOf(GetPhyType(dst.position()), params);
  bursts.dst_step += bursts.length * sizeof(T) / sizeof(U) - bursts.length;
  ascendc_twin::CopyLocal("DataCopy", loc, dst, src, bursts);
}

}  // namespace AscendC
