// One run of a kernel: the cores, the global memory, the findings, and who runs when.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "core.h"

namespace ascendc_twin {

enum class KernelType { kAiv, kAic, kMix11, kMix12 };

struct Options {
  std::string kernel = "kernel";
  KernelType type = KernelType::kAiv;
  int blocks = 1;
  bool lazy = false;      // every instruction as late as its synchronisation allows
  uint32_t order = 0;     // permutes the order in which the cores run
  bool auto_sync = true;  // what the compiler inserts by default on an AIV
  uint64_t instruction_limit = 100u << 20;
};

enum class Role { kIn, kOut, kInOut, kWorkspace };

struct GlobalBuffer {
  Space space;
  Role role;
};

struct Finding {
  std::string rule, core, call, file, text;
  int line;
  uint64_t count;
};

struct Site {
  const char* call;
  Loc loc;
};

struct Abandoned : std::exception {};

struct Launch {
  Options options;
  std::vector<std::unique_ptr<Core>> cores;
  std::vector<std::unique_ptr<GlobalBuffer>> buffers;
  std::vector<Finding> findings;
  std::map<std::string, uint64_t> unchecked;  // what was not checked, and how often
  std::vector<Site> sites;
  std::map<std::tuple<const char*, const char*, int>, uint32_t> site_ids;
  uint64_t issued = 0;

  // Cross-core state: contributions that wait for their partners.
  std::map<int, std::deque<Token>> group_mode[3][kCrossFlags];  // by the core that set
  std::map<std::pair<int, int>, std::deque<Token>> ib_flags;
  std::map<const void*, Token> posted;  // by who wrote last beside its cache
  struct Barrier {
    std::vector<bool> arrived;
    Token joined;
    uint64_t generation = 0;
    Token released;
  };
  std::map<int, Barrier> barriers;

  uint32_t SiteId(const char* call, Loc loc) {
    auto key = std::make_tuple(call, loc.file, loc.line);
    auto it = site_ids.find(key);
    if (it != site_ids.end()) return it->second;
    const uint32_t id = static_cast<uint32_t>(sites.size());
    sites.push_back({call, loc});
    site_ids.emplace(key, id);
    return id;
  }

  void Report(const Core* core, const char* call, Loc loc, const char* rule,
              const std::string& text) {
    std::lock_guard<std::mutex> guard(findings_mutex_);
    const std::string name = core ? core->Name() : "launch";
    for (Finding& finding : findings)
      if (finding.rule == rule && finding.line == loc.line && finding.file == loc.file &&
          finding.call == call) {
        ++finding.count;
        return;
      }
    findings.push_back({rule, name, call, loc.file, text, loc.line, 1});
  }

  GlobalBuffer* FindBuffer(const void* pointer) {
    const uint8_t* p = static_cast<const uint8_t*>(pointer);
    for (auto& buffer : buffers)
      if (p >= buffer->space.data && p < buffer->space.data + buffer->space.size)
        return buffer.get();
    // One past the end still belongs to a buffer, so that its overrun is named after it.
    for (auto& buffer : buffers)
      if (p == buffer->space.data + buffer->space.size) return buffer.get();
    return nullptr;
  }

  // ---- which core runs: one at a time, until it blocks ----

  void WaitForTurn(Core* core) {
    std::unique_lock<std::mutex> lock(turn_mutex_);
    turn_changed_.wait(lock, [&] { return turn_ == core->id || abandoned_; });
    if (abandoned_) throw Abandoned();
  }

  // Lets other cores run until `ready` holds. `what` names the wait in a deadlock's report.
  void Block(Core* core, const char* call, Loc loc, const std::string& what,
             std::function<bool()> ready) {
    if (ready()) return;
    {
      std::unique_lock<std::mutex> lock(turn_mutex_);
      waiting_[core->id] = {call, loc, what, ready};
      PassTurn(core->id);
      turn_changed_.wait(lock, [&] { return turn_ == core->id || abandoned_; });
      waiting_.erase(core->id);
      if (abandoned_) throw Abandoned();
    }
  }

  // Lets another core that can run go first.
  void Yield(Core* core) {
    std::unique_lock<std::mutex> lock(turn_mutex_);
    PassTurn(core->id);
    turn_changed_.wait(lock, [&] { return turn_ == core->id || abandoned_; });
    if (abandoned_) throw Abandoned();
  }

  void Finish(Core* core) {
    std::unique_lock<std::mutex> lock(turn_mutex_);
    finished_.insert(core->id);
    PassTurn(core->id);
  }

  bool abandoned() const { return abandoned_; }

  void Abandon() {
    abandoned_ = true;
    turn_changed_.notify_all();
  }

  void Start() {
    order_.resize(cores.size());
    std::iota(order_.begin(), order_.end(), 0);
    uint32_t state = options.order * 2654435761u;
    for (size_t i = order_.size(); options.order && i > 1; --i) {
      state = state * 1664525u + 1013904223u;
      std::swap(order_[i - 1], order_[(state >> 8) % i]);
    }
    std::unique_lock<std::mutex> lock(turn_mutex_);
    turn_ = order_.empty() ? -1 : order_[0];
    turn_changed_.notify_all();
  }

 private:
  struct Wait {
    const char* call;
    Loc loc;
    std::string what;
    std::function<bool()> ready;
  };

  void PassTurn(int from) {
    const size_t n = order_.size();
    const size_t at = std::find(order_.begin(), order_.end(), from) - order_.begin();
    for (size_t step = 1; step <= n; ++step) {
      const int next = order_[(at + step) % n];
      if (finished_.count(next)) continue;
      auto wait = waiting_.find(next);
      if (wait != waiting_.end() && !wait->second.ready()) continue;
      turn_ = next;
      turn_changed_.notify_all();
      return;
    }
    if (finished_.size() == n) return;
    for (auto& [id, wait] : waiting_)
      Report(cores[id].get(), wait.call, wait.loc, "deadlock", "waits for ever: " + wait.what);
    Abandon();
  }

  std::mutex findings_mutex_, turn_mutex_;
  std::condition_variable turn_changed_;
  std::vector<int> order_;
  std::set<int> finished_;
  std::map<int, Wait> waiting_;
  int turn_ = -1;
  bool abandoned_ = false;
};

}  // namespace ascendc_twin
