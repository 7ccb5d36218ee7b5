// What the forward and the backward of modulate share: where a row lies, and the modulation of the
// current row as float32 coefficients, worked out once per group of tokens.
#pragma once

#include "modulate.h"
#include "pair.h"
#include "row_sums_inl.h"

namespace mmkern::MMKERN_ISA {

template <class T>
MMKERN_INLINE const T* row_of(const TokenRows& rows, Token at) {
  return static_cast<const T*>(rows.data) + at.batch * rows.batch_stride +
         at.token * rows.token_stride;
}

// A row of a modulation tensor in its own dtype.
struct ModulationRow {
  const void* data;
  bool is_float32;
};

template <class T>
MMKERN_INLINE ModulationRow row_of(const Modulation& m, Token at) {
  if (m.data == nullptr) return {nullptr, false};
  const int64_t offset = at.batch * m.batch_stride + at.token / m.tokens_per_group * m.group_stride;
  if (m.is_float32) return {static_cast<const float*>(m.data) + offset, true};
  return {static_cast<const T*>(m.data) + offset, false};
}

// Calls body(pointer to the row's elements in their own type).
template <class T, class Body>
MMKERN_INLINE void with_elements(ModulationRow row, const Body& body) {
  if (row.is_float32) {
    body(static_cast<const float*>(row.data));
  } else {
    body(static_cast<const T*>(row.data));
  }
}

MMKERN_INLINE void fill(float* out, float value, int64_t n) {
  for (int64_t i = 0; i < n; i += kPairLanes) store_pair(out + i, pair(value));
}

// h = x + gate * branch and y = normalised * gain + offset for the tokens of one group: float32
// rows in the lane order of T.
template <class T>
class Coefficients {
 public:
  static constexpr int64_t kRows = 7;

  // memory: kRows scratch rows.
  Coefficients(const ModulateArgs& args, float* memory)
      : Coefficients(args, memory, scratch_pitch(args.channels)) {}

  // Moves on to a token; cheap while it is of the same group as the one before.
  void move_to(Token at) {
    const ModulationRow gate_row = row_of<T>(args_.gate, at);
    if (gate_row.data != gate_row_) {
      widen(args_.gate, at, gate);
      gate_row_ = gate_row.data;
    }
    const ModulationRow shift = row_or_zeros(args_.shift, at);
    const ModulationRow scale = row_or_zeros(args_.scale, at);
    if (shift.data != shift_row_ || scale.data != scale_row_) {
      update(shift, scale);
      shift_row_ = shift.data;
      scale_row_ = scale.data;
    }
  }

  float* const gate;
  float* const factor;  // 1 + scale
  float* const gain;    // weight * (1 + scale)
  float* const offset;  // bias * (1 + scale) + shift
  float* const weight;
  float* const bias;

 private:
  Coefficients(const ModulateArgs& args, float* memory, int64_t pitch)
      : gate(memory),
        factor(memory + pitch),
        gain(memory + 2 * pitch),
        offset(memory + 3 * pitch),
        weight(memory + 4 * pitch),
        bias(memory + 5 * pitch),
        args_(args),
        zeros_(memory + 6 * pitch) {
    fill(gate, 1.0f, args.channels);
    fill(zeros_, 0.0f, args.channels);
    fill(weight, 1.0f, args.channels);
    fill(bias, 0.0f, args.channels);
    widen(args.weight, {0, 0}, weight);
    widen(args.bias, {0, 0}, bias);
  }

  ModulationRow row_or_zeros(const Modulation& m, Token at) const {
    return m.data == nullptr ? ModulationRow{zeros_, true} : row_of<T>(m, at);
  }

  void widen(const Modulation& m, Token at, float* out) {
    if (m.data == nullptr) return;
    with_elements<T>(row_of<T>(m, at), [&](const auto* values) MMKERN_BODY {
      sweep_pairs(args_.channels, [&](int64_t i, auto w) MMKERN_BODY {
        store_pair(out + i, load_pair_as<T>(values + i, w));
      });
    });
  }

  void update(ModulationRow shift_row, ModulationRow scale_row) {
    with_elements<T>(shift_row, [&](const auto* shift) MMKERN_BODY {
      with_elements<T>(scale_row, [&](const auto* scale) MMKERN_BODY {
        sweep_pairs(args_.channels, [&](int64_t i, auto w) MMKERN_BODY {
          const vf2 one_plus_scale = load_pair_as<T>(scale + i, w) + 1.0f;
          store_pair(factor + i, one_plus_scale);
          store_pair(gain + i, load_pair(weight + i) * one_plus_scale);
          store_pair(offset + i,
                     fma(load_pair(bias + i), one_plus_scale, load_pair_as<T>(shift + i, w)));
        });
      });
    });
  }

  const ModulateArgs& args_;
  float* const zeros_;
  const void* gate_row_ = nullptr;
  const void* shift_row_ = nullptr;
  const void* scale_row_ = nullptr;
};

// What normalises a row: (h - mean) * rstd + correction.
struct Moments {
  float mean, rstd, correction;

  MMKERN_MEMBER vf2 normalize(vf2 h) const { return fma(h - mean, pair(rstd), pair(correction)); }
};

// The moments of n values, given their mean (0 for RMSNorm) and the sum of squared deviations from
// it. value(i, width) gives the values, in the lane order of T.
template <class T, class Value>
MMKERN_INLINE Moments finish_moments(int64_t n, float eps, float mean, float squares,
                                     const Value& value) {
  const float count = static_cast<float>(n);
  float variance = squares / count;
  float error = 0.0f;
  // The rounding error of a mean that is larger than the deviations from it shows in the result.
  if (mean * mean > variance) {
    const auto deviation = [&](int64_t i, auto w) MMKERN_BODY { return value(i, w) - mean; };
    error = sum_pairs<T>(n, deviation) / count;
    variance = variance > error * error ? variance - error * error : 0.0f;
  }
  const float rstd = 1.0f / __builtin_sqrtf(variance + eps);
  return {mean, rstd, -error * rstd};
}

// The sums of a row's values and of their squares.
struct Sums {
  float values, squares;
};

// y_of(i, width, normalised value) for the whole row, whose values value(i, width) gives and whose
// sums are known.
//
// While the mean is no larger than the deviations from it, the variance is power - mean^2 to within
// two roundings of its own size, and no pass over the row is needed for it. Else that difference
// cancels, and the variance is taken from the deviations.
template <class T, class Value, class Body>
MMKERN_INLINE void normalize_row(int64_t n, Norm norm, float eps, Sums sums, const Value& value,
                                 const Body& y_of) {
  const float count = static_cast<float>(n);
  const float mean = norm == Norm::kLayer ? sums.values / count : 0.0f;
  const float power = sums.squares / count;
  const float variance = power - mean * mean;
  if (mean * mean <= variance) {
    const float rstd = 1.0f / __builtin_sqrtf(variance + eps);
    sweep_pairs(n, [&](int64_t i, auto w) MMKERN_BODY {
      y_of(i, w, fma(value(i, w), pair(rstd), pair(-mean * rstd)));
    });
    return;
  }
  const float squares = sum_pairs<T>(n, [&](int64_t i, auto w) MMKERN_BODY {
    const vf2 deviation = value(i, w) - mean;
    return deviation * deviation;
  });
  const Moments m = finish_moments<T>(n, eps, mean, squares, value);
  sweep_pairs(n, [&](int64_t i, auto w) MMKERN_BODY { y_of(i, w, m.normalize(value(i, w))); });
}

}  // namespace mmkern::MMKERN_ISA
