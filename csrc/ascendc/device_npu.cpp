// The device through torch_npu: kernels go onto the current stream by torch_npu's task queue, and
// the ops to the dispatcher's key of the NPU.
#include <acl/acl.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include <string>

#include "device.h"
#include "ops.h"

namespace mmkern::ascendc {
namespace {

// Of a vector core's unified buffer the last 8 KiB are the compiler's.
constexpr int64_t kUnifiedBuffer = (192 - 8) * 1024;

int32_t cores(aclDeviceInfo kind) {
  int32_t device = 0;
  int64_t count = 0;
  TORCH_CHECK(aclrtGetDevice(&device) == ACL_SUCCESS, "mmkern: aclrtGetDevice failed");
  TORCH_CHECK(aclGetDeviceCapability(static_cast<uint32_t>(device), kind, &count) == ACL_SUCCESS,
              "mmkern: aclGetDeviceCapability failed for the cores of NPU ", device);
  return static_cast<int32_t>(count);
}

}  // namespace

const Chip& chip() {
  static const Chip found{cores(ACL_DEVICE_INFO_AI_CORE_NUM),
                          cores(ACL_DEVICE_INFO_VECTOR_CORE_NUM), kUnifiedBuffer};
  return found;
}

// The reference says itself that it ran: mmkern/library.py.
void note_reference(const char*) {}

void submit(const Submission& s, const std::function<void(void*, uint8_t**)>& launch) {
  const c10::DeviceGuard guard(s.device);
  void* stream = c10_npu::getCurrentNPUStream().stream(false);
  std::vector<uint8_t*> pointers;
  for (const Buffer& b : s.buffers) pointers.push_back(b.data);
  // Runs on the queue's thread. Memory stays valid: the allocator hands it on in the stream's
  // order.
  at_npu::native::OpCommand::RunOpApiV2(std::string("mmkern_") + s.kernel, [=]() mutable -> int {
    launch(stream, pointers.data());
    return 0;
  });
}

}  // namespace mmkern::ascendc

TORCH_LIBRARY_IMPL(mmkern, PrivateUse1, m) {
  namespace ascendc = mmkern::ascendc;
  m.impl("modulate", &ascendc::modulate);
  m.impl("modulate_backward", &ascendc::modulate_backward);
  m.impl("mlp", &ascendc::mlp);
  m.impl("mlp_backward", &ascendc::mlp_backward);
  m.impl("patch_embed", &ascendc::patch_embed);
  m.impl("patch_embed_backward", &ascendc::patch_embed_backward);
  m.impl("attention", &ascendc::attention);
  m.impl("attention_backward", &ascendc::attention_backward);
}
