// One AIC or AIV core: its pipes with their clocks, its memories, its event flags.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "../api/types.h"
#include "space.h"

namespace ascendc_twin {

using AscendC::HardEvent;
using AscendC::Hardware;

enum Pipe : uint8_t { kS, kV, kM, kMte1, kMte2, kMte3, kFix, kPipes };

inline const char* PipeName(int pipe) {
  static const char* const names[] = {"S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX"};
  return names[pipe];
}

constexpr Pipe ToPipe(pipe_t pipe) {
  return pipe == PIPE_FIX ? kFix : static_cast<Pipe>(static_cast<int>(pipe));
}

struct EventPipes {
  Pipe from, to;
};

inline EventPipes PipesOf(HardEvent event) {
  static const EventPipes table[] = {
      {kMte2, kMte1}, {kMte1, kMte2}, {kMte1, kM},    {kM, kMte1},   {kMte2, kV},   {kV, kMte2},
      {kMte3, kV},    {kV, kMte3},    {kM, kV},       {kV, kM},      {kV, kV},      {kMte3, kMte1},
      {kMte1, kMte3}, {kMte1, kV},    {kMte2, kM},    {kM, kMte2},   {kV, kMte1},   {kM, kFix},
      {kFix, kM},     {kMte3, kMte2}, {kMte2, kMte3}, {kS, kV},      {kV, kS},      {kS, kMte2},
      {kMte2, kS},    {kS, kMte3},    {kMte3, kS},    {kMte2, kFix}, {kFix, kMte2}, {kFix, kS},
      {kM, kS},       {kFix, kMte3},  {kMte1, kFix},  {kFix, kMte1}, {kFix, kFix}};
  return table[static_cast<int>(event)];
}

inline std::string EventName(HardEvent event) {
  const EventPipes pipes = PipesOf(event);
  return std::string(PipeName(pipes.from)) + "_" + PipeName(pipes.to);
}

constexpr int kEvents = static_cast<int>(HardEvent::MAX);
constexpr int kEventIds = 8;
constexpr int kCrossFlags = 16;
constexpr int kCrossFlagLimit = 15;

// What a flag carries from the one that sets it to the one that waits.
struct Token {
  Clock clock;
  double time = 0;
  uint32_t site = 0;
};

struct Pending {
  Clock needs;
  std::function<void()> body;
};

struct PipeState {
  Clock clock;  // what is known to be complete before the next instruction of this pipe starts
  uint32_t issued = 0;
  uint32_t done = 0;
  std::deque<Pending> pending;
  double time = 0;  // cycle at which the last instruction ends
  double busy = 0;
};

struct UnitCount {
  uint64_t instructions = 0;
  uint64_t elements = 0;
};

struct EventSlot {
  std::deque<Token> tokens;
  bool allocated = false;  // by AllocEventID
};

struct MaskRegister {
  bool counter = false;
  uint64_t low = ~0ull, high = ~0ull;
};

enum class AtomicOp : uint8_t { kNone, kAdd, kMax, kMin };

// What SetFixpipe* and SetFixPipeConfig leave for a DataCopy out of L0C.
struct FixpipeRegisters {
  uint64_t scalar = 0;
  uint16_t matrices = 1, src_stride = 0;
  uint32_t dst_stride = 0;
  uint32_t scales = 0;  // in the fixpipe buffer
};

struct Launch;

struct Core {
  Launch* launch = nullptr;
  int id = 0;
  bool cube = false;
  int block = 0;  // the AI Core
  int sub = 0;    // the AIV in it
  int ratio = 1;  // AIVs per AI Core
  PipeState pipes[kPipes];
  std::map<Hardware, Space> memory;
  EventSlot events[kEvents][kEventIds];
  std::deque<Token> cross[kCrossFlags];
  MaskRegister mask;
  AtomicOp atomic = AtomicOp::kNone;
  int atomic_type = 0;
  double reduce_sum = 0;
  double reduce_value = 0, reduce_index = 0;
  uint64_t compare_mask[2] = {0, 0};
  const void* polled = nullptr;  // by the scalar unit: an address, its value, how often
  uint64_t polled_value = 0;
  uint32_t polls = 0;
  uint64_t pad_value = 0;
  bool pad_value_set = false;
  FixpipeRegisters fixpipe;
  std::unordered_map<uint64_t, std::pair<uint32_t, bool>> cached_lines;  // line: version, dirty
  void* pipe_object = nullptr;                                           // the live TPipe
  uint32_t ub_in_use = 0;

  std::map<std::string, uint64_t> bytes;          // per path
  std::map<std::string, UnitCount> instructions;  // per instruction
  uint64_t macs = 0;

  ThreadId Thread(int pipe) const { return static_cast<ThreadId>(id * kPipes + pipe); }

  std::string Name() const {
    std::string name = cube ? "aic" : "aiv";
    name += std::to_string(block);
    if (!cube && ratio > 1) name += "." + std::to_string(sub);
    return name;
  }

  Space* Memory(Hardware hardware) {
    auto it = memory.find(hardware);
    return it == memory.end() ? nullptr : &it->second;
  }
};

inline Core*& CurrentCore() {
  static thread_local Core* core = nullptr;
  return core;
}

}  // namespace ascendc_twin
