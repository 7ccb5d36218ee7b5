// How attention's operands come into L1 and from there into L0A and L0B. A block of `pitch` rows
// lies in L1 as columns of 16 elements.
#pragma once

#include "gemm.h"

namespace mmkern {

// Rows of a left operand; where the last one is alone in its fractal it comes twice, since a
// product has at least two rows.
template <class T>
__aicore__ inline void LoadRowsOfA(LocalTensor<T> dst, GlobalTensor<T> src, int32_t rows,
                                   int32_t depth, int64_t stride) {
  int32_t pitch = AlignUp(rows, 16);
  LoadColumns<T>(dst, src, rows, depth, stride, pitch);
  if (rows % 16 == 1) {
    LoadColumns<T>(dst[rows * 16], src[(rows - 1) * stride], 1, depth, stride, pitch);
  }
}

// Some rows of a block into L0B, as the columns of a right operand.
template <class T>
__aicore__ inline void LoadB(LocalTensor<T> dst, LocalTensor<T> src, int32_t rows, int32_t depth,
                             int32_t pitch) {
  int32_t across = CeilDiv(rows, 16), down = CeilDiv(depth, 16);
  for (int32_t i = 0; i < across; ++i) {
    AscendC::LoadData(dst[i * kFractal], src[i * kFractal],
                      AscendC::LoadData2DParams(0, down, pitch / 16, 0, across - 1, false, 0));
  }
}

}  // namespace mmkern
