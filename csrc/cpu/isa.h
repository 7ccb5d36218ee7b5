// One kernel source, compiled once per instruction set and picked at run time.
//
// A kernel header declares its entry points, and its .cpp defines them, in mmkern::MMKERN_ISA:
//
//   MMKERN_KERNEL(void, modulate_forward, (const ModulateArgs& args, int64_t begin, int64_t end))
//
//   namespace mmkern::MMKERN_ISA {
//   void modulate_forward(const ModulateArgs& args, int64_t begin, int64_t end) { ... }
//   }
//
// A host file includes the same header and calls `MMKERN_PICK(modulate_forward)(args, 0, rows)`.
// Entry points are serial over a range of tasks; the host decides who runs which range.
//
// The build defines MMKERN_ISA (baseline, avx2, avx512 or avx512_bf16) for kernel files alone.
// They include no torch header, use no std:: function template and keep all they define in
// mmkern::MMKERN_ISA: an inline function that two instruction sets both emitted would be merged by
// the linker, and an old CPU could then run the AVX-512 copy. tests/test_build.py checks it.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#define MMKERN_FOR_EACH_ISA(X) X(baseline) X(avx2) X(avx512) X(avx512_bf16)
#else
#define MMKERN_FOR_EACH_ISA(X) X(baseline)
#endif

#ifdef MMKERN_ISA

#define MMKERN_KERNEL(result, name, params) \
  namespace mmkern::MMKERN_ISA {            \
  result name params;                       \
  }

#else

namespace mmkern {

enum class Isa : int {
#define MMKERN_ISA_ENUMERATOR(isa) isa,
  MMKERN_FOR_EACH_ISA(MMKERN_ISA_ENUMERATOR)
#undef MMKERN_ISA_ENUMERATOR
};

#define MMKERN_ISA_COUNT(isa) +1
inline constexpr int kIsaCount = 0 MMKERN_FOR_EACH_ISA(MMKERN_ISA_COUNT);
#undef MMKERN_ISA_COUNT

const char* isa_name(Isa isa);

// The best instruction set that this CPU and operating system can run.
Isa best_isa();

// The one in use: best_isa(), or a lower one named by MMKERN_CPU_ISA when the process started.
// Throws std::invalid_argument (ValueError in Python) if that variable names anything else.
Isa current_isa();

}  // namespace mmkern

#define MMKERN_DECLARE_IN(isa, result, name, params) \
  namespace mmkern::isa {                            \
  result name params;                                \
  }

#if defined(__x86_64__)
#define MMKERN_DECLARE_EVERYWHERE(result, name, params) \
  MMKERN_DECLARE_IN(baseline, result, name, params)     \
  MMKERN_DECLARE_IN(avx2, result, name, params)         \
  MMKERN_DECLARE_IN(avx512, result, name, params)       \
  MMKERN_DECLARE_IN(avx512_bf16, result, name, params)
#define MMKERN_ADDRESSES(name) baseline::name, avx2::name, avx512::name, avx512_bf16::name
#else
#define MMKERN_DECLARE_EVERYWHERE(result, name, params) \
  MMKERN_DECLARE_IN(baseline, result, name, params)
#define MMKERN_ADDRESSES(name) baseline::name
#endif

#define MMKERN_KERNEL(result, name, params)                                 \
  MMKERN_DECLARE_EVERYWHERE(result, name, params)                           \
  namespace mmkern {                                                        \
  inline auto pick_##name() {                                               \
    using Function = result(*) params;                                      \
    static constexpr Function kByIsa[kIsaCount] = {MMKERN_ADDRESSES(name)}; \
    static const Function picked = kByIsa[static_cast<int>(current_isa())]; \
    return picked;                                                          \
  }                                                                         \
  }

#define MMKERN_PICK(name) (::mmkern::pick_##name())

#endif
