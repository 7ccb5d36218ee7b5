// What the host tells the kernels that are a matrix product and an epilogue: mlp and patch_embed.
// Computed in csrc/ascendc/linear.h.
#pragma once

#include <cstdint>

namespace mmkern {

constexpr int32_t kNoActivation = 0, kGelu = 1, kGeluTanh = 2, kSilu = 3, kRelu = 4, kQuickGelu = 5;

// Tiles of the product: what of a and b lies in L1 twice, in L0A and L0B twice (of b a piece), and
// in L0C once.
constexpr int32_t kMaxTileM = 128, kMaxTileN = 256, kPieceN = 128, kDepthL1 = 256, kDepthL0 = 128;
// Rows of a piece that a vector core takes at once: 16 KiB of float32, what a move wants at least.
constexpr int32_t kEpilogueRows = 32;

struct LinearTiling {
  int64_t m;
  int64_t a_stride;  // elements, of a row of a
  int64_t b_stride;
  int32_t n;
  int32_t k;
  int32_t tile_m;
  int32_t tile_n;
  int32_t activation;
  int32_t has_bias;
  int32_t saves;     // z, what the activation gets, is an output too; in backward what it gives
  int32_t pos_kind;  // patch_embed's position embedding: 0: none; 1: of a's dtype; 2: float32
  int32_t turned;    // backward: 1: a lies as (k x m)
  int32_t gradient;  // 1: the product is multiplied by the activation's derivative at z
  int32_t in_runs;   // 1: a core takes a run of tiles, row by row of them: linear_norm.h
  int32_t unused;
  int64_t pos_rows;  // row r of the product gets row r % pos_rows
  int64_t pos_stride;
};

// The norm in front of a linear layer. A row of a is `members` rows of x, each normalised, one
// after the other.
struct NormTiling {
  int64_t x_stride;  // elements, of a row of x
  int32_t cols;      // of a row of x
  int32_t members;
  int32_t flags;    // that tell the cube core of a tile's rows: one for each member, or 1
  int32_t rows;     // of x that a vector core normalises at once
  int32_t buffers;  // 2: rows are loaded while others are worked on
  int32_t norm;     // as ModulateTiling's
  float eps;
  int32_t unused;
};

// Rows of tiles in a core's ring of normalised rows: one is multiplied while the next is made.
constexpr int32_t kRowSlots = 2;

// More could be set twice over before the cube core waits: a flag counts to 15.
constexpr int32_t kMostRowFlags = 7;

// Pixels whose windows are the rows of a, in raster order: a window is `groups` runs of `run`
// pixels, one for each channel and each row of a plane.
struct PixelTiling {
  int64_t batch_stride;  // elements
  int64_t channel_stride;
  int64_t frame_stride;
  int64_t row_stride;
  int32_t frames;  // windows along each dimension
  int32_t rows;
  int32_t columns;
  int32_t channels;
  int32_t depth;  // of a window: frames, rows, and columns of pixels
  int32_t height;
  int32_t width;
  int32_t flattened;  // 1: the windows lie in memory as rows already
};

// Sums over the rows of a matrix: a task is up to `chunk` rows of up to `tile` columns, and row
// `task` of the result their sum.
struct ColumnTiling {
  int64_t rows;
  int64_t cols;
  int64_t stride;  // elements
  int64_t chunk;
  int32_t tile;   // a multiple of 16
  int32_t group;  // rows that are loaded together
};

}  // namespace mmkern
