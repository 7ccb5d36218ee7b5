// Event flags, barriers and cross-core flags: the edges of the happens-before order.
#pragma once

#include <string>

#include "issue.h"

namespace ascendc_twin {

// Everything that `pipe` has been given so far, as a point to wait for.
inline Token Release(Core* core, Pipe pipe, uint32_t site) {
  PipeState& state = core->pipes[pipe];
  Token token;
  token.clock = state.clock;
  const Clock& scalar = core->pipes[kS].clock;
  const uint32_t own = token.clock[core->Thread(kS)];
  Join(token.clock, scalar);
  token.clock[core->Thread(kS)] = own;
  token.clock[core->Thread(pipe)] = state.issued;
  token.time = std::max(state.time, core->pipes[kS].time);
  token.site = site;
  return token;
}

inline void Acquire(Core* core, Pipe pipe, const Token& token) {
  PipeState& state = core->pipes[pipe];
  Join(state.clock, token.clock);
  state.time = std::max(state.time, token.time);
  if (pipe == kS && core->launch->options.lazy) ForceAll(core->launch, state.clock);
}

inline bool PipeExists(const Core& core, Pipe pipe) {
  if (core.cube) return pipe != kV;
  return pipe == kS || pipe == kV || pipe == kMte2 || pipe == kMte3;
}

inline bool CheckEvent(Core* core, const char* call, Loc loc, HardEvent event, int id) {
  const EventPipes pipes = PipesOf(event);
  if (!PipeExists(*core, pipes.from) || !PipeExists(*core, pipes.to)) {
    core->launch->Report(core, call, loc, "event-pipe",
                         EventName(event) + " names a pipe that an " +
                             (core->cube ? "AIC" : "AIV") + " does not have");
    return false;
  }
  if (id < 0 || id >= kEventIds) {
    core->launch->Report(
        core, call, loc, "event-id",
        "event id " + std::to_string(id) + " of " + EventName(event) + "; wanted 0..7");
    return false;
  }
  return true;
}

inline void SetEvent(Core* core, const char* call, Loc loc, HardEvent event, int id) {
  if (!CheckEvent(core, call, loc, event, id)) return;
  EventSlot& slot = core->events[static_cast<int>(event)][id];
  if (!slot.tokens.empty()) {
    core->launch->Report(
        core, call, loc, "event-set-twice",
        EventName(event) + " " + std::to_string(id) + " is set again before its wait");
    slot.tokens.clear();
  }
  slot.tokens.push_back(Release(core, PipesOf(event).from, core->launch->SiteId(call, loc)));
}

inline void WaitEvent(Core* core, const char* call, Loc loc, HardEvent event, int id) {
  if (!CheckEvent(core, call, loc, event, id)) return;
  EventSlot& slot = core->events[static_cast<int>(event)][id];
  if (slot.tokens.empty()) {
    core->launch->Report(core, call, loc, "event-not-set",
                         EventName(event) + " " + std::to_string(id) +
                             " is waited for and was not set: the pipe hangs");
    return;
  }
  Acquire(core, PipesOf(event).to, slot.tokens.front());
  slot.tokens.pop_front();
}

inline void BarrierAll(Core* core) {
  Token all;
  all.clock = core->pipes[kS].clock;
  for (int pipe = 0; pipe < kPipes; ++pipe) {
    const Token token = Release(core, static_cast<Pipe>(pipe), 0);
    Join(all.clock, token.clock);
    all.time = std::max(all.time, token.time);
  }
  for (int pipe = 0; pipe < kPipes; ++pipe) Acquire(core, static_cast<Pipe>(pipe), all);
}

inline void BarrierPipe(Core* core, Pipe pipe) {
  PipeState& state = core->pipes[pipe];
  state.clock[core->Thread(pipe)] = state.issued;
}

// ---- flags between cores ----

inline void PushCross(Core* to, int flag, const Token& token, const char* call, Loc loc) {
  to->cross[flag].push_back(token);
  if (static_cast<int>(to->cross[flag].size()) > kCrossFlagLimit)
    to->launch->Report(
        to, call, loc, "cross-flag-overflow",
        "flag " + std::to_string(flag) + " holds more than 15 sets of " + to->Name());
}

// Adds one member's set; when every member has one, passes the joined set on.
inline void Gather(Launch* launch, int mode, int flag, const std::vector<Core*>& members,
                   Core* setter, const Token& token, const std::vector<Core*>& receivers,
                   const char* call, Loc loc) {
  auto& waiting = launch->group_mode[mode][flag];
  waiting[setter->id].push_back(token);
  for (Core* member : members)
    if (waiting[member->id].empty()) return;
  Token joined = token;
  for (Core* member : members) {
    const Token& part = waiting[member->id].front();
    Join(joined.clock, part.clock);
    joined.time = std::max(joined.time, part.time);
    waiting[member->id].pop_front();
  }
  for (Core* receiver : receivers) PushCross(receiver, flag, joined, call, loc);
}

inline void SetCross(Core* core, const char* call, Loc loc, int mode, pipe_t on, int flag) {
  Launch* launch = core->launch;
  if (flag < 0 || flag >= kCrossFlags) {
    launch->Report(core, call, loc, "cross-flag-id",
                   "flag " + std::to_string(flag) + "; wanted 0..15 (it is cut to 4 bits)");
    flag &= 15;
  }
  if (on == PIPE_ALL || on == PIPE_S || !PipeExists(*core, ToPipe(on))) {
    launch->Report(core, call, loc, "cross-flag-pipe", "no such pipe for a flag on this core");
    return;
  }
  if (mode < 0 || mode > 2) {
    launch->Report(core, call, loc, "cross-flag-mode",
                   "mode " + std::to_string(mode) + "; Atlas A2 has 0, 1 and 2");
    return;
  }
  const Token token = Release(core, ToPipe(on), launch->SiteId(call, loc));
  std::vector<Core*> members, receivers;
  for (auto& other : launch->cores) {
    const bool same_block = other->block == core->block;
    if (mode == 0 && other->cube == core->cube) members.push_back(other.get());
    if (mode == 1 && !core->cube && !other->cube && same_block) members.push_back(other.get());
    if (mode == 2 && same_block) {
      if (other->cube == core->cube) members.push_back(other.get());
      if (other->cube != core->cube) receivers.push_back(other.get());
    }
  }
  if (mode != 2) receivers = members;
  if (members.empty() || receivers.empty()) {
    launch->Report(core, call, loc, "cross-flag-mode",
                   "this kernel has nobody to receive the flag");
    return;
  }
  Gather(launch, mode, flag, members, core, token, receivers, call, loc);
}

inline void WaitCross(Core* core, const char* call, Loc loc, int flag) {
  Launch* launch = core->launch;
  if (flag < 0 || flag >= kCrossFlags) {
    launch->Report(core, call, loc, "cross-flag-id",
                   "flag " + std::to_string(flag) + "; wanted 0..15 (it is cut to 4 bits)");
    flag &= 15;
  }
  launch->Block(core, call, loc, "cross-core flag " + std::to_string(flag),
                [core, flag] { return !core->cross[flag].empty(); });
  const Token token = core->cross[flag].front();
  core->cross[flag].pop_front();
  Acquire(core, kS, token);
}

// A barrier of the cores that `joins` selects; `from` and `to` are the pipes that it orders.
inline void SyncCores(Core* core, const char* call, Loc loc, int key, pipe_t from, pipe_t to,
                      std::function<bool(const Core&)> joins) {
  Launch* launch = core->launch;
  Launch::Barrier& barrier = launch->barriers[key];
  barrier.arrived.resize(launch->cores.size());
  if (from == PIPE_ALL) BarrierAll(core);
  const Token mine = Release(core, from == PIPE_ALL ? kS : ToPipe(from), 0);
  if (barrier.joined.clock.empty()) barrier.joined.clock.assign(mine.clock.size(), 0);
  Join(barrier.joined.clock, mine.clock);
  barrier.joined.time = std::max(barrier.joined.time, mine.time);
  barrier.arrived[core->id] = true;
  const uint64_t generation = barrier.generation;
  bool complete = true;
  for (auto& other : launch->cores)
    if (joins(*other) && !barrier.arrived[other->id]) complete = false;
  if (complete) {
    barrier.released = barrier.joined;
    barrier.joined = Token();
    barrier.arrived.assign(launch->cores.size(), false);
    ++barrier.generation;
  } else {
    launch->Block(core, call, loc, "other cores at a barrier",
                  [&barrier, generation] { return barrier.generation != generation; });
  }
  const Token released = launch->barriers[key].released;
  if (to == PIPE_ALL)
    Acquire(core, kS, released);
  else
    Acquire(core, ToPipe(to), released);
}

}  // namespace ascendc_twin
