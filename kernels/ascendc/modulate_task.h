// What modulate's forward and backward share: the split into tasks, and their vectors.
#pragma once

#include "modulate_tiling.h"
#include "row_norm.h"

namespace mmkern {

// A task: up to `chunk` tokens of one segment. Tasks are numbered along the tokens.
struct ModulateTask {
  int32_t batch;
  int32_t token;  // the first
  int32_t rows;

  __aicore__ ModulateTask(const ModulateTiling& t, int32_t index) {
    int32_t chunks = CeilDiv(t.segment, t.chunk), segments = t.tokens / t.segment;
    int32_t segment = index / chunks, first = index % chunks * t.chunk;
    batch = segment / segments;
    token = segment % segments * t.segment + first;
    rows = Min(t.chunk, t.segment - first);
  }
  __aicore__ static int32_t Count(const ModulateTiling& t) {
    return t.batch * (t.tokens / t.segment) * CeilDiv(t.segment, t.chunk);
  }
};

// The range of tasks of this core: a run of neighbours, which share most vectors.
struct CoreTasks {
  int32_t begin;
  int32_t end;

  __aicore__ explicit CoreTasks(int32_t count) {
    int64_t core = AscendC::GetBlockIdx(), cores = AscendC::GetBlockNum();
    begin = static_cast<int32_t>(count * core / cores);
    end = static_cast<int32_t>(count * (core + 1) / cores);
  }
};

__aicore__ inline Vector VectorOf(const ModulateVector& v, GM_ADDR base, const ModulateTask& task) {
  int64_t offset = task.batch * v.batch_stride + task.token / v.tokens * v.frame_stride;
  return Vector{base, offset, v.kind == 2};
}

}  // namespace mmkern
