// Activations of float32 vectors.
#pragma once

#include "linear_tiling.h"
#include "shim.h"

namespace mmkern {

// x / (1 + exp(-v)); v in `work`. exp stays finite: from 80 on the quotient is 0 in a half type.
__aicore__ inline void TimesSigmoid(LocalTensor<float> x, LocalTensor<float> work, int32_t count) {
  AscendC::Muls(work, work, -1.0f, count);
  VectorBarrier();
  AscendC::Mins(work, work, 80.0f, count);
  VectorBarrier();
  AscendC::Exp(work, work, count);
  VectorBarrier();
  AscendC::Adds(work, work, 1.0f, count);
  VectorBarrier();
  AscendC::Div(x, x, work, count);
  VectorBarrier();
}

// A block of eight for each constant of Gelu's fused additions.
constexpr int32_t kConstants = 3 * 8;

__aicore__ inline void FillConstants(LocalTensor<float> constants) {
  constexpr float kValues[3] = {0.5f * 1.421413741f, -0.5f * 0.284496736f, 0.5f * 0.254829592f};
  for (int32_t i = 0; i < 3; ++i) AscendC::Duplicate(constants[i * 8], kValues[i], 8);
  VectorBarrier();
}

// q = q t + c, of which one block is all there is.
__aicore__ inline void MulAddBlock(LocalTensor<float> q, LocalTensor<float> t, LocalTensor<float> c,
                                   int32_t count) {
  int32_t full = count / kRepeatFloats, tail = count % kRepeatFloats;
  AscendC::BinaryRepeatParams strides(1, 1, 0, 8, 8, 0);
  if (full) {
    AscendC::FusedMulAdd(q, t, c, static_cast<uint64_t>(kRepeatFloats), static_cast<uint8_t>(full),
                         strides);
  }
  if (tail) {
    int32_t at = full * kRepeatFloats;
    AscendC::FusedMulAdd(q[at], t[at], c, static_cast<uint64_t>(tail), 1, strides);
  }
  VectorBarrier();
}

// a = |x|, t = exp(-a^2 / 2), q = (1 - erf(a / sqrt(2))) / 2 by Abramowitz and Stegun 7.1.26: its
// error is at most 7.5e-8.
__aicore__ inline void NormalTail(LocalTensor<float> x, LocalTensor<float> a, LocalTensor<float> t,
                                  LocalTensor<float> q, LocalTensor<float> constants,
                                  int32_t count) {
  constexpr float kScale = 0.3275911f * 0.70710678f;
  AscendC::Abs(a, x, count);
  VectorBarrier();
  AscendC::Mins(a, a, 30.0f, count);
  VectorBarrier();
  AscendC::Muls(t, a, kScale, count);
  AscendC::Duplicate(q, 1.0f, count);
  VectorBarrier();
  AscendC::Adds(t, t, 1.0f, count);
  VectorBarrier();
  AscendC::Div(t, q, t, count);
  VectorBarrier();
  AscendC::Muls(q, t, 0.5f * 1.061405429f, count);
  VectorBarrier();
  AscendC::Adds(q, q, -0.5f * 1.453152027f, count);
  VectorBarrier();
  for (int32_t i = 0; i < 3; ++i) MulAddBlock(q, t, constants[i * 8], count);
  AscendC::Mul(q, q, t, count);
  VectorBarrier();
  AscendC::Mul(t, a, a, count);
  VectorBarrier();
  AscendC::Muls(t, t, -0.5f, count);
  VectorBarrier();
  AscendC::Exp(t, t, count);
  VectorBarrier();
  AscendC::Mul(q, q, t, count);
  VectorBarrier();
}

// max(x, 0) - |x| q
__aicore__ inline void Gelu(LocalTensor<float> x, LocalTensor<float> a, LocalTensor<float> t,
                            LocalTensor<float> q, LocalTensor<float> constants, int32_t count) {
  NormalTail(x, a, t, q, constants, count);
  AscendC::Mul(q, q, a, count);
  AscendC::Maxs(x, x, 0.0f, count);
  VectorBarrier();
  AscendC::Sub(x, x, q, count);
  VectorBarrier();
}

// In place; `work` has room for three times count; the constants are those of FillConstants.
__aicore__ inline void Activate(int32_t activation, LocalTensor<float> x, LocalTensor<float> work,
                                LocalTensor<float> constants, int32_t count) {
  int32_t room = AlignUp(count, kRepeatFloats);
  if (activation == kRelu) {
    AscendC::Maxs(x, x, 0.0f, count);
    VectorBarrier();
  } else if (activation == kGelu) {
    Gelu(x, work, work[room], work[2 * room], constants, count);
  } else if (activation == kSilu) {
    AscendC::Adds(work, x, 0.0f, count);
    VectorBarrier();
    TimesSigmoid(x, work, count);
  } else if (activation == kQuickGelu) {
    AscendC::Muls(work, x, 1.702f, count);
    VectorBarrier();
    TimesSigmoid(x, work, count);
  } else if (activation == kGeluTanh) {
    // 2 sqrt(2 / pi) (x + 0.044715 x^3); beyond |x| = 30 its sigmoid is 0 or 1
    AscendC::Mins(work, x, 30.0f, count);
    VectorBarrier();
    AscendC::Maxs(work, work, -30.0f, count);
    VectorBarrier();
    LocalTensor<float> square = work[room];
    AscendC::Mul(square, work, work, count);
    VectorBarrier();
    AscendC::Muls(square, square, 1.5957691f * 0.044715f, count);
    VectorBarrier();
    AscendC::Adds(square, square, 1.5957691f, count);
    VectorBarrier();
    AscendC::Mul(work, work, square, count);
    VectorBarrier();
    TimesSigmoid(x, work, count);
  }
}

}  // namespace mmkern
