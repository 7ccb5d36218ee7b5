// TPipe and the event ids that it hands out.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "operand.h"

namespace AscendC {

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

}  // namespace AscendC
