// What the host side of every op needs: dtypes, strides, scratch, parallel loops, and the way back
// to the op's plain-PyTorch reference. Only light torch headers (torch/extension.h alone takes 22 s
// to compile).
#pragma once

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <tuple>
#include <utility>

#include "../cpu/isa.h"
#include "../cpu/types.h"
#include "large_memory.h"

namespace mmkern {

// ---- dtypes -------------------------------------------------------------------------------------

inline bool is_kernel_dtype(at::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
}

inline DType kernel_dtype(at::ScalarType type) {
  TORCH_INTERNAL_ASSERT(is_kernel_dtype(type));
  if (type == at::kFloat) return DType::kFloat32;
  return type == at::kBFloat16 ? DType::kBFloat16 : DType::kFloat16;
}

// ---- tensors ------------------------------------------------------------------------------------

// True if the elements of the last dimension lie next to each other (or there is at most one).
inline bool has_unit_last_stride(const at::Tensor& t) {
  return t.dim() == 0 || t.size(-1) <= 1 || t.stride(-1) == 1 || t.numel() == 0;
}

// autograd hands out expanded gradients (as of y.sum()), which are made dense here.
inline at::Tensor dense(const at::Tensor& grad) {
  return has_unit_last_stride(grad) ? grad : grad.contiguous();
}
inline std::optional<at::Tensor> dense(const std::optional<at::Tensor>& grad) {
  return grad.has_value() ? std::optional(dense(*grad)) : grad;
}

inline const void* data_or_null(const at::Tensor& t) {
  return t.numel() ? t.const_data_ptr() : nullptr;
}
inline const void* data_or_null(const std::optional<at::Tensor>& t) {
  return t.has_value() ? data_or_null(*t) : nullptr;
}

// An output or a large intermediate, uninitialised.
inline at::Tensor new_tensor(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
  // Where uninitialised memory is to be filled, at::empty does that.
  const at::Context& context = at::globalContext();
  const bool filled =
      context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory();
  if (bytes < kLargeBytes || filled) return at::empty(sizes, options);
  constexpr c10::DispatchKeySet kCpu(c10::DispatchKey::CPU);
  const at::ScalarType dtype = options.dtype().toScalarType();
  return at::Tensor(at::detail::empty_generic(sizes, &large_memory(), kCpu, dtype, std::nullopt));
}

// The value that a raw op returns for an output that does not exist.
inline at::Tensor no_tensor(const at::Tensor& like) { return at::empty({0}, like.options()); }

// True if so many bytes do not fit the last-level cache. An op whose operands are larger together
// gains from non-temporal stores (1.3-1.7x) and loses by them where they are smaller (1.5-2x).
// A constant, the size on the Zen 4 machine of that measurement: inside a virtual machine sysconf
// can be ten times off.
inline bool larger_than_cache(size_t bytes) { return bytes >= (size_t{32} << 20); }

// True if whole vectors of rows of the contiguous tensor t can be stored non-temporally.
inline bool has_aligned_rows(const at::Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 64 == 0 &&
         (t.numel() == 0 || t.size(-1) * t.element_size() % 64 == 0);
}

// ---- the reference ------------------------------------------------------------------------------

namespace detail {
template <class T>
T take(torch::jit::Stack& stack, size_t index) {
  return std::move(stack[index]).to<T>();
}
template <class Result>
struct Unbox {
  static Result from(torch::jit::Stack& stack) { return take<Result>(stack, 0); }
};
template <class... Ts>
struct Unbox<std::tuple<Ts...>> {
  template <size_t... I>
  static std::tuple<Ts...> elements(torch::jit::Stack& stack, std::index_sequence<I...>) {
    return {take<Ts>(stack, I)...};
  }
  static std::tuple<Ts...> from(torch::jit::Stack& stack) {
    return elements(stack, std::index_sequence_for<Ts...>{});
  }
};
}  // namespace detail

// Runs the plain-PyTorch kernel that Python registered for the op at CompositeExplicitAutograd:
//   return call_reference<at::Tensor>("mmkern::glu", gate, up, activation, gate_first);
// Arguments are those of the op's C++ function, in order.
template <class Result, class... Args>
Result call_reference(const char* op_name, const Args&... args) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(op_name, "");
  torch::jit::Stack stack;
  stack.reserve(sizeof...(Args));
  (stack.emplace_back(args), ...);
  op.callBoxedForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd, stack);
  return detail::Unbox<Result>::from(stack);
}

// ---- scratch ------------------------------------------------------------------------------------

// Uninitialised memory aligned to a cache line. Allocate it once per thread, outside the loops:
// a thread_local in a shared library costs a function call per access.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(allocate(std::max<int64_t>(count, 1) * sizeof(T))) {}
  T* get() const { return static_cast<T*>(data_.get()); }

 private:
  static constexpr std::align_val_t kAlign{64};
  static c10::DataPtr allocate(size_t bytes) {
    if (bytes >= kLargeBytes) return large_memory().allocate(bytes);
    void* data = ::operator new(bytes, kAlign);
    return {data, data, [](void* p) { ::operator delete(p, kAlign); }, at::kCPU};
  }
  c10::DataPtr data_;
};

// Floats of a scratch row for n values.
inline int64_t scratch_pitch(int64_t n) {
  return (n + kScratchPad - 1) / kScratchPad * kScratchPad;
}

// ---- parallel loops -----------------------------------------------------------------------------

// Work (in elements touched) below which another thread costs more than it saves.
inline constexpr int64_t kWorkPerThread = 16384;

// Threads worth using for `tasks` tasks of `work_per_task` elements each.
inline int64_t worthwhile_threads(int64_t tasks, int64_t work_per_task) {
  if (at::in_parallel_region()) return 1;
  const int64_t by_work = tasks * std::max<int64_t>(work_per_task, 1) / kWorkPerThread;
  return std::max<int64_t>(1, std::min({int64_t{at::get_num_threads()}, tasks, by_work}));
}

// body(begin, end) over [0, tasks) in equal contiguous shares: for tasks that all cost the same.
template <class Body>
void parallel_even(int64_t tasks, int64_t work_per_task, const Body& body) {
  if (tasks <= 0) return;
  const int64_t threads = worthwhile_threads(tasks, work_per_task);
  if (threads == 1) return body(int64_t{0}, tasks);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    const auto start_of = [&](int64_t t) {
      return tasks / threads * t + tasks % threads * t / threads;
    };
    body(start_of(first), start_of(last));
  });
}

// worker(next) once per thread; next(begin, end) hands out the following `chunk` tasks of a shared
// counter and is false when none is left. For uneven tasks; scratch lives in the worker.
template <class Worker>
void parallel_dynamic(int64_t tasks, int64_t work_per_task, int64_t chunk, const Worker& worker) {
  if (tasks <= 0) return;
  std::atomic<int64_t> counter{0};
  const auto next = [&](int64_t& begin, int64_t& end) {
    begin = counter.fetch_add(chunk, std::memory_order_relaxed);
    end = std::min(begin + chunk, tasks);
    return begin < tasks;
  };
  const int64_t threads = worthwhile_threads(tasks, work_per_task);
  if (threads == 1) return worker(next);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) worker(next);
  });
}

}  // namespace mmkern
