// For kernels: where a row of strided_rows.h lies.
#pragma once

#include "strided_rows.h"
#include "vec.h"

namespace mmkern::MMKERN_ISA {

template <class T>
MMKERN_INLINE const T* row_at(const StridedRows& rows, const RowShape& shape, int64_t row) {
  const T* data = static_cast<const T*>(rows.data);
  // Most often everything merged into the last of the dimensions, which saves the divisions.
  if (row < shape.sizes[2]) return data + row * rows.strides[2];
  const int64_t outer = row / shape.sizes[2];
  return data + row % shape.sizes[2] * rows.strides[2] + outer % shape.sizes[1] * rows.strides[1] +
         outer / shape.sizes[1] * rows.strides[0];
}

}  // namespace mmkern::MMKERN_ISA
