// Instructions that put elements elsewhere: sorting, gathering, transposing, choosing by a
// register; and reductions by the names of CANN 9.
#include "frame.h"

using namespace AscendC;

#define KERNEL(ID, D, A, B, ...)                                                          \
  extern "C" __global__ __aicore__ void ID(GM_ADDR to, GM_ADDR old, GM_ADDR x, GM_ADDR y, \
                                           Form f) {                                      \
    Frame<D, A, B> m(to, old, x, y);                                                      \
    __VA_ARGS__;                                                                          \
    m.Store();                                                                            \
  }                                                                                       \
  ASCENDC_TWIN_KERNEL(ID)

// ---- sorting ----
KERNEL(sort_float, float, float, uint32_t, Sort32(m.dst, m.a, m.b, f.repeats))
KERNEL(sort_half, half, half, uint32_t, Sort32(m.dst, m.a, m.b, f.repeats))

// Queues of `count` pairs, one after another in x.
template <typename T>
__aicore__ inline void Merge(const LocalTensor<T>& dst, const LocalTensor<T>& x, const Form& f) {
  const uint32_t step = f.count * 8 / sizeof(T);
  MrgSort4Info info;
  for (int i = 0; i < 4; ++i) info.elementLengths[i] = f.count;
  info.validBit = f.mode;
  info.repeatTimes = f.repeats;
  MrgSort(dst, MrgSortSrcList<T>(x, x[step], x[2 * step], x[3 * step]), info);
}
KERNEL(merge_float, float, float, float, Merge(m.dst, m.a, f))
KERNEL(merge_half, half, half, half, Merge(m.dst, m.a, f))

// ---- gathering ----
KERNEL(gather_blocks_16, uint16_t, uint16_t, uint32_t,
       Gatherb(m.dst, m.a, m.b, f.repeats, GatherRepeatParams(f.block[0], f.repeat[0])))
KERNEL(gather_blocks_32, uint32_t, uint32_t, uint32_t,
       Gatherb(m.dst, m.a, m.b, f.repeats, GatherRepeatParams(f.block[0], f.repeat[0])))

// The count of what was kept goes to the last element.
template <typename T, typename Pattern>
__aicore__ inline void Pick(const LocalTensor<T>& dst, const LocalTensor<T>& x, Pattern pattern,
                            const Form& f) {
  uint64_t kept = 0;
  GatherMask(dst, x, pattern, f.counter == 1, f.count,
             GatherMaskParams(f.block[1], f.repeats, f.repeat[1], f.repeat[2]), kept);
  PipeBarrier<PIPE_ALL>();
  dst.SetValue(kBytes / sizeof(T) - 1, T(static_cast<int>(kept)));
}
KERNEL(pick_float, float, float, uint32_t, Pick(m.dst, m.a, uint8_t(f.mode), f))
KERNEL(pick_half, half, half, uint16_t, Pick(m.dst, m.a, uint8_t(f.mode), f))
KERNEL(pick_by_bits_float, float, float, uint32_t, Pick(m.dst, m.a, m.b, f))
KERNEL(pick_by_bits_half, half, half, uint16_t, Pick(m.dst, m.a, m.b, f))

// ---- transposing ----
// x is [n, c, h, w], or back: the strides of the form are the sizes.
KERNEL(channels, half, half, uint8_t,
       Transpose(m.dst, m.a, m.b,
                 TransposeParamsExt(f.count, f.block[0], f.block[1], f.block[2],
                                    f.mode ? TransposeType::TRANSPOSE_NHWC2NCHW
                                           : TransposeType::TRANSPOSE_NCHW2NHWC)))

// 16 rows, `count` elements apart.
template <typename T, bool addresses>
__aicore__ inline void Rows(const LocalTensor<T>& dst, const LocalTensor<T>& x, const Form& f) {
  const uint32_t block = 32 / sizeof(T);
  const TransDataTo5HDParams p(false, false, f.repeats, f.repeat[0], f.repeat[1]);
  if (addresses) {
    uint64_t to[16], from[16];
    for (int i = 0; i < 16; ++i) {
      to[i] = dst[i * block].GetPhyAddr();
      from[i] = x[i * f.count].GetPhyAddr();
    }
    TransDataTo5HD<T>(to, from, p);
  } else {
    LocalTensor<T> to[16], from[16];
    for (int i = 0; i < 16; ++i) {
      to[i] = dst[i * block];
      from[i] = x[i * f.count];
    }
    TransDataTo5HD<T>(to, from, p);
  }
}
KERNEL(rows_half, half, half, half, (Rows<half, false>(m.dst, m.a, f)))
KERNEL(rows_float, float, float, float, (Rows<float, false>(m.dst, m.a, f)))
KERNEL(rows_by_address, half, half, half, (Rows<half, true>(m.dst, m.a, f)))

// ---- the register of comparisons ----
#define REGISTER(T)                                                                        \
  KERNEL(compare_register_##T, uint8_t, T, T,                                              \
         Compare(m.a, m.b, static_cast<CMPMODE>(f.mode), f.mask[0],                        \
                 BinaryRepeatParams(1, f.block[1], f.block[2], 8, 8, 8));                  \
         GetCmpMask(m.dst))                                                                \
  KERNEL(select_register_##T, T, T, T, SetCmpMask(m.b); SetVectorMask<T>(256 / sizeof(T)); \
         Select(m.dst, m.a, m.dst, f.repeats,                                              \
                BinaryRepeatParams(1, 1, 1, f.repeat[0], f.repeat[1], f.repeat[2])))
REGISTER(half)
REGISTER(float)

KERNEL(compares, uint8_t, float, float,
       Compares(m.dst, m.a, f.scalar, static_cast<CMPMODE>(f.mode), f.count))

// ---- int4b_t, and Copy in counter mode ----
KERNEL(narrow_int4, uint8_t, half, half,
       if (f.kind)
           Cast(m.dst.ReinterpretCast<int4b_t>(), m.a, static_cast<RoundMode>(f.mode), f.mask[0],
                f.repeats, UnaryRepeatParams(f.block[0], f.block[1], f.repeat[0], f.repeat[1]));
       else Cast(m.dst.ReinterpretCast<int4b_t>(), m.a, static_cast<RoundMode>(f.mode), f.count))
KERNEL(widen_int4, half, uint8_t, uint8_t,
       Cast(m.dst, m.a.ReinterpretCast<int4b_t>(), RoundMode::CAST_NONE, f.count))
KERNEL(copy_counted, float, float, float, SetMaskCount();
       SetVectorMask<float, MaskMode::COUNTER>(f.count);
       Copy<float, false>(m.dst, m.a, MASK_PLACEHOLDER, f.repeats,
                          CopyRepeatParams(f.block[0], f.block[1], f.repeat[0], f.repeat[1]));
       SetMaskNorm(); ResetMask())

// ---- reductions: `mode` is the type; a mask as a number of lanes, or as bits ----
template <ReduceType type, typename T>
__aicore__ inline void Reduce(const LocalTensor<T>& dst, const LocalTensor<T>& x, const Form& f,
                              int32_t what) {
  const int32_t lanes = f.mask[0], r = f.repeats, d = f.repeat[0], b = f.block[1], s = f.repeat[1];
  if (f.kind == 1) {
    if (what == 0) ReduceDataBlock<type, T>(dst, x, lanes, r, d, b, s);
    if (what == 1) ReducePairElem<type, T>(dst, x, lanes, r, d, b, s);
    if (what == 2) ReduceRepeat<type, T>(dst, x, lanes, r, d, b, s, ReduceOrder::ORDER_ONLY_VALUE);
  } else {
    if (what == 0) ReduceDataBlock<type, T>(dst, x, f.mask, r, d, b, s);
    if (what == 1) ReducePairElem<type, T>(dst, x, f.mask, r, d, b, s);
    if (what == 2) ReduceRepeat<type, T>(dst, x, f.mask, r, d, b, s, ReduceOrder::ORDER_ONLY_VALUE);
  }
}
template <typename T>
__aicore__ inline void ReduceAny(const LocalTensor<T>& dst, const LocalTensor<T>& x, const Form& f,
                                 int32_t what) {
  if (f.mode == 0) Reduce<ReduceType::SUM>(dst, x, f, what);
  if (f.mode == 1) Reduce<ReduceType::MAX>(dst, x, f, what);
  if (f.mode == 2) Reduce<ReduceType::MIN>(dst, x, f, what);
}
#define REDUCTIONS(T)                                                                              \
  KERNEL(blocks_##T, T, T, T, ReduceAny(m.dst, m.a, f, 0))                                         \
  KERNEL(pairs_##T, T, T, T, ReduceAny(m.dst, m.a, f, 1))                                          \
  KERNEL(repeats_##T, T, T, T, ReduceAny(m.dst, m.a, f, 2))                                        \
  KERNEL(sum_##T, T, T, T, ReduceSum(m.dst, m.a, m.b, int32_t(f.mask[0]), f.repeats, f.repeat[1])) \
  KERNEL(max_##T, T, T, T,                                                                         \
         ReduceMax(m.dst, m.a, m.b, int32_t(f.mask[0]), f.repeats, f.repeat[1], true))             \
  KERNEL(min_by_bits_##T, T, T, T, ReduceMin(m.dst, m.a, m.b, f.mask, f.repeats, f.repeat[1], true))
REDUCTIONS(half)
REDUCTIONS(float)

// What the registers hold after a reduction: the sum twice, then value and index twice.
KERNEL(registers, float, float, float, ReduceSum(m.b, m.a, m.b[64], f.count); float values[6];
       values[0] = GetAccVal<float>(); values[1] = GetReduceRepeatSumSpr<float>();
       WholeReduceMax(m.b, m.a, 64, 1, 1, 1, 8); GetReduceMaxMinCount(values[2], values[3]);
       GetReduceRepeatMaxMinSpr(values[4], values[5]); PipeBarrier<PIPE_ALL>();
       for (int i = 0; i < 6; ++i) m.dst.SetValue(i, values[i]))

// ---- copies of slices, and padding by a register ----
KERNEL(slice_in, float, float, float, GlobalTensor<float> from;
       from.SetGlobalBuffer((__gm__ float*)x);
       SliceInfo source[] = {{uint32_t(f.block[0]), uint32_t(f.block[1]), uint32_t(f.block[2]), 1,
                              48},
                             {uint32_t(f.repeat[0]), uint32_t(f.repeat[1]), uint32_t(f.repeat[2]),
                              1, 9}};
       SliceInfo target[] = {{0, uint32_t(f.count) - 1, 0, 1, uint32_t(f.count)},
                             {0, uint32_t(f.repeats) - 1, 0, 1, uint32_t(f.repeats)}};
       DataCopy(m.dst, from, target, source, 2))
KERNEL(slice_out, float, float, float, DataCopy(m.out, m.dst, kBytes / 4); PipeBarrier<PIPE_ALL>();
       SliceInfo source[] = {{0, uint32_t(f.count) - 1, 0, 1, uint32_t(f.count)}};
       SliceInfo target[] = {{uint32_t(f.block[0]), uint32_t(f.block[1]), uint32_t(f.block[2]), 1,
                              256}};
       DataCopy(m.out, m.dst, target, source, 1); PipeBarrier<PIPE_ALL>();
       DataCopy(m.dst, m.out, kBytes / 4))
KERNEL(pad_by_register, float, float, float, GlobalTensor<float> from;
       from.SetGlobalBuffer((__gm__ float*)x); SetPadValue(f.scalar);
       DataCopyPad(m.dst, from, DataCopyExtParams(f.repeats, f.count * 4, 0, 0, 0),
                   DataCopyPadExtParams<float>(false, f.block[0], f.block[1], 0.0f)))
