// What Fixpipe and DataCopy do to numbers on their way out of L0C.
#pragma once

#include "fill.h"

namespace ascendc_twin {

inline bool IsTensorQuant(QuantMode_t mode) {
  return mode == VDEQF16 || mode == VQF322B8_PRE || mode == VREQ8;
}

template <typename T, typename U>
bool CheckQuant(Instruction& instruction, QuantMode_t quant) {
  using std::is_same;
  const bool to_half = is_same<T, half>::value, to_byte = sizeof(T) == 1;
  const bool is_float = is_same<U, float>::value, is_int = is_same<U, int32_t>::value;
  bool fits = false;
  switch (quant) {
    case NoQuant:
      fits = is_same<T, U>::value;
      break;
    case F322F16:
      fits = is_float && to_half;
      break;
    case F322BF16:
      fits = is_float && is_same<T, bfloat16_t>::value;
      break;
    case DEQF16:
    case VDEQF16:
      fits = is_int && to_half;
      break;
    case QF322B8_PRE:
    case VQF322B8_PRE:
      fits = is_float && to_byte;
      break;
    case REQ8:
    case VREQ8:
      fits = is_int && to_byte;
      break;
  }
  if (!fits)
    instruction.Refuse("fixpipe-quant", "quantPre " + std::to_string(quant) +
                                            " does not make the target's type of the source's");
  return fits;
}

// A scale as the device reads it: a float of 10 mantissa bits, an offset of 9 bits, a sign.
struct Scale {
  float factor;
  int offset;
  bool is_signed;
  explicit Scale(uint64_t bits)
      : factor(BitsFloat(static_cast<uint32_t>(bits) & 0xffffe000u)),
        offset(static_cast<int>(bits >> 37 & 0x1ff)),
        is_signed(bits >> 46 & 1) {
    if (offset >= 256) offset -= 512;
  }
};

template <typename T, typename U>
T Quantise(U value, QuantMode_t mode, uint64_t bits) {
  if (mode == NoQuant || mode == F322F16 || mode == F322BF16) return static_cast<T>(value);
  const Scale scale(bits);
  const double scaled = static_cast<double>(value) * scale.factor;
  if constexpr (sizeof(T) == 1) {
    const double clipped = std::max(-256.0, std::min(255.0, scaled));
    const double rounded = RoundInteger(clipped, Rounding::kRint) + scale.offset;
    const double low = scale.is_signed ? -128 : 0, high = scale.is_signed ? 127 : 255;
    return static_cast<T>(static_cast<int>(std::max(low, std::min(high, rounded))));
  } else {
    return static_cast<T>(static_cast<float>(scaled) + scale.offset);
  }
}

}  // namespace ascendc_twin
