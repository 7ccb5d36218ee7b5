#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace mmkern {
namespace {

constexpr const char* kNames[kIsaCount] = {
#define MMKERN_ISA_NAME(isa) #isa,
    MMKERN_FOR_EACH_ISA(MMKERN_ISA_NAME)
#undef MMKERN_ISA_NAME
};

Isa choose_isa() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("MMKERN_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  std::string usable;
  for (int i = 0; i <= static_cast<int>(best); ++i) {
    if (std::strcmp(wanted, kNames[i]) == 0) return static_cast<Isa>(i);
    usable += (i == 0 ? "" : ", ") + std::string(kNames[i]);
  }
  throw std::invalid_argument("MMKERN_CPU_ISA is '" + std::string(wanted) +
                              "'; wanted an instruction set that this CPU can run (" + usable +
                              ")");
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa best_isa() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512_bf16;
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa current_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace mmkern
