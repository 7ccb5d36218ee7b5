// What the host code of AscendC examples asks of the ACL runtime, on the twin: device memory is
// memory here, a launch runs to its end, and its findings are printed.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "launcher.h"

using aclError = int;
using aclrtStream = void*;
using aclrtContext = void*;
constexpr aclError ACL_SUCCESS = 0;
constexpr aclError ACL_ERROR_NONE = 0;
enum aclrtMemMallocPolicy { ACL_MEM_MALLOC_HUGE_FIRST, ACL_MEM_MALLOC_NORMAL_ONLY };
enum aclrtMemcpyKind {
  ACL_MEMCPY_HOST_TO_HOST,
  ACL_MEMCPY_HOST_TO_DEVICE,
  ACL_MEMCPY_DEVICE_TO_HOST,
  ACL_MEMCPY_DEVICE_TO_DEVICE,
};

namespace twin_acl {

struct Allocation {
  size_t bytes;
  bool written;  // by the host or by an earlier launch
};
inline std::map<uint8_t*, Allocation>& Device() {
  static std::map<uint8_t*, Allocation> allocations;
  return allocations;
}

// Marks the allocation that holds `pointer` as written.
inline void Written(void* pointer) {
  auto it = Device().upper_bound(static_cast<uint8_t*>(pointer));
  if (it != Device().begin()) (--it)->second.written = true;
}

template <typename Kernel>
void Run(const char* name, ascendc_twin::KernelType type, uint32_t blocks, Kernel kernel) {
  ascendc_twin::Options options;
  options.kernel = name;
  options.type = type;
  options.blocks = static_cast<int>(blocks);
  options.lazy = std::getenv("TWIN_LATE") != nullptr;
  options.order = options.lazy ? 3 : 0;
  std::vector<ascendc_twin::GlobalArgument> arguments;
  for (auto& [data, allocation] : Device())
    arguments.push_back(
        {data, allocation.bytes, "device memory " + std::to_string(arguments.size()),
         allocation.written ? ascendc_twin::Role::kInOut : ascendc_twin::Role::kWorkspace});
  const auto report = ascendc_twin::LaunchKernel(options, arguments, kernel);
  for (auto& [data, allocation] : Device()) allocation.written = true;
  for (const std::string& line : report.Lines()) std::printf("twin: %s\n", line.c_str());
}

}  // namespace twin_acl

inline aclError aclInit(const char*) { return ACL_SUCCESS; }
inline aclError aclFinalize() { return ACL_SUCCESS; }
inline aclError aclrtSetDevice(int32_t) { return ACL_SUCCESS; }
inline aclError aclrtResetDevice(int32_t) { return ACL_SUCCESS; }
inline aclError aclrtCreateContext(aclrtContext*, int32_t) { return ACL_SUCCESS; }
inline aclError aclrtDestroyContext(aclrtContext) { return ACL_SUCCESS; }
inline aclError aclrtCreateStream(aclrtStream*) { return ACL_SUCCESS; }
inline aclError aclrtDestroyStream(aclrtStream) { return ACL_SUCCESS; }
inline aclError aclrtSynchronizeStream(aclrtStream) { return ACL_SUCCESS; }
inline aclError aclrtMallocHost(void** pointer, size_t bytes) {
  *pointer = std::calloc(1, bytes);
  return ACL_SUCCESS;
}
inline aclError aclrtFreeHost(void* pointer) {
  std::free(pointer);
  return ACL_SUCCESS;
}
inline aclError aclrtMalloc(void** pointer, size_t bytes, aclrtMemMallocPolicy) {
  *pointer = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  twin_acl::Device()[static_cast<uint8_t*>(*pointer)] = {bytes, false};
  return ACL_SUCCESS;
}
inline aclError aclrtFree(void* pointer) {
  twin_acl::Device().erase(static_cast<uint8_t*>(pointer));
  std::free(pointer);
  return ACL_SUCCESS;
}
inline aclError aclrtMemcpy(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind) {
  std::memcpy(to, from, bytes);
  twin_acl::Written(to);
  return ACL_SUCCESS;
}
inline aclError aclrtMemset(void* to, size_t, int32_t value, size_t bytes) {
  std::memset(to, value, bytes);
  twin_acl::Written(to);
  return ACL_SUCCESS;
}
