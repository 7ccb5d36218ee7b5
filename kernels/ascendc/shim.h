// What a kernel needs of AscendC, and what differs between CANN 8.x and 9.x, in one place.
//
// Both versions have the names that the kernels use. 9.1 calls some of them deprecated
// (WholeReduce* is ReduceRepeat there, SetAtomicNone DisableDmaAtomic); 8.x has none of the new
// ones.
#pragma once

#include "kernel_operator.h"

// How an entry says what it runs on. 9.x has qualifiers; 8.x reads a statement in the body.
#if defined(MMKERN_CANN_MAJOR) && MMKERN_CANN_MAJOR >= 9
#define MMKERN_VECTOR_ENTRY __global__ __vector__ void
#define MMKERN_MIX_ENTRY __global__ __mix__(1, 2) void
#define MMKERN_ON_VECTOR
#define MMKERN_ON_MIX
#else
#define MMKERN_VECTOR_ENTRY extern "C" __global__ __aicore__ void
#define MMKERN_MIX_ENTRY extern "C" __global__ __aicore__ void
#define MMKERN_ON_VECTOR KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY)
#define MMKERN_ON_MIX KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2)
#endif

namespace mmkern {

using AscendC::GlobalTensor;
using AscendC::LocalTensor;
// GM_ADDR is a macro: it declares one pointer, and numbers after a comma.
using Address = GM_ADDR;

constexpr int32_t kBlock = 32;  // bytes: what the memories of a core are addressed in
constexpr int32_t kRepeatFloats =
    64;  // elements of float32 that one repeat of an instruction takes

__aicore__ inline int32_t CeilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }
__aicore__ inline int32_t AlignUp(int32_t a, int32_t b) { return CeilDiv(a, b) * b; }
__aicore__ inline int32_t Min(int32_t a, int32_t b) { return a < b ? a : b; }
__aicore__ inline int32_t Max(int32_t a, int32_t b) { return a > b ? a : b; }

// The next vector instruction sees what the last one wrote.
__aicore__ inline void VectorBarrier() { AscendC::PipeBarrier<PIPE_V>(); }

}  // namespace mmkern
