// Patch embedding as one matrix product whose A side is gathered from the pixels while packing:
// one task is one block of tokens x channels. Strides count elements.
#pragma once

#include "gemm_args.h"
#include "isa.h"

namespace mmkern {

// Pixels (batch, channels, 3 spatial dimensions; 2-D pixels have a first one of 1) seen as rows:
// row r is patch r in raster order, its elements are (channel, kernel position) in order.
struct PatchGrid {
  void* data;
  int64_t grid[3];
  int64_t kernel[3];
  int64_t batch_stride, channel_stride;
  int64_t stride[3];
};

struct PatchEmbedArgs {
  DType dtype;
  GemmPlan plan;
  bool flattened;
  PatchGrid pixels;  // the patches, if not flattened; in the backward of x, its gradient
  RowsView patches;  // likewise, if flattened
  RowsView weight;   // (C, K)
  const void* bias;
  // The row of token n of sample b: pos_embed + b * pos_batch_stride + n * pos_token_stride.
  const void* pos_embed;
  bool pos_is_float32;
  int64_t pos_batch_stride, pos_token_stride;
  int64_t tokens;  // per sample
  RowsView grad;   // of the output, (tokens, C): backward only
  void* out;       // contiguous rows: tokens, or the gradient of weight
};

}  // namespace mmkern

// tokens x C, depth K.
MMKERN_KERNEL(void, patch_embed_forward,
              (const PatchEmbedArgs& args, const GemmTask& task, float* scratch))
// Gradient of the patches: tokens x K, depth C. Pixels outside every patch are left alone.
MMKERN_KERNEL(void, patch_embed_grad_input,
              (const PatchEmbedArgs& args, const GemmTask& task, float* scratch))
// Gradient of the weight: C x K, depth tokens.
MMKERN_KERNEL(void, patch_embed_grad_weight,
              (const PatchEmbedArgs& args, const GemmTask& task, float* scratch))
