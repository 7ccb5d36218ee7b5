// TQueBind and TQue.
#pragma once

#include "pipe.h"

namespace AscendC {

using TTagType = int32_t;

// The event that EnQue sets and DeQue waits for, by where the data comes from and goes to.
constexpr HardEvent QueueEvent(Hardware from, Hardware to) {
  if (from == Hardware::GM && to == Hardware::UB) return HardEvent::MTE2_V;
  if (from == Hardware::GM) return HardEvent::MTE2_MTE1;
  if (from == Hardware::L1) return HardEvent::MTE1_M;
  if (from == Hardware::L0C) return HardEvent::M_FIX;
  if (from == Hardware::UB && to == Hardware::UB) return HardEvent::MTE2_MTE3;
  return HardEvent::V_MTE3;
}

constexpr TPosition QueueSource(TPosition position) {
  switch (position) {
    case TPosition::A2:
      return TPosition::A1;
    case TPosition::B2:
      return TPosition::B1;
    case TPosition::C2:
      return TPosition::C1;
    case TPosition::CO1:
    case TPosition::VECOUT:
    case TPosition::VECCALC:
      return position;
    default:
      return TPosition::GM;
  }
}

constexpr TPosition QueueTarget(TPosition position) {
  switch (position) {
    case TPosition::CO1:
    case TPosition::VECOUT:
      return TPosition::GM;
    default:
      return position;
  }
}

// What all queues have in common; the template on top knows positions and depth.
class QueueBase {
 public:
  QueueBase() = default;
  QueueBase(const QueueBase&) = delete;
  QueueBase& operator=(const QueueBase&) = delete;

 protected:
  friend class TPipe;
  using Slot = QueueSlot;

  Slot* Find(const ascendc_twin::Buffer* buffer) {
    for (Slot& slot : state_->slots)
      if (slot.buffer.get() == buffer) return &slot;
    return nullptr;
  }

  void Report(const char* call, Loc loc, const char* rule, const std::string& text) const {
    ascendc_twin::Core* core = ascendc_twin::CurrentCore();
    core->launch->Report(core, call, loc, rule, text);
  }

  static bool Has(ascendc_twin::Core* core, HardEvent event) {
    const ascendc_twin::EventPipes pipes = ascendc_twin::PipesOf(event);
    return ascendc_twin::PipeExists(*core, pipes.from) && ascendc_twin::PipeExists(*core, pipes.to);
  }

  Slot* Alloc(HardEvent free, Loc loc);
  void Put(Slot& slot, HardEvent event, int depth, Loc loc);
  Slot* Take(HardEvent event, Loc loc);
  void Free(Slot& slot, HardEvent free, Loc loc);

  std::shared_ptr<QueueState> state_ = std::make_shared<QueueState>();
};

inline QueueBase::Slot* QueueBase::Alloc(HardEvent free, Loc loc) {
  using namespace ascendc_twin;
  Core* core = CurrentCore();
  if (state_->slots.empty()) {
    Report("AllocTensor", loc, "queue-order", "the queue has no buffers: InitBuffer it first");
    return nullptr;
  }
  for (size_t step = 0; step < state_->slots.size(); ++step) {
    Slot& slot = state_->slots[(state_->cursor + step) % state_->slots.size()];
    if (slot.buffer.get()->state != BufferState::kFree) continue;
    state_->cursor = (state_->cursor + step + 1) % state_->slots.size();
    slot.buffer.get()->state = BufferState::kAllocated;
    if (slot.free_event >= 0) {
      Acquire(core, PipesOf(free).to, slot.free_token);
      EventPool().GiveBack(core, free, slot.free_event);
      slot.free_event = -1;
    }
    return &slot;
  }
  Report("AllocTensor", loc, "queue-full",
         "all " + std::to_string(state_->slots.size()) + " buffers are in use: the core hangs");
  return &state_->slots[0];
}

inline void QueueBase::Put(Slot& slot, HardEvent event, int depth, Loc loc) {
  using namespace ascendc_twin;
  Core* core = CurrentCore();
  Buffer* buffer = slot.buffer.get();
  if (buffer->state != BufferState::kAllocated) {
    Report("EnQue", loc, "queue-order",
           buffer->state == BufferState::kQueued ? "the tensor is in the queue already"
                                                 : "the tensor was given back with FreeTensor");
    return;
  }
  if (static_cast<int>(state_->queued.size()) >= std::max(depth, 1))
    Report("EnQue", loc, "queue-depth",
           "the queue of depth " + std::to_string(depth) + " holds " +
               std::to_string(state_->queued.size()) + " tensors already");
  buffer->state = BufferState::kQueued;
  state_->queued.push_back(&slot);
  if (Has(core, event)) {
    slot.full_event = EventPool().Take(core, event, "EnQue", loc);
    slot.full_kind = event;
    slot.full_token = Release(core, PipesOf(event).from, core->launch->SiteId("EnQue", loc));
  }
}

inline QueueBase::Slot* QueueBase::Take(HardEvent event, Loc loc) {
  using namespace ascendc_twin;
  Core* core = CurrentCore();
  if (state_->queued.empty()) {
    Report("DeQue", loc, "queue-order", "the queue is empty: the core hangs");
    return state_->slots.empty() ? nullptr : &state_->slots[0];
  }
  Slot* slot = state_->queued.front();
  state_->queued.pop_front();
  slot->buffer.get()->state = BufferState::kAllocated;
  if (slot->full_event >= 0) {
    if (slot->full_kind != event)
      Report("DeQue", loc, "queue-order",
             "waits for " + EventName(event) + " where EnQue set " + EventName(slot->full_kind));
    Acquire(core, PipesOf(event).to, slot->full_token);
    EventPool().GiveBack(core, slot->full_kind, slot->full_event);
    slot->full_event = -1;
  }
  return slot;
}

inline void QueueBase::Free(Slot& slot, HardEvent free, Loc loc) {
  using namespace ascendc_twin;
  Core* core = CurrentCore();
  Buffer* buffer = slot.buffer.get();
  if (buffer->state != BufferState::kAllocated) {
    Report("FreeTensor", loc, "queue-order",
           buffer->state == BufferState::kQueued ? "the tensor is still in the queue"
                                                 : "the tensor was given back already");
    return;
  }
  buffer->state = BufferState::kFree;
  ++buffer->generation;
  state_->free_kind = free;
  if (Has(core, free)) {
    slot.free_event = EventPool().Take(core, free, "FreeTensor", loc);
    slot.free_token = Release(core, PipesOf(free).from, core->launch->SiteId("FreeTensor", loc));
  }
}

template <TPosition src, TPosition dst, int32_t depth, auto mask = 0>
class TQueBind : public QueueBase {
 public:
  static constexpr TPosition kPosition = dst == TPosition::GM ? src : dst;
  static constexpr HardEvent kFull = QueueEvent(GetPhyType(src), GetPhyType(dst));

  template <typename T>
  LocalTensor<T> AllocTensor(Loc loc = Loc::Here()) {
    Slot* slot = Alloc(Reverse(kFull), loc);
    return slot ? Make<T>(*slot) : LocalTensor<T>();
  }
  template <typename T>
  void AllocTensor(LocalTensor<T>& tensor, Loc loc = Loc::Here()) {
    tensor = AllocTensor<T>(loc);
  }
  template <typename T>
  bool EnQue(const LocalTensor<T>& tensor, Loc loc = Loc::Here()) {
    return Put<T>(tensor, kFull, loc);
  }
  template <TPosition from, TPosition to, typename T>
  bool EnQue(const LocalTensor<T>& tensor, Loc loc = Loc::Here()) {
    return Put<T>(tensor, QueueEvent(GetPhyType(from), GetPhyType(to)), loc);
  }
  template <typename T>
  LocalTensor<T> DeQue(Loc loc = Loc::Here()) {
    Slot* slot = Take(kFull, loc);
    return slot ? Make<T>(*slot) : LocalTensor<T>();
  }
  template <typename T>
  void DeQue(LocalTensor<T>& tensor, Loc loc = Loc::Here()) {
    tensor = DeQue<T>(loc);
  }
  template <TPosition from, TPosition to, typename T>
  LocalTensor<T> DeQue(Loc loc = Loc::Here()) {
    Slot* slot = Take(QueueEvent(GetPhyType(from), GetPhyType(to)), loc);
    return slot ? Make<T>(*slot) : LocalTensor<T>();
  }
  template <typename T>
  void FreeTensor(LocalTensor<T>& tensor, Loc loc = Loc::Here()) {
    Slot* slot = Find(tensor.buffer());
    if (!slot) {
      Report("FreeTensor", loc, "queue-order", "the tensor is not of this queue");
      return;
    }
    if (slot->buffer.get()->generation != tensor.generation()) {
      Report("FreeTensor", loc, "queue-order", "the tensor was given back already");
      return;
    }
    Free(*slot, Reverse(kFull), loc);
  }
  bool HasTensorInQue() const { return !state_->queued.empty(); }
  bool VacantInQue() const {
    return static_cast<int32_t>(state_->queued.size()) < std::max(depth, 1);
  }
  int32_t GetTensorCountInQue() const { return static_cast<int32_t>(state_->queued.size()); }
  bool HasIdleBuffer() const {
    for (const Slot& slot : state_->slots)
      if (slot.buffer.get()->state == ascendc_twin::BufferState::kFree) return true;
    return false;
  }
  void FreeAllEvent() {
    for (Slot& slot : state_->slots)
      if (slot.free_event >= 0) {
        ascendc_twin::Core* core = ascendc_twin::CurrentCore();
        ascendc_twin::Acquire(core, ascendc_twin::PipesOf(Reverse(kFull)).to, slot.free_token);
        EventPool().GiveBack(core, Reverse(kFull), slot.free_event);
        slot.free_event = -1;
      }
  }

  static constexpr HardEvent Reverse(HardEvent event) {
    switch (event) {
      case HardEvent::MTE2_V:
        return HardEvent::V_MTE2;
      case HardEvent::MTE2_MTE1:
        return HardEvent::MTE1_MTE2;
      case HardEvent::MTE1_M:
        return HardEvent::M_MTE1;
      case HardEvent::M_FIX:
        return HardEvent::FIX_M;
      case HardEvent::MTE2_MTE3:
        return HardEvent::MTE3_MTE2;
      default:
        return HardEvent::MTE3_V;
    }
  }

 private:
  template <typename T>
  LocalTensor<T> Make(Slot& slot) {
    const ascendc_twin::Buffer* buffer = slot.buffer.get();
    return LocalTensor<T>(kPosition, buffer->begin,
                          static_cast<uint32_t>((buffer->end - buffer->begin) / sizeof(T)),
                          slot.buffer);
  }
  template <typename T>
  bool Put(const LocalTensor<T>& tensor, HardEvent event, Loc loc) {
    Slot* slot = Find(tensor.buffer());
    if (!slot) {
      Report("EnQue", loc, "queue-order", "the tensor is not of this queue");
      return false;
    }
    if (slot->buffer.get()->generation != tensor.generation()) {
      Report("EnQue", loc, "queue-order", "the tensor was given back with FreeTensor");
      return false;
    }
    QueueBase::Put(*slot, event, depth, loc);
    return true;
  }
};

template <TPosition position, int32_t depth, auto mask = 0>
class TQue : public TQueBind<QueueSource(position), QueueTarget(position), depth, mask> {};

}  // namespace AscendC
