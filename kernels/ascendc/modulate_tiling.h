// What the host tells modulate's kernels. Computed in csrc/ascendc/modulate.cpp.
#pragma once

#include <cstdint>

namespace mmkern {

// gate, shift, scale, weight or bias: vectors of `cols` elements, one per run of `tokens` tokens.
struct ModulateVector {
  int64_t batch_stride;  // elements
  int64_t frame_stride;
  int32_t tokens;
  int32_t kind;  // 0: there is none; 1: of x's dtype; 2: float32
};

struct ModulateTiling {
  int64_t x_batch_stride;  // elements, of x (backward: of h)
  int64_t x_row_stride;
  int64_t branch_batch_stride;
  int64_t branch_row_stride;
  ModulateVector gate;
  ModulateVector shift;
  ModulateVector scale;
  ModulateVector weight;
  ModulateVector bias;
  int32_t batch;
  int32_t tokens;   // of a batch entry
  int32_t segment;  // tokens that share every vector
  int32_t chunk;    // tokens of a segment that one task takes; backward leaves a sum for each
  int32_t rows;     // of a tile
  int32_t cols;
  int32_t pitch;    // cols, rounded up to 16
  int32_t norm;     // 0: none; 1: LayerNorm; 2: RMSNorm
  int32_t buffers;  // 2: a tile is loaded while another is worked on
  int32_t branched;
  int32_t has_grad_h;
  int32_t has_grad_y;
  float eps;
  int32_t unused;
};

}  // namespace mmkern
