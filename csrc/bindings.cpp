// The module mmkern._C. Importing it registers the CPU kernels (every file of csrc/ops does so with
// TORCH_LIBRARY_IMPL); what it exports itself is about the build.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <string>
#include <vector>

#include "cpu/isa.h"
#include "ops/large_memory.h"

namespace py = pybind11;

namespace {

std::vector<std::string> isas_up_to(mmkern::Isa last) {
  std::vector<std::string> names;
  for (int i = 0; i <= static_cast<int>(last); ++i) {
    names.emplace_back(mmkern::isa_name(static_cast<mmkern::Isa>(i)));
  }
  return names;
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["kernel_flags"] = MMKERN_KERNEL_FLAGS;
  info["isas"] = isas_up_to(static_cast<mmkern::Isa>(mmkern::kIsaCount - 1));
  info["torch"] = TORCH_VERSION;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of mmkern, and which instruction set they run on.";
  m.def(
      "isa", [] { return std::string(mmkern::isa_name(mmkern::current_isa())); },
      "The instruction set that the kernels run on; ValueError if MMKERN_CPU_ISA names no usable "
      "one.");
  m.def(
      "available_isas", [] { return isas_up_to(mmkern::best_isa()); },
      "The instruction sets that this CPU can run, lowest first.");
  m.def("empty_cache", &mmkern::empty_cache,
        "Free the memory that is kept of large outputs for the next ones.");
  m.def("cached_bytes", &mmkern::cached_bytes, "How much of it is kept.");
  m.def("build_info", &build_info, "Compiler, kernel flags, instruction sets and torch version.");
}
