// What the host code of several ops shares.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../ops/host.h"
#include "device.h"
#include "launch.h"

namespace mmkern::ascendc {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline bool is_half(const Tensor& t) {
  return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16;
}
inline bool is_bfloat16(const Tensor& t) { return t.scalar_type() == at::kBFloat16; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t align_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// A stride field of Nd2Nz, in elements, has 16 bits.
inline bool is_row_stride(int64_t stride) { return stride > 0 && stride <= 65535; }

inline Tensor empty_like_if(bool exists, const Tensor& x) {
  return exists ? at::empty(x.sizes(), x.options()) : no_tensor(x);
}

// The op's plain-PyTorch reference, for a case that no kernel takes.
template <class Result, class... Args>
Result reference(const char* op, const Args&... args) {
  note_reference(op);
  return call_reference<Result>(op, args...);
}

}  // namespace mmkern::ascendc
