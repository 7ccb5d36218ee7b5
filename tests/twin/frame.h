// What kernels of one instruction have around it: operands loaded whole, the target stored whole.
#pragma once

#include "export.h"

using namespace AscendC;

struct Form {
  int32_t kind;  // 0 a count, 1 a mask as a number of lanes, 2 a mask as bits
  int32_t count, repeats;
  uint64_t mask[2];
  int32_t block[3], repeat[3];  // strides of dst, src0, src1
  float scalar;
  int32_t mode;
  int32_t counter;  // 1: counter mode, with `count` as the mask
};

// Buffers of a fixed size: room for 8 repeats with strides of up to two repeats.
constexpr uint32_t kBytes = 8192;

// What every kernel here does around its instruction. dst is loaded too: lanes that the instruction
// leaves alone keep what was there.
template <typename D, typename A, typename B>
struct Frame {
  TPipe pipe;
  TBuf<TPosition::VECCALC> buffers[3];
  LocalTensor<D> dst;
  LocalTensor<A> a;
  LocalTensor<B> b;
  GlobalTensor<D> out;

  __aicore__ Frame(GM_ADDR to, GM_ADDR old, GM_ADDR first, GM_ADDR second) {
    for (auto& buffer : buffers) pipe.InitBuffer(buffer, kBytes);
    dst = buffers[0].Get<D>();
    a = buffers[1].Get<A>();
    b = buffers[2].Get<B>();
    out.SetGlobalBuffer((__gm__ D*)to);
    Load(dst, old);
    Load(a, first);
    if (second) Load(b, second);
    PipeBarrier<PIPE_ALL>();
  }
  template <typename T>
  __aicore__ void Load(const LocalTensor<T>& to, GM_ADDR from) {
    GlobalTensor<T> global;
    global.SetGlobalBuffer((__gm__ T*)from);
    DataCopy(to, global, kBytes / sizeof(T));
  }
  __aicore__ void Store() {
    PipeBarrier<PIPE_ALL>();
    DataCopy(out, dst, kBytes / sizeof(D));
  }
};
