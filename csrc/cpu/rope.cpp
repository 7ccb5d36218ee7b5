#include "rope.h"

#include "pair.h"
#include "row_sums_inl.h"

namespace mmkern::MMKERN_ISA {
namespace {

// Interleaved pairs want the even elements in one vector and the odd ones in the other, which is
// the lane order of bf16 (pair.h); the halves of rotate-half take that of their own type.
template <class T, bool kInterleaved>
struct LanesOf {
  using type = T;
};
template <class T>
struct LanesOf<T, true> {
  using type = bf16_t;
};

MMKERN_INLINE vf2 negate(vf2 x) { return {-x.a, -x.b}; }

// The table row of the current token, and the order in which a head's elements are visited: runs
// [0, R), [R, D) of interleaved pairs, or [0, R/2), [R/2, R), [R, D). A scratch row keeps the runs
// one after the other, each padded to whole vectors; `slot` is an element's place in such a row.
template <class T, bool kInterleaved>
class Rotation {
 public:
  using Lanes = typename LanesOf<T, kInterleaved>::type;
  static constexpr int64_t kRows = 2;

  // memory: kRows scratch rows. transpose: the rotation the other way round, for gradients.
  Rotation(const RopeArgs& args, bool transpose, float* memory)
      : args_(args),
        transpose_(transpose),
        run_(kInterleaved ? args.width : args.width / 2),
        second_(kInterleaved ? 0 : scratch_pitch(run_)),
        rest_(second_ + scratch_pitch(run_)),
        cos_(memory),
        sin_(memory + scratch_pitch(args.head_dim + kRopePadding)) {}

  void move_to(Token at) {
    if (args_.is_float32_table) {
      read_tables(row_of<float>(args_.cos, at), row_of<float>(args_.sin, at));
    } else {
      read_tables(row_of<T>(args_.cos, at), row_of<T>(args_.sin, at));
    }
  }

  // Calls put(i, slot, rotated, width) for all elements of a head, which value(i, slot, width)
  // gives.
  template <class Value, class Put>
  MMKERN_MEMBER void apply(const Value& value, const Put& put) const {
    if constexpr (kInterleaved) {
      sweep_pairs(run_, [&](int64_t i, auto w) MMKERN_BODY {
        const vf2 x = value(i, i, w), cos = load_pair(cos_ + i), sin = load_pair(sin_ + i);
        put(i, i, vf2{fma(x.a, cos.a, x.b * sin.a), fma(x.b, cos.b, x.a * sin.b)}, w);
      });
    } else {
      sweep_pairs(run_, [&](int64_t i, auto w) MMKERN_BODY {
        const int64_t j = run_ + i, slot = second_ + i;
        const vf2 x = value(i, i, w), y = value(j, slot, w);
        put(i, i, fma(x, load_pair(cos_ + i), y * load_pair(sin_ + i)), w);
        put(j, slot, fma(y, load_pair(cos_ + slot), x * load_pair(sin_ + slot)), w);
      });
    }
    sweep_pairs(args_.head_dim - args_.width, [&](int64_t i, auto w) MMKERN_BODY {
      const int64_t j = args_.width + i, slot = rest_ + i;
      put(j, slot, value(j, slot, w), w);
    });
  }

  // Calls body(i, slot, width) for all elements of a head.
  template <class Body>
  MMKERN_MEMBER void visit(const Body& body) const {
    sweep_pairs(run_, [&](int64_t i, auto w) MMKERN_BODY { body(i, i, w); });
    if (!kInterleaved) {
      sweep_pairs(run_, [&](int64_t i, auto w) MMKERN_BODY { body(run_ + i, second_ + i, w); });
    }
    sweep_pairs(args_.head_dim - args_.width,
                [&](int64_t i, auto w) MMKERN_BODY { body(args_.width + i, rest_ + i, w); });
  }

  // Puts a weight into a scratch row; null where there is none.
  const float* read_weight(const RopeWeight& weight, float* row) const {
    if (weight.data == nullptr) return nullptr;
    visit([&](int64_t i, int64_t slot, auto w) MMKERN_BODY {
      if (weight.is_float32) {
        store_pair(row + slot, load_pair_as<Lanes>(static_cast<const float*>(weight.data) + i, w));
      } else {
        store_pair(row + slot, load_pair_as<Lanes>(static_cast<const T*>(weight.data) + i, w));
      }
    });
    return row;
  }

 private:
  template <class Element>
  static const Element* row_of(const RopeTable& table, Token at) {
    return static_cast<const Element*>(table.data) + at.batch * table.batch_stride +
           at.token * table.token_stride;
  }

  // sin_ holds the factor of the pair's other member: -sin for the first and sin for the second,
  // or the transpose of that.
  template <class Element>
  void read_tables(const Element* cos, const Element* sin) {
    sweep_pairs(run_, [&](int64_t i, auto w) MMKERN_BODY {
      store_pair(cos_ + i, load_pair_as<Lanes>(cos + i, w));
      const vf2 s = load_pair_as<Lanes>(sin + i, w);
      if constexpr (kInterleaved) {
        store_pair(sin_ + i, transpose_ ? vf2{s.b, -s.a} : vf2{-s.a, s.b});
      } else {
        const vf2 other = load_pair_as<Lanes>(sin + run_ + i, w);
        store_pair(cos_ + second_ + i, load_pair_as<Lanes>(cos + run_ + i, w));
        store_pair(sin_ + i, transpose_ ? other : negate(s));
        store_pair(sin_ + second_ + i, transpose_ ? negate(s) : other);
      }
    });
  }

  const RopeArgs& args_;
  const bool transpose_;
  const int64_t run_, second_, rest_;
  float* const cos_;
  float* const sin_;
};

template <class T>
MMKERN_INLINE const T* heads_of(const RopeHeads& heads, Token at) {
  return static_cast<const T*>(heads.data) + at.batch * heads.batch_stride +
         at.token * heads.token_stride;
}

// The heads of a token in a contiguous output, or null.
template <class T>
MMKERN_INLINE T* output_of(const RopeArgs& args, const RopeSide& side, Token at) {
  if (side.out == nullptr) return nullptr;
  const int64_t row = at.batch * args.tokens + at.token;
  return static_cast<T*>(side.out) + row * side.x.count * args.head_dim;
}

MMKERN_INLINE float rstd_of(const RopeArgs& args, float squares) {
  return 1.0f / __builtin_sqrtf(squares / static_cast<float>(args.head_dim) + args.eps);
}

// out = rotation of x for the heads of a token, where there is no norm.
template <class T, class Rotation>
void rotate_heads(const RopeArgs& args, const Rotation& rotation, const RopeHeads& heads, Token at,
                  T* out) {
  using Lanes = typename Rotation::Lanes;
  const T* x = heads_of<T>(heads, at);
  for (int64_t head = 0; head < heads.count; ++head) {
    rotation.apply([&](int64_t i, int64_t, auto w)
                       MMKERN_BODY { return load_pair_as<Lanes>(x + i, w); },
                   [&](int64_t i, int64_t, vf2 v, auto w)
                       MMKERN_BODY { store_pair_as<Lanes>(out + i, v, w); });
    x += heads.head_stride;
    out += args.head_dim;
  }
}

template <class T, class Rotation>
void normalize_and_rotate_heads(const RopeArgs& args, const Rotation& rotation,
                                const RopeHeads& heads, const float* weight, Token at, T* out) {
  using Lanes = typename Rotation::Lanes;
  const T* x = heads_of<T>(heads, at);
  for (int64_t head = 0; head < heads.count; ++head) {
    const float rstd =
        rstd_of(args, sum_pairs<T>(args.head_dim, [&](int64_t i, auto w) MMKERN_BODY {
                  const vf2 v = load_pair(x + i, w);
                  return v * v;
                }));
    rotation.apply(
        [&](int64_t i, int64_t slot, auto w)
            MMKERN_BODY { return load_pair_as<Lanes>(x + i, w) * rstd * load_pair(weight + slot); },
        [&](int64_t i, int64_t, vf2 v, auto w)
            MMKERN_BODY { store_pair_as<Lanes>(out + i, v, w); });
    x += heads.head_stride;
    out += args.head_dim;
  }
}

template <class T, bool kInterleaved>
void rotate_rows(const RopeArgs& args, int64_t begin, int64_t end, float* scratch) {
  using Heads = Rotation<T, kInterleaved>;
  const int64_t pitch = scratch_pitch(args.head_dim + kRopePadding);
  Heads rotation(args, /*transpose=*/false, scratch);
  float* weights = scratch + Heads::kRows * pitch;
  const float* q_weight = rotation.read_weight(args.q.weight, weights);
  const float* k_weight = rotation.read_weight(args.k.weight, weights + pitch);
  const auto side = [&](const RopeSide& side, const float* weight, Token at) {
    T* out = output_of<T>(args, side, at);
    if (weight == nullptr) {
      rotate_heads(args, rotation, side.x, at, out);
    } else {
      normalize_and_rotate_heads(args, rotation, side.x, weight, at, out);
    }
  };
  for (int64_t row = begin; row < end; ++row) {
    const Token at = token_of(row, args.tokens);
    rotation.move_to(at);
    side(args.q, q_weight, at);
    side(args.k, k_weight, at);
  }
}

// With g the gradient of the normalised and weighted head (the transposed rotation of the incoming
// one) and xhat = x * rstd:
//   dx = rstd * (g * weight - xhat * mean(g * weight * xhat))
// and the sum over rows and heads, dweight of g * xhat.
template <class T, bool kInterleaved>
class HeadGradients {
 public:
  HeadGradients(const RopeGradArgs& args, float* scratch)
      : args_(args),
        pitch_(scratch_pitch(args.forward.head_dim + kRopePadding)),
        rotation_(args.forward, /*transpose=*/true, scratch),
        g_(scratch + 2 * pitch_),
        token_sum_(scratch + 3 * pitch_),
        q_weight_(rotation_.read_weight(args.forward.q.weight, scratch + 4 * pitch_)),
        k_weight_(rotation_.read_weight(args.forward.k.weight, scratch + 5 * pitch_)),
        q_sum_(args.q_weight, args.tasks, args.forward.head_dim, scratch + 6 * pitch_),
        k_sum_(args.k_weight, args.tasks, args.forward.head_dim, scratch + 7 * pitch_) {}

  void run_task(int64_t task) {
    const RowRange rows = rows_of_task(args_.tasks, task);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const Token at = token_of(row, args_.forward.tokens);
      rotation_.move_to(at);
      run_side(args_.forward.q, args_.grad_q, q_weight_, q_sum_, at);
      run_side(args_.forward.k, args_.grad_k, k_weight_, k_sum_, at);
      q_sum_.row_done(task, at, row + 1 == rows.end);
      k_sum_.row_done(task, at, row + 1 == rows.end);
    }
  }

 private:
  using Lanes = typename Rotation<T, kInterleaved>::Lanes;

  void run_side(const RopeSide& side, const RopeHeads& grad, const float* weight,
                GroupAccumulator<T>& sum, Token at) {
    T* out = output_of<T>(args_.forward, side, at);
    if (out == nullptr && !sum) return;
    if (weight == nullptr) return rotate_heads(args_.forward, rotation_, grad, at, out);
    for (int64_t i = 0; i < pitch_; i += kPairLanes) store_pair(token_sum_ + i, pair(0.0f));
    const T* x = heads_of<T>(side.x, at);
    const T* dy = heads_of<T>(grad, at);
    for (int64_t head = 0; head < side.x.count; ++head) {
      run_head(x, dy, weight, out);
      x += side.x.head_stride;
      dy += grad.head_stride;
      if (out != nullptr) out += args_.forward.head_dim;
    }
    if (sum) add_token_sum(sum);
  }

  void run_head(const T* x, const T* dy, const float* weight, T* out) {
    vf2 squares = pair(0.0f), dots = pair(0.0f);
    rotation_.apply([&](int64_t i, int64_t, auto w)
                        MMKERN_BODY { return load_pair_as<Lanes>(dy + i, w); },
                    [&](int64_t i, int64_t slot, vf2 g, auto w) MMKERN_BODY {
                      const vf2 v = load_pair_as<Lanes>(x + i, w);
                      squares = fma(v, v, squares);
                      dots = fma(g * load_pair(weight + slot), v, dots);
                      store_pair(g_ + slot, g);
                    });
    const float rstd = rstd_of(args_.forward, hsum(squares, pair(0.0f)));
    const float mean = hsum(dots, pair(0.0f)) * rstd / static_cast<float>(args_.forward.head_dim);
    rotation_.visit([&](int64_t i, int64_t slot, auto w) MMKERN_BODY {
      const vf2 xhat = load_pair_as<Lanes>(x + i, w) * rstd;
      const vf2 g = load_pair(g_ + slot);
      store_pair(token_sum_ + slot, fma(g, xhat, load_pair(token_sum_ + slot)));
      // As in modulate: a fused product would leave its rounding error where the terms cancel.
      const vf2 dx = (rounded(g * load_pair(weight + slot)) - xhat * mean) * rstd;
      if (out != nullptr) store_pair_as<Lanes>(out + i, dx, w);
    });
  }

  // The heads of a token are added up first: short chains keep the rounding error small.
  void add_token_sum(GroupAccumulator<T>& sum) {
    float* in_order = g_;
    rotation_.visit([&](int64_t i, int64_t slot, auto w) MMKERN_BODY {
      store_pair_as<Lanes>(in_order + i, load_pair(token_sum_ + slot), w);
    });
    sweep_pairs(args_.forward.head_dim, [&](int64_t i, auto w) MMKERN_BODY {
      sum.add(i, load_pair_as<T>(in_order + i, w));
    });
  }

  const RopeGradArgs& args_;
  const int64_t pitch_;
  Rotation<T, kInterleaved> rotation_;
  float* const g_;
  float* const token_sum_;
  const float* const q_weight_;
  const float* const k_weight_;
  GroupAccumulator<T> q_sum_, k_sum_;
};

template <class T, bool kInterleaved>
void run_tasks(const RopeGradArgs& args, int64_t begin, int64_t end, float* scratch) {
  HeadGradients<T, kInterleaved> gradients(args, scratch);
  for (int64_t task = begin; task < end; ++task) gradients.run_task(task);
}

}  // namespace

void rope_forward(const RopeArgs& args, int64_t begin, int64_t end, float* scratch) {
  const auto run = [&](auto t) {
    using T = decltype(t);
    args.interleaved ? rotate_rows<T, true>(args, begin, end, scratch)
                     : rotate_rows<T, false>(args, begin, end, scratch);
  };
  with_dtype(args.dtype, run);
}

void rope_backward(const RopeGradArgs& args, int64_t begin, int64_t end, float* scratch) {
  const auto run = [&](auto t) {
    using T = decltype(t);
    args.forward.interleaved ? run_tasks<T, true>(args, begin, end, scratch)
                             : run_tasks<T, false>(args, begin, end, scratch);
  };
  with_dtype(args.forward.dtype, run);
}

}  // namespace mmkern::MMKERN_ISA
