// Running a kernel on all its cores, and what is checked when they end.
#pragma once

#include <string>

#include "sync.h"

namespace ascendc_twin {

inline void MakeCores(Launch& launch) {
  const KernelType type = launch.options.type;
  const int ratio = type == KernelType::kMix12 ? 2 : 1;
  for (int block = 0; block < launch.options.blocks; ++block) {
    auto add = [&](bool cube, int sub) {
      auto core = std::make_unique<Core>();
      core->launch = &launch;
      core->id = static_cast<int>(launch.cores.size());
      core->cube = cube;
      core->block = block;
      core->sub = sub;
      core->ratio = type == KernelType::kAiv ? 1 : ratio;
      auto own = [&](Hardware hardware, const char* name, uint64_t bytes) {
        core->memory[hardware].Own(name, bytes);
      };
      if (cube) {
        own(Hardware::L1, "L1", AscendC::TOTAL_L1_SIZE);
        own(Hardware::L0A, "L0A", AscendC::TOTAL_L0A_SIZE);
        own(Hardware::L0B, "L0B", AscendC::TOTAL_L0B_SIZE);
        own(Hardware::L0C, "L0C", AscendC::TOTAL_L0C_SIZE);
        own(Hardware::BIAS, "bias table", 1024);
        own(Hardware::FIXBUF, "fixpipe buffer", 2048);
      } else {
        own(Hardware::UB, "UB", AscendC::TOTAL_UB_SIZE);
      }
      launch.cores.push_back(std::move(core));
    };
    if (type != KernelType::kAiv) add(true, 0);
    if (type != KernelType::kAic)
      for (int sub = 0; sub < (type == KernelType::kAiv ? 1 : ratio); ++sub) add(false, sub);
  }
  for (auto& core : launch.cores)
    for (PipeState& pipe : core->pipes) pipe.clock.assign(launch.cores.size() * kPipes, 0);
}

inline void CheckCoreEnd(Launch& launch, Core& core) {
  for (int event = 0; event < kEvents; ++event)
    for (int id = 0; id < kEventIds; ++id)
      if (!core.events[event][id].tokens.empty()) {
        const Site& site = launch.sites[core.events[event][id].tokens.front().site];
        launch.Report(&core, site.call, site.loc, "event-left-set",
                      EventName(static_cast<HardEvent>(event)) + " " + std::to_string(id) +
                          " is still set when the kernel ends");
      }
  for (int flag = 0; flag < kCrossFlags; ++flag) {
    if (!core.cross[flag].empty()) {
      const Site& site = launch.sites[core.cross[flag].front().site];
      launch.Report(&core, site.call, site.loc, "cross-flag-left-set",
                    "flag " + std::to_string(flag) + " of " + core.Name() +
                        " is still set when the kernel ends");
    }
    for (auto& mode : launch.group_mode)
      if (!mode[flag][core.id].empty()) {
        const Site& site = launch.sites[mode[flag][core.id].front().site];
        launch.Report(&core, site.call, site.loc, "cross-flag-left-set",
                      "flag " + std::to_string(flag) + " was set by " + core.Name() +
                          " and not by its partners");
      }
  }
  if (core.atomic != AtomicOp::kNone)
    launch.Report(&core, "kernel", Loc{"", 0}, "atomic-left-on",
                  "atomic mode is still on when the kernel ends");
  for (auto& [line, state] : core.cached_lines)
    if (state.second) {
      launch.Report(&core, "SetValue", Loc{"", 0}, "dirty-cache-line",
                    "a scalar write to global memory was never written back with "
                    "DataCacheCleanAndInvalid");
      break;
    }
}

// Runs `kernel` once per core, and the checks after it. The caller has filled in options and
// buffers.
inline void Run(Launch& launch, const std::function<void()>& kernel) {
  MakeCores(launch);
  std::vector<std::thread> threads;
  std::vector<bool> ended(launch.cores.size());
  for (auto& core : launch.cores)
    threads.emplace_back([&launch, &kernel, &ended, self = core.get()] {
      CurrentCore() = self;
      try {
        launch.WaitForTurn(self);
        kernel();
        ForceCore(self);
        ended[self->id] = true;
        launch.Finish(self);
      } catch (const Abandoned&) {
      }
    });
  launch.Start();
  for (std::thread& thread : threads) thread.join();
  if (launch.abandoned()) return;
  for (auto& core : launch.cores) CheckCoreEnd(launch, *core);
  for (auto& buffer : launch.buffers)
    if (buffer->role == Role::kOut) {
      const auto& valid = buffer->space.valid;
      const uint64_t missing = std::count(valid.begin(), valid.end(), 0);
      if (missing)
        launch.Report(nullptr, "kernel", Loc{"", 0}, "output-not-written",
                      std::to_string(missing) + " bytes of " + buffer->space.name +
                          " were never written, the first at " +
                          std::to_string(std::find(valid.begin(), valid.end(), 0) - valid.begin()));
    }
}

}  // namespace ascendc_twin
