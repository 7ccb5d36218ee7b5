// The frame of vector instructions: which lanes of which repeats, where each operand's lanes are.
#pragma once

#include "copy_pad.h"

namespace AscendC {

struct BinaryRepeatParams {
  BinaryRepeatParams() {}
  BinaryRepeatParams(ascendc_twin::Field8 dst_block, ascendc_twin::Field8 src0_block,
                     ascendc_twin::Field8 src1_block, ascendc_twin::Field8 dst_repeat,
                     ascendc_twin::Field8 src0_repeat, ascendc_twin::Field8 src1_repeat)
      : dstBlkStride(dst_block),
        src0BlkStride(src0_block),
        src1BlkStride(src1_block),
        dstRepStride(dst_repeat),
        src0RepStride(src0_repeat),
        src1RepStride(src1_repeat) {}
  uint32_t blockNumber = DEFAULT_BLK_NUM;
  ascendc_twin::Field8 dstBlkStride = 1;
  ascendc_twin::Field8 src0BlkStride = 1;
  ascendc_twin::Field8 src1BlkStride = 1;
  ascendc_twin::Field8 dstRepStride = 8;
  ascendc_twin::Field8 src0RepStride = 8;
  ascendc_twin::Field8 src1RepStride = 8;
};

struct UnaryRepeatParams {
  UnaryRepeatParams() {}
  UnaryRepeatParams(ascendc_twin::Field16 dst_block, ascendc_twin::Field16 src_block,
                    ascendc_twin::Field8 dst_repeat, ascendc_twin::Field8 src_repeat)
      : dstBlkStride(dst_block),
        srcBlkStride(src_block),
        dstRepStride(dst_repeat),
        srcRepStride(src_repeat) {}
  UnaryRepeatParams(ascendc_twin::Field16 dst_block, ascendc_twin::Field16 src_block,
                    ascendc_twin::Field8 dst_repeat, ascendc_twin::Field8 src_repeat,
                    bool half_block)
      : UnaryRepeatParams(dst_block, src_block, dst_repeat, src_repeat) {
    halfBlock = half_block;
  }
  uint32_t blockNumber = DEFAULT_BLK_NUM;
  ascendc_twin::Field16 dstBlkStride = 1;
  ascendc_twin::Field16 srcBlkStride = 1;
  ascendc_twin::Field8 dstRepStride = 8;
  ascendc_twin::Field8 srcRepStride = 8;
  bool halfBlock = false;
};

inline void SetMaskCount() { ascendc_twin::CurrentCore()->mask.counter = true; }
inline void SetMaskNorm() { ascendc_twin::CurrentCore()->mask.counter = false; }
inline void ResetMask() {
  ascendc_twin::CurrentCore()->mask.low = ~0ull;
  ascendc_twin::CurrentCore()->mask.high = ~0ull;
}
template <typename T, MaskMode mode = MaskMode::NORMAL>
inline void SetVectorMask(const uint64_t high, const uint64_t low) {
  ascendc_twin::CurrentCore()->mask.low = low;
  ascendc_twin::CurrentCore()->mask.high = high;
}
template <typename T, MaskMode mode = MaskMode::NORMAL>
inline void SetVectorMask(int32_t length) {
  ascendc_twin::MaskRegister& mask = ascendc_twin::CurrentCore()->mask;
  if (mode == MaskMode::COUNTER) {
    mask.low = static_cast<uint64_t>(length);
    mask.high = 0;
    return;
  }
  mask.low = length >= 64 ? ~0ull : (1ull << length) - 1;
  mask.high = length >= 128 ? ~0ull : length > 64 ? (1ull << (length - 64)) - 1 : 0;
}

}  // namespace AscendC

namespace ascendc_twin {

// The lanes that take part: `repeats` times `lanes`, of which a mask or a total count is live.
struct Lanes {
  uint32_t lanes = 64;
  uint32_t repeats = 0;
  bool counter = false;
  uint64_t total = 0;
  uint64_t low = ~0ull, high = ~0ull;

  // Live lanes of a repeat are `first..first+count` when they are one run; false otherwise.
  bool Live(uint32_t repeat, uint32_t lane) const {
    if (counter) return static_cast<uint64_t>(repeat) * lanes + lane < total;
    return (lane < 64 ? low >> lane : high >> (lane - 64)) & 1;
  }
  // How many leading lanes are live, or -1 when the live ones are not a prefix.
  int Prefix(uint32_t repeat) const {
    if (counter) {
      const uint64_t start = static_cast<uint64_t>(repeat) * lanes;
      return start >= total ? 0 : static_cast<int>(std::min<uint64_t>(lanes, total - start));
    }
    const int a = low == ~0ull ? 64 : (low & (low + 1)) == 0 ? __builtin_popcountll(low) : -1;
    if (lanes <= 64) return a < 0 ? -1 : std::min<int>(a, lanes);
    const int b = high == ~0ull ? 64 : (high & (high + 1)) == 0 ? __builtin_popcountll(high) : -1;
    if (a < 0 || b < 0 || (a < 64 && b > 0)) return -1;
    return a + b;
  }
};

constexpr uint32_t LanesOf(uint32_t widest) { return 256 / widest; }

inline Lanes CountLanes(const Instruction& instruction, int64_t count, uint32_t widest) {
  Lanes lanes;
  lanes.lanes = LanesOf(widest);
  lanes.counter = true;
  if (count < 0) instruction.Report("field-range", "count " + std::to_string(count));
  lanes.total = count > 0 ? count : 0;
  lanes.repeats = static_cast<uint32_t>((lanes.total + lanes.lanes - 1) / lanes.lanes);
  // The forms with a count set the mask themselves and leave it full, in normal mode.
  instruction.core->mask = MaskRegister();
  return lanes;
}

inline void UseMaskRegister(const Instruction& instruction, Lanes& lanes) {
  const MaskRegister& mask = instruction.core->mask;
  lanes.counter = mask.counter;
  lanes.low = mask.low;
  lanes.high = mask.high;
  if (mask.counter) {
    lanes.total = mask.low;
    lanes.repeats = static_cast<uint32_t>((lanes.total + lanes.lanes - 1) / lanes.lanes);
  }
}

// The lanes of a call with a mask. In counter mode the mask is the number of elements and the
// repeat argument does nothing. The mask stays in the register, as it does on the device.
inline Lanes MaskLanes(const Instruction& instruction, uint64_t mask, int64_t repeats,
                       uint32_t widest, bool set) {
  Lanes lanes;
  lanes.lanes = LanesOf(widest);
  if (repeats < 0 || repeats > 255)
    instruction.Report("field-range", "repeatTime " + std::to_string(repeats) + "; wanted 0..255");
  lanes.repeats = static_cast<uint32_t>(repeats < 0 ? 0 : repeats > 255 ? 255 : repeats);
  MaskRegister& reg = instruction.core->mask;
  if (set) {
    if (reg.counter) {
      reg.low = mask;
      reg.high = 0;
    } else {
      if (mask == 0 || mask > lanes.lanes)
        instruction.Report("field-range", "mask " + std::to_string(mask) + "; wanted 1.." +
                                              std::to_string(lanes.lanes));
      reg.low = mask >= 64 ? ~0ull : (1ull << mask) - 1;
      reg.high = mask >= 128 ? ~0ull : mask > 64 ? (1ull << (mask - 64)) - 1 : 0;
    }
  }
  UseMaskRegister(instruction, lanes);
  return lanes;
}

inline Lanes MaskLanes(const Instruction& instruction, const uint64_t mask[], int64_t repeats,
                       uint32_t widest, bool set) {
  Lanes lanes;
  lanes.lanes = LanesOf(widest);
  if (repeats < 0 || repeats > 255)
    instruction.Report("field-range", "repeatTime " + std::to_string(repeats) + "; wanted 0..255");
  lanes.repeats = static_cast<uint32_t>(repeats < 0 ? 0 : repeats > 255 ? 255 : repeats);
  MaskRegister& reg = instruction.core->mask;
  if (set) {
    reg.low = mask[0];
    reg.high = lanes.lanes > 64 ? mask[1] : 0;
    if (reg.low == 0 && reg.high == 0)
      instruction.Report("field-range", "the mask selects no lane");
  }
  UseMaskRegister(instruction, lanes);
  return lanes;
}

// One operand of a vector instruction, with its strides in blocks.
struct VectorOperand {
  Operand where;
  uint32_t size = 4;  // of an element
  uint32_t block = 1, repeat = 8;

  int64_t Offset(uint32_t r, uint32_t lane) const {
    const uint32_t per_block = kBlock / size;
    return (static_cast<int64_t>(r) * repeat + static_cast<int64_t>(lane / per_block) * block) *
               kBlock +
           (lane % per_block) * size;
  }
  template <typename T>
  T Load(uint32_t r, uint32_t lane) const {
    T value;
    std::memcpy(&value, where.data() + Offset(r, lane), sizeof(T));
    return value;
  }
  template <typename T>
  void Store(uint32_t r, uint32_t lane, T value) const {
    std::memcpy(where.data() + Offset(r, lane), &value, sizeof(T));
  }
};

template <typename T>
VectorOperand UseVector(Instruction& instruction, const LocalTensor<T>& tensor, const char* role,
                        uint32_t block, uint32_t repeat, uint32_t align = kBlock) {
  VectorOperand operand;
  operand.where = Use(instruction, tensor, role, {Hardware::UB}, align);
  operand.size = sizeof(T);
  operand.block = block;
  operand.repeat = repeat;
  return operand;
}

// An operand of the form with a count: contiguous whatever the widths of the others are.
template <typename T>
VectorOperand UseVector(Instruction& instruction, const LocalTensor<T>& tensor, const char* role,
                        const Lanes& lanes) {
  return UseVector(instruction, tensor, role, 1, lanes.lanes * sizeof(T) / kBlock);
}

inline void TouchLanes(Instruction& instruction, const VectorOperand& operand, const Lanes& lanes,
                       Kind kind) {
  const uint32_t per_block = kBlock / operand.size;
  for (uint32_t r = 0; r < lanes.repeats; ++r) {
    const int prefix = lanes.Prefix(r);
    if (prefix >= 0) {
      for (int lane = 0; lane < prefix; lane += per_block)
        Touch(instruction, operand.where, operand.Offset(r, lane),
              std::min<uint32_t>(per_block, prefix - lane) * operand.size, kind);
      continue;
    }
    for (uint32_t lane = 0; lane < lanes.lanes; ++lane)
      if (lanes.Live(r, lane))
        Touch(instruction, operand.where, operand.Offset(r, lane), operand.size, kind);
  }
}

template <typename F>
void ForLanes(const Lanes& lanes, F&& f) {
  for (uint32_t r = 0; r < lanes.repeats; ++r) {
    const int prefix = lanes.Prefix(r);
    if (prefix >= 0) {
      for (int lane = 0; lane < prefix; ++lane) f(r, static_cast<uint32_t>(lane));
      continue;
    }
    for (uint32_t lane = 0; lane < lanes.lanes; ++lane)
      if (lanes.Live(r, lane)) f(r, lane);
  }
}

inline uint64_t LiveCount(const Lanes& lanes) {
  if (lanes.counter) return lanes.total;
  const uint64_t high = lanes.lanes > 64 ? __builtin_popcountll(lanes.high) : 0;
  const uint64_t low = lanes.lanes >= 64
                           ? __builtin_popcountll(lanes.low)
                           : __builtin_popcountll(lanes.low & ((1ull << lanes.lanes) - 1));
  return lanes.repeats * (low + high);
}

template <typename T>
constexpr bool IsFloating() {
  return std::is_same<T, float>::value || std::is_same<T, half>::value ||
         std::is_same<T, bfloat16_t>::value;
}

template <typename T>
bool Finite(T value) {
  if constexpr (IsFloating<T>()) return std::isfinite(static_cast<float>(value));
  return true;
}

// Collects, while a body runs, whether a result was not finite though its inputs were.
struct FiniteCheck {
  bool broken = false;
  template <typename T, typename... Inputs>
  void See(T result, Inputs... inputs) {
    if (!Finite(result) && (Finite(inputs) && ...)) broken = true;
  }
};

inline void ReportFinite(Launch* launch, const Core* core, const char* call, Loc loc,
                         const FiniteCheck& check) {
  if (check.broken)
    launch->Report(core, call, loc, "non-finite", "an infinity or NaN comes from finite inputs");
}

template <typename T, typename... Allowed>
void CheckType(const Instruction& instruction) {
  if constexpr (!(std::is_same<T, Allowed>::value || ...))
    instruction.Report("dtype", "this type is not among those of the instruction on Atlas A2");
}

// Source and target of the contiguous forms are the same or apart.
inline void CheckOverlap(const Instruction& instruction, const VectorOperand& dst,
                         const VectorOperand& src, const Lanes& lanes) {
  if (!dst.where.space || !src.where.space || dst.size != src.size) return;
  const uint64_t length = lanes.total * dst.size;
  const uint64_t a = dst.where.address, b = src.where.address;
  if (a != b && a < b + length && b < a + length)
    instruction.Report("operands-overlap", "dst and src overlap and are not the same");
}

}  // namespace ascendc_twin
