// TBuf, the buffers that a TPipe hands out, and the allocator of static tensors.
#pragma once

#include "queue.h"

namespace AscendC {

template <TPosition position = TPosition::VECCALC>
class TBuf {
 public:
  static constexpr TPosition kPosition = position;

  template <typename T>
  LocalTensor<T> Get() {
    return Get<T>(length_ / sizeof(T));
  }
  template <typename T>
  LocalTensor<T> Get(uint32_t number, Loc loc = Loc::Here()) {
    return GetWithOffset<T>(number, 0, loc);
  }
  template <typename T>
  LocalTensor<T> GetWithOffset(uint32_t number, uint32_t offset, Loc loc = Loc::Here()) {
    ascendc_twin::Core* core = ascendc_twin::CurrentCore();
    if (offset + static_cast<uint64_t>(number) * sizeof(T) > length_)
      core->launch->Report(core, "TBuf::Get", loc, "out-of-range",
                           "asks for bytes [" + std::to_string(offset) + ", " +
                               std::to_string(offset + number * sizeof(T)) + ") of a buffer of " +
                               std::to_string(length_));
    const ascendc_twin::Buffer* buffer = buffer_.get();
    if (!buffer) return LocalTensor<T>();
    return LocalTensor<T>(position, buffer->begin + offset, number, buffer_);
  }
  uint32_t GetBufLen() const { return length_; }

 private:
  friend class TPipe;
  ascendc_twin::BufferRef buffer_;
  uint32_t length_ = 0;
};

inline ascendc_twin::BufferRef TPipe::Place(Hardware hardware, uint32_t length, Loc loc) {
  uint32_t& used = used_[hardware];
  const uint32_t begin = used;
  used += (length + ONE_BLK_SIZE - 1) / ONE_BLK_SIZE * ONE_BLK_SIZE;
  ascendc_twin::Space* space = core_->Memory(hardware);
  if (length == 0) core_->launch->Report(core_, "InitBuffer", loc, "empty-buffer", "0 bytes");
  if (space && used > space->size)
    core_->launch->Report(core_, "InitBuffer", loc, "over-capacity",
                          std::to_string(used) + " bytes in " + space->name + ", which has " +
                              std::to_string(space->size));
  if (hardware == Hardware::UB) core_->ub_in_use = used;
  if (++buffers_ == 65)
    core_->launch->Report(core_, "InitBuffer", loc, "too-many-buffers", "a TPipe has at most 64");
  return ascendc_twin::BufferRef(new ascendc_twin::Buffer{core_, hardware, begin, used});
}

template <typename Queue>
bool TPipe::InitBuffer(Queue& queue, ascendc_twin::Field8 number, uint32_t length, Loc loc) {
  queue.state_->slots.clear();
  queue.state_->slots.resize(number);
  for (auto& slot : queue.state_->slots) {
    slot.buffer = Place(GetPhyType(Queue::kPosition), length, loc);
    slot.buffer.get()->state = ascendc_twin::BufferState::kFree;
  }
  queues_.push_back(queue.state_);
  return true;
}

template <typename Buf>
bool TPipe::InitBuffer(Buf& buf, uint32_t length, Loc loc) {
  buf.length_ = (length + ONE_BLK_SIZE - 1) / ONE_BLK_SIZE * ONE_BLK_SIZE;
  buf.buffer_ = Place(GetPhyType(Buf::kPosition), length, loc);
  return true;
}

inline void TPipe::Reset() {
  for (auto& queue : queues_)
    for (auto& slot : queue->slots) {
      if (slot.buffer.get()->state != ascendc_twin::BufferState::kFree)
        core_->launch->Report(core_, "TPipe", loc_, "never-freed",
                              "a tensor of a queue was not given back with FreeTensor");
      if (slot.free_event >= 0) {
        ascendc_twin::Acquire(core_, ascendc_twin::PipesOf(queue->free_kind).to, slot.free_token);
        EventPool().GiveBack(core_, queue->free_kind, slot.free_event);
        slot.free_event = -1;
      }
    }
  queues_.clear();
  used_.clear();
  buffers_ = 0;
}

inline void TPipe::Destroy() {
  if (!alive_) return;
  alive_ = false;
  if (core_->launch->abandoned()) return;
  Reset();
  ascendc_twin::BarrierAll(core_);
  core_->ub_in_use = 0;
  if (core_->pipe_object == this) core_->pipe_object = nullptr;
}

template <Hardware hardware = Hardware::UB>
class LocalMemAllocator {
 public:
  LocalMemAllocator() = default;
  uint32_t GetCurAddr() const { return head_; }

  template <TPosition position, typename T>
  LocalTensor<T> Alloc(uint32_t size, Loc loc = Loc::Here()) {
    static_assert(GetPhyType(position) == hardware, "position of another memory");
    LocalTensor<T> tensor(position, head_, size, loc);
    head_ += (size * sizeof(T) + ONE_BLK_SIZE - 1) / ONE_BLK_SIZE * ONE_BLK_SIZE;
    return tensor;
  }
  template <TPosition position, typename T, uint32_t size>
  LocalTensor<T> Alloc(Loc loc = Loc::Here()) {
    return Alloc<position, T>(size, loc);
  }
  template <typename T>
  LocalTensor<T> Alloc(uint32_t size, Loc loc = Loc::Here()) {
    return Alloc<kDefault, T>(size, loc);
  }
  template <typename T, uint32_t size>
  LocalTensor<T> Alloc(Loc loc = Loc::Here()) {
    return Alloc<kDefault, T>(size, loc);
  }

 private:
  static constexpr TPosition kDefault = hardware == Hardware::UB     ? TPosition::VECIN
                                        : hardware == Hardware::L1   ? TPosition::A1
                                        : hardware == Hardware::L0A  ? TPosition::A2
                                        : hardware == Hardware::L0B  ? TPosition::B2
                                        : hardware == Hardware::L0C  ? TPosition::CO1
                                        : hardware == Hardware::BIAS ? TPosition::C2
                                                                     : TPosition::C2PIPE2GM;
  uint32_t head_ = 0;
};

}  // namespace AscendC

inline AscendC::TPipe* GetTPipePtr() {
  return static_cast<AscendC::TPipe*>(ascendc_twin::CurrentCore()->pipe_object);
}
