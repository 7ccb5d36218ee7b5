// The kernels of one shared library, behind a plain C interface: ASCENDC_TWIN_KERNEL(name) after
// the kernel's source makes it known by name.
#pragma once

#include <cstdlib>
#include <map>
#include <string>
#include <type_traits>

#include "launcher.h"

extern "C" {
// An argument of a kernel, in the order of its parameters. A pointer parameter takes a buffer
// (`role` as in ascendc_twin::Role; data may be null), any other takes the bytes of its value.
struct AscendcTwinArgument {
  void* data;
  uint64_t bytes;
  int32_t role;
  const char* name;
};
struct AscendcTwinOptions {
  int32_t type;  // as in ascendc_twin::KernelType
  int32_t blocks;
  int32_t lazy;
  uint32_t order;
  int32_t auto_sync;
  uint32_t instruction_limit;  // 0: the twin's own
};
}

namespace ascendc_twin {

using KernelCall =
    std::function<std::string(const AscendcTwinArgument*, int, std::function<void()>&)>;

inline std::map<std::string, KernelCall>& Kernels() {
  static std::map<std::string, KernelCall> kernels;
  return kernels;
}

// Binds the arguments to the kernel's parameters; the text says what does not fit.
template <typename... P>
KernelCall MakeCall(void (*kernel)(P...)) {
  return [kernel](const AscendcTwinArgument* given, int count,
                  std::function<void()>& call) -> std::string {
    if (count != static_cast<int>(sizeof...(P)))
      return "the kernel takes " + std::to_string(sizeof...(P)) + " arguments, not " +
             std::to_string(count);
    std::tuple<std::decay_t<P>...> values;
    std::string wrong;
    int at = 0;
    std::apply(
        [&](auto&... value) {
          (
              [&] {
                using V = std::decay_t<decltype(value)>;
                const AscendcTwinArgument& one = given[at++];
                if constexpr (std::is_pointer<V>::value) {
                  value = reinterpret_cast<V>(one.data);
                } else if (one.bytes != sizeof(V)) {
                  wrong = "argument " + std::to_string(at - 1) + " has " +
                          std::to_string(one.bytes) + " bytes; the kernel takes " +
                          std::to_string(sizeof(V));
                } else {
                  std::memcpy(static_cast<void*>(&value), one.data, sizeof(V));
                }
              }(),
              ...);
        },
        values);
    if (!wrong.empty()) return wrong;
    call = [kernel, values] { std::apply(kernel, values); };
    return "";
  };
}

template <typename F>
bool Register(const char* name, F* kernel) {
  Kernels()[name] = MakeCall(kernel);
  return true;
}

inline char* Copied(const std::string& text) {
  char* copy = static_cast<char*>(std::malloc(text.size() + 1));
  std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

}  // namespace ascendc_twin

// Returns a report as JSON, or text that starts with '!' and says what was wrong with the call. The
// caller gives it back to ascendc_twin_free.
extern "C" inline __attribute__((used, visibility("default"))) char* ascendc_twin_run(
    const char* kernel, const AscendcTwinOptions* given, const AscendcTwinArgument* arguments,
    int32_t count) {
  using namespace ascendc_twin;
  auto it = Kernels().find(kernel);
  if (it == Kernels().end()) return Copied(std::string("!no kernel named ") + kernel);
  std::function<void()> call;
  const std::string wrong = it->second(arguments, count, call);
  if (!wrong.empty()) return Copied("!" + wrong);
  Options options;
  options.kernel = kernel;
  options.type = static_cast<KernelType>(given->type);
  options.blocks = given->blocks;
  options.lazy = given->lazy != 0;
  options.order = given->order;
  options.auto_sync = given->auto_sync != 0;
  if (given->instruction_limit) options.instruction_limit = given->instruction_limit;
  std::vector<GlobalArgument> buffers;
  for (int i = 0; i < count; ++i)
    if (arguments[i].role >= 0)
      buffers.push_back({arguments[i].data, arguments[i].bytes, arguments[i].name,
                         static_cast<Role>(arguments[i].role)});
  return Copied(ToJson(LaunchKernel(options, buffers, call)));
}

extern "C" inline __attribute__((used, visibility("default"))) void ascendc_twin_free(char* text) {
  std::free(text);
}

#define ASCENDC_TWIN_KERNEL(name) \
  static const bool ascendc_twin_##name = ascendc_twin::Register(#name, name);
