// Parameters of a fixed width, whose cuts are found, and calls that only count as unchecked.
#pragma once

#include "launch.h"

namespace ascendc_twin {

// Counts a call whose effect the twin neither has nor checks.
inline void Unchecked(const char* what) {
  Core* core = CurrentCore();
  if (core) ++core->launch->unchecked[what];
}

template <typename T>
class Field {
 public:
  constexpr Field() = default;
  template <typename V, typename = std::enable_if_t<std::is_arithmetic<V>::value>>
  constexpr Field(V value, Loc loc = Loc::Here()) : value_(static_cast<T>(value)) {
    const bool negative = value < V(0);
    if (negative || static_cast<V>(value_) != value) Cut(static_cast<double>(value), loc);
  }
  constexpr operator T() const { return value_; }

 private:
  static void Cut(double value, Loc loc) {
    Core* core = CurrentCore();
    if (core)
      core->launch->Report(core, "parameter", loc, "field-range",
                           std::to_string(static_cast<int64_t>(value)) + " does not fit in " +
                               std::to_string(8 * sizeof(T)) + " bits and is cut");
  }
  T value_ = 0;
};

using Field8 = Field<uint8_t>;
using Field16 = Field<uint16_t>;
using Field32 = Field<uint32_t>;

}  // namespace ascendc_twin
