// Fixpipe: L0C to global memory or L1, with conversion, ReLU and the change from NZ to ND.
#pragma once

#include "convert.h"
#include "cube.h"

namespace AscendC {

struct FixpipeConfig {
  CO2Layout format;
  bool isToUB = false;
  constexpr FixpipeConfig(CO2Layout layout) : format(layout) {}
  constexpr FixpipeConfig(CO2Layout layout, bool to_ub) : format(layout), isToUB(to_ub) {}
};
inline constexpr FixpipeConfig CFG_NZ = {CO2Layout::NZ};
inline constexpr FixpipeConfig CFG_ROW_MAJOR = {CO2Layout::ROW_MAJOR};

struct FixpipeParamsV220 {
  FixpipeParamsV220() {}
  FixpipeParamsV220(ascendc_twin::Field16 n, ascendc_twin::Field16 m, ascendc_twin::Field16 src,
                    ascendc_twin::Field32 dst, bool relu)
      : nSize(n), mSize(m), srcStride(src), dstStride(dst), reluEn(relu) {}
  FixpipeParamsV220(ascendc_twin::Field16 n, ascendc_twin::Field16 m, ascendc_twin::Field16 src,
                    ascendc_twin::Field32 dst, bool relu, QuantMode_t quant, int64_t scalar,
                    ascendc_twin::Field16 nd, ascendc_twin::Field16 src_nd,
                    ascendc_twin::Field16 dst_nd, ascendc_twin::Field8 unit, bool split = false)
      : nSize(n),
        mSize(m),
        srcStride(src),
        dstStride(dst),
        quantPre(quant),
        deqScalar(static_cast<uint64_t>(scalar)),
        ndNum(nd),
        srcNdStride(src_nd),
        dstNdStride(dst_nd),
        reluEn(relu),
        unitFlag(unit),
        isChannelSplit(split) {}
  ascendc_twin::Field16 nSize = 0;
  ascendc_twin::Field16 mSize = 0;
  ascendc_twin::Field16 srcStride = 0;
  ascendc_twin::Field32 dstStride = 0;
  QuantMode_t quantPre = QuantMode_t::NoQuant;
  uint64_t deqScalar = 0;
  ascendc_twin::Field16 ndNum = 1;
  ascendc_twin::Field16 srcNdStride = 0;
  ascendc_twin::Field16 dstNdStride = 0;
  bool reluEn = false;
  ascendc_twin::Field8 unitFlag = 0;
  bool isChannelSplit = false;
};
using FixpipeParamsM300 = FixpipeParamsV220;

}  // namespace AscendC

namespace ascendc_twin {

template <typename T, typename U>
bool CheckQuant(Instruction& instruction, QuantMode_t quant) {
  using std::is_same;
  const bool same = is_same<T, U>::value && quant == NoQuant;
  const bool narrow =
      is_same<U, float>::value && ((is_same<T, half>::value && quant == F322F16) ||
                                   (is_same<T, bfloat16_t>::value && quant == F322BF16));
  const bool scaled = is_same<U, int32_t>::value && is_same<T, half>::value && quant == DEQF16;
  if (same || narrow || scaled) return true;
  if (quant > F322BF16) {
    ++instruction.core->launch->unchecked["Fixpipe quantisation"];
    instruction.Refuse("unsupported", "this quantPre is not modelled");
  } else {
    instruction.Refuse("fixpipe-quant", "quantPre " + std::to_string(quant) +
                                            " does not make the target's type of the source's");
  }
  return false;
}

// One row of one 16-wide (8-wide when channels are split) column block: where it lies on each side.
template <typename T, typename U, typename To>
void RunFixpipe(Instruction& instruction, const To& to, const LocalTensor<U>& src,
                const AscendC::FixpipeParamsV220& p, bool nd) {
  const Operand from = Use(instruction, src, "src", {Hardware::L0C}, 64);
  if (!CheckQuant<T, U>(instruction, p.quantPre)) return;
  if (p.nSize == 0 || p.mSize == 0) return;
  if (p.nSize > 4095) instruction.Report("field-range", "nSize goes up to 4095");
  if (nd && p.mSize > 8192) instruction.Report("field-range", "mSize of NZ2ND goes up to 8192");
  if (p.srcNdStride > 512) instruction.Report("field-range", "srcNdStride goes up to 512");
  if (p.dstStride == 0) instruction.Report("field-range", "dstStride 0");
  if (!nd && p.nSize % (p.isChannelSplit ? 8 : 16))
    instruction.Report("field-range", "nSize of an NZ target is a multiple of 16 (8 when split)");
  const AtomicOp op = AtomicFor<T>(instruction);
  const uint32_t width = !nd && p.isChannelSplit ? 8 : 16;
  const uint32_t matrices = nd ? uint32_t(p.ndNum) : 1;
  const AscendC::FixpipeParamsV220 params = p;
  const auto each = [=](auto&& f) {
    for (uint32_t matrix = 0; matrix < matrices; ++matrix)
      for (uint32_t column = 0; column < params.nSize; column += width)
        for (uint32_t row = 0; row < params.mSize; ++row) {
          const uint64_t in =
              (matrix * uint64_t(params.srcNdStride) * 256 +
               column / 16 * uint64_t(params.srcStride) * 16 + row * 16 + column % 16) *
              sizeof(U);
          const uint64_t out =
              nd ? (matrix * uint64_t(params.dstNdStride) + row * uint64_t(params.dstStride) +
                    column) *
                       sizeof(T)
                 : column / width * uint64_t(params.dstStride) * kBlock + row * width * sizeof(T);
          f(out, in, std::min<uint32_t>(width, params.nSize - column));
        }
  };
  uint64_t bytes = 0;
  each([&](uint64_t out, uint64_t in, uint32_t count) {
    Touch(instruction, from, in, count * sizeof(U), Kind::kRead);
    Touch(instruction, to, out, count * sizeof(T),
          op == AtomicOp::kNone ? Kind::kWrite : Kind::kAtomic);
    bytes += count * sizeof(T);
  });
  if (p.unitFlag && !UnitFlags().to_fix.clock.empty()) {
    Acquire(instruction.core, kFix, UnitFlags().to_fix);
    if (p.unitFlag == 3) UnitFlags().to_fix = Token();
  }
  Count(instruction, std::is_same<To, Operand>::value ? "L0C->L1" : "L0C->GM", bytes);
  CountElements(instruction, bytes / sizeof(T));
  Launch* launch = instruction.core->launch;
  const Core* core = instruction.core;
  const char* call = instruction.call;
  const Loc loc = instruction.loc;
  Issue(instruction, GlobalWriteCycles(bytes), [=] {
    FiniteCheck check;
    each([&](uint64_t out, uint64_t in, uint32_t count) {
      T row[16];
      for (uint32_t i = 0; i < count; ++i) {
        U value;
        std::memcpy(&value, from.data() + in + i * sizeof(U), sizeof(U));
        if (params.reluEn && value < U(0)) value = U(0);
        if (params.quantPre == DEQF16)
          row[i] = static_cast<T>(static_cast<float>(value) *
                                  BitsFloat(static_cast<uint32_t>(params.deqScalar)));
        else
          row[i] = static_cast<T>(value);
        check.See(row[i], value);
      }
      StoreAs<T>(op, to.data() + out, reinterpret_cast<const uint8_t*>(row), count * sizeof(T));
    });
    ReportFinite(launch, core, call, loc, check);
  });
  if (p.unitFlag == 3) UnitFlags().to_m = Release(instruction.core, kFix, 0);
}

}  // namespace ascendc_twin

namespace AscendC {

template <typename T, typename U, const FixpipeConfig& config = CFG_ROW_MAJOR>
void Fixpipe(const GlobalTensor<T>& dst, const LocalTensor<U>& src, const FixpipeParamsV220& params,
             Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kFix, "Fixpipe", loc);
  const GlobalOperand to = Use(instruction, dst, "dst");
  RunFixpipe<T, U>(instruction, to, src, params, config.format == CO2Layout::ROW_MAJOR);
}

template <typename T, typename U, const FixpipeConfig& config = CFG_ROW_MAJOR>
void Fixpipe(const LocalTensor<T>& dst, const LocalTensor<U>& src, const FixpipeParamsV220& params,
             Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kFix, "Fixpipe", loc);
  const Operand to = Use(instruction, dst, "dst", {Hardware::L1});
  if (std::is_same<T, float>::value || std::is_same<T, int32_t>::value)
    instruction.Report("dtype", "Fixpipe into L1 makes 16- or 8-bit elements");
  RunFixpipe<T, U>(instruction, to, src, params, config.format == CO2Layout::ROW_MAJOR);
}

}  // namespace AscendC
