// What is not an instruction on data: indices, sizes, atomics, the cache, blocks that wait for one
// another.
#include "export.h"

using namespace AscendC;

constexpr uint32_t kN = 64;

#define KERNEL(ID, ...)                                                                \
  extern "C" __global__ __aicore__ void ID(GM_ADDR out, GM_ADDR x, GM_ADDR flags) {    \
    TPipe pipe;                                                                        \
    TBuf<TPosition::VECCALC> buffer, scratch;                                          \
    pipe.InitBuffer(buffer, kN * 4);                                                   \
    pipe.InitBuffer(scratch, 1024);                                                    \
    LocalTensor<int32_t> local = buffer.Get<int32_t>(), work = scratch.Get<int32_t>(); \
    GlobalTensor<int32_t> to, from, sync;                                              \
    to.SetGlobalBuffer((__gm__ int32_t*)out);                                          \
    from.SetGlobalBuffer((__gm__ int32_t*)x);                                          \
    sync.SetGlobalBuffer((__gm__ int32_t*)flags);                                      \
    __VA_ARGS__;                                                                       \
  }                                                                                    \
  ASCENDC_TWIN_KERNEL(ID)

// Each core has 16 numbers, two cache lines apart from the others' in `out`.
KERNEL(indices, if (ASCEND_IS_AIC) return; InitSocState();
       GlobalTensor<int32_t> mine = to[GetBlockIdx() * 32]; const int64_t before = GetSystemCycle();
       DataCopy(local, from, kN); PipeBarrier<PIPE_ALL>();
       const int64_t numbers[] = {GetBlockIdx(), GetBlockNum(), GetSubBlockIdx(), GetSubBlockNum(),
                                  GetTaskRatio(), GetTaskRation(), GetDataBlockSizeInBytes(),
                                  GetUBSizeInBytes(), GetRuntimeUBSize(), CeilDivision(17, 8),
                                  DivCeil(17, 8u), AlignUp(17, 8), GetSystemCycle() > before};
       for (int i = 0; i < 16; ++i) mine.SetValue(i, i < 13 ? numbers[i] : 0);
       DataCacheCleanAndInvalid<int32_t, CacheLine::ENTIRE_DATA_CACHE>(mine);)

// What is added, or the larger, or the smaller, by all cores; the last copy is a plain one.
KERNEL(combine, DataCopy(local, from[GetBlockIdx() * kN], kN); PipeBarrier<PIPE_ALL>();
       SetAtomicAdd<int32_t>(); DataCopy(to, local, kN); SetAtomicNone(); SetAtomicMax<int32_t>();
       DataCopy(to[kN], local, kN); DisableDmaAtomic(); SetAtomicMin<int32_t>();
       SetAtomicType<int32_t>(); DataCopy(to[2 * kN], local, kN); DisableDmaAtomic();
       DataCopy(to[(3 + GetBlockIdx()) * kN], local, kN))

// z = 2 z + block, block after block, twice: the order shows.
KERNEL(
    in_turn, InitDetermineComputeWorkspace(sync, work); for (int i = 0; i < 2; ++i) {
      WaitPreBlock(sync, work);
      DataCopy(local, to, kN);
      PipeBarrier<PIPE_ALL>();
      Muls(local, local, 2, kN);
      Adds(local, local, static_cast<int32_t>(GetBlockIdx()), kN);
      PipeBarrier<PIPE_ALL>();
      DataCopy(to, local, kN);
      NotifyNextBlock(sync, work);
    })

// Block 1 takes what block 0 has stored.
KERNEL(handed_on, if (GetBlockIdx() == 1) IBWait(sync, work, 0, 3);
       DataCopy(local, GetBlockIdx() == 1 ? to : from, kN); PipeBarrier<PIPE_ALL>();
       Adds(local, local, 1, kN); PipeBarrier<PIPE_ALL>();
       DataCopy(to[GetBlockIdx() * kN], local, kN);
       if (GetBlockIdx() == 0) IBSet(sync, work, 0, 3);)

// Block 1 polls for the number that says that the other is there.
KERNEL(
    posted, __gm__ int32_t* flag = reinterpret_cast<__gm__ int32_t*>(flags);
    if (GetBlockIdx() == 0) {
      WriteGmByPassDCache<int32_t>(flag + 1, 41);
      DataSyncBarrier<MemDsbT::DDR>();
      WriteGmByPassDCache<int32_t>(flag, 1);
    } else {
      while (ReadGmByPassDCache(flag) != 1) {
      }
      WriteGmByPassDCache<int32_t>(reinterpret_cast<__gm__ int32_t*>(out),
                                   ReadGmByPassDCache(flag + 1) + 1);
    })

// A store by DMA that nothing orders before the flag that the other block polls for.
KERNEL(
    posted_too_soon, __gm__ int32_t* flag = reinterpret_cast<__gm__ int32_t*>(flags);
    if (GetBlockIdx() == 0) {
      DataCopy(local, from, kN);
      PipeBarrier<PIPE_ALL>();
      DataCopy(to, local, kN);
      WriteGmByPassDCache<int32_t>(flag, 1);
    } else {
      while (ReadGmByPassDCache(flag) != 1) {
      }
      DataCopy(local, to, kN);
      PipeBarrier<PIPE_ALL>();
    })

// A scalar write, then a copy by DMA of what was written.
KERNEL(written_back, to.SetValue(3, 77);
       DataCacheCleanAndInvalid<int32_t, CacheLine::SINGLE_CACHE_LINE>(to);
       SetFlag<HardEvent::S_MTE2>(0); WaitFlag<HardEvent::S_MTE2>(0); DataCopy(local, to, kN);
       PipeBarrier<PIPE_ALL>(); DataCopy(to[kN], local, kN))

// x is a list of two tensors, of which the second goes out.
KERNEL(listed, ListTensorDesc list((__gm__ void*)x); GlobalTensor<int32_t> second;
       second.SetGlobalBuffer(list.GetDataPtr<__gm__ int32_t>(1)); DataCopy(local, second, kN);
       PipeBarrier<PIPE_ALL>(); DataCopy(to, local, kN))

// Calls that do nothing on the twin, and are counted.
KERNEL(unchecked, SetNextTaskStart(); WaitPreTaskEnd(); DumpTensor(local, 1, 8);
       SetSysWorkspace(out); SetHF32Mode(true); SetHF32TransMode(true); SetMMLayoutTransform(true);
       SetSyncBaseAddr(0); ICachePreLoad(1); PRINTF("%d", 1); Duplicate(local, 5, kN);
       PipeBarrier<PIPE_ALL>(); DataCopy(to, local, kN))
