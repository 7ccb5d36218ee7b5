// The device on the CPU: kernels run on the AscendC twin. Python sees the ops, their reports and
// the twin's settings as torch.ops.mmkern_ascendc_twin.
#include <torch/library.h>

#include <algorithm>
#include <map>
#include <string>

#include "../../kernels/ascendc/attention.cpp"
#include "../../kernels/ascendc/attention_backward.cpp"
#include "../../kernels/ascendc/column_sums.cpp"
#include "../../kernels/ascendc/linear_backward.cpp"
#include "../../kernels/ascendc/mlp.cpp"
#include "../../kernels/ascendc/modulate.cpp"
#include "../../kernels/ascendc/modulate_backward.cpp"
#include "../../kernels/ascendc/patch_embed.cpp"
#include "device.h"
#include "launcher.h"
#include "ops.h"

#define MMKERN_LAUNCH(name, blocks, stream, ...) name(__VA_ARGS__)
#include "launchers.h"

namespace mmkern::ascendc {
namespace {

// Few cores, so that small shapes keep all of them busy; the memories are a real core's.
Chip g_chip{2, 4, (192 - 8) * 1024};
bool g_lazy = false;
int64_t g_order = 0;
std::vector<std::string> g_reports;     // JSON, one for each kernel that ran
std::vector<std::string> g_references;  // ops whose reference ran

// Tensors may be views of one storage: a range of bytes is one buffer of the twin.
std::vector<ascendc_twin::GlobalArgument> merged(const std::vector<Buffer>& buffers) {
  std::vector<ascendc_twin::GlobalArgument> inputs, all;
  std::vector<Buffer> sorted;
  for (const Buffer& b : buffers) {
    if (b.data != nullptr && b.role == Role::kInput) sorted.push_back(b);
  }
  std::sort(sorted.begin(), sorted.end(),
            [](const Buffer& a, const Buffer& b) { return a.data < b.data; });
  for (const Buffer& b : sorted) {
    if (!all.empty()) {
      auto& last = all.back();
      uint8_t* end = static_cast<uint8_t*>(last.data) + last.bytes;
      if (b.data < end) {
        last.bytes += std::max<int64_t>(b.data + b.bytes - end, 0);
        continue;
      }
    }
    all.push_back({b.data, static_cast<uint64_t>(b.bytes), "input " + std::to_string(all.size()),
                   ascendc_twin::Role::kIn});
  }
  for (size_t i = 0; i < buffers.size(); ++i) {
    const Buffer& b = buffers[i];
    if (b.data == nullptr || b.role == Role::kInput) continue;
    const bool out = b.role == Role::kOutput;
    all.push_back({b.data, static_cast<uint64_t>(b.bytes),
                   (out ? "output " : "workspace ") + std::to_string(i),
                   out ? ascendc_twin::Role::kOut : ascendc_twin::Role::kWorkspace});
  }
  return all;
}

}  // namespace

const Chip& chip() { return g_chip; }

void note_reference(const char* op) { g_references.emplace_back(op); }

void submit(const Submission& s, const std::function<void(void*, uint8_t**)>& launch) {
  ascendc_twin::Options options;
  options.kernel = s.kernel;
  options.type = s.mixed ? ascendc_twin::KernelType::kMix12 : ascendc_twin::KernelType::kAiv;
  options.blocks = static_cast<int>(s.blocks);
  options.lazy = g_lazy;
  options.order = static_cast<uint32_t>(g_order);
  std::vector<uint8_t*> pointers;
  for (const Buffer& b : s.buffers) pointers.push_back(b.data);
  const auto report = ascendc_twin::LaunchKernel(options, merged(s.buffers),
                                                 [&] { launch(nullptr, pointers.data()); });
  g_reports.push_back(ascendc_twin::ToJson(report));
}

}  // namespace mmkern::ascendc

TORCH_LIBRARY(mmkern_ascendc_twin, m) {
  namespace ascendc = mmkern::ascendc;
  m.def("modulate", &ascendc::modulate);
  m.def("modulate_backward", &ascendc::modulate_backward);
  m.def("mlp", &ascendc::mlp);
  m.def("mlp_backward", &ascendc::mlp_backward);
  m.def("patch_embed", &ascendc::patch_embed);
  m.def("patch_embed_backward", &ascendc::patch_embed_backward);
  m.def("attention", &ascendc::attention);
  m.def("attention_backward", &ascendc::attention_backward);
  m.def("configure", [](int64_t cube_cores, bool lazy, int64_t order) {
    ascendc::g_chip.cube_cores = static_cast<int32_t>(cube_cores);
    ascendc::g_chip.vector_cores = static_cast<int32_t>(2 * cube_cores);
    ascendc::g_lazy = lazy;
    ascendc::g_order = order;
  });
  m.def("take_reports", [] { return std::exchange(ascendc::g_reports, {}); });
  m.def("take_references", [] { return std::exchange(ascendc::g_references, {}); });
}
