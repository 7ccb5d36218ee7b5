// Memory of large outputs and scratch, kept for the next ones.
//
// Above 32 MiB always, and below it at times, the C library gives freed blocks back to the system;
// the pages of the next one are then faulted in and zeroed anew, which takes longer than a kernel
// that memory bounds. So blocks that outputs and scratch of this library are done with are kept, up
// to a limit for all together, and lent again. A block is whole huge pages, 2 MiB, and one that is
// lent again up to a quarter larger than what was asked for. Nothing else of torch's allocation is
// touched; torch's memory profiler does not see these blocks.
#pragma once

#include <c10/core/Allocator.h>

#include <cstddef>

namespace mmkern {

// What is smaller is left to the C library, which keeps most of such blocks.
inline constexpr size_t kLargeBytes = size_t{4} << 20;

c10::Allocator& large_memory();

// Frees what is kept.
void empty_cache();
size_t cached_bytes();

}  // namespace mmkern
