// The norms of rows of float32: LayerNorm and RMSNorm without weight and bias.
#pragma once

#include "rows.h"

namespace mmkern {

constexpr int32_t kLayerNorm = 1, kRmsNorm = 2;

struct RowNorm {
  LocalTensor<float> sums;    // of the rows, in groups of eight
  LocalTensor<float> ones;    // as many ones
  LocalTensor<float> blocks;  // eight times each row's number
  LocalTensor<float> lanes;

  // Elements of the room that it works in.
  __aicore__ static int32_t Elements(int32_t rows, int32_t pitch) {
    return 10 * AlignUp(rows, 8) + RowSumsElements(rows, pitch);
  }
  __aicore__ void Bind(LocalTensor<float> room, int32_t rows) {
    int32_t groups = AlignUp(rows, 8);
    sums = room;
    ones = room[groups];
    blocks = room[2 * groups];
    lanes = room[10 * groups];
    AscendC::Duplicate(room, 1.0f, 2 * groups);
    VectorBarrier();
  }

  // x becomes its normalised rows; `work` is of x's size; blocks hold 1 / std afterwards.
  __aicore__ inline void Normalise(LocalTensor<float> x, LocalTensor<float> work, const Tile& t,
                                   int32_t norm, float eps) {
    float mean = 1.0f / static_cast<float>(t.cols);
    if (norm == kLayerNorm) {
      MeanBlocks(x, mean, t);
      RowsWithScalars<SubOp>(x, blocks, t);
    }
    AscendC::Mul(work, x, x, t.rows * t.pitch);
    VectorBarrier();
    RowSums(sums, work, lanes, t);
    AscendC::Muls(sums, sums, mean, t.rows);
    VectorBarrier();
    AscendC::Adds(sums, sums, eps, t.rows);
    VectorBarrier();
    AscendC::Sqrt(sums, sums, t.rows);
    VectorBarrier();
    AscendC::Div(sums, ones, sums, t.rows);
    VectorBarrier();
    Blocks(blocks, sums, t.rows);
    RowsWithScalars<MulOp>(x, blocks, t);
  }

  // blocks hold the mean of each row of x
  __aicore__ inline void MeanBlocks(LocalTensor<float> x, float factor, const Tile& t) {
    RowSums(sums, x, lanes, t);
    AscendC::Muls(sums, sums, factor, t.rows);
    VectorBarrier();
    Blocks(blocks, sums, t.rows);
  }
};

}  // namespace mmkern
