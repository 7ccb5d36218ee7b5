// The gradients of attention.cpp, from out and lse, in three kernels: what each query needs of
// them; dk and dv; dq. No output is shared by cores, so there are no atomics. The contract is in
// mmkern/ops/attention.py.
#include "attention_backward_cube.h"
#include "attention_backward_vector.h"
#include "attention_delta.h"

#define MMKERN_ATTENTION_BACKWARD(T, name)                                                         \
  MMKERN_VECTOR_ENTRY mmkern_attention_delta_##name(GM_ADDR grad, GM_ADDR out, GM_ADDR lse,        \
                                                    GM_ADDR grad_lse, GM_ADDR stats,               \
                                                    mmkern::AttentionBackwardTiling tiling) {      \
    MMKERN_ON_VECTOR;                                                                              \
    mmkern::AttentionDelta<T>(grad, out, lse, grad_lse, stats, tiling).Run();                      \
  }                                                                                                \
  MMKERN_MIX_ENTRY mmkern_attention_dkdv_##name(                                                   \
      GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR grad, GM_ADDR mask, GM_ADDR cu_q, GM_ADDR cu_k,     \
      GM_ADDR stats, GM_ADDR dk, GM_ADDR dv, GM_ADDR ring,                                         \
      mmkern::AttentionBackwardTiling tiling) {                                                    \
    MMKERN_ON_MIX;                                                                                 \
    if ASCEND_IS_AIC {                                                                             \
      mmkern::AttentionBackwardCube<T, true>(q, k, v, grad, ring, tiling).Run(cu_q, cu_k);         \
    }                                                                                              \
    if ASCEND_IS_AIV {                                                                             \
      mmkern::AttentionBackwardVector<T, true>(mask, stats, dk, dv, ring, tiling).Run(cu_q, cu_k); \
    }                                                                                              \
  }                                                                                                \
  MMKERN_MIX_ENTRY mmkern_attention_dq_##name(                                                     \
      GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR grad, GM_ADDR mask, GM_ADDR cu_q, GM_ADDR cu_k,     \
      GM_ADDR stats, GM_ADDR dq, GM_ADDR ring, mmkern::AttentionBackwardTiling tiling) {           \
    MMKERN_ON_MIX;                                                                                 \
    if ASCEND_IS_AIC {                                                                             \
      mmkern::AttentionBackwardCube<T, false>(q, k, v, grad, ring, tiling).Run(cu_q, cu_k);        \
    }                                                                                              \
    if ASCEND_IS_AIV {                                                                             \
      mmkern::AttentionBackwardVector<T, false>(mask, stats, dq, nullptr, ring, tiling)            \
          .Run(cu_q, cu_k);                                                                        \
    }                                                                                              \
  }
MMKERN_ATTENTION_BACKWARD(half, float16)
MMKERN_ATTENTION_BACKWARD(bfloat16_t, bfloat16)
