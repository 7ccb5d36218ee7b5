// What the host code of several ops shares.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string_view>

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

// A move takes a gap between rows, so rows may not overlap.
inline bool has_rows(const Tensor& t) {
  const int64_t tokens = t.size(-2);
  return has_unit_last_stride(t) && (tokens <= 1 || t.stride(-2) >= t.size(-1)) &&
         t.stride(-2) < (int64_t{1} << 30);
}

// Of rows that are normalised: a repeat count of the instructions on wide ones.
constexpr int32_t kMaxChannels = 255 * 64;

// What kernels/ascendc/row_norm.h works in, and a block for each row besides.
inline int64_t row_norm_bytes(int64_t rows, int64_t pitch) {
  const int64_t lanes = pitch <= 255 * 8 ? rows * 64 : 512;
  return (18 * align_up(rows, 8) + lanes) * 4;
}

// As ModulateTiling has it.
inline int32_t norm_of(std::string_view norm) {
  return norm == "layer" ? 1 : norm == "rms" ? 2 : 0;
}

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
