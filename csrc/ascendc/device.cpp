#include "device.h"

namespace mmkern::ascendc {
namespace {

Buffer buffer(const at::Tensor& t, Role role) {
  if (t.numel() == 0) return {};
  int64_t last = 0;
  for (int64_t dim = 0; dim < t.dim(); ++dim) last += (t.size(dim) - 1) * t.stride(dim);
  return {static_cast<uint8_t*>(const_cast<void*>(t.const_data_ptr())),
          (last + 1) * static_cast<int64_t>(t.element_size()), role};
}

}  // namespace

Buffer input(const at::Tensor& t) { return buffer(t, Role::kInput); }
Buffer input(const std::optional<at::Tensor>& t) { return t.has_value() ? input(*t) : Buffer{}; }
Buffer output(const at::Tensor& t) { return buffer(t, Role::kOutput); }
Buffer workspace(const at::Tensor& t) { return buffer(t, Role::kWorkspace); }

}  // namespace mmkern::ascendc
