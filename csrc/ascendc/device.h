// What the host code of the AscendC kernels needs of a device. Two implementations:
// device_npu.cpp, an NPU through torch_npu, and device_twin.cpp, the AscendC API on the CPU. The
// host code above them, tiling included, is the same.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace mmkern::ascendc {

struct Chip {
  int32_t cube_cores;
  int32_t vector_cores;    // twice as many
  int64_t unified_buffer;  // bytes of a vector core that kernels may use
};

const Chip& chip();

enum class Role { kInput, kOutput, kWorkspace };

// What a kernel reads or writes in global memory; no data: the kernel gets a null pointer.
struct Buffer {
  uint8_t* data = nullptr;
  int64_t bytes = 0;
  Role role = Role::kInput;
};

// From the first to the last element of a tensor, strided as it may be.
Buffer input(const at::Tensor& t);
Buffer input(const std::optional<at::Tensor>& t);
Buffer output(const at::Tensor& t);
Buffer workspace(const at::Tensor& t);

// launch(stream, pointers) with the buffers' addresses, in order. kernel: its name without the
// type.
struct Submission {
  const char* kernel;
  c10::Device device;
  bool mixed;  // cube and vector cores; otherwise vector cores alone
  uint32_t blocks;
  std::vector<Buffer> buffers;
};
void submit(const Submission& submission,
            const std::function<void(void* stream, uint8_t** pointers)>& launch);

// Called where a kernel does not take a case and the op's reference runs.
void note_reference(const char* op);

}  // namespace mmkern::ascendc
