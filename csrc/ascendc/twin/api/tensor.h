// GlobalTensor and LocalTensor, and the local memory that is behind one.
#pragma once

#include <string>
#include <utility>

#include "../engine/field.h"
#include "../engine/run.h"

namespace ascendc_twin {

enum class BufferState : uint8_t { kStatic, kFree, kAllocated, kQueued };

// A piece of local memory that was handed out; tensors refer to it.
struct Buffer {
  Core* core;
  Hardware hardware;
  uint32_t begin, end;
  BufferState state = BufferState::kStatic;
  uint32_t generation = 0;  // counts FreeTensor: a handle of an earlier one is stale
  int references = 0;
  bool fixed = false;  // placed by an address in the source
};

class BufferRef {
 public:
  BufferRef() = default;
  explicit BufferRef(Buffer* buffer) : buffer_(buffer) { Take(); }
  BufferRef(const BufferRef& other) : buffer_(other.buffer_) { Take(); }
  BufferRef& operator=(const BufferRef& other) {
    if (buffer_ != other.buffer_) {
      Drop();
      buffer_ = other.buffer_;
      Take();
    }
    return *this;
  }
  ~BufferRef() { Drop(); }
  Buffer* get() const { return buffer_; }

 private:
  void Take() {
    if (buffer_) ++buffer_->references;
  }
  void Drop() {
    if (buffer_ && --buffer_->references == 0) {
      Unregister(buffer_);
      delete buffer_;
    }
    buffer_ = nullptr;
  }
  static inline void Unregister(Buffer* buffer);
  Buffer* buffer_ = nullptr;
};

// The tensors of this thread's core that stand at addresses of the source.
inline std::vector<Buffer*>& FixedBuffers() {
  static thread_local std::vector<Buffer*> buffers;
  return buffers;
}

inline void BufferRef::Unregister(Buffer* buffer) {
  if (!buffer->fixed) return;
  auto& all = FixedBuffers();
  all.erase(std::remove(all.begin(), all.end(), buffer), all.end());
}

// A tensor at an address that the kernel chose. Two that lie partly in one another are a mistake;
// one inside the other is a view.
inline BufferRef PlaceFixed(Hardware hardware, uint32_t begin, uint32_t end, const char* call,
                            Loc loc) {
  Core* core = CurrentCore();
  Buffer* buffer = new Buffer{core, hardware, begin, end};
  buffer->fixed = true;
  Space* space = core->Memory(hardware);
  if (space && end > space->size)
    core->launch->Report(core, call, loc, "over-capacity",
                         "a tensor ends at byte " + std::to_string(end) + " of " + space->name +
                             ", which has " + std::to_string(space->size));
  for (Buffer* other : FixedBuffers()) {
    if (other->hardware != hardware || other->end <= begin || end <= other->begin) continue;
    const bool inside = other->begin <= begin && end <= other->end;
    const bool around = begin <= other->begin && other->end <= end;
    if (!inside && !around)
      core->launch->Report(core, call, loc, "tensors-overlap",
                           "bytes [" + std::to_string(begin) + ", " + std::to_string(end) +
                               ") overlap a live tensor at [" + std::to_string(other->begin) +
                               ", " + std::to_string(other->end) + ")");
  }
  FixedBuffers().push_back(buffer);
  return BufferRef(buffer);
}

}  // namespace ascendc_twin

namespace AscendC {

using ascendc_twin::Loc;

struct TBuffAddr {
  uint32_t dataLen = 0;
  uint32_t bufferAddr = 0;
  uint8_t logicPos = 0;
};

template <typename T>
class LocalTensor {
 public:
  using PrimType = T;

  LocalTensor() = default;
  LocalTensor(TPosition position, uint32_t address, uint32_t size, Loc loc = Loc::Here())
      : position_(position),
        address_(address),
        size_(size),
        buffer_(ascendc_twin::PlaceFixed(GetPhyType(position), address, address + size * sizeof(T),
                                         "LocalTensor", loc)) {}
  LocalTensor(TPosition position, uint32_t address, uint32_t size, ascendc_twin::BufferRef buffer)
      : position_(position), address_(address), size_(size), buffer_(std::move(buffer)) {
    if (buffer_.get()) generation_ = buffer_.get()->generation;
  }

  LocalTensor operator[](uint32_t offset) const {
    LocalTensor tensor = *this;
    tensor.address_ = address_ + offset * sizeof(T);
    tensor.size_ = offset < size_ ? size_ - offset : 0;
    return tensor;
  }

  template <typename U>
  LocalTensor<U> ReinterpretCast() const {
    LocalTensor<U> tensor;
    tensor.position_ = position_;
    tensor.address_ = address_;
    tensor.size_ = static_cast<uint32_t>(static_cast<uint64_t>(size_) * sizeof(T) / sizeof(U));
    tensor.buffer_ = buffer_;
    tensor.generation_ = generation_;
    return tensor;
  }

  T GetValue(uint32_t offset, Loc loc = Loc::Here()) const;
  template <typename U>
  void SetValue(uint32_t offset, U value, Loc loc = Loc::Here()) const;
  class Element;
  Element operator()(uint32_t offset) const { return Element{*this, offset}; }

  uint32_t GetSize() const { return size_; }
  void SetSize(uint32_t size) { size_ = size; }
  uint32_t GetLength() const { return size_ * sizeof(T); }
  void SetBufferLen(uint32_t length) { size_ = length; }
  void SetUserTag(int32_t tag) { tag_ = tag; }
  int32_t GetUserTag() const { return tag_; }
  int32_t GetPosition() const { return static_cast<int32_t>(position_); }
  uint64_t GetPhyAddr() const { return address_; }
  uint64_t GetPhyAddr(uint32_t offset) const { return address_ + offset * sizeof(T); }

  // The twin's own view; no kernel needs these.
  TPosition position() const { return position_; }
  uint32_t address() const { return address_; }
  ascendc_twin::Buffer* buffer() const { return buffer_.get(); }
  uint32_t generation() const { return generation_; }
  const ascendc_twin::BufferRef& reference() const { return buffer_; }

 private:
  template <typename U>
  friend class LocalTensor;
  TPosition position_ = TPosition::MAX;
  uint32_t address_ = 0;
  uint32_t size_ = 0;
  uint32_t generation_ = 0;
  int32_t tag_ = 0;
  ascendc_twin::BufferRef buffer_;
};

// What tensor(i) gives: it reads and writes through the scalar unit.
template <typename T>
class LocalTensor<T>::Element {
 public:
  Element(const LocalTensor<T>& tensor, uint32_t offset) : tensor_(tensor), offset_(offset) {}
  operator T() const { return tensor_.GetValue(offset_); }
  Element& operator=(T value) {
    tensor_.SetValue(offset_, value);
    return *this;
  }

 private:
  LocalTensor<T> tensor_;
  uint32_t offset_;
};

template <typename T>
class GlobalTensor {
 public:
  using PrimType = T;

  GlobalTensor() = default;
  void SetGlobalBuffer(T* buffer, uint64_t size) {
    pointer_ = buffer;
    size_ = size;
    bounded_ = true;
  }
  void SetGlobalBuffer(T* buffer) {
    pointer_ = buffer;
    size_ = 0;
    bounded_ = false;
  }
  GlobalTensor operator[](uint64_t offset) const {
    GlobalTensor tensor = *this;
    tensor.pointer_ = pointer_ + offset;
    tensor.size_ = bounded_ && offset < size_ ? size_ - offset : 0;
    return tensor;
  }
  const T* GetPhyAddr() const { return pointer_; }
  T* GetPhyAddr(uint64_t offset) const { return pointer_ + offset; }
  uint64_t GetSize() const { return size_; }
  T GetValue(uint64_t offset, Loc loc = Loc::Here()) const;
  T operator()(uint64_t offset, Loc loc = Loc::Here()) const { return GetValue(offset, loc); }
  void SetValue(uint64_t offset, T value, Loc loc = Loc::Here());
  template <CacheRwMode mode = CacheRwMode::RW>
  void SetL2CacheHint(CacheMode) {}

  bool bounded() const { return bounded_; }

 private:
  T* pointer_ = nullptr;
  uint64_t size_ = 0;
  bool bounded_ = false;
};

}  // namespace AscendC
