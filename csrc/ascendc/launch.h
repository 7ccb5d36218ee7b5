// Starts the kernels of kernels/ascendc; the pointers are theirs, in order.
#pragma once

#include <cstdint>

#include "../../kernels/ascendc/attention_backward_tiling.h"
#include "../../kernels/ascendc/linear_tiling.h"
#include "../../kernels/ascendc/modulate_tiling.h"

namespace mmkern::ascendc {

void launch_modulate(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                     const ModulateTiling& t);
void launch_modulate_backward(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                              const ModulateTiling& t);
void launch_linear(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                   const LinearTiling& t);
void launch_linear_normed(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                          const LinearTiling& t, const NormTiling& norm);
void launch_linear_backward(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                            const LinearTiling& t);
void launch_column_sums(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                        const ColumnTiling& t);
void launch_patch_embed(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                        const LinearTiling& t, const PixelTiling& pixels);
void launch_attention(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                      const AttentionTiling& t);
void launch_attention_delta(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                            const AttentionBackwardTiling& t);
void launch_attention_dkdv(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                           const AttentionBackwardTiling& t);
void launch_attention_dq(bool bfloat16, uint32_t blocks, void* stream, uint8_t** p,
                         const AttentionBackwardTiling& t);

}  // namespace mmkern::ascendc
