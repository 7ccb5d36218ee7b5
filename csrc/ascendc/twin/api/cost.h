// Published rates of an Atlas A2 (910B2), from which the twin estimates cycles per pipe. They are
// peak rates: no start-up, no bank conflicts, no contention between cores.
#pragma once

#include <cstdint>

namespace ascendc_twin {

// Bytes per cycle and core from and to L2; what comes from HBM has its own roof, over all cores.
constexpr double kGlobalRead = 110;
constexpr double kGlobalWrite = 86;
constexpr double kClockHz = 1.8e9;
constexpr double kHbmBytesPerSecond = 1.6e12;
constexpr int kCubeCores = 24;

inline double GlobalReadCycles(uint64_t bytes) { return bytes / kGlobalRead; }
inline double GlobalWriteCycles(uint64_t bytes) { return bytes / kGlobalWrite; }

// Cycles of one vector repeat (256 bytes of the wider operand).
enum class VectorRate {
  kFull,    // 128 halves or 64 floats per cycle
  kHalf,    // half of that
  kSlow,    // 32 elements per cycle: Exp, Ln, Sqrt, Div
  kReduce,  // 128/7 or 64/7 elements per cycle: the reduction of a whole repeat
  kGather,  // 5 elements per cycle
};

inline double VectorCycles(VectorRate rate, uint64_t repeats, uint32_t lanes) {
  switch (rate) {
    case VectorRate::kHalf:
      return repeats * 2.0;
    case VectorRate::kSlow:
      return repeats * (lanes / 32.0);
    case VectorRate::kReduce:
      return repeats * 7.0;
    case VectorRate::kGather:
      return repeats * (lanes / 5.0);
    default:
      return static_cast<double>(repeats);
  }
}

}  // namespace ascendc_twin
