// One kernel per vector instruction and type: loads its operands whole, runs one instruction in the
// form that `Form` asks for, and stores the target whole.
#include "frame.h"

__aicore__ inline void SetMode(const Form& f) {
  if (!f.counter) return;
  SetMaskCount();
  SetVectorMask<float, MaskMode::COUNTER>(f.count);
}

#define BINARY(NAME, T)                                                                           \
  extern "C" __global__ __aicore__ void NAME##_##T(GM_ADDR to, GM_ADDR old, GM_ADDR x, GM_ADDR y, \
                                                   Form f) {                                      \
    Frame<T, T, T> m(to, old, x, y);                                                              \
    const BinaryRepeatParams p(f.block[0], f.block[1], f.block[2], f.repeat[0], f.repeat[1],      \
                               f.repeat[2]);                                                      \
    SetMode(f);                                                                                   \
    if (f.counter)                                                                                \
      NAME<T, false>(m.dst, m.a, m.b, uint64_t(0), 1, p);                                         \
    else if (f.kind == 0)                                                                         \
      NAME(m.dst, m.a, m.b, f.count);                                                             \
    else if (f.kind == 1)                                                                         \
      NAME(m.dst, m.a, m.b, f.mask[0], f.repeats, p);                                             \
    else                                                                                          \
      NAME(m.dst, m.a, m.b, f.mask, f.repeats, p);                                                \
    m.Store();                                                                                    \
  }                                                                                               \
  ASCENDC_TWIN_KERNEL(NAME##_##T)

// CALL is the instruction up to its count or mask.
#define UNARY(NAME, ID, D, S, ...)                                                       \
  extern "C" __global__ __aicore__ void ID(GM_ADDR to, GM_ADDR old, GM_ADDR x, Form f) { \
    Frame<D, S, S> m(to, old, x, nullptr);                                               \
    const UnaryRepeatParams p(f.block[0], f.block[1], f.repeat[0], f.repeat[1]);         \
    if (f.kind == 0)                                                                     \
      NAME(m.dst, m.a, ##__VA_ARGS__, f.count);                                          \
    else if (f.kind == 1)                                                                \
      NAME(m.dst, m.a, ##__VA_ARGS__, f.mask[0], f.repeats, p);                          \
    else                                                                                 \
      NAME(m.dst, m.a, ##__VA_ARGS__, f.mask, f.repeats, p);                             \
    m.Store();                                                                           \
  }                                                                                      \
  ASCENDC_TWIN_KERNEL(ID)

#define CAST(D, S) UNARY(Cast, Cast_##D##_##S, D, S, static_cast<RoundMode>(f.mode))
#define SCALAR(NAME, T) UNARY(NAME, NAME##_##T, T, T, T(f.scalar))
#define PLAIN(NAME, T) UNARY(NAME, NAME##_##T, T, T)

#define REDUCE(NAME, ID, T, ...)                                                               \
  extern "C" __global__ __aicore__ void ID##_##T(GM_ADDR to, GM_ADDR old, GM_ADDR x, Form f) { \
    Frame<T, T, T> m(to, old, x, nullptr);                                                     \
    __VA_ARGS__;                                                                               \
    m.Store();                                                                                 \
  }                                                                                            \
  ASCENDC_TWIN_KERNEL(ID##_##T)

#define FLOATS(MACRO, NAME) MACRO(NAME, half) MACRO(NAME, float)
#define NUMBERS(MACRO, NAME) FLOATS(MACRO, NAME) MACRO(NAME, int16_t) MACRO(NAME, int32_t)

NUMBERS(BINARY, Add)
NUMBERS(BINARY, Sub)
NUMBERS(BINARY, Mul)
NUMBERS(BINARY, Max)
NUMBERS(BINARY, Min)
FLOATS(BINARY, Div)
FLOATS(BINARY, MulAddDst)
FLOATS(BINARY, FusedMulAdd)
FLOATS(BINARY, FusedMulAddRelu)
FLOATS(BINARY, AddRelu)
FLOATS(BINARY, SubRelu)
BINARY(And, int16_t)
BINARY(Or, int16_t)

NUMBERS(SCALAR, Adds)
NUMBERS(SCALAR, Muls)
NUMBERS(SCALAR, Maxs)
NUMBERS(SCALAR, Mins)
FLOATS(SCALAR, LeakyRelu)
FLOATS(SCALAR, Axpy)
UNARY(Axpy, Axpy_float_half, float, half, half(f.scalar))
SCALAR(ShiftLeft, int16_t)
SCALAR(ShiftLeft, int32_t)
SCALAR(ShiftRight, int16_t)
SCALAR(ShiftRight, int32_t)

FLOATS(PLAIN, Exp)
FLOATS(PLAIN, Ln)
FLOATS(PLAIN, Sqrt)
FLOATS(PLAIN, Rsqrt)
FLOATS(PLAIN, Reciprocal)
FLOATS(PLAIN, Abs)
FLOATS(PLAIN, Relu)
PLAIN(Not, int16_t)

CAST(half, float)
CAST(bfloat16_t, float)
CAST(int32_t, float)
CAST(int16_t, float)
CAST(float, float)
CAST(float, half)
CAST(float, bfloat16_t)
CAST(float, int32_t)
CAST(half, int16_t)
CAST(int32_t, half)
CAST(int8_t, half)
CAST(uint8_t, half)
CAST(half, int8_t)

#define REDUCTIONS(T)                                                                              \
  REDUCE(WholeReduceSum, WholeReduceSum, T,                                                        \
         WholeReduceSum<T>(m.dst, m.a, int32_t(f.mask[0]), f.repeats, f.repeat[0], f.block[1],     \
                           f.repeat[1]))                                                           \
  REDUCE(WholeReduceMax, WholeReduceMax, T,                                                        \
         WholeReduceMax<T>(m.dst, m.a, int32_t(f.mask[0]), f.repeats, f.repeat[0], f.block[1],     \
                           f.repeat[1], static_cast<ReduceOrder>(f.mode)))                         \
  REDUCE(WholeReduceMin, WholeReduceMin, T,                                                        \
         WholeReduceMin<T>(m.dst, m.a, int32_t(f.mask[0]), f.repeats, f.repeat[0], f.block[1],     \
                           f.repeat[1], static_cast<ReduceOrder>(f.mode)))                         \
  REDUCE(BlockReduceSum, BlockReduceSum, T,                                                        \
         BlockReduceSum<T>(m.dst, m.a, f.repeats, int32_t(f.mask[0]), f.repeat[0], f.block[1],     \
                           f.repeat[1]))                                                           \
  REDUCE(BlockReduceMax, BlockReduceMax, T,                                                        \
         BlockReduceMax<T>(m.dst, m.a, f.repeats, int32_t(f.mask[0]), f.repeat[0], f.block[1],     \
                           f.repeat[1]))                                                           \
  REDUCE(BlockReduceMin, BlockReduceMin, T,                                                        \
         BlockReduceMin<T>(m.dst, m.a, f.repeats, int32_t(f.mask[0]), f.repeat[0], f.block[1],     \
                           f.repeat[1]))                                                           \
  REDUCE(RepeatReduceSum, RepeatReduceSum, T,                                                      \
         RepeatReduceSum<T>(m.dst, m.a, f.repeats, int32_t(f.mask[0]), 0, f.block[1], f.repeat[0], \
                            f.repeat[1]))                                                          \
  REDUCE(PairReduceSum, PairReduceSum, T,                                                          \
         PairReduceSum<T>(m.dst, m.a, f.repeats, int32_t(f.mask[0]), f.repeat[0], f.block[1],      \
                          f.repeat[1]))                                                            \
  REDUCE(ReduceSum, ReduceSum, T, ReduceSum<T>(m.dst, m.a, m.b, f.count))                          \
  REDUCE(ReduceMax, ReduceMax, T, ReduceMax<T>(m.dst, m.a, m.b, f.count, f.mode == 1))             \
  REDUCE(ReduceMin, ReduceMin, T, ReduceMin<T>(m.dst, m.a, m.b, f.count, f.mode == 1))

REDUCTIONS(half)
REDUCTIONS(float)

#define FILLS(T)                                                                           \
  REDUCE(Duplicate, Duplicate, T, if (f.kind == 0) Duplicate(m.dst, T(f.scalar), f.count); \
         else if (f.kind == 1)                                                             \
             Duplicate(m.dst, T(f.scalar), f.mask[0], f.repeats, f.block[0], f.repeat[0]); \
         else Duplicate(m.dst, T(f.scalar), f.mask, f.repeats, f.block[0], f.repeat[0]))   \
  REDUCE(Copy, Copy, T,                                                                    \
         Copy(m.dst, m.a, f.mask[0], f.repeats,                                            \
              CopyRepeatParams(f.block[0], f.block[1], f.repeat[0], f.repeat[1])))         \
  REDUCE(Brcb, Brcb, T, Brcb(m.dst, m.a, f.repeats, BrcbRepeatParams(f.block[0], f.repeat[0])))

FILLS(half)
FILLS(float)
REDUCE(CreateVecIndex, CreateVecIndex, float, CreateVecIndex(m.dst, f.scalar, f.count))
REDUCE(Transpose, Transpose, half, Transpose(m.dst, m.a))

// The bits of a comparison, then what a selection by them gives.
#define CHOICE(T)                                                                                  \
  extern "C" __global__ __aicore__ void Compare_##T(GM_ADDR to, GM_ADDR old, GM_ADDR x, GM_ADDR y, \
                                                    Form f) {                                      \
    Frame<uint8_t, T, T> m(to, old, x, y);                                                         \
    Compare(m.dst, m.a, m.b, static_cast<CMPMODE>(f.mode), f.count);                               \
    m.Store();                                                                                     \
  }                                                                                                \
  ASCENDC_TWIN_KERNEL(Compare_##T)                                                                 \
  extern "C" __global__ __aicore__ void CompareScalar_##T(GM_ADDR to, GM_ADDR old, GM_ADDR x,      \
                                                          Form f) {                                \
    Frame<uint8_t, T, T> m(to, old, x, nullptr);                                                   \
    CompareScalar(m.dst, m.a, T(f.scalar), static_cast<CMPMODE>(f.mode), f.count);                 \
    m.Store();                                                                                     \
  }                                                                                                \
  ASCENDC_TWIN_KERNEL(CompareScalar_##T)                                                           \
  extern "C" __global__ __aicore__ void Select_##T(GM_ADDR to, GM_ADDR bits, GM_ADDR x, GM_ADDR y, \
                                                   Form f) {                                       \
    Frame<T, T, T> m(to, x, x, y);                                                                 \
    TBuf<TPosition::VECCALC> buffer;                                                               \
    m.pipe.InitBuffer(buffer, kBytes);                                                             \
    LocalTensor<uint8_t> mask = buffer.Get<uint8_t>();                                             \
    m.Load(mask, bits);                                                                            \
    PipeBarrier<PIPE_ALL>();                                                                       \
    if (f.mode == 1)                                                                               \
      Select(m.dst, mask, m.a, T(f.scalar), SELMODE::VSEL_TENSOR_SCALAR_MODE, f.count);            \
    else                                                                                           \
      Select(m.dst, mask, m.a, m.b, static_cast<SELMODE>(f.mode), f.count);                        \
    m.Store();                                                                                     \
  }                                                                                                \
  ASCENDC_TWIN_KERNEL(Select_##T)

CHOICE(half)
CHOICE(float)

extern "C" __global__ __aicore__ void Gather_float(GM_ADDR to, GM_ADDR old, GM_ADDR x, GM_ADDR y,
                                                   Form f) {
  Frame<float, float, uint32_t> m(to, old, x, y);
  Gather(m.dst, m.a, m.b, uint32_t(f.mode), f.count);
  m.Store();
}
ASCENDC_TWIN_KERNEL(Gather_float)
