// Rows (the last dimension) of tensors of one shape, wherever the leading dimensions put them: a
// row number becomes an index into up to kRowDims dimensions, which every tensor has strides for.
#pragma once

#include <cstdint>

namespace mmkern {

inline constexpr int kRowDims = 3;

struct RowShape {
  int64_t sizes[kRowDims];  // unused ones, in front, are 1
};

// Strides count elements; data is null where there is no such tensor.
struct StridedRows {
  const void* data;
  int64_t strides[kRowDims];
};

}  // namespace mmkern
