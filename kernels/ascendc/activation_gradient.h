// Derivatives of the activations, on float32 vectors. Each function leaves activation(x) in x and
// returns the part of `work` that holds activation'(x); a part is `room` elements.
#pragma once

#include "activation.h"

namespace mmkern {

// 1 where x > 0, else 0. Below 2^-100 it is a ramp.
__aicore__ inline void Step(LocalTensor<float> dst, LocalTensor<float> x, int32_t count) {
  AscendC::Maxs(dst, x, 0.0f, count);
  VectorBarrier();
  AscendC::Mins(dst, dst, 0x1p-100f, count);
  VectorBarrier();
  AscendC::Muls(dst, dst, 0x1p100f, count);
  VectorBarrier();
}

// x F(x) and F(x) + x f(x) of the normal distribution: F(x) = q where x < 0, else 1 - q.
__aicore__ inline LocalTensor<float> GeluGradient(LocalTensor<float> x, LocalTensor<float> work,
                                                  LocalTensor<float> constants, int32_t room,
                                                  int32_t count) {
  LocalTensor<float> a = work, t = work[room], q = work[2 * room], step = work[3 * room];
  NormalTail(x, a, t, q, constants, count);
  AscendC::Mul(t, t, x, count);
  AscendC::Muls(a, q, -2.0f, count);
  VectorBarrier();
  AscendC::Muls(t, t, 0.39894228f, count);
  AscendC::Adds(a, a, 1.0f, count);
  Step(step, x, count);
  AscendC::Mul(a, a, step, count);
  VectorBarrier();
  AscendC::Add(q, q, a, count);
  VectorBarrier();
  AscendC::Mul(x, x, q, count);
  VectorBarrier();
  AscendC::Add(q, q, t, count);
  VectorBarrier();
  return q;
}

// x s and s + scale x s (1 - s), where s = 1 / (1 + exp(-scale x)).
__aicore__ inline LocalTensor<float> SiluGradient(LocalTensor<float> x, LocalTensor<float> work,
                                                  float scale, int32_t room, int32_t count) {
  LocalTensor<float> s = work, t = work[room];
  // far below, s x is 0 in effect, and exp(-scale x) stays finite
  AscendC::Maxs(x, x, -80.0f / scale, count);
  AscendC::Duplicate(s, 1.0f, count);
  VectorBarrier();
  AscendC::Muls(t, x, scale, count);
  VectorBarrier();
  TimesSigmoid(s, t, count);
  AscendC::Mul(x, x, s, count);
  AscendC::Muls(t, s, -1.0f, count);
  VectorBarrier();
  AscendC::Adds(t, t, 1.0f, count);
  VectorBarrier();
  AscendC::Mul(t, t, x, count);
  VectorBarrier();
  if (scale != 1.0f) {
    AscendC::Muls(t, t, scale, count);
    VectorBarrier();
  }
  AscendC::Add(t, t, s, count);
  VectorBarrier();
  return t;
}

// x s and s + x s (1 - s) u', where s = 1 / (1 + exp(-u)), u = 2 sqrt(2 / pi) (x + 0.044715 x^3).
__aicore__ inline LocalTensor<float> GeluTanhGradient(LocalTensor<float> x, LocalTensor<float> work,
                                                      int32_t room, int32_t count) {
  constexpr float kLinear = 1.5957691f, kCubic = kLinear * 0.044715f;
  LocalTensor<float> u = work, s = work[room], slope = work[2 * room], w = work[3 * room];
  // beyond 30 the sigmoid is 0 or 1
  AscendC::Maxs(x, x, -30.0f, count);
  VectorBarrier();
  AscendC::Mins(w, x, 30.0f, count);
  VectorBarrier();
  AscendC::Mul(s, w, w, count);
  VectorBarrier();
  AscendC::Muls(u, s, kCubic, count);
  AscendC::Muls(slope, s, 3.0f * kCubic, count);
  VectorBarrier();
  AscendC::Duplicate(s, 1.0f, count);
  AscendC::Adds(u, u, kLinear, count);
  AscendC::Adds(slope, slope, kLinear, count);
  VectorBarrier();
  AscendC::Mul(u, u, w, count);
  AscendC::Mul(slope, slope, w, count);
  VectorBarrier();
  TimesSigmoid(s, u, count);
  AscendC::Muls(u, s, -1.0f, count);
  AscendC::Mul(x, x, s, count);
  VectorBarrier();
  AscendC::Adds(u, u, 1.0f, count);
  AscendC::Mul(slope, slope, s, count);
  VectorBarrier();
  AscendC::Mul(slope, slope, u, count);
  VectorBarrier();
  AscendC::Add(slope, slope, s, count);
  VectorBarrier();
  return slope;
}

// grad *= activation'(x), x = activation(x); `work` has room for four times count.
__aicore__ inline void ActivationGradient(int32_t activation, LocalTensor<float> grad,
                                          LocalTensor<float> x, LocalTensor<float> work,
                                          LocalTensor<float> constants, int32_t count) {
  int32_t room = AlignUp(count, kRepeatFloats);
  LocalTensor<float> derivative = work;
  if (activation == kGelu) {
    derivative = GeluGradient(x, work, constants, room, count);
  } else if (activation == kGeluTanh) {
    derivative = GeluTanhGradient(x, work, room, count);
  } else if (activation == kSilu) {
    derivative = SiluGradient(x, work, 1.0f, room, count);
  } else if (activation == kQuickGelu) {
    derivative = SiluGradient(x, work, 1.702f, room, count);
  } else {
    // twice, as the smallest bfloat16 is 2^-133
    Step(derivative, x, count);
    Step(derivative, derivative, count);
    AscendC::Maxs(x, x, 0.0f, count);
  }
  AscendC::Mul(grad, grad, derivative, count);
  VectorBarrier();
}

}  // namespace mmkern
