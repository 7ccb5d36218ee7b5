// Fixpipe: L0C to global memory or L1, with conversion, ReLU and the change from NZ to ND.
#pragma once

#include "mmad.h"
#include "quant.h"

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

// Piece by piece: a row of 16 columns (8 when channels are split). `scales` has a number for each
// column, where the mode asks for them.
template <typename T, typename U, typename To>
void RunFixpipe(Instruction& instruction, const To& to, const LocalTensor<U>& src,
                const AscendC::FixpipeParamsV220& p, bool nd, const Operand& scales = Operand()) {
  const Operand from = Use(instruction, src, "src", {Hardware::L0C}, 64);
  if (!CheckQuant<T, U>(instruction, p.quantPre)) return;
  if (IsTensorQuant(p.quantPre) && !scales.space) {
    instruction.Refuse("fixpipe-quant", "this quantPre wants a tensor of scales");
    return;
  }
  if (p.nSize == 0 || p.mSize == 0) return;
  if (p.nSize > 4095) instruction.Report("field-range", "nSize goes up to 4095");
  if (nd && p.mSize > 8192) instruction.Report("field-range", "mSize of NZ2ND goes up to 8192");
  if (p.srcNdStride > 512) instruction.Report("field-range", "srcNdStride goes up to 512");
  if (p.dstStride == 0) instruction.Report("field-range", "dstStride 0");
  if (!nd && p.nSize % (p.isChannelSplit ? 8 : 16))
    instruction.Report("field-range", "nSize of an NZ target is a multiple of 16 (8 when split)");
  const AtomicOp op = AtomicFor<T>(instruction);
  const bool split = !nd && p.isChannelSplit;
  const uint32_t width = split ? 8 : 16;
  // In NZ a row of a column block fills 32 bytes, or 64 of float when channels are not split.
  const uint32_t out_width = split ? 8 : sizeof(T) == 1 ? 32 : 16;
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
          const uint64_t out = nd ? (matrix * uint64_t(params.dstNdStride) +
                                     row * uint64_t(params.dstStride) + column) *
                                        sizeof(T)
                                  : column / out_width * uint64_t(params.dstStride) * kBlock +
                                        (row * out_width + column % out_width) * sizeof(T);
          f(out, in, column, std::min<uint32_t>(width, params.nSize - column));
        }
  };
  uint64_t bytes = 0;
  each([&](uint64_t out, uint64_t in, uint32_t, uint32_t count) {
    Touch(instruction, from, in, count * sizeof(U), Kind::kRead);
    Touch(instruction, to, out, count * sizeof(T),
          op == AtomicOp::kNone ? Kind::kWrite : Kind::kAtomic);
    bytes += count * sizeof(T);
  });
  if (IsTensorQuant(p.quantPre)) Touch(instruction, scales, 0, p.nSize * 8ull, Kind::kRead);
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
    // All scales go into the fixpipe buffer before the first result leaves, maybe to where they
    // were.
    std::vector<uint64_t> factors(params.nSize, params.deqScalar);
    if (IsTensorQuant(params.quantPre))
      std::memcpy(factors.data(), scales.data(), params.nSize * 8);
    each([&](uint64_t out, uint64_t in, uint32_t column, uint32_t count) {
      T row[16];
      for (uint32_t i = 0; i < count; ++i) {
        U value;
        std::memcpy(&value, from.data() + in + i * sizeof(U), sizeof(U));
        if (params.reluEn && value < U(0)) value = U(0);
        row[i] = Quantise<T, U>(value, params.quantPre, factors[column + i]);
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

// With a scale per column: they come from L1, and pass through the fixpipe buffer.
template <typename T, typename U, const FixpipeConfig& config = CFG_ROW_MAJOR, typename S>
void Fixpipe(const GlobalTensor<T>& dst, const LocalTensor<U>& src,
             const LocalTensor<S>& cbufWorkspace, const FixpipeParamsV220& params,
             Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  static_assert(sizeof(S) == 8, "scales are uint64_t");
  Instruction instruction(kFix, "Fixpipe", loc);
  const GlobalOperand to = Use(instruction, dst, "dst");
  const Operand scales = Use(instruction, cbufWorkspace, "cbufWorkspace", {Hardware::L1});
  RunFixpipe<T, U>(instruction, to, src, params, config.format == CO2Layout::ROW_MAJOR, scales);
}
template <typename T, typename U, const FixpipeConfig& config = CFG_ROW_MAJOR, typename S>
void Fixpipe(const LocalTensor<T>& dst, const LocalTensor<U>& src,
             const LocalTensor<S>& cbufWorkspace, const FixpipeParamsV220& params,
             Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  static_assert(sizeof(S) == 8, "scales are uint64_t");
  Instruction instruction(kFix, "Fixpipe", loc);
  const Operand to = Use(instruction, dst, "dst", {Hardware::L1});
  const Operand scales = Use(instruction, cbufWorkspace, "cbufWorkspace", {Hardware::L1});
  RunFixpipe<T, U>(instruction, to, src, params, config.format == CO2Layout::ROW_MAJOR, scales);
}

}  // namespace AscendC
