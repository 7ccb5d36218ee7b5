// Blocks that wait for one another through global memory: IBSet and IBWait, and blocks in turn.
#pragma once

#include "system.h"

namespace AscendC {

template <bool isAIVOnly = true>
inline void IBSet(const GlobalTensor<int32_t>&, const LocalTensor<int32_t>&, int32_t block,
                  int32_t event, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Core* core = CurrentCore();
  Unchecked("IBSet: its buffers");
  BarrierAll(core);
  core->launch->ib_flags[{block, event}].push_back(
      Release(core, kS, core->launch->SiteId("IBSet", loc)));
}
template <bool isAIVOnly = true>
inline void IBWait(const GlobalTensor<int32_t>&, const LocalTensor<int32_t>&, int32_t block,
                   int32_t event, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Core* core = CurrentCore();
  Unchecked("IBWait: its buffers");
  auto& flags = core->launch->ib_flags[{block, event}];
  core->launch->Block(core, "IBWait", loc, "IBSet of block " + std::to_string(block),
                      [&flags] { return !flags.empty(); });
  Acquire(core, kS, flags.front());
  flags.pop_front();
}

}  // namespace AscendC

namespace ascendc_twin {

constexpr int kTurn = -1;  // the event of blocks in turn

inline int AivCount(const Launch& launch) {
  int count = 0;
  for (auto& core : launch.cores) count += !core->cube;
  return count;
}

// What the three calls below want of their buffers: 32 bytes per block, and in UB 32 more.
inline void CheckTurnBuffers(const char* call, Loc loc, const GlobalTensor<int32_t>& global,
                             const LocalTensor<int32_t>& local) {
  Instruction instruction(kS, call, loc);
  const uint64_t bytes = AivCount(*instruction.core->launch) * 32ull;
  const GlobalOperand flags = Use(instruction, global, "gmWorkspace");
  if (flags.space && flags.offset + bytes > flags.space->size)
    instruction.Report("out-of-range", "gmWorkspace needs 32 bytes per block");
  const Operand scratch = Use(instruction, local, "ubWorkspace", {Hardware::UB});
  Touch(instruction, scratch, 0, bytes + 32, Kind::kWrite);
  Issue(instruction, 1, [] {});
}

}  // namespace ascendc_twin

namespace AscendC {

inline void InitDetermineComputeWorkspace(const GlobalTensor<int32_t>& gmWorkspace,
                                          const LocalTensor<int32_t>& ubWorkspace,
                                          Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Core* core = CurrentCore();
  BarrierAll(core);
  CheckTurnBuffers("InitDetermineComputeWorkspace", loc, gmWorkspace, ubWorkspace);
  // The first block's first turn needs nobody's leave.
  if (GetBlockIdx() == 0)
    core->launch->ib_flags[{0, kTurn}].push_back(
        Release(core, kS, core->launch->SiteId("InitDetermineComputeWorkspace", loc)));
}

// Waits for the turn of this block: after the block before it, and the first after the last.
inline void WaitPreBlock(const GlobalTensor<int32_t>& gmWorkspace,
                         const LocalTensor<int32_t>& ubWorkspace, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Core* core = CurrentCore();
  BarrierAll(core);
  CheckTurnBuffers("WaitPreBlock", loc, gmWorkspace, ubWorkspace);
  auto& turns = core->launch->ib_flags[{static_cast<int>(GetBlockIdx()), kTurn}];
  core->launch->Block(core, "WaitPreBlock", loc, "its turn among the blocks",
                      [&turns] { return !turns.empty(); });
  Acquire(core, kS, turns.front());
  turns.pop_front();
}

inline void NotifyNextBlock(const GlobalTensor<int32_t>& gmWorkspace,
                            const LocalTensor<int32_t>& ubWorkspace, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Core* core = CurrentCore();
  BarrierAll(core);
  CheckTurnBuffers("NotifyNextBlock", loc, gmWorkspace, ubWorkspace);
  const int next = (static_cast<int>(GetBlockIdx()) + 1) % AivCount(*core->launch);
  core->launch->ib_flags[{next, kTurn}].push_back(
      Release(core, kS, core->launch->SiteId("NotifyNextBlock", loc)));
}

// Kernels that one launch joins: a launch on the twin has one, whose neighbours are over and gone.
inline void SetNextTaskStart() { ascendc_twin::Unchecked("SetNextTaskStart"); }
inline void WaitPreTaskEnd() { ascendc_twin::Unchecked("WaitPreTaskEnd"); }

}  // namespace AscendC
