// One linear layer of the projector: y = activation(a b^T + bias), and z before the activation
// where backward will want it. mlp is two launches; the hidden layer between them stays in L2 where
// it fits. In the first one's _normed form a is normalised rows of x.
#include "linear_norm.h"

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

#define MMKERN_LINEAR_NORMED(T, name)                                                            \
  MMKERN_MIX_ENTRY mmkern_linear_normed_##name(                                                  \
      GM_ADDR x, GM_ADDR weight, GM_ADDR bias, GM_ADDR b, GM_ADDR b_bias, GM_ADDR z, GM_ADDR y,  \
      GM_ADDR rows, GM_ADDR ring, mmkern::LinearTiling tiling, mmkern::NormTiling norm) {        \
    MMKERN_ON_MIX;                                                                               \
    if ASCEND_IS_AIC {                                                                           \
      mmkern::NormedRows<T> source;                                                              \
      source.norm = norm;                                                                        \
      source.Bind(mmkern::RowRing<T>(rows, tiling, AscendC::GetBlockIdx()), b);                  \
      mmkern::Gemm<T, mmkern::NormedRows<T>>(source, ring, tiling).Run();                        \
    }                                                                                            \
    if ASCEND_IS_AIV {                                                                           \
      int32_t work_bytes = 2 * norm.rows * mmkern::AlignUp(norm.cols, 16) * 4;                   \
      mmkern::Epilogue<T> epilogue(ring, b_bias, nullptr, nullptr, z, y, tiling, work_bytes);    \
      mmkern::RowsIntoRing<T> into_ring(epilogue.Pipe(), epilogue.Work(), x, weight, bias, rows, \
                                        tiling, norm);                                           \
      epilogue.Run(into_ring);                                                                   \
    }                                                                                            \
  }
MMKERN_LINEAR_NORMED(half, float16)
MMKERN_LINEAR_NORMED(bfloat16_t, bfloat16)
