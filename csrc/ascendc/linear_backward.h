// What mlp's and patch_embed's backward are made of, on matrices of one half type.
#pragma once

#include "linear.h"

namespace mmkern::ascendc {

// a b, or, where `turned`, a^T b.
Tensor product(const Tensor& a, bool turned, const Tensor& b);

// {activation(z), a b * activation'(z)}; the first only where `activated`.
std::tuple<Tensor, Tensor> product_through_activation(const Tensor& a, const Tensor& b,
                                                      const Tensor& z, int32_t activation,
                                                      bool activated);

// Sums over the rows, in float32 and always in the same order.
Tensor column_sums(const Tensor& x);

// True if any matrix of so many columns may be an operand; a copy is, where the matrix itself is
// not (autograd hands out expanded gradients), and where its rows overlap, which sums over rows
// cannot load.
inline bool can_be_operand(int64_t rows, int64_t columns) {
  return rows > 0 && rows < (int64_t{1} << 30) && is_row_stride(columns);
}
inline Tensor as_operand(const Tensor& t) {
  const bool apart = t.size(0) == 1 || t.stride(0) >= t.size(1);
  return is_matrix(t) && apart ? t : t.contiguous();
}

}  // namespace mmkern::ascendc
