// Copies between global memory, UB and L1, each through a buffer that is stored whole afterwards.
#include "export.h"

using namespace AscendC;

constexpr uint32_t kBytes = 8192;

struct Move {
  int32_t count, length;  // of the bursts: blocks or bytes
  int32_t src_gap, dst_gap;
  int32_t left, right;
  int32_t is_pad;
  float value;
};

struct Whole {
  TPipe pipe;
  TBuf<TPosition::VECCALC> buffer;
  LocalTensor<float> local;
  GlobalTensor<float> from, to;
  __aicore__ Whole(GM_ADDR out, GM_ADDR old, GM_ADDR x) {
    pipe.InitBuffer(buffer, kBytes);
    local = buffer.Get<float>();
    from.SetGlobalBuffer((__gm__ float*)old);
    DataCopy(local, from, kBytes / 4);
    PipeBarrier<PIPE_ALL>();
    from.SetGlobalBuffer((__gm__ float*)x);
    to.SetGlobalBuffer((__gm__ float*)out);
  }
  __aicore__ void Store() {
    PipeBarrier<PIPE_ALL>();
    DataCopy(to, local, kBytes / 4);
  }
};

extern "C" __global__ __aicore__ void copy_in(GM_ADDR out, GM_ADDR old, GM_ADDR x, Move p) {
  Whole m(out, old, x);
  DataCopy(m.local, m.from, DataCopyParams(p.count, p.length, p.src_gap, p.dst_gap));
  m.Store();
}
ASCENDC_TWIN_KERNEL(copy_in)

extern "C" __global__ __aicore__ void copy_in_pad(GM_ADDR out, GM_ADDR old, GM_ADDR x, Move p) {
  Whole m(out, old, x);
  DataCopyPad(m.local, m.from, DataCopyExtParams(p.count, p.length, p.src_gap, p.dst_gap, 0),
              DataCopyPadExtParams<float>(p.is_pad, p.left, p.right, p.value));
  m.Store();
}
ASCENDC_TWIN_KERNEL(copy_in_pad)

extern "C" __global__ __aicore__ void copy_in_pad_half(GM_ADDR out, GM_ADDR old, GM_ADDR x,
                                                       Move p) {
  Whole m(out, old, x);
  GlobalTensor<half> from;
  from.SetGlobalBuffer((__gm__ half*)x);
  DataCopyPad(m.local.ReinterpretCast<half>(), from,
              DataCopyExtParams(p.count, p.length, p.src_gap, p.dst_gap, 0),
              DataCopyPadExtParams<half>(p.is_pad, p.left, p.right, half(p.value)));
  m.Store();
}
ASCENDC_TWIN_KERNEL(copy_in_pad_half)

// Targets of the next three: `out` already holds something.
extern "C" __global__ __aicore__ void copy_out(GM_ADDR out, GM_ADDR old, Move p) {
  Whole m(out, old, old);
  DataCopy(m.to, m.local, DataCopyParams(p.count, p.length, p.src_gap, p.dst_gap));
}
ASCENDC_TWIN_KERNEL(copy_out)

extern "C" __global__ __aicore__ void copy_out_pad(GM_ADDR out, GM_ADDR old, Move p) {
  Whole m(out, old, old);
  DataCopyPad(m.to, m.local, DataCopyExtParams(p.count, p.length, p.src_gap, p.dst_gap, 0));
}
ASCENDC_TWIN_KERNEL(copy_out_pad)

extern "C" __global__ __aicore__ void add_out(GM_ADDR out, GM_ADDR old, Move p) {
  Whole m(out, old, old);
  SetAtomicAdd<float>();
  DataCopy(m.to, m.local, uint32_t(p.count));
  SetAtomicNone();
}
ASCENDC_TWIN_KERNEL(add_out)

extern "C" __global__ __aicore__ void copy_local(GM_ADDR out, GM_ADDR old, GM_ADDR x, Move p) {
  Whole m(out, old, x);
  DataCopy(m.local[kBytes / 8], m.local, DataCopyParams(p.count, p.length, p.src_gap, p.dst_gap));
  m.Store();
}
ASCENDC_TWIN_KERNEL(copy_local)

// L1 is filled with -1, takes the matrix, and is stored whole.
template <typename T>
__aicore__ inline void NzIn(GM_ADDR out, GM_ADDR x, const Nd2NzParams& p) {
  TPipe pipe;
  TBuf<TPosition::A1> buffer;
  pipe.InitBuffer(buffer, kBytes);
  LocalTensor<T> l1 = buffer.Get<T>();
  GlobalTensor<T> from, to;
  from.SetGlobalBuffer((__gm__ T*)x);
  to.SetGlobalBuffer((__gm__ T*)out);
  InitConstValue(l1, InitConstValueParams<T>(1, kBytes / 32, 0, T(-1)));
  PipeBarrier<PIPE_ALL>();
  DataCopy(l1, from, p);
  PipeBarrier<PIPE_ALL>();
  DataCopy(to, l1, kBytes / sizeof(T));
}

struct Nz {
  int32_t fields[8];
};
extern "C" __global__ __aicore__ void nz_half(GM_ADDR out, GM_ADDR x, Nz p) {
  const int32_t* f = p.fields;
  NzIn<half>(out, x, Nd2NzParams(f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]));
}
ASCENDC_TWIN_KERNEL(nz_half)
extern "C" __global__ __aicore__ void nz_float(GM_ADDR out, GM_ADDR x, Nz p) {
  const int32_t* f = p.fields;
  NzIn<float>(out, x, Nd2NzParams(f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]));
}
ASCENDC_TWIN_KERNEL(nz_float)
