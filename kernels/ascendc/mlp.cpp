// One linear layer of the projector: y = activation(a b^T + bias), and z before the activation
// where backward will want it. mlp is two launches; the hidden layer between them stays in L2 where
// it fits.
#include "epilogue.h"

#define MMKERN_LINEAR(T, name)                                                                    \
  MMKERN_MIX_ENTRY mmkern_linear_##name(GM_ADDR a, GM_ADDR b, GM_ADDR bias, GM_ADDR z, GM_ADDR y, \
                                        GM_ADDR ring, mmkern::LinearTiling tiling) {              \
    MMKERN_ON_MIX;                                                                                \
    if ASCEND_IS_AIC {                                                                            \
      mmkern::PlainRows<T> source;                                                                \
      source.Bind(a, b);                                                                          \
      mmkern::Gemm<T, mmkern::PlainRows<T>>(source, ring, tiling).Run();                          \
    }                                                                                             \
    if ASCEND_IS_AIV {                                                                            \
      mmkern::Epilogue<T>(ring, bias, nullptr, nullptr, z, y, tiling).Run();                      \
    }                                                                                             \
  }
MMKERN_LINEAR(half, float16)
MMKERN_LINEAR(bfloat16_t, bfloat16)
