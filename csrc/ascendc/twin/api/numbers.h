// The floating-point formats of the device, and how numbers are rounded to them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace ascendc_twin {

enum class Rounding : uint8_t { kNone, kRint, kFloor, kCeil, kRound, kTrunc, kOdd };

// `x` as an integer, rounded as the mode says. Callers keep |x| below 2^52.
inline double RoundInteger(double x, Rounding mode) {
  switch (mode) {
    case Rounding::kFloor:
      return std::floor(x);
    case Rounding::kCeil:
      return std::ceil(x);
    case Rounding::kRound:
      return std::round(x);
    case Rounding::kTrunc:
      return std::trunc(x);
    case Rounding::kOdd: {
      const double t = std::trunc(x);
      if (t == x || std::fmod(t, 2.0) != 0) return t;
      return t + (std::signbit(x) ? -1 : 1);
    }
    default:
      return std::nearbyint(x);
  }
}

// The nearest number of a binary format with `mantissa` stored bits, by the mode; infinity where
// the rounded magnitude passes `largest`.
inline double RoundToFormat(double x, int mantissa, int min_exponent, double largest,
                            Rounding mode) {
  if (!std::isfinite(x) || x == 0) return x;
  int exponent;
  std::frexp(x, &exponent);
  exponent = exponent - 1 < min_exponent ? min_exponent : exponent - 1;
  const double quantum = std::ldexp(1.0, exponent - mantissa);
  const double rounded = RoundInteger(x / quantum, mode) * quantum;
  if (std::fabs(rounded) <= largest) return rounded;
  return std::copysign(std::numeric_limits<double>::infinity(), rounded);
}

inline uint32_t FloatBits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float BitsFloat(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace ascendc_twin

struct half {
  uint16_t bits;

  half() = default;
  half(float x) : bits(Encode(x)) {}
  half(double x) : bits(Encode(static_cast<float>(x))) {}
  half(int x) : bits(Encode(static_cast<float>(x))) {}
  operator float() const { return Decode(bits); }

  static half FromBits(uint16_t b) {
    half h;
    h.bits = b;
    return h;
  }

  static float Decode(uint16_t b) {
    const uint32_t sign = static_cast<uint32_t>(b & 0x8000) << 16;
    const uint32_t rest = b & 0x7fff;
    if (rest >= 0x7c00)
      return ascendc_twin::BitsFloat(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
    // Exponent bias 15 against 127: scaling by 2^112 makes subnormals right too.
    const float magnitude =
        ascendc_twin::BitsFloat(rest << 13) * ascendc_twin::BitsFloat(0x77800000u);
    return ascendc_twin::BitsFloat(ascendc_twin::FloatBits(magnitude) | sign);
  }

  static uint16_t Encode(float x) {
    const uint32_t bits = ascendc_twin::FloatBits(x);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;
    if (magnitude < 0x38800000) {
      // Below the smallest normal number: the float addition rounds to a multiple of 2^-24.
      const float shifted = ascendc_twin::BitsFloat(magnitude) + 0.5f;
      return sign | static_cast<uint16_t>(ascendc_twin::FloatBits(shifted) - 0x3f000000u);
    }
    const uint32_t odd = (magnitude >> 13) & 1;
    return sign | static_cast<uint16_t>((magnitude + 0xfffu + odd - 0x38000000u) >> 13);
  }
};

struct bfloat16_t {
  uint16_t bits;

  bfloat16_t() = default;
  bfloat16_t(float x) : bits(Encode(x)) {}
  bfloat16_t(double x) : bits(Encode(static_cast<float>(x))) {}
  bfloat16_t(int x) : bits(Encode(static_cast<float>(x))) {}
  operator float() const { return ascendc_twin::BitsFloat(static_cast<uint32_t>(bits) << 16); }

  static bfloat16_t FromBits(uint16_t b) {
    bfloat16_t h;
    h.bits = b;
    return h;
  }

  static uint16_t Encode(float x) {
    const uint32_t bits = ascendc_twin::FloatBits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
};
