#include "large_memory.h"

#include <c10/util/Exception.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

namespace mmkern {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kDefaultLimit = 256;  // MiB

#if defined(__SANITIZE_ADDRESS__)
// Not a byte more than was asked for, between red zones.
constexpr size_t kUnit = 1;
void* map_pages(size_t bytes) { return ::operator new(bytes, std::align_val_t{64}, std::nothrow); }
void unmap_pages(void* data, size_t) { ::operator delete(data, std::align_val_t{64}); }
#elif defined(__linux__)
constexpr size_t kUnit = kHugePage;
// From the system and back to it: the C library would keep some of what is freed.
void* map_pages(size_t bytes) {
  constexpr int kProtection = PROT_READ | PROT_WRITE, kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
  void* mapped = mmap(nullptr, bytes + kHugePage, kProtection, kFlags, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(mapped);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + bytes, kHugePage - before);
  madvise(begin + before, bytes, MADV_HUGEPAGE);  // a hint: may fail
  return begin + before;
}
void unmap_pages(void* data, size_t bytes) { munmap(data, bytes); }
#else
constexpr size_t kUnit = kHugePage;
void* map_pages(size_t bytes) { return std::aligned_alloc(kHugePage, bytes); }
void unmap_pages(void* data, size_t) { std::free(data); }
#endif

struct Block {
  explicit Block(size_t size) : bytes(size), data(map_pages(size)) {}
  ~Block() {
    if (data != nullptr) unmap_pages(data, bytes);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  const size_t bytes;
  void* const data;
};
using Blocks = std::vector<std::unique_ptr<Block>>;

// MMKERN_CACHE_MB, in bytes.
size_t limit_from_environment() {
  const char* text = std::getenv("MMKERN_CACHE_MB");
  if (text == nullptr) return kDefaultLimit << 20;
  const std::string_view digits(text);
  size_t megabytes = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), megabytes);
  TORCH_CHECK_VALUE(
      error == std::errc() && end == digits.data() + digits.size() && megabytes <= (SIZE_MAX >> 20),
      "MMKERN_CACHE_MB is '", digits, "'; wanted a number of MiB, 0 to keep nothing");
  return megabytes << 20;
}

// Nobody waits for the lock: who does not get it allocates and frees as if nothing were kept.
// A process that is forked while another thread holds the lock can therefore go on.
class LargeMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const size_t size = (std::max<size_t>(bytes, 1) + kUnit - 1) / kUnit * kUnit;
    std::unique_ptr<Block> block = take(size);
    if (block == nullptr) block = std::make_unique<Block>(size);
    if (block->data == nullptr) {
      clear();
      block = std::make_unique<Block>(size);
    }
    TORCH_CHECK(block->data != nullptr, "mmkern: no memory for ", bytes, " bytes on the CPU");
    void* data = block->data;
    return {data, block.release(), &LargeMemory::give_back, c10::DeviceType::CPU};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }

  void clear() {
    Blocks dropped;  // freed after the lock is
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return;
    dropped.swap(kept_);
    kept_bytes_ = 0;
  }

  size_t kept_bytes() {
    const std::lock_guard lock(mutex_);
    return kept_bytes_;
  }

 private:
  // The newest block that is large enough and at most a quarter too large; null if there is none.
  std::unique_ptr<Block> take(size_t size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    for (auto at = kept_.rbegin(); at != kept_.rend(); ++at) {
      const size_t bytes = (*at)->bytes;
      if (bytes < size || bytes - size > size / 4) continue;
      std::unique_ptr<Block> block = std::move(*at);
      kept_.erase(std::next(at).base());
      kept_bytes_ -= bytes;
      return block;
    }
    return nullptr;
  }

  // Keeps a block, at the expense of the oldest ones.
  void keep(std::unique_ptr<Block> block) {
    Blocks dropped;  // freed after the lock is
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block->bytes > limit_) return;
    const size_t bytes = block->bytes;
    try {
      kept_.push_back(std::move(block));
    } catch (const std::bad_alloc&) {
      return;
    }
    kept_bytes_ += bytes;
    auto oldest = kept_.begin();
    for (; kept_bytes_ > limit_; ++oldest) {
      kept_bytes_ -= (*oldest)->bytes;
      dropped.push_back(std::move(*oldest));
    }
    kept_.erase(kept_.begin(), oldest);
  }

  static void give_back(void* block);

  const size_t limit_ = limit_from_environment();
  std::mutex mutex_;
  Blocks kept_;  // oldest first
  size_t kept_bytes_ = 0;
};

// Never destroyed: tensors may outlive static objects.
LargeMemory& memory() {
  static LargeMemory& instance = *new LargeMemory;
  return instance;
}

void LargeMemory::give_back(void* block) {
  memory().keep(std::unique_ptr<Block>(static_cast<Block*>(block)));
}

}  // namespace

c10::Allocator& large_memory() { return memory(); }
void empty_cache() { memory().clear(); }
size_t cached_bytes() { return memory().kept_bytes(); }

}  // namespace mmkern
