// Vector arithmetic on tiles of rows in the unified buffer, in float32.
#pragma once

#include "shim.h"

namespace mmkern {

// rows x cols of float32 (or of a half type), a row every `pitch` elements: a multiple of 16, so
// that rows of either type begin on a block.
struct Tile {
  int32_t rows;
  int32_t cols;
  int32_t pitch;
};

// A repeat stride is a byte count of blocks, so one instruction goes down the rows of such a tile.
constexpr int32_t kNarrow = 255 * 8;

#define MMKERN_BINARY(Name)                                                                \
  struct Name##Op {                                                                        \
    __aicore__ static inline void Run(LocalTensor<float> dst, LocalTensor<float> a,        \
                                      LocalTensor<float> b, int32_t count) {               \
      AscendC::Name(dst, a, b, count);                                                     \
    }                                                                                      \
    __aicore__ static inline void Run(LocalTensor<float> dst, LocalTensor<float> a,        \
                                      LocalTensor<float> b, int32_t mask, int32_t repeats, \
                                      const AscendC::BinaryRepeatParams& strides) {        \
      AscendC::Name(dst, a, b, static_cast<uint64_t>(mask), static_cast<uint8_t>(repeats), \
                    strides);                                                              \
    }                                                                                      \
  };
MMKERN_BINARY(Add)
MMKERN_BINARY(Sub)
MMKERN_BINARY(Mul)
MMKERN_BINARY(Max)
#undef MMKERN_BINARY

__aicore__ inline AscendC::BinaryRepeatParams Strides(int32_t dst, int32_t a, int32_t b,
                                                      int32_t b_block = 1) {
  return AscendC::BinaryRepeatParams(1, 1, static_cast<uint8_t>(b_block), static_cast<uint8_t>(dst),
                                     static_cast<uint8_t>(a), static_cast<uint8_t>(b));
}

// x[r, c] = x[r, c] op v[c]
template <class Op>
__aicore__ inline void RowsWithVector(LocalTensor<float> x, LocalTensor<float> v, const Tile& t) {
  if (t.pitch <= kNarrow) {
    int32_t step = t.pitch / 8;
    for (int32_t c = 0; c < t.cols; c += kRepeatFloats) {
      Op::Run(x[c], x[c], v[c], Min(kRepeatFloats, t.cols - c), t.rows, Strides(step, step, 0));
    }
  } else {
    for (int32_t r = 0; r < t.rows; ++r) Op::Run(x[r * t.pitch], x[r * t.pitch], v, t.cols);
  }
  VectorBarrier();
}

// x[r, c] = x[r, c] op s[r], where block r of `blocks` holds eight times s[r]
template <class Op>
__aicore__ inline void RowsWithScalars(LocalTensor<float> x, LocalTensor<float> blocks,
                                       const Tile& t) {
  if (t.pitch <= kNarrow) {
    int32_t step = t.pitch / 8;
    for (int32_t c = 0; c < t.cols; c += kRepeatFloats) {
      Op::Run(x[c], x[c], blocks, Min(kRepeatFloats, t.cols - c), t.rows,
              Strides(step, step, 1, 0));
    }
  } else {
    int32_t full = t.cols / kRepeatFloats, tail = t.cols % kRepeatFloats;
    for (int32_t r = 0; r < t.rows; ++r) {
      LocalTensor<float> row = x[r * t.pitch], s = blocks[r * 8];
      Op::Run(row, row, s, kRepeatFloats, full, Strides(8, 8, 0, 0));
      if (tail) {
        LocalTensor<float> end = row[full * kRepeatFloats];
        Op::Run(end, end, s, tail, 1, Strides(8, 8, 0, 0));
      }
    }
  }
  VectorBarrier();
}

constexpr int32_t kWideLanes = 512;  // partial sums of one wide row

// Elements that RowSums needs to work in.
__aicore__ inline int32_t RowSumsElements(int32_t rows, int32_t pitch) {
  return pitch <= kNarrow ? rows * kRepeatFloats : kWideLanes;
}

// lanes[r] = what Op makes of the columns of row r that lie 64 apart; `neutral` changes nothing.
template <class Op>
__aicore__ inline void FoldRows(LocalTensor<float> lanes, LocalTensor<float> x, float neutral,
                                const Tile& t) {
  int32_t step = t.pitch / 8, c = 0;
  if (t.cols >= 2 * kRepeatFloats) {
    Op::Run(lanes, x, x[kRepeatFloats], kRepeatFloats, t.rows, Strides(8, step, step));
    c = 2 * kRepeatFloats;
  } else {
    AscendC::Duplicate(lanes, neutral, t.rows * kRepeatFloats);
  }
  VectorBarrier();
  for (; c < t.cols; c += kRepeatFloats) {
    Op::Run(lanes, lanes, x[c], Min(kRepeatFloats, t.cols - c), t.rows, Strides(8, 8, step));
    VectorBarrier();
  }
}

// sums[r] = the sum of x[r, :]. Lanes first, then across them: ReduceSum would take seven times as
// long per element.
__aicore__ inline void RowSums(LocalTensor<float> sums, LocalTensor<float> x,
                               LocalTensor<float> lanes, const Tile& t) {
  if (t.pitch <= kNarrow) {
    FoldRows<AddOp>(lanes, x, 0.0f, t);
    AscendC::WholeReduceSum(sums, lanes, kRepeatFloats, t.rows, 1, 1, 8);
    VectorBarrier();
    return;
  }
  for (int32_t r = 0; r < t.rows; ++r) {
    LocalTensor<float> row = x[r * t.pitch];
    AscendC::Duplicate(lanes, 0.0f, kWideLanes);
    VectorBarrier();
    for (int32_t c = 0; c < t.cols; c += kWideLanes) {
      AscendC::Add(lanes, lanes, row[c], Min(kWideLanes, t.cols - c));
      VectorBarrier();
    }
    for (int32_t n = kWideLanes / 2; n >= kRepeatFloats; n /= 2) {
      AscendC::Add(lanes, lanes, lanes[n], n);
      VectorBarrier();
    }
    AscendC::WholeReduceSum(sums[r], lanes, kRepeatFloats, 1, 1, 1, 8);
    VectorBarrier();
  }
}

// Block r of `blocks` becomes eight times s[r]; s is read in groups of eight.
__aicore__ inline void Blocks(LocalTensor<float> blocks, LocalTensor<float> s, int32_t rows) {
  AscendC::Brcb(blocks, s, static_cast<uint8_t>(CeilDiv(rows, 8)), AscendC::BrcbRepeatParams(1, 8));
  VectorBarrier();
}

// Rows of any type from global memory; the ends of the rows are filled with zeros.
template <class T>
__aicore__ inline void CopyRows(LocalTensor<T> dst, GlobalTensor<T> src, int64_t stride,
                                const Tile& t) {
  uint32_t gap = t.rows > 1 ? static_cast<uint32_t>((stride - t.cols) * sizeof(T)) : 0;
  AscendC::DataCopyExtParams shape(static_cast<uint16_t>(t.rows), t.cols * sizeof(T), gap, 0, 0);
  uint8_t pad = static_cast<uint8_t>(t.pitch - t.cols);
  AscendC::DataCopyPad(dst, src, shape, AscendC::DataCopyPadExtParams<T>(true, 0, pad, T(0.0f)));
}

template <class T>
__aicore__ inline void CopyRows(LocalTensor<T> dst, GM_ADDR base, int64_t offset, int64_t stride,
                                const Tile& t) {
  GlobalTensor<T> src;
  src.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(base) + offset);
  CopyRows<T>(dst, src, stride, t);
}

// A vector of a half type or of float32 in global memory.
struct Vector {
  GM_ADDR base;
  int64_t offset;  // elements
  bool wide;       // float32
};

// cols elements from global memory to float32; raw is a queue with room for them in float32.
template <class T, class Queue>
__aicore__ inline void LoadVector(LocalTensor<float> dst, const Vector& v, int32_t cols,
                                  Queue& queue) {
  LocalTensor<float> raw = queue.template AllocTensor<float>();
  if (v.wide) {
    CopyRows<float>(raw, v.base, v.offset, cols, Tile{1, cols, AlignUp(cols, 8)});
  } else {
    CopyRows<T>(raw.template ReinterpretCast<T>(), v.base, v.offset, cols,
                Tile{1, cols, AlignUp(cols, 16)});
  }
  queue.EnQue(raw);
  raw = queue.template DeQue<float>();
  if (v.wide) {
    AscendC::Adds(dst, raw, 0.0f, cols);
  } else {
    LocalTensor<T> half_raw = raw.template ReinterpretCast<T>();
    AscendC::Cast(dst, half_raw, AscendC::RoundMode::CAST_NONE, cols);
  }
  VectorBarrier();
  queue.FreeTensor(raw);
}

// Rows into `queue`.
template <class T, class Queue>
__aicore__ inline void LoadRows(Queue& queue, GM_ADDR base, int64_t offset, int64_t stride,
                                const Tile& t) {
  LocalTensor<T> raw = queue.template AllocTensor<T>();
  CopyRows<T>(raw, base, offset, stride, t);
  queue.EnQue(raw);
}

// Rows of float32 through `queue`, as they are needed.
template <class Queue>
__aicore__ inline LocalTensor<float> TakeRows(Queue& queue, GlobalTensor<float> src, int64_t stride,
                                              const Tile& t) {
  LocalTensor<float> rows = queue.template AllocTensor<float>();
  CopyRows<float>(rows, src, stride, t);
  queue.EnQue(rows);
  return queue.template DeQue<float>();
}

// What LoadRows brought, in float32.
template <class T, class Queue>
__aicore__ inline void Widen(LocalTensor<float> dst, Queue& queue, const Tile& t) {
  LocalTensor<T> raw = queue.template DeQue<T>();
  AscendC::Cast(dst, raw, AscendC::RoundMode::CAST_NONE, t.rows * t.pitch);
  VectorBarrier();
  queue.FreeTensor(raw);
}

// Rounds rows to T and hands them to `queue`, for StoreRows.
template <class T, class Queue>
__aicore__ inline void Narrow(Queue& queue, LocalTensor<float> src, const Tile& t) {
  LocalTensor<T> out = queue.template AllocTensor<T>();
  AscendC::Cast(out, src, AscendC::RoundMode::CAST_RINT, t.rows * t.pitch);
  VectorBarrier();
  queue.EnQue(out);
}

// Rows from `queue` to rows of global memory, `stride` elements apart.
template <class T, class Queue>
__aicore__ inline void StoreRows(Queue& queue, GM_ADDR base, int64_t offset, int64_t stride,
                                 const Tile& t) {
  GlobalTensor<T> to;
  to.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(base) + offset);
  LocalTensor<T> out = queue.template DeQue<T>();
  uint32_t gap = static_cast<uint32_t>((stride - t.cols) * sizeof(T));
  AscendC::DataCopyExtParams shape(static_cast<uint16_t>(t.rows), t.cols * sizeof(T), 0, gap, 0);
  AscendC::DataCopyPad(to, out, shape);
  queue.FreeTensor(out);
}

}  // namespace mmkern
