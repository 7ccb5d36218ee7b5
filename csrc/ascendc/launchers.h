// One function per kernel that starts it in either half type. MMKERN_LAUNCH(name, blocks, stream,
// arguments...) is defined by who includes this: kernels_npu.cpp and device_twin.cpp.
#pragma once

#include "launch.h"

#define MMKERN_EITHER(name, ...)                                 \
  if (bfloat16) {                                                \
    MMKERN_LAUNCH(name##_bfloat16, blocks, stream, __VA_ARGS__); \
  } else {                                                       \
    MMKERN_LAUNCH(name##_float16, blocks, stream, __VA_ARGS__);  \
  }

namespace mmkern::ascendc {

void launch_modulate(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                     const ModulateTiling& t) {
  MMKERN_EITHER(mmkern_modulate, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], t)
}

void launch_modulate_backward(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                              const ModulateTiling& t) {
  MMKERN_EITHER(mmkern_modulate_backward, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8],
                p[9], t)
}

void launch_linear(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                   const LinearTiling& t) {
  MMKERN_EITHER(mmkern_linear, p[0], p[1], p[2], p[3], p[4], p[5], t)
}

void launch_linear_normed(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                          const LinearTiling& t, const NormTiling& norm) {
  MMKERN_EITHER(mmkern_linear_normed, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], t, norm)
}

void launch_linear_backward(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                            const LinearTiling& t) {
  MMKERN_EITHER(mmkern_linear_backward, p[0], p[1], p[2], p[3], p[4], p[5], t)
}

void launch_column_sums(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                        const ColumnTiling& t) {
  MMKERN_EITHER(mmkern_column_sums, p[0], p[1], t)
}

void launch_patch_embed(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                        const LinearTiling& t, const PixelTiling& pixels) {
  MMKERN_EITHER(mmkern_patch_embed, p[0], p[1], p[2], p[3], p[4], p[5], t, pixels)
}

void launch_attention(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                      const AttentionTiling& t) {
  MMKERN_EITHER(mmkern_attention, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], t)
}

void launch_attention_delta(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                            const AttentionBackwardTiling& t) {
  MMKERN_EITHER(mmkern_attention_delta, p[0], p[1], p[2], p[3], p[4], t)
}

void launch_attention_dkdv(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                           const AttentionBackwardTiling& t) {
  MMKERN_EITHER(mmkern_attention_dkdv, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9],
                p[10], t)
}

void launch_attention_dq(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                         const AttentionBackwardTiling& t) {
  MMKERN_EITHER(mmkern_attention_dq, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], t)
}

}  // namespace mmkern::ascendc
