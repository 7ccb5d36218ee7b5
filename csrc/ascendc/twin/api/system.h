// Flags, barriers, cross-core synchronisation, indices, cache control and atomics.
#pragma once

#include "memory.h"

#define g_coreType (ascendc_twin::CurrentCore()->cube ? AscendC::AIC : AscendC::AIV)
#define ASCEND_IS_AIC (ascendc_twin::CurrentCore()->cube)
#define ASCEND_IS_AIV (!ascendc_twin::CurrentCore()->cube)
#define ASCEND_IS_NOT_AIC (!ascendc_twin::CurrentCore()->cube)
#define ASCEND_IS_NOT_AIV (ascendc_twin::CurrentCore()->cube)
#define ASCEND_IS_AICORE (true)
#define KERNEL_TASK_TYPE_DEFAULT(type)
#define KERNEL_TASK_TYPE(key, type)

namespace AscendC {

struct SyncAllConfig {
  pipe_t triggerPipe;
  pipe_t waitPipe;
};
constexpr SyncAllConfig DEFAULT_SYNC_ALL_CONFIG = {PIPE_ALL, PIPE_ALL};

inline int64_t GetBlockIdx() {
  const ascendc_twin::Core* core = ascendc_twin::CurrentCore();
  return core->cube ? core->block : core->block * core->ratio + core->sub;
}
inline int64_t GetBlockNum() { return ascendc_twin::CurrentCore()->launch->options.blocks; }
inline int64_t GetSubBlockIdx() { return ascendc_twin::CurrentCore()->sub; }
inline int64_t GetSubBlockNum() {
  const ascendc_twin::Core* core = ascendc_twin::CurrentCore();
  return core->cube ? 1 : core->ratio;
}
inline int64_t GetTaskRation() { return GetSubBlockNum(); }
inline int64_t GetTaskRatio() { return GetSubBlockNum(); }
inline int64_t GetSystemCycle() {
  const ascendc_twin::Core* core = ascendc_twin::CurrentCore();
  double time = 0;
  for (const auto& pipe : core->pipes) time = std::max(time, pipe.time);
  return static_cast<int64_t>(time);
}
constexpr int16_t GetDataBlockSizeInBytes() { return ONE_BLK_SIZE; }
constexpr uint32_t GetUBSizeInBytes() { return TOTAL_UB_SIZE; }
inline uint32_t GetRuntimeUBSize() { return TOTAL_UB_SIZE; }
inline void InitSocState() {
  ascendc_twin::Core* core = ascendc_twin::CurrentCore();
  core->atomic = ascendc_twin::AtomicOp::kNone;
  core->mask = ascendc_twin::MaskRegister();
}
template <typename... Unused>
inline void SetSysWorkspace(Unused...) {
  ascendc_twin::Unchecked("SetSysWorkspace");
}
inline void SetSyncBaseAddr(uint64_t) {}

template <HardEvent event>
inline void SetFlag(int32_t id, Loc loc = Loc::Here()) {
  ascendc_twin::SetEvent(ascendc_twin::CurrentCore(), "SetFlag", loc, event, id);
}
template <HardEvent event>
inline void WaitFlag(int32_t id, Loc loc = Loc::Here()) {
  ascendc_twin::WaitEvent(ascendc_twin::CurrentCore(), "WaitFlag", loc, event, id);
}

template <pipe_t from, pipe_t to>
class TQueSync {
 public:
  void SetFlag(TEventID id, Loc loc = Loc::Here()) { Find(loc, id, true); }
  void WaitFlag(TEventID id, Loc loc = Loc::Here()) { Find(loc, id, false); }

 private:
  void Find(Loc loc, int id, bool set) {
    for (int event = 0; event < ascendc_twin::kEvents; ++event) {
      const auto pipes = ascendc_twin::PipesOf(static_cast<HardEvent>(event));
      if (pipes.from != ascendc_twin::ToPipe(from) || pipes.to != ascendc_twin::ToPipe(to))
        continue;
      if (set)
        ascendc_twin::SetEvent(ascendc_twin::CurrentCore(), "SetFlag", loc,
                               static_cast<HardEvent>(event), id);
      else
        ascendc_twin::WaitEvent(ascendc_twin::CurrentCore(), "WaitFlag", loc,
                                static_cast<HardEvent>(event), id);
      return;
    }
  }
};

template <pipe_t pipe>
inline void PipeBarrier(Loc loc = Loc::Here()) {
  ascendc_twin::Core* core = ascendc_twin::CurrentCore();
  if (pipe == PIPE_ALL)
    ascendc_twin::BarrierAll(core);
  else if (pipe == PIPE_S || !ascendc_twin::PipeExists(*core, ascendc_twin::ToPipe(pipe)))
    core->launch->Report(core, "PipeBarrier", loc, "event-pipe", "no barrier of this pipe here");
  else
    ascendc_twin::BarrierPipe(core, ascendc_twin::ToPipe(pipe));
}

template <MemDsbT kind>
inline void DataSyncBarrier() {
  // Orders the scalar unit's own accesses, which the twin runs in order anyway.
}

template <uint8_t mode, pipe_t pipe>
inline void CrossCoreSetFlag(ascendc_twin::Field16 flag, Loc loc = Loc::Here()) {
  ascendc_twin::SetCross(ascendc_twin::CurrentCore(), "CrossCoreSetFlag", loc, mode, pipe, flag);
}
template <uint8_t mode = 0, pipe_t pipe = PIPE_S>
inline void CrossCoreWaitFlag(ascendc_twin::Field16 flag, Loc loc = Loc::Here()) {
  ascendc_twin::WaitCross(ascendc_twin::CurrentCore(), "CrossCoreWaitFlag", loc, flag);
}

template <bool isAIVOnly = true, const SyncAllConfig& config = DEFAULT_SYNC_ALL_CONFIG>
inline void SyncAll(Loc loc = Loc::Here()) {
  ascendc_twin::Core* core = ascendc_twin::CurrentCore();
  if (isAIVOnly && core->cube) return;
  if (!isAIVOnly && core->launch->options.type == ascendc_twin::KernelType::kAiv)
    core->launch->Report(core, "SyncAll", loc, "deadlock",
                         "SyncAll<false> in a kernel without cube cores waits for ever");
  ascendc_twin::SyncCores(
      core, "SyncAll", loc, isAIVOnly ? 0 : 1, config.triggerPipe, config.waitPipe,
      [](const ascendc_twin::Core& other) { return !isAIVOnly || !other.cube; });
}

// The form that polls global memory: the workspace must hold zeros, 32 bytes per core.
template <bool isAIVOnly = true>
inline void SyncAll(const GlobalTensor<int32_t>& workspace, const LocalTensor<int32_t>& local,
                    const int32_t usedCores = 0, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Core* core = CurrentCore();
  int cores = usedCores;
  if (cores == 0)
    for (auto& other : core->launch->cores) cores += !other->cube;
  Instruction instruction(kS, "SyncAll", loc);
  const GlobalOperand flags = Use(instruction, workspace, "gmWorkspace");
  const Operand scratch = Use(instruction, local, "ubWorkspace", {Hardware::UB});
  Touch(instruction, scratch, 0, cores * 32u, Kind::kWrite);
  if (flags.space && flags.offset + cores * 32u > flags.space->size)
    instruction.Report("out-of-range", "gmWorkspace needs 32 bytes per core");
  Issue(instruction, 1, [] {});
  const int limit = usedCores;
  SyncCores(core, "SyncAll", loc, 2, PIPE_ALL, PIPE_ALL, [limit](const Core& other) {
    return !other.cube && (limit == 0 || other.block * other.ratio + other.sub < limit);
  });
}

template <typename T, CacheLine entire, DcciDst destination = DcciDst::CACHELINE_ALL>
inline void DataCacheCleanAndInvalid(const GlobalTensor<T>& tensor, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kS, "DataCacheCleanAndInvalid", loc);
  Core* core = instruction.core;
  if (entire == CacheLine::ENTIRE_DATA_CACHE) {
    core->cached_lines.clear();
    return;
  }
  const GlobalOperand operand = Use(instruction, tensor, "the tensor");
  if (!operand.space) return;
  core->cached_lines.erase(reinterpret_cast<uint64_t>(operand.space->data) / kCacheLine +
                           operand.offset / kCacheLine);
}
template <typename T, CacheLine entire, DcciDst destination>
inline void DataCacheCleanAndInvalid(const LocalTensor<T>&) {
  ascendc_twin::Unchecked("DataCacheCleanAndInvalid of a LocalTensor");
}
template <typename T>
inline void DataCachePreload(const GlobalTensor<uint64_t>&, const T) {}
inline void ICachePreLoad(const int64_t) {}

template <typename T>
constexpr int AtomicType() {
  return std::is_same<T, float>::value        ? 1
         : std::is_same<T, half>::value       ? 2
         : std::is_same<T, bfloat16_t>::value ? 3
         : std::is_same<T, int32_t>::value    ? 4
         : std::is_same<T, int16_t>::value    ? 5
         : std::is_same<T, int8_t>::value     ? 6
                                              : 0;
}
template <typename T>
inline void SetAtomic(ascendc_twin::AtomicOp op, const char* call, Loc loc) {
  ascendc_twin::Core* core = ascendc_twin::CurrentCore();
  if (AtomicType<T>() == 0)
    core->launch->Report(core, call, loc, "dtype", "no atomics on this type");
  core->atomic = op;
  core->atomic_type = AtomicType<T>();
}
template <typename T>
inline void SetAtomicAdd(Loc loc = Loc::Here()) {
  SetAtomic<T>(ascendc_twin::AtomicOp::kAdd, "SetAtomicAdd", loc);
}
template <typename T>
inline void SetAtomicMax(Loc loc = Loc::Here()) {
  SetAtomic<T>(ascendc_twin::AtomicOp::kMax, "SetAtomicMax", loc);
}
template <typename T>
inline void SetAtomicMin(Loc loc = Loc::Here()) {
  SetAtomic<T>(ascendc_twin::AtomicOp::kMin, "SetAtomicMin", loc);
}
template <typename T>
inline void SetAtomicType(Loc = Loc::Here()) {
  ascendc_twin::CurrentCore()->atomic_type = AtomicType<T>();
}
inline void SetAtomicNone() { ascendc_twin::CurrentCore()->atomic = ascendc_twin::AtomicOp::kNone; }
inline void DisableDmaAtomic() { SetAtomicNone(); }

template <typename... Unused>
inline void DumpTensor(Unused&&...) {
  ascendc_twin::Unchecked("DumpTensor");
}
template <typename... Unused>
inline void printf(const char*, Unused&&...) {}
template <typename... Unused>
inline void PRINTF(const char*, Unused&&...) {}

}  // namespace AscendC

#define GetSysWorkSpacePtr() (static_cast<uint8_t*>(nullptr))
