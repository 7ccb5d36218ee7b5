// softmax(q k^T scale) v and its log-sum-exp, dense or packed, causal, windowed, with a key padding
// mask. The contract is in mmkern/ops/attention.py.
#include "attention_cube.h"
#include "attention_vector.h"

#define MMKERN_ATTENTION(T, name)                                                                \
  MMKERN_MIX_ENTRY mmkern_attention_##name(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR mask,        \
                                           GM_ADDR cu_q, GM_ADDR cu_k, GM_ADDR out, GM_ADDR lse, \
                                           GM_ADDR ring, mmkern::AttentionTiling tiling) {       \
    MMKERN_ON_MIX;                                                                               \
    if ASCEND_IS_AIC {                                                                           \
      mmkern::AttentionCube<T>(q, k, v, ring, tiling).Run(cu_q, cu_k);                           \
    }                                                                                            \
    if ASCEND_IS_AIV {                                                                           \
      mmkern::AttentionVector<T>(mask, out, lse, ring, tiling).Run(cu_q, cu_k);                  \
    }                                                                                            \
  }
MMKERN_ATTENTION(half, float16)
MMKERN_ATTENTION(bfloat16_t, bfloat16)
