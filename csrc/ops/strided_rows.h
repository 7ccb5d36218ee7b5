// Host side of csrc/cpu/strided_rows.h.
#pragma once

#include <initializer_list>

#include "../cpu/strided_rows.h"
#include "host.h"

namespace mmkern {

struct RowOperand {
  RowOperand(const at::Tensor& t, StridedRows& rows) : tensor(&t), rows(&rows) {}
  RowOperand(const std::optional<at::Tensor>& t, StridedRows& rows)
      : tensor(t.has_value() ? &*t : nullptr), rows(&rows) {}

  const at::Tensor* tensor;  // null if there is none
  StridedRows* rows;
};

// Fills in shape and the rows of every operand that there is, for operands whose leading dimensions
// are those of `sizes`. Merges adjacent dimensions where the strides of all operands allow it;
// false if more than kRowDims remain.
inline bool lay_out_rows(at::IntArrayRef sizes, RowShape& shape,
                         std::initializer_list<RowOperand> operands) {
  shape = {1, 1, 1};
  for (const RowOperand& operand : operands) {
    *operand.rows = {operand.tensor ? data_or_null(*operand.tensor) : nullptr, {}};
  }
  const auto all_of = [&](const auto& accepts) {
    return std::all_of(operands.begin(), operands.end(), [&](const RowOperand& operand) {
      return operand.tensor == nullptr || accepts(*operand.tensor, *operand.rows);
    });
  };
  int slot = kRowDims;
  for (int64_t d = static_cast<int64_t>(sizes.size()) - 2; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    const bool merges =
        slot < kRowDims && all_of([&](const at::Tensor& tensor, const StridedRows& rows) {
          return tensor.stride(d) == rows.strides[slot] * shape.sizes[slot];
        });
    if (!merges && slot-- == 0) return false;
    shape.sizes[slot] *= sizes[d];
    if (merges) continue;
    for (const RowOperand& operand : operands) {
      if (operand.tensor) operand.rows->strides[slot] = operand.tensor->stride(d);
    }
  }
  return true;
}

inline int64_t row_count(const at::Tensor& t) {
  return t.numel() == 0 ? 0 : t.numel() / t.size(-1);
}

}  // namespace mmkern
