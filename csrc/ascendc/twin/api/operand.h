// What an instruction may touch through a tensor, and the scalar unit's reads and writes.
#pragma once

#include "tensor.h"

namespace ascendc_twin {

using AscendC::GlobalTensor;
using AscendC::LocalTensor;
using AscendC::TPosition;

// A local operand of an instruction: where its bytes are. `data` is null when the call was refused.
struct Operand {
  Space* space = nullptr;
  uint32_t address = 0;
  uint32_t begin = 0, end = 0;  // of its buffer
  uint8_t* data() const { return space->data + address; }
};

inline bool Holds(std::initializer_list<Hardware> allowed, Hardware hardware) {
  for (Hardware one : allowed)
    if (one == hardware) return true;
  return false;
}

template <typename T>
Operand Use(Instruction& instruction, const LocalTensor<T>& tensor, const char* role,
            std::initializer_list<Hardware> allowed, uint32_t align = kBlock) {
  Core* core = instruction.core;
  Buffer* buffer = tensor.buffer();
  Operand operand;
  if (!buffer) {
    instruction.Refuse("no-buffer", std::string(role) + " is a tensor without memory");
    return operand;
  }
  if (buffer->core != core) {
    instruction.Refuse("no-buffer", std::string(role) + " belongs to another core");
    return operand;
  }
  operand.space = core->Memory(buffer->hardware);
  if (!operand.space || !Holds(allowed, buffer->hardware)) {
    instruction.Refuse("wrong-position",
                       std::string(role) + " lies where this call on an " +
                           (core->cube ? "AIC" : "AIV") + " cannot reach it (TPosition " +
                           std::to_string(static_cast<int>(tensor.position())) + ")");
    return operand;
  }
  operand.address = tensor.address();
  operand.begin = buffer->begin;
  operand.end = buffer->end;
  if (buffer->state == BufferState::kFree || buffer->generation != tensor.generation())
    instruction.Report("use-after-free", std::string(role) + " was given back with FreeTensor");
  else if (buffer->state == BufferState::kQueued)
    instruction.Report("queue-order", std::string(role) + " is in its queue: DeQue it first");
  if (operand.address % align)
    instruction.Report("misaligned", std::string(role) + " starts at byte " +
                                         std::to_string(operand.address) + ", not a multiple of " +
                                         std::to_string(align));
  return operand;
}

// Bytes of a local operand, relative to its start.
inline void Touch(Instruction& instruction, const Operand& operand, int64_t offset, uint64_t length,
                  Kind kind, bool carry = false) {
  if (!operand.space || length == 0) return;
  const int64_t begin = static_cast<int64_t>(operand.address) + offset;
  const int64_t end = begin + static_cast<int64_t>(length);
  if (begin < operand.begin || end > operand.end) {
    const bool inside = begin >= 0 && end <= static_cast<int64_t>(operand.space->size);
    const std::string text = std::string(kind == Kind::kRead ? "reads" : "writes") + " " +
                             operand.space->name + " bytes [" + std::to_string(begin) + ", " +
                             std::to_string(end) + "), the tensor's buffer is [" +
                             std::to_string(operand.begin) + ", " + std::to_string(operand.end) +
                             ")";
    if (inside)
      instruction.Report("out-of-range", text);
    else
      instruction.Refuse("out-of-range", text);
    if (!inside) return;
  }
  instruction.Touch(operand.space, static_cast<uint64_t>(begin), length, kind, carry);
}

struct GlobalOperand {
  Space* space = nullptr;
  uint64_t offset = 0;
  uint64_t limit = ~0ull;  // bytes from here that SetGlobalBuffer declared
  uint8_t* data() const { return space->data + offset; }
};

template <typename T>
GlobalOperand Use(Instruction& instruction, const GlobalTensor<T>& tensor, const char* role) {
  GlobalOperand operand;
  GlobalBuffer* buffer = instruction.core->launch->FindBuffer(tensor.GetPhyAddr());
  if (!buffer) {
    instruction.Refuse("out-of-range", std::string(role) + " points outside every global buffer");
    return operand;
  }
  operand.space = &buffer->space;
  operand.offset = reinterpret_cast<const uint8_t*>(tensor.GetPhyAddr()) - buffer->space.data;
  if (tensor.bounded()) operand.limit = tensor.GetSize() * sizeof(T);
  return operand;
}

inline void Touch(Instruction& instruction, const GlobalOperand& operand, uint64_t offset,
                  uint64_t length, Kind kind) {
  if (!operand.space || length == 0) return;
  if (operand.offset + offset + length <= operand.space->size && offset + length > operand.limit)
    instruction.Report("out-of-range", std::string(kind == Kind::kRead ? "reads" : "writes") +
                                           " byte " + std::to_string(offset + length) +
                                           " of a GlobalTensor of " +
                                           std::to_string(operand.limit) + " bytes");
  instruction.Touch(operand.space, operand.offset + offset, length, kind);
}

inline void Count(const Instruction& instruction, const char* path, uint64_t bytes) {
  instruction.core->bytes[path] += bytes;
}

inline void CountElements(const Instruction& instruction, uint64_t elements) {
  UnitCount& count = instruction.core->instructions[instruction.call];
  ++count.instructions;
  count.elements += elements;
}

}  // namespace ascendc_twin

namespace AscendC {

template <typename T>
T LocalTensor<T>::GetValue(uint32_t offset, Loc loc) const {
  using namespace ascendc_twin;
  Instruction instruction(kS, "GetValue", loc);
  const Operand source =
      Use(instruction, *this, "the tensor", {Hardware::UB, Hardware::L1, Hardware::L0C}, 1);
  Touch(instruction, source, static_cast<int64_t>(offset) * sizeof(T), sizeof(T), Kind::kRead);
  T value{};
  Issue(instruction, 1,
        [&] { std::memcpy(&value, source.data() + offset * sizeof(T), sizeof(T)); });
  return value;
}

template <typename T>
template <typename U>
void LocalTensor<T>::SetValue(uint32_t offset, U given, Loc loc) const {
  using namespace ascendc_twin;
  const T value = static_cast<T>(given);
  Instruction instruction(kS, "SetValue", loc);
  const Operand target = Use(instruction, *this, "the tensor", {Hardware::UB, Hardware::L1}, 1);
  Touch(instruction, target, static_cast<int64_t>(offset) * sizeof(T), sizeof(T), Kind::kWrite);
  Issue(instruction, 1,
        [&] { std::memcpy(target.data() + offset * sizeof(T), &value, sizeof(T)); });
}

template <typename T>
T GlobalTensor<T>::GetValue(uint64_t offset, Loc loc) const {
  using namespace ascendc_twin;
  Instruction instruction(kS, "GetValue", loc);
  const GlobalOperand source = Use(instruction, *this, "the tensor");
  Touch(instruction, source, offset * sizeof(T), sizeof(T), Kind::kRead);
  T value{};
  Issue(instruction, 1,
        [&] { std::memcpy(&value, source.data() + offset * sizeof(T), sizeof(T)); });
  if (!instruction.runnable) return value;
  const uint64_t line = (source.offset + offset * sizeof(T)) / kCacheLine;
  const uint64_t key = reinterpret_cast<uint64_t>(source.space->data) / kCacheLine + line;
  auto cached = instruction.core->cached_lines.find(key);
  const uint32_t version = source.space->line_version[line];
  if (cached == instruction.core->cached_lines.end())
    instruction.core->cached_lines[key] = {version, false};
  else if (cached->second.first != version)
    instruction.Report("stale-cache-line",
                       "the scalar cache holds this line from before it was written: call "
                       "DataCacheCleanAndInvalid");
  return value;
}

template <typename T>
void GlobalTensor<T>::SetValue(uint64_t offset, T value, Loc loc) {
  using namespace ascendc_twin;
  Instruction instruction(kS, "SetValue", loc);
  const GlobalOperand target = Use(instruction, *this, "the tensor");
  Touch(instruction, target, offset * sizeof(T), sizeof(T), Kind::kWrite);
  Issue(instruction, 1,
        [&] { std::memcpy(target.data() + offset * sizeof(T), &value, sizeof(T)); });
  if (!instruction.runnable) return;
  const uint64_t line = (target.offset + offset * sizeof(T)) / kCacheLine;
  int& owner = target.space->line_owner[line];
  if (owner >= 0 && owner != instruction.core->id)
    instruction.Report("shared-cache-line",
                       "two cores' scalar units write one 64-byte line; the later write-back wins");
  owner = instruction.core->id;
  const uint64_t key = reinterpret_cast<uint64_t>(target.space->data) / kCacheLine + line;
  instruction.core->cached_lines[key] = {target.space->line_version[line], true};
}

}  // namespace AscendC
