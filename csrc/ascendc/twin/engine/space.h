// A memory with a valid bit per byte and, per 32-byte block, the accesses that a later one may race
// with.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ascendc_twin {

// Where in the kernel source a call stands.
struct Loc {
  const char* file;
  int line;
  static Loc Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return Loc{file, line};
  }
};

// The last two are the scalar unit's reads and writes beside its cache: one of them sees all of
// another, so that a core may poll for what another writes.
enum class Kind : uint8_t { kRead, kWrite, kAtomic, kPolled, kPosted };

inline bool Reads(Kind kind) { return kind == Kind::kRead || kind == Kind::kPolled; }
// Of what was there nothing is left.
inline bool Overwrites(Kind kind) { return kind == Kind::kWrite || kind == Kind::kPosted; }

// Whether two accesses to the same bytes need an order.
inline bool Conflict(Kind a, Kind b) {
  if (a == b) return Overwrites(a);
  if (Reads(a) && Reads(b)) return false;
  return !(a == Kind::kPolled && b == Kind::kPosted) && !(a == Kind::kPosted && b == Kind::kPolled);
}

// One unit that executes in order: a pipe of a core. Clocks are indexed by it.
using ThreadId = uint32_t;
using Clock = std::vector<uint32_t>;

inline void Join(Clock& into, const Clock& from) {
  for (size_t i = 0; i < into.size(); ++i) into[i] = into[i] < from[i] ? from[i] : into[i];
}

struct AccessRecord {
  uint32_t thread;
  uint32_t index;  // the thread's instruction count at the access
  uint32_t mask;   // the bytes of the block
  uint32_t site;   // in Launch's table of calls
  Kind kind;
};

constexpr uint32_t kBlock = 32;
constexpr uint32_t kCacheLine = 64;
constexpr uint8_t kPoison = 0xff;  // NaN as half, bfloat16 and float

struct Space {
  std::string name;
  uint8_t* data = nullptr;
  uint64_t size = 0;
  bool global = false;
  std::vector<uint8_t> valid;
  std::vector<std::vector<AccessRecord>> blocks;
  std::vector<uint32_t>
      line_version;             // global memory: counts writes of others than the scalar unit
  std::vector<int> line_owner;  // global memory: the core whose scalar unit wrote the line

  void Own(const std::string& called, uint64_t bytes) {
    name = called;
    storage_.assign(bytes, kPoison);
    Adopt(called, storage_.data(), bytes, false, false);
  }

  void Adopt(const std::string& called, uint8_t* memory, uint64_t bytes, bool is_global,
             bool is_valid) {
    name = called;
    data = memory;
    size = bytes;
    global = is_global;
    valid.assign(bytes, is_valid);
    blocks.assign((bytes + kBlock - 1) / kBlock, {});
    if (global) {
      line_version.assign((bytes + kCacheLine - 1) / kCacheLine, 0);
      line_owner.assign(line_version.size(), -1);
    }
  }

 private:
  std::vector<uint8_t> storage_;
};

}  // namespace ascendc_twin
