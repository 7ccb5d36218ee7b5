// Issuing an instruction: its accesses are checked in program order, its body runs now or, in the
// lazy mode, when something that is ordered after it needs it.
#pragma once

#include <cstring>
#include <string>
#include <utility>

#include "launch.h"

namespace ascendc_twin {

// Bytes that one instruction touches.
struct Range {
  Space* space;
  uint64_t offset;
  uint64_t length;
  Kind kind;
  bool carry = false;  // moves bytes with their validity: not a use of what was never written
};

// An instruction on its way: who, where, what it touches. Checks add findings, and clear `runnable`
// when the body cannot run in bounds.
struct Instruction {
  Core* core;
  Pipe pipe;
  const char* call;
  Loc loc;
  bool runnable = true;
  bool in_order = false;  // the hardware orders it after its predecessors on the pipe
  std::vector<Range> ranges;

  Instruction(Pipe on, const char* name, Loc at)
      : core(CurrentCore()), pipe(on), call(name), loc(at) {}

  void Report(const char* rule, const std::string& text) const {
    core->launch->Report(core, call, loc, rule, text);
  }

  // A finding after which the body must not run.
  void Refuse(const char* rule, const std::string& text) {
    Report(rule, text);
    runnable = false;
  }

  void Touch(Space* space, uint64_t offset, uint64_t length, Kind kind, bool carry = false) {
    if (length == 0) return;
    if (!ranges.empty()) {
      Range& last = ranges.back();
      if (last.space == space && last.kind == kind && last.carry == carry &&
          last.offset + last.length == offset) {
        last.length += length;
        return;
      }
    }
    ranges.push_back({space, offset, length, kind, carry});
  }
};

inline void Force(Launch* launch, ThreadId thread, uint32_t until) {
  Core* core = launch->cores[thread / kPipes].get();
  PipeState& pipe = core->pipes[thread % kPipes];
  while (pipe.done < until && !pipe.pending.empty()) {
    Pending pending = std::move(pipe.pending.front());
    pipe.pending.pop_front();
    ++pipe.done;
    for (ThreadId t = 0; t < pending.needs.size(); ++t)
      if (t != thread) Force(launch, t, pending.needs[t]);
    if (pending.body) pending.body();
  }
}

inline void ForceAll(Launch* launch, const Clock& clock) {
  for (ThreadId t = 0; t < clock.size(); ++t) Force(launch, t, clock[t]);
}

inline void ForceCore(Core* core) {
  for (int pipe = 0; pipe < kPipes; ++pipe)
    Force(core->launch, core->Thread(pipe), core->pipes[pipe].issued);
}

// What the compiler synchronises by itself on an AIV: V with V, and the scalar unit with V, MTE2
// and MTE3.
inline bool AutomaticPair(const Core& core, int a, int b) {
  if (core.cube || !core.launch->options.auto_sync) return false;
  if (a == kV && b == kV) return true;
  const int other = a == kS ? b : b == kS ? a : -1;
  return other == kV || other == kMte2 || other == kMte3;
}

inline std::string Describe(const Range& range) {
  return range.space->name + "[" + std::to_string(range.offset) + ", " +
         std::to_string(range.offset + range.length) + ")";
}

// One block of a range against the accesses that stand in it.
inline void CheckBlock(const Instruction& instruction, const Range& range, uint64_t block,
                       uint32_t mask, uint32_t index, uint32_t site) {
  Core* core = instruction.core;
  Launch* launch = core->launch;
  Clock& clock = core->pipes[instruction.pipe].clock;
  const ThreadId self = core->Thread(instruction.pipe);
  std::vector<AccessRecord>& records = range.space->blocks[block];
  size_t kept = 0;
  for (size_t i = 0; i < records.size(); ++i) {
    const AccessRecord record = records[i];
    bool keep = true;
    if (record.mask & mask) {
      const bool conflict = Conflict(record.kind, range.kind);
      // An instruction that reads and writes a place is not in its own way.
      bool ordered =
          record.index <= clock[record.thread] || (record.thread == self && record.index == index);
      if (conflict && !ordered) {
        const int other = record.thread % kPipes;
        const bool same_core = static_cast<int>(record.thread / kPipes) == core->id;
        if (record.thread == self && instruction.pipe == kS) {
          ordered = true;
        } else if (same_core && AutomaticPair(*core, other, instruction.pipe)) {
          clock[record.thread] = record.index;
          ordered = true;
        } else {
          const Site& before = launch->sites[record.site];
          const Core& first = *launch->cores[record.thread / kPipes];
          const char* rule =
              !same_core && !Reads(record.kind) && !Reads(range.kind) ? "gm-two-writers" : "race";
          std::string what = Reads(range.kind) ? "reads " : "writes ";
          instruction.Report(
              rule, what + range.space->name + " byte " + std::to_string(block * kBlock) + "+ on " +
                        PipeName(instruction.pipe) + ", not ordered after " + before.call + " (" +
                        before.loc.file + ":" + std::to_string(before.loc.line) + ") that " +
                        (Reads(record.kind) ? "reads" : "writes") + " it on " + PipeName(other) +
                        " of " + first.Name());
          ordered = true;
        }
      }
      // A write that covers an ordered record replaces it; a pipe's later read replaces its
      // earlier.
      if (ordered && Overwrites(range.kind) && (record.mask & ~mask) == 0) keep = false;
      if (record.thread == self && record.kind == range.kind && (record.mask & ~mask) == 0)
        keep = false;
    }
    if (keep) records[kept++] = record;
  }
  records.resize(kept);
  records.push_back({self, index, mask, site, range.kind});
}

inline void CheckRange(const Instruction& instruction, const Range& range, uint32_t index,
                       uint32_t site) {
  const uint64_t end = range.offset + range.length;
  Space& space = *range.space;
  if (!Overwrites(range.kind) && !range.carry) {
    const void* hole = std::memchr(space.valid.data() + range.offset, 0, range.length);
    if (hole) {
      const uint64_t at = static_cast<const uint8_t*>(hole) - space.valid.data();
      instruction.Report("uninitialised-read", "reads " + Describe(range) + "; byte " +
                                                   std::to_string(at) + " was never written");
      // Once is enough: what follows from it is not reported again.
      std::memset(space.valid.data() + range.offset, 1, range.length);
    }
  }
  if (!Reads(range.kind) && !range.carry)
    std::memset(space.valid.data() + range.offset, 1, range.length);
  for (uint64_t block = range.offset / kBlock; block * kBlock < end; ++block) {
    const uint64_t low = block * kBlock < range.offset ? range.offset - block * kBlock : 0;
    const uint64_t high = end - block * kBlock < kBlock ? end - block * kBlock : kBlock;
    const uint32_t upto = high == 32 ? ~0u : (1u << high) - 1;
    CheckBlock(instruction, range, block, upto & ~((1u << low) - 1), index, site);
  }
  if (space.global && !Reads(range.kind) && instruction.pipe != kS)
    for (uint64_t line = range.offset / kCacheLine; line * kCacheLine < end; ++line)
      ++space.line_version[line];
}

// Checks the instruction, counts `cycles` on its pipe, and runs `body`.
template <typename Body>
void Issue(Instruction& instruction, double cycles, Body&& body) {
  Core* core = instruction.core;
  Launch* launch = core->launch;
  PipeState& pipe = core->pipes[instruction.pipe];
  PipeState& scalar = core->pipes[kS];
  const ThreadId self = core->Thread(instruction.pipe);
  if (++launch->issued > launch->options.instruction_limit) {
    instruction.Report("too-long", "the run passed its limit of instructions");
    launch->Abandon();
    throw Abandoned();
  }
  for (Range& range : instruction.ranges)
    if (range.offset + range.length > range.space->size)
      instruction.Refuse("out-of-range", Describe(range) + " lies beyond its " +
                                             std::to_string(range.space->size) + " bytes");
  const uint32_t index = ++pipe.issued;
  if (instruction.pipe != kS) {
    // Issued by the scalar unit, hence after all that it has waited for; its own memory accesses
    // are ordered only where a flag or the compiler orders them.
    const uint32_t own = pipe.clock[core->Thread(kS)];
    Join(pipe.clock, scalar.clock);
    pipe.clock[core->Thread(kS)] = own;
  }
  if (instruction.in_order || AutomaticPair(*core, instruction.pipe, instruction.pipe))
    pipe.clock[self] = index - 1;
  if (instruction.runnable) {
    const uint32_t site = launch->SiteId(instruction.call, instruction.loc);
    for (const Range& range : instruction.ranges) CheckRange(instruction, range, index, site);
  }
  pipe.time = std::max(pipe.time, scalar.time) + cycles;
  pipe.busy += cycles;
  if (!instruction.runnable) {
    if (launch->options.lazy && instruction.pipe != kS)
      pipe.pending.push_back({pipe.clock, nullptr});
    else
      pipe.done = index;
    return;
  }
  if (instruction.pipe == kS) {
    if (launch->options.lazy) ForceAll(launch, pipe.clock);
    pipe.done = index;
    body();
  } else if (launch->options.lazy) {
    pipe.pending.push_back({pipe.clock, std::forward<Body>(body)});
  } else {
    pipe.done = index;
    body();
  }
}

}  // namespace ascendc_twin
