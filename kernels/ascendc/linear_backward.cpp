// The products of a linear layer's backward, y = a b, of which b lies as (k x n) and a as (m x k),
// or turned as (k x m): the gradients of the input and of the weight. Or y = a b * activation'(z),
// and activation(z) besides: the gradient of the layer before an activation, and the input of the
// layer after it, in one pass.
#include "epilogue.h"

namespace mmkern {

template <class T>
__aicore__ inline void LinearBackwardCube(Address a, Address b, Address ring,
                                          const LinearTiling& tiling) {
  if (tiling.turned) {
    PlainRows<T, true, true> source;
    source.Bind(a, b);
    Gemm<T, PlainRows<T, true, true>>(source, ring, tiling).Run();
  } else {
    PlainRows<T, false, true> source;
    source.Bind(a, b);
    Gemm<T, PlainRows<T, false, true>>(source, ring, tiling).Run();
  }
}

}  // namespace mmkern

#define MMKERN_LINEAR_BACKWARD(T, name)                                                      \
  MMKERN_MIX_ENTRY mmkern_linear_backward_##name(GM_ADDR a, GM_ADDR b, GM_ADDR z,            \
                                                 GM_ADDR activated, GM_ADDR y, GM_ADDR ring, \
                                                 mmkern::LinearTiling tiling) {              \
    MMKERN_ON_MIX;                                                                           \
    if ASCEND_IS_AIC {                                                                       \
      mmkern::LinearBackwardCube<T>(a, b, ring, tiling);                                     \
    }                                                                                        \
    if ASCEND_IS_AIV {                                                                       \
      mmkern::Epilogue<T>(ring, nullptr, nullptr, z, activated, y, tiling).Run();            \
    }                                                                                        \
  }
MMKERN_LINEAR_BACKWARD(half, float16)
MMKERN_LINEAR_BACKWARD(bfloat16_t, bfloat16)
