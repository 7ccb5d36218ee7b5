// Element types and dtypes that kernels and their hosts share. No member functions: a function
// compiled in a kernel file must not exist outside its instruction set's namespace (see isa.h).
#pragma once

#include <cstdint>

namespace mmkern {

struct bf16_t {
  uint16_t bits;
};

struct fp16_t {
  uint16_t bits;
};

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };

// Scratch rows of floats are padded to a multiple of this, so that kernels touch whole vectors.
inline constexpr int64_t kScratchPad = 32;

}  // namespace mmkern
