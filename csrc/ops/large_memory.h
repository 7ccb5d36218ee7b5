// Memory of large outputs and scratch, kept for the next ones.
//
// The C library gives large blocks back to the system when they are freed, and the pages of the
// next one are faulted in and zeroed anew, which takes longer than most kernels that memory bounds.
// So blocks that outputs of this library are done with are kept, up to a limit for all together,
// and lent again. Nothing else of torch's allocation is touched.
#pragma once

#include <c10/core/Allocator.h>

#include <cstddef>

namespace mmkern {

// What is smaller is left to the C library, which keeps such blocks well enough.
inline constexpr size_t kLargeBytes = size_t{4} << 20;

c10::Allocator& large_memory();

// Frees what is kept.
void empty_cache();

}  // namespace mmkern
