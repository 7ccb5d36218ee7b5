// What keeps keys from being seen in the vector cores' half of attention, forward and backward.
#pragma once

#include "rows.h"

namespace mmkern {

constexpr float kMasked = -1.0e30f;  // far below kUnseen

// The n lowest of 64 bits.
__aicore__ inline uint64_t Below(int32_t n) {
  if (n <= 0) return 0;
  return n >= 64 ? ~static_cast<uint64_t>(0) : (static_cast<uint64_t>(1) << n) - 1;
}

// Scores of keys that a row does not see, causal or by a window, become kMasked. Row r of s stands
// at its column `at` + r, and sees `left` columns before it and `right` behind it; -1: all.
__aicore__ inline void MaskRows(LocalTensor<float> s, const Tile& tile, int32_t at, int32_t left,
                                int32_t right) {
  if (left < 0 && right < 0) return;
  for (int32_t r = 0; r < tile.rows; ++r) {
    int32_t begin = left < 0 ? 0 : at + r - left;
    int32_t end = right < 0 ? tile.cols : at + r + right + 1;
    if (begin <= 0 && end >= tile.cols) continue;
    for (int32_t c = 0; c < tile.cols; c += kRepeatFloats) {
      int32_t width = Min(kRepeatFloats, tile.cols - c);
      uint64_t bits[2] = {Below(width) & ~(Below(end - c) & ~Below(begin - c)), 0};
      if (bits[0]) AscendC::Duplicate(s[r * tile.pitch + c], kMasked, bits, 1, 1, 8);
    }
  }
  VectorBarrier();
}

// wide[k] = (mask - 1) * 1e30 for each key of a key padding mask; `narrow` has room for the keys.
template <class Queue>
__aicore__ inline void LoadKeyMask(LocalTensor<float> wide, LocalTensor<half> narrow, Queue& queue,
                                   GlobalTensor<uint8_t> mask, int32_t keys) {
  LocalTensor<uint8_t> raw = queue.template AllocTensor<uint8_t>();
  uint8_t pad = static_cast<uint8_t>(AlignUp(keys, kBlock) - keys);
  AscendC::DataCopyPad(raw, mask, AscendC::DataCopyExtParams(1, keys, 0, 0, 0),
                       AscendC::DataCopyPadExtParams<uint8_t>(true, 0, pad, 0));
  queue.EnQue(raw);
  raw = queue.template DeQue<uint8_t>();
  AscendC::Cast(narrow, raw, AscendC::RoundMode::CAST_NONE, keys);
  VectorBarrier();
  queue.FreeTensor(raw);
  AscendC::Cast(wide, narrow, AscendC::RoundMode::CAST_NONE, keys);
  VectorBarrier();
  AscendC::Adds(wide, wide, -1.0f, keys);
  VectorBarrier();
  AscendC::Muls(wide, wide, -kMasked, keys);
  VectorBarrier();
}

}  // namespace mmkern
