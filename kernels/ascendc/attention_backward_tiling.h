// What the host tells the kernels of attention's backward. Computed in
// csrc/ascendc/attention_backward.cpp.
#pragma once

#include "attention_tiling.h"

namespace mmkern {

// Elements of q and of the gradient, or of k and v, of a block that the others pass by, and of one
// that passes by; what L1 holds twice and four times.
constexpr int32_t kHeldElements = 32768, kMovingElements = 32768;
// Float32 elements of L0C: for the sums of a block, and for one part of the scores.
constexpr int32_t kSumElements = 16384, kPartElements = 8192;
// Tiles of scores in the ring; of weights, and of sums, kSlots.
constexpr int32_t kTileSlots = 3;
constexpr int32_t kMaxHeld = 128, kMaxMoving = 512;  // rows of a block

struct AttentionBackwardTiling : AttentionTiling {
  int64_t grad_batch_stride;  // elements; packed: 0
  int64_t grad_row_stride;
  int64_t grad_head_stride;
  int32_t block_queries;  // a multiple of 16
  int32_t piece;          // rows of the block that passes by whose scores are one part of L0C
};

}  // namespace mmkern
