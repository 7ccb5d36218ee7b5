// Element-wise vector instructions: two tensors, tensor and scalar, one tensor.
#pragma once

#include "vector.h"

namespace ascendc_twin {

template <typename T, typename Op>
void RunBinary(Instruction& instruction, const Lanes& lanes, const VectorOperand& dst,
               const VectorOperand& src0, const VectorOperand& src1, VectorRate rate, Op op,
               bool reads_dst = false) {
  TouchLanes(instruction, src0, lanes, Kind::kRead);
  TouchLanes(instruction, src1, lanes, Kind::kRead);
  if (reads_dst) TouchLanes(instruction, dst, lanes, Kind::kRead);
  TouchLanes(instruction, dst, lanes, Kind::kWrite);
  CountElements(instruction, LiveCount(lanes));
  Launch* launch = instruction.core->launch;
  const Core* core = instruction.core;
  const char* call = instruction.call;
  const Loc loc = instruction.loc;
  Issue(instruction, VectorCycles(rate, lanes.repeats, lanes.lanes), [=] {
    FiniteCheck check;
    ForLanes(lanes, [&](uint32_t r, uint32_t lane) {
      const T a = src0.Load<T>(r, lane), b = src1.Load<T>(r, lane);
      const T c = reads_dst ? dst.Load<T>(r, lane) : a;
      const T result = op(a, b, c);
      check.See(result, a, b, c);
      dst.Store<T>(r, lane, result);
    });
    ReportFinite(launch, core, call, loc, check);
  });
}

template <typename T, typename U, typename Op>
void RunUnary(Instruction& instruction, const Lanes& lanes, const VectorOperand& dst,
              const VectorOperand& src, VectorRate rate, Op op, bool reads_dst = false) {
  TouchLanes(instruction, src, lanes, Kind::kRead);
  if (reads_dst) TouchLanes(instruction, dst, lanes, Kind::kRead);
  TouchLanes(instruction, dst, lanes, Kind::kWrite);
  CountElements(instruction, LiveCount(lanes));
  Launch* launch = instruction.core->launch;
  const Core* core = instruction.core;
  const char* call = instruction.call;
  const Loc loc = instruction.loc;
  Issue(instruction, VectorCycles(rate, lanes.repeats, lanes.lanes), [=] {
    FiniteCheck check;
    ForLanes(lanes, [&](uint32_t r, uint32_t lane) {
      const U a = src.Load<U>(r, lane);
      const T c = reads_dst ? dst.Load<T>(r, lane) : T{};
      const T result = op(a, c);
      check.See(result, a, c);
      dst.Store<T>(r, lane, result);
    });
    ReportFinite(launch, core, call, loc, check);
  });
}

// The three forms of a binary instruction.
template <typename T, typename Op>
void Binary(const char* call, Loc loc, const LocalTensor<T>& dst, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, int64_t count, VectorRate rate, Op op,
            bool reads_dst = false) {
  Instruction instruction(kV, call, loc);
  const Lanes lanes = CountLanes(instruction, count, sizeof(T));
  const VectorOperand d = UseVector(instruction, dst, "dst", lanes);
  const VectorOperand a = UseVector(instruction, src0, "src0", lanes);
  const VectorOperand b = UseVector(instruction, src1, "src1", lanes);
  CheckOverlap(instruction, d, a, lanes);
  CheckOverlap(instruction, d, b, lanes);
  RunBinary<T>(instruction, lanes, d, a, b, rate, op, reads_dst);
}

template <typename T, typename Mask, typename Op>
void Binary(const char* call, Loc loc, const LocalTensor<T>& dst, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, Mask mask, bool set, int64_t repeats,
            const AscendC::BinaryRepeatParams& p, VectorRate rate, Op op, bool reads_dst = false) {
  Instruction instruction(kV, call, loc);
  const Lanes lanes = MaskLanes(instruction, mask, repeats, sizeof(T), set);
  const VectorOperand d = UseVector(instruction, dst, "dst", p.dstBlkStride, p.dstRepStride);
  const VectorOperand a = UseVector(instruction, src0, "src0", p.src0BlkStride, p.src0RepStride);
  const VectorOperand b = UseVector(instruction, src1, "src1", p.src1BlkStride, p.src1RepStride);
  RunBinary<T>(instruction, lanes, d, a, b, rate, op, reads_dst);
}

template <typename T, typename U, typename Op>
void Unary(const char* call, Loc loc, const LocalTensor<T>& dst, const LocalTensor<U>& src,
           int64_t count, VectorRate rate, Op op, bool reads_dst = false) {
  Instruction instruction(kV, call, loc);
  const Lanes lanes = CountLanes(instruction, count, std::max(sizeof(T), sizeof(U)));
  const VectorOperand d = UseVector(instruction, dst, "dst", lanes);
  const VectorOperand a = UseVector(instruction, src, "src", lanes);
  CheckOverlap(instruction, d, a, lanes);
  RunUnary<T, U>(instruction, lanes, d, a, rate, op, reads_dst);
}

template <typename T, typename U, typename Mask, typename Op>
void Unary(const char* call, Loc loc, const LocalTensor<T>& dst, const LocalTensor<U>& src,
           Mask mask, bool set, int64_t repeats, const AscendC::UnaryRepeatParams& p,
           VectorRate rate, Op op, bool reads_dst = false) {
  Instruction instruction(kV, call, loc);
  const Lanes lanes = MaskLanes(instruction, mask, repeats, std::max(sizeof(T), sizeof(U)), set);
  const VectorOperand d = UseVector(instruction, dst, "dst", p.dstBlkStride, p.dstRepStride);
  const VectorOperand a = UseVector(instruction, src, "src", p.srcBlkStride, p.srcRepStride);
  RunUnary<T, U>(instruction, lanes, d, a, rate, op, reads_dst);
}

// Halves are computed in float and rounded once, which rounds + - * / and square roots correctly.
template <typename T>
using Wide = std::conditional_t<IsFloating<T>(), float, T>;

// The device's reciprocals are approximations: 11 bits here, no better than it promises.
inline float Approximate(float x) {
  return std::isfinite(x) ? BitsFloat(FloatBits(x) & 0xfffff000u) : x;
}

}  // namespace ascendc_twin

namespace AscendC {

// NAME(dst, src0, src1, count) and the two forms with a mask; `a`, `b`, `c` are src0, src1, dst.
#define ASCENDC_TWIN_BINARY(NAME, RATE, READS_DST, EXPRESSION, ...)                              \
  template <typename T>                                                                          \
  auto NAME##Op() {                                                                              \
    return [](ascendc_twin::Wide<T> a, ascendc_twin::Wide<T> b, ascendc_twin::Wide<T> c) -> T {  \
      (void)c;                                                                                   \
      return static_cast<T>(EXPRESSION);                                                         \
    };                                                                                           \
  }                                                                                              \
  template <typename T, bool isSetMask = true>                                                   \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,   \
            const int32_t& count, Loc loc = Loc::Here()) {                                       \
    ascendc_twin::CheckType<T, __VA_ARGS__>(                                                     \
        ascendc_twin::Instruction(ascendc_twin::kV, #NAME, loc));                                \
    ascendc_twin::Binary(#NAME, loc, dst, src0, src1, count, ascendc_twin::VectorRate::RATE,     \
                         NAME##Op<T>(), READS_DST);                                              \
  }                                                                                              \
  template <typename T, bool isSetMask = true>                                                   \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,   \
            uint64_t mask, ascendc_twin::Field8 repeatTime,                                      \
            const BinaryRepeatParams& repeatParams, Loc loc = Loc::Here()) {                     \
    ascendc_twin::CheckType<T, __VA_ARGS__>(                                                     \
        ascendc_twin::Instruction(ascendc_twin::kV, #NAME, loc));                                \
    ascendc_twin::Binary(#NAME, loc, dst, src0, src1, mask, isSetMask, repeatTime, repeatParams, \
                         ascendc_twin::VectorRate::RATE, NAME##Op<T>(), READS_DST);              \
  }                                                                                              \
  template <typename T, bool isSetMask = true>                                                   \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,   \
            const uint64_t mask[], ascendc_twin::Field8 repeatTime,                              \
            const BinaryRepeatParams& repeatParams, Loc loc = Loc::Here()) {                     \
    ascendc_twin::CheckType<T, __VA_ARGS__>(                                                     \
        ascendc_twin::Instruction(ascendc_twin::kV, #NAME, loc));                                \
    ascendc_twin::Binary(#NAME, loc, dst, src0, src1, mask, isSetMask, repeatTime, repeatParams, \
                         ascendc_twin::VectorRate::RATE, NAME##Op<T>(), READS_DST);              \
  }

ASCENDC_TWIN_BINARY(Add, kFull, false, a + b, half, float, int16_t, int32_t)
ASCENDC_TWIN_BINARY(Sub, kFull, false, a - b, half, float, int16_t, int32_t)
ASCENDC_TWIN_BINARY(Mul, kFull, false, a* b, half, float, int16_t, int32_t)
ASCENDC_TWIN_BINARY(Div, kSlow, false, a / b, half, float)
ASCENDC_TWIN_BINARY(Max, kFull, false, a > b ? a : b, half, float, int16_t, int32_t)
ASCENDC_TWIN_BINARY(Min, kFull, false, a < b ? a : b, half, float, int16_t, int32_t)
ASCENDC_TWIN_BINARY(MulAddDst, kHalf, true, a* b + c, half, float)
ASCENDC_TWIN_BINARY(FusedMulAdd, kFull, true, a* c + b, half, float)
ASCENDC_TWIN_BINARY(FusedMulAddRelu, kFull, true, std::max(a* c + b, 0.0f), half, float)
ASCENDC_TWIN_BINARY(AddRelu, kFull, false, a + b > 0 ? a + b : 0, half, float, int16_t)
ASCENDC_TWIN_BINARY(SubRelu, kFull, false, a - b > 0 ? a - b : 0, half, float, int16_t)
ASCENDC_TWIN_BINARY(And, kFull, false, a& b, int16_t, uint16_t)
ASCENDC_TWIN_BINARY(Or, kFull, false, a | b, int16_t, uint16_t)
#undef ASCENDC_TWIN_BINARY

// NAME(dst, src, count) and the two forms with a mask; `a` is src.
#define ASCENDC_TWIN_UNARY(NAME, RATE, EXPRESSION, ...)                                  \
  template <typename T>                                                                  \
  auto NAME##Op() {                                                                      \
    return [](ascendc_twin::Wide<T> a, ascendc_twin::Wide<T>) -> T {                     \
      return static_cast<T>(EXPRESSION);                                                 \
    };                                                                                   \
  }                                                                                      \
  template <typename T, bool isSetMask = true>                                           \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t& count,  \
            Loc loc = Loc::Here()) {                                                     \
    ascendc_twin::CheckType<T, __VA_ARGS__>(                                             \
        ascendc_twin::Instruction(ascendc_twin::kV, #NAME, loc));                        \
    ascendc_twin::Unary(#NAME, loc, dst, src, count, ascendc_twin::VectorRate::RATE,     \
                        NAME##Op<T>());                                                  \
  }                                                                                      \
  template <typename T, bool isSetMask = true>                                           \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask,         \
            ascendc_twin::Field8 repeatTime, const UnaryRepeatParams& repeatParams,      \
            Loc loc = Loc::Here()) {                                                     \
    ascendc_twin::CheckType<T, __VA_ARGS__>(                                             \
        ascendc_twin::Instruction(ascendc_twin::kV, #NAME, loc));                        \
    ascendc_twin::Unary(#NAME, loc, dst, src, mask, isSetMask, repeatTime, repeatParams, \
                        ascendc_twin::VectorRate::RATE, NAME##Op<T>());                  \
  }                                                                                      \
  template <typename T, bool isSetMask = true>                                           \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask[], \
            ascendc_twin::Field8 repeatTime, const UnaryRepeatParams& repeatParams,      \
            Loc loc = Loc::Here()) {                                                     \
    ascendc_twin::CheckType<T, __VA_ARGS__>(                                             \
        ascendc_twin::Instruction(ascendc_twin::kV, #NAME, loc));                        \
    ascendc_twin::Unary(#NAME, loc, dst, src, mask, isSetMask, repeatTime, repeatParams, \
                        ascendc_twin::VectorRate::RATE, NAME##Op<T>());                  \
  }

ASCENDC_TWIN_UNARY(Exp, kSlow, std::exp(a), half, float)
ASCENDC_TWIN_UNARY(Ln, kSlow, std::log(a), half, float)
ASCENDC_TWIN_UNARY(Sqrt, kSlow, std::sqrt(a), half, float)
ASCENDC_TWIN_UNARY(Rsqrt, kFull, ascendc_twin::Approximate(1.0f / std::sqrt(a)), half, float)
ASCENDC_TWIN_UNARY(Reciprocal, kFull, ascendc_twin::Approximate(1.0f / a), half, float)
ASCENDC_TWIN_UNARY(Abs, kFull, a < 0 ? -a : a, half, float)
ASCENDC_TWIN_UNARY(Relu, kFull, a > 0 ? a : 0, half, float, int32_t)
ASCENDC_TWIN_UNARY(Not, kFull, ~a, int16_t, uint16_t)
#undef ASCENDC_TWIN_UNARY

// NAME(dst, src, scalar, count) and the two forms with a mask; `a` is src, `s` the scalar.
#define ASCENDC_TWIN_SCALAR(NAME, RATE, EXPRESSION, ...)                                          \
  template <typename T>                                                                           \
  auto NAME##Op(T scalar) {                                                                       \
    const ascendc_twin::Wide<T> s = scalar;                                                       \
    return [s](ascendc_twin::Wide<T> a, ascendc_twin::Wide<T>) -> T {                             \
      return static_cast<T>(EXPRESSION);                                                          \
    };                                                                                            \
  }                                                                                               \
  template <typename T, bool isSetMask = true>                                                    \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar,                \
            const int32_t& count, Loc loc = Loc::Here()) {                                        \
    ascendc_twin::CheckType<T, __VA_ARGS__>(                                                      \
        ascendc_twin::Instruction(ascendc_twin::kV, #NAME, loc));                                 \
    ascendc_twin::Unary(#NAME, loc, dst, src, count, ascendc_twin::VectorRate::RATE,              \
                        NAME##Op<T>(scalar));                                                     \
  }                                                                                               \
  template <typename T, bool isSetMask = true>                                                    \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, uint64_t mask, \
            ascendc_twin::Field8 repeatTime, const UnaryRepeatParams& repeatParams,               \
            Loc loc = Loc::Here()) {                                                              \
    ascendc_twin::CheckType<T, __VA_ARGS__>(                                                      \
        ascendc_twin::Instruction(ascendc_twin::kV, #NAME, loc));                                 \
    ascendc_twin::Unary(#NAME, loc, dst, src, mask, isSetMask, repeatTime, repeatParams,          \
                        ascendc_twin::VectorRate::RATE, NAME##Op<T>(scalar));                     \
  }                                                                                               \
  template <typename T, bool isSetMask = true>                                                    \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar,                \
            const uint64_t mask[], ascendc_twin::Field8 repeatTime,                               \
            const UnaryRepeatParams& repeatParams, Loc loc = Loc::Here()) {                       \
    ascendc_twin::CheckType<T, __VA_ARGS__>(                                                      \
        ascendc_twin::Instruction(ascendc_twin::kV, #NAME, loc));                                 \
    ascendc_twin::Unary(#NAME, loc, dst, src, mask, isSetMask, repeatTime, repeatParams,          \
                        ascendc_twin::VectorRate::RATE, NAME##Op<T>(scalar));                     \
  }

ASCENDC_TWIN_SCALAR(Adds, kFull, a + s, half, float, int16_t, int32_t)
ASCENDC_TWIN_SCALAR(Muls, kFull, a* s, half, float, int16_t, int32_t)
ASCENDC_TWIN_SCALAR(Maxs, kFull, a > s ? a : s, half, float, int16_t, int32_t)
ASCENDC_TWIN_SCALAR(Mins, kFull, a < s ? a : s, half, float, int16_t, int32_t)
ASCENDC_TWIN_SCALAR(LeakyRelu, kFull, a >= 0 ? a : a * s, half, float)
ASCENDC_TWIN_SCALAR(ShiftLeft, kFull, a << s, int16_t, uint16_t, int32_t, uint32_t)
ASCENDC_TWIN_SCALAR(ShiftRight, kFull, a >> s, int16_t, uint16_t, int32_t, uint32_t)
#undef ASCENDC_TWIN_SCALAR

// dst += scalar * src, with a float dst for a half src as well.
template <typename T, typename U>
auto AxpyOp(U scalar) {
  const float s = scalar;
  return [s](float a, float c) -> T { return static_cast<T>(a * s + c); };
}
template <typename T, typename U>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalar,
          const int32_t& count, Loc loc = Loc::Here()) {
  ascendc_twin::Unary("Axpy", loc, dst, src, count, ascendc_twin::VectorRate::kFull,
                      AxpyOp<T, U>(scalar), true);
}
template <typename T, typename U, bool isSetMask = true>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalar, uint64_t mask,
          ascendc_twin::Field8 repeatTime, const UnaryRepeatParams& repeatParams,
          Loc loc = Loc::Here()) {
  ascendc_twin::Unary("Axpy", loc, dst, src, mask, isSetMask, repeatTime, repeatParams,
                      ascendc_twin::VectorRate::kFull, AxpyOp<T, U>(scalar), true);
}
template <typename T, typename U, bool isSetMask = true>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalar,
          const uint64_t mask[], ascendc_twin::Field8 repeatTime,
          const UnaryRepeatParams& repeatParams, Loc loc = Loc::Here()) {
  ascendc_twin::Unary("Axpy", loc, dst, src, mask, isSetMask, repeatTime, repeatParams,
                      ascendc_twin::VectorRate::kFull, AxpyOp<T, U>(scalar), true);
}

}  // namespace AscendC
