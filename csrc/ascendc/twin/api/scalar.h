// The scalar unit beside its cache, lists of tensors, and assertions.
#pragma once

#include "system.h"

namespace ascendc_twin {

constexpr uint32_t kPollLimit = 1u << 14;

// A value that a core reads again and again and that nobody changes is waited for in vain.
inline void CountPoll(const Instruction& instruction, const void* address, uint64_t value) {
  Core* core = instruction.core;
  const bool same = core->polled == address && core->polled_value == value;
  core->polls = same ? core->polls + 1 : 0;
  core->polled = address;
  core->polled_value = value;
  if (core->polls < kPollLimit) return;
  instruction.Report("deadlock", "polls a value that nobody changes");
  core->launch->Abandon();
  throw Abandoned();
}

inline void Assert(bool holds, const char* condition, Loc loc = Loc::Here()) {
  Core* core = CurrentCore();
  if (!holds) core->launch->Report(core, "ascendc_assert", loc, "assert", condition);
}

}  // namespace ascendc_twin

#define ascendc_assert(condition, ...) ascendc_twin::Assert((condition), #condition)

namespace AscendC {

// What is read so has happened: the reader knows what the writer knew.
template <typename T>
T ReadGmByPassDCache(T* addr, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kS, "ReadGmByPassDCache", loc);
  Core* core = instruction.core;
  GlobalTensor<T> tensor;
  tensor.SetGlobalBuffer(addr);
  const GlobalOperand from = Use(instruction, tensor, "addr");
  core->launch->Yield(core);
  const auto posted = core->launch->posted.find(addr);
  if (posted != core->launch->posted.end()) Acquire(core, kS, posted->second);
  Touch(instruction, from, 0, sizeof(T), Kind::kPolled);
  T value{};
  Issue(instruction, 1, [&] { std::memcpy(&value, from.data(), sizeof(T)); });
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  CountPoll(instruction, addr, bits);
  return value;
}

template <typename T>
void WriteGmByPassDCache(T* addr, T value, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kS, "WriteGmByPassDCache", loc);
  Core* core = instruction.core;
  GlobalTensor<T> tensor;
  tensor.SetGlobalBuffer(addr);
  const GlobalOperand to = Use(instruction, tensor, "addr");
  Touch(instruction, to, 0, sizeof(T), Kind::kPosted);
  Issue(instruction, 1, [&] { std::memcpy(to.data(), &value, sizeof(T)); });
  if (!instruction.runnable) return;
  ++to.space->line_version[to.offset / kCacheLine];
  core->launch->posted[addr] = Release(core, kS, core->launch->SiteId("WriteGmByPassDCache", loc));
}

// Tensors that the host passes in one list: the byte at which their pointers start, what describes
// them, the pointers.
class ListTensorDesc {
 public:
  ListTensorDesc() = default;
  ListTensorDesc(void* data, uint32_t = 0xffffffff, uint32_t = 0xffffffff) { Init(data); }
  void Init(void* data, uint32_t = 0xffffffff, uint32_t = 0xffffffff) {
    list_.SetGlobalBuffer(static_cast<uint64_t*>(data));
  }
  template <typename T>
  T* GetDataPtr(uint32_t index, Loc loc = Loc::Here()) {
    const uint64_t first = list_.GetValue(0, loc) / sizeof(uint64_t);
    return reinterpret_cast<T*>(list_.GetValue(first + index, loc));
  }

 private:
  GlobalTensor<uint64_t> list_;
};

}  // namespace AscendC
