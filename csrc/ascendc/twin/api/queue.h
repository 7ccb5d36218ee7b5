// TPipe, TQue, TQueBind, TBuf and the allocator of static tensors.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "tensor.h"

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

// The event ids that are out, per event: the lowest free one is handed out next.
class EventPool {
 public:
  int Take(ascendc_twin::Core* core, HardEvent event, const char* call, Loc loc) {
    auto& slots = core->events[static_cast<int>(event)];
    for (int id = 0; id < ascendc_twin::kEventIds; ++id)
      if (!slots[id].allocated) {
        slots[id].allocated = true;
        return id;
      }
    core->launch->Report(core, call, loc, "event-ids-exhausted",
                         "all 8 event ids of " + ascendc_twin::EventName(event) + " are in use");
    return 0;
  }
  void GiveBack(ascendc_twin::Core* core, HardEvent event, int id) {
    if (id >= 0 && id < ascendc_twin::kEventIds)
      core->events[static_cast<int>(event)][id].allocated = false;
  }
  int Peek(ascendc_twin::Core* core, HardEvent event) {
    auto& slots = core->events[static_cast<int>(event)];
    for (int id = 0; id < ascendc_twin::kEventIds; ++id)
      if (!slots[id].allocated) return id;
    return 0;
  }
};

// A buffer of a queue, with the events that order its uses.
struct QueueSlot {
  ascendc_twin::BufferRef buffer;
  ascendc_twin::Token free_token, full_token;
  int free_event = -1, full_event = -1;  // event ids that are out
  HardEvent full_kind = HardEvent::MAX;
};

// Of a queue and of the pipe that gave it its buffers, whichever of the two lives longer.
struct QueueState {
  std::vector<QueueSlot> slots;
  std::deque<QueueSlot*> queued;
  size_t cursor = 0;
  HardEvent free_kind = HardEvent::MAX;
};

class TPipe {
 public:
  explicit TPipe(Loc loc = Loc::Here()) : core_(ascendc_twin::CurrentCore()), loc_(loc) { Init(); }
  TPipe(const TPipe&) = delete;
  TPipe& operator=(const TPipe&) = delete;
  ~TPipe() noexcept(false) {
    if (!std::uncaught_exceptions()) Destroy();
  }

  void Init() {
    core_->pipe_object = this;
    alive_ = true;
  }
  void Destroy();
  void Reset();

  template <typename Queue>
  bool InitBuffer(Queue& queue, ascendc_twin::Field8 number, uint32_t length,
                  Loc loc = Loc::Here());
  template <typename Buf>
  bool InitBuffer(Buf& buf, uint32_t length, Loc loc = Loc::Here());

  template <HardEvent event>
  TEventID AllocEventID(Loc loc = Loc::Here()) {
    return static_cast<TEventID>(EventPool().Take(core_, event, "AllocEventID", loc));
  }
  template <HardEvent event>
  void ReleaseEventID(TEventID id) {
    EventPool().GiveBack(core_, event, id);
  }
  template <HardEvent event>
  TEventID FetchEventID() {
    return static_cast<TEventID>(EventPool().Peek(core_, event));
  }
  TEventID FetchEventID(HardEvent event) {
    return static_cast<TEventID>(EventPool().Peek(core_, event));
  }

 private:
  ascendc_twin::BufferRef Place(Hardware hardware, uint32_t length, Loc loc);

  ascendc_twin::Core* core_;
  Loc loc_;
  bool alive_ = false;
  std::map<Hardware, uint32_t> used_;
  std::vector<std::shared_ptr<QueueState>> queues_;
  int buffers_ = 0;
};

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
