// Attention for a few query rows, where reading keys and values is the work.
//
// Rows in the lanes, as in attention.cpp, would leave most lanes empty, so head_dim is in the lanes
// here: keys and values are read where they are, in the lane order of pair.h. The keys of a
// (sequence, key head) are cut into splits of a fixed length, so that one sequence occupies many
// threads. A split leaves its largest score, total weight and weighted values for each row, which
// attention_combine joins in order.
#include "attention_block.h"
#include "pair.h"

namespace mmkern::MMKERN_ISA {
namespace {

// Rows that share a reading of keys and values: 16 sums with AVX-512, half of the registers.
constexpr int kGroupRows = 4;
// Keys after which a new chain of additions begins (see kLongestChain).
constexpr int64_t kChainKeys = 32;
// How many keys before its use a row is prefetched.
constexpr int64_t kAhead = 32;

// Rows of keys or values of one head, from the first key of a split on.
template <class T>
struct Table {
  const T* data;
  int64_t stride;
  MMKERN_MEMBER const T* row(int64_t key) const { return data + key * stride; }
};

// A group of R rows keeps the scores of kLanes / R keys in one vector, row after row; the weights
// that take their place are cells of the key dimension.
template <int R>
inline constexpr int kKeys = kLanes / R;

template <int R>
MMKERN_INLINE int64_t score_index(int64_t key, int row) {
  return key / kKeys<R> * kLanes + row * kKeys<R> + key % kKeys<R>;
}

// ---- scores -------------------------------------------------------------------------------------

// kPairLanes elements of a row as the dot product takes them: bf16 pairs, or floats.
template <class T, class Width = Full>
MMKERN_INLINE auto load_chunk(const T* p, Width width = {}) {
  if constexpr (kDepth<Cell<T>> == 1) {
    return load_pair(p, width);
  } else if constexpr (__is_same(Width, Full)) {
    return load_bits<vu>(p);
  } else {
    return load_bf16_part(p, width);
  }
}
template <class T>
using Chunk = decltype(load_chunk(static_cast<const T*>(nullptr)));

MMKERN_INLINE vf dot(vf acc, vu a, vu b) { return dot_bf16_pairs(acc, a, b); }
MMKERN_INLINE vf dot(vf acc, vf2 a, vf2 b) { return fma(a.b, b.b, fma(a.a, b.a, acc)); }

MMKERN_INLINE vu negative(vu pairs) { return pairs ^ 0x80008000u; }
MMKERN_INLINE vf2 negative(vf2 v) { return v * -1.0f; }

// Lane i of the result is the sum over the lanes of v[i].
MMKERN_INLINE vf sum_each(vf (&v)[kLanes]) {
  constexpr auto kLaneIndex = std::make_index_sequence<kLanes>();
#pragma GCC unroll 4
  for (int half = kLanes / 2; half >= 1; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      v[i] = zip<0>(v[i], v[i + half], kLaneIndex) + zip<kLanes / 2>(v[i], v[i + half], kLaneIndex);
    }
  }
  return v[0];
}

// K Q^T of R rows. Scores past `count`, in the last vector, are those of the last key again. Four
// keys are read at a time, not kLanes: one reads neighbouring lines, and rows that lie a multiple
// of 4 KiB apart do not drive each other out of the cache.
template <class T, int R>
__attribute__((noinline)) void score(const Chunk<T>* queries, int64_t query_chunks, Table<T> keys,
                                     int64_t count, int64_t n, float* scores) {
  constexpr int kTogether = least(4, kKeys<R>);
  for (int64_t begin = 0; begin < count; begin += kKeys<R>) {
    vf sums[kLanes];
    for (int i = 0; i < kKeys<R>; i += kTogether) {
      const T* row[kTogether];
      vf acc[R][kTogether] = {};
#pragma GCC unroll 4
      for (int u = 0; u < kTogether; ++u) {
        row[u] = keys.row(least(begin + i + u, count - 1));
        prefetch(row[u] + kAhead * keys.stride, n);
      }
      sweep_pairs(n, [&](int64_t at, auto width) MMKERN_BODY {
#pragma GCC unroll 4
        for (int u = 0; u < kTogether; ++u) {
          const Chunk<T> key = load_chunk(row[u] + at, width);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            acc[r][u] = dot(acc[r][u], queries[r * query_chunks + at / kPairLanes], key);
          }
        }
      });
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int u = 0; u < kTogether; ++u) sums[r * kKeys<R> + i + u] = acc[r][u];
      }
    }
    store(scores + begin * R, sum_each(sums));
  }
}

// Scores of keys that a row does not see, or that do not exist, become -inf.
template <int R>
void hide(const AttentionArgs& args, const AttentionSequence& sequence, const int32_t* position,
          int64_t first_key, int64_t count, int64_t vectors, float* scores) {
  const bool* mask = args.key_padding_mask;
  if (mask != nullptr) {
    mask += sequence.batch * args.mask_batch_stride + first_key * args.mask_key_stride;
  }
  for (int r = 0; r < R; ++r) {
    const int64_t nearest = position[r] - args.window_left - first_key;
    const int64_t farthest = int64_t{position[r]} + args.window_right - first_key;
    const int64_t begin = least(greatest<int64_t>(nearest, 0), count);
    const int64_t end = greatest(begin, least(farthest + 1, count));
    for (int64_t i = 0; i < begin; ++i) scores[score_index<R>(i, r)] = -kInfinity;
    for (int64_t i = end; i < vectors * kKeys<R>; ++i) scores[score_index<R>(i, r)] = -kInfinity;
    for (int64_t i = begin; mask != nullptr && i < end; ++i) {
      if (!mask[i * args.mask_key_stride]) scores[score_index<R>(i, r)] = -kInfinity;
    }
  }
}

// ---- weights ------------------------------------------------------------------------------------

// The lanes of each row's keys set to what `rows` has for the row.
template <int R>
MMKERN_INLINE vf spread(const float* rows) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = rows[i / kKeys<R>];
  return load(lanes);
}

// Replaces an even number of vectors of scores by weights, as cells, in place, and adds them up.
template <class T, int R>
__attribute__((noinline)) void weigh(float* scores, int64_t vectors, float scale, float* largest,
                                     float* total) {
  using C = Cell<T>;
  vf top = set1(-kInfinity);
  for (int64_t i = 0; i < vectors; ++i) top = max(top, load(scores + i * kLanes));
  float tops[kLanes], shift[R];
  store(tops, top);
  for (int r = 0; r < R; ++r) {
    largest[r] = tops[r * kKeys<R>];
    for (int i = 1; i < kKeys<R>; ++i) largest[r] = greatest(largest[r], tops[r * kKeys<R> + i]);
    // of a row without keys, 0: -inf - 0 weighs 0, while -inf + inf would be NaN
    shift[r] = largest[r] == -kInfinity ? 0.0f : largest[r];
  }
  const vf shifts = spread<R>(shift);
  vf sum = zero();
  for (int64_t begin = 0; begin < vectors; begin += kSumRows) {
    vf part = zero();
    for (int64_t i = begin; i < least(begin + kSumRows, vectors); i += 2) {
      vf weight[2];
#pragma GCC unroll 2
      for (int u = 0; u < 2; ++u) {
        const vf score = load(scores + (i + u) * kLanes);
        weight[u] = exp2_weight<kWeightDegree<C>>(score - shifts, scale);
        part += weight[u];
        if constexpr (kDepth<C> == 1) store(scores + (i + u) * kLanes, weight[u]);
      }
      if constexpr (kDepth<C> == 2) {
        store_bits(scores + i / 2 * kLanes, make_pairs_along(weight[0], weight[1]));
      }
    }
    sum += part;
  }
  float sums[kLanes];
  store(sums, sum);
  for (int r = 0; r < R; ++r) {
    total[r] = 0;
    for (int i = 0; i < kKeys<R>; ++i) total[r] += sums[r * kKeys<R> + i];
  }
}

// ---- values -------------------------------------------------------------------------------------

struct vu2 {
  vu a, b;
};

// kPairLanes elements of the keys of one cell, in the lane order of T: the even elements of both
// keys as pairs and the odd ones, or one key's as floats. A key at `end` counts as 0.
template <class T, class Width>
MMKERN_INLINE auto load_values(Table<T> values, int64_t key, int64_t end, int64_t at, Width width) {
  if constexpr (kDepth<Cell<T>> == 1) {
    return load_pair(values.row(key) + at, width);
  } else {
    const vu first = load_chunk(values.row(key) + at, width);
    const vu second = key + 1 < end ? load_chunk(values.row(key + 1) + at, width) : vu{};
    return vu2{(first & 0xffffu) | second << 16, first >> 16 | (second & 0xffff0000u)};
  }
}

// sums[row][at ...] += weights * values of keys [begin, end), for NV pairs of vectors.
template <class T, int R, int NV, class Width>
MMKERN_INLINE void add_columns(const Cell<T>* weights, Table<T> values, int64_t begin, int64_t end,
                               int64_t at, Width width, float* sums, int64_t pitch) {
  using C = Cell<T>;
  vf2 acc[R][NV] = {};
  for (int64_t key = begin; key < end; key += kDepth<C>) {
    decltype(load_values(values, key, end, at, width)) value[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      value[j] = load_values(values, key, end, at + j * kPairLanes, width);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const auto weight = broadcast(weights + score_index<R>(key, r) / kDepth<C>);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        acc[r][j].a = multiply_add(acc[r][j].a, weight, value[j].a);
        acc[r][j].b = multiply_add(acc[r][j].b, weight, value[j].b);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) {
      float* const sum = sums + r * pitch + at + j * kPairLanes;
      store_pair(sum, load_pair(sum) + acc[r][j]);
    }
  }
}

template <class T, int R>
__attribute__((noinline)) void add_values(const Cell<T>* weights, Table<T> values, int64_t count,
                                          int64_t n, float* sums, int64_t pitch) {
  constexpr int kPairs = R == kGroupRows ? kTileVectors / 2 : kTileVectors;
  for (int64_t begin = 0; begin < count; begin += kChainKeys) {
    const int64_t end = least(begin + kChainKeys, count);
    for (int64_t key = end; key < least(end + kChainKeys, count); ++key) {
      prefetch(values.row(key), n);
    }
    int64_t at = 0;
    for (; at + kPairs * kPairLanes <= n; at += kPairs * kPairLanes) {
      add_columns<T, R, kPairs>(weights, values, begin, end, at, Full{}, sums, pitch);
    }
    sweep_pairs(n - at, [&](int64_t rest, auto width) MMKERN_BODY {
      add_columns<T, R, 1>(weights, values, begin, end, at + rest, width, sums, pitch);
    });
  }
}

// ---- a split ------------------------------------------------------------------------------------

// What a split has found out about its rows, as it lies in memory.
struct SplitResult {
  float* sums;  // [rows][pitch], in the lane order of T
  float *largest, *total;
  int64_t pitch;
};

MMKERN_INLINE SplitResult result_at(const AttentionArgs& args, float* data, int64_t rows) {
  const int64_t pitch = scratch_pitch(args.head_dim_v);
  return {data, data + rows * pitch, data + rows * (pitch + 1), pitch};
}

template <class T>
struct DecodeScratch {
  int64_t query_chunks;  // of a row
  Chunk<T>* queries;
  float* scores;
  int64_t bytes;

  DecodeScratch(const AttentionArgs& args, void* buffer, int64_t keys) {
    Arena arena{static_cast<char*>(buffer)};
    query_chunks = (args.head_dim + kPairLanes - 1) / kPairLanes;
    queries = arena.take<Chunk<T>>(kGroupRows * query_chunks);
    scores = arena.take<float>((keys + 2 * kLanes) * kGroupRows);
    bytes = arena.used;
  }
};

// Rows r, r + 1 ... r + R - 1 of the split.
template <class T, int R>
void attend(const AttentionArgs& args, const AttentionSplit& task, const DecodeScratch<T>& scratch,
            KeyRange keys, int64_t r, const SplitResult& result) {
  const AttentionSequence& sequence = task.sequence;
  const int64_t group = args.heads_q / args.heads_k, count = keys.end - keys.begin;
  int32_t position[R];
  for (int i = 0; i < R; ++i) {
    const int64_t query = (r + i) / group;
    position[i] = static_cast<int32_t>(query) + sequence.seqlen_k - sequence.seqlen_q;
    const T* const row = row_of<T>(args.q, sequence.batch, sequence.q_begin + query,
                                   task.head_k * group + (r + i) % group);
    sweep_pairs(args.head_dim, [&](int64_t at, auto width) MMKERN_BODY {
      const Chunk<T> chunk = load_chunk(row + at, width);
      scratch.queries[i * scratch.query_chunks + at / kPairLanes] =
          args.scale < 0 ? negative(chunk) : chunk;
    });
  }
  const auto table = [&](const AttentionTensor& t) {
    return Table<T>{row_of<T>(t, sequence.batch, sequence.k_begin + keys.begin, task.head_k),
                    t.row_stride};
  };
  const Table<T> values = table(args.v);
  const int64_t vectors = (count + 2 * kKeys<R> - 1) / (2 * kKeys<R>)*2;
  score<T, R>(scratch.queries, scratch.query_chunks, table(args.k), count, args.head_dim,
              scratch.scores);
  hide<R>(args, sequence, position, keys.begin, count, vectors, scratch.scores);
  weigh<T, R>(scratch.scores, vectors, __builtin_fabsf(args.scale) * kLog2E, result.largest + r,
              result.total + r);
  add_values<T, R>(reinterpret_cast<const Cell<T>*>(scratch.scores), values, count, args.head_dim_v,
                   result.sums + r * result.pitch, result.pitch);
}

template <class T>
void run_split(const AttentionArgs& args, const AttentionSplit& task, void* buffer) {
  const AttentionSequence& sequence = task.sequence;
  const DecodeScratch<T> scratch(args, buffer, task.key_end - task.key_begin);
  const SplitResult result = result_at(args, task.result, task.rows);
  __builtin_memset(result.sums, 0, task.rows * result.pitch * sizeof(float));
  const int32_t first_position = sequence.seqlen_k - sequence.seqlen_q;
  KeyRange keys = visible_keys(args, unpadded_keys(args, sequence), first_position,
                               first_position + sequence.seqlen_q - 1);
  keys = {greatest(keys.begin, task.key_begin), least(keys.end, task.key_end)};
  if (keys.begin >= keys.end) {
    for (int64_t r = 0; r < task.rows; ++r) result.largest[r] = -kInfinity, result.total[r] = 0;
    return;
  }
  int64_t r = 0;
  for (; r + 4 <= task.rows; r += 4) attend<T, 4>(args, task, scratch, keys, r, result);
  for (; r + 2 <= task.rows; r += 2) attend<T, 2>(args, task, scratch, keys, r, result);
  for (; r < task.rows; ++r) attend<T, 1>(args, task, scratch, keys, r, result);
}

// ---- joining splits -----------------------------------------------------------------------------

template <class T>
void combine(const AttentionArgs& args, const AttentionSplits& task) {
  const AttentionSequence& sequence = task.sequence;
  const int64_t group = args.heads_q / args.heads_k;
  const float scale = __builtin_fabsf(args.scale);
  const auto split = [&](int64_t s) {
    return result_at(args, task.first + s * task.stride, task.rows);
  };
  for (int64_t r = 0; r < task.rows; ++r) {
    float top = -kInfinity;
    for (int64_t s = 0; s < task.splits; ++s) top = greatest(top, split(s).largest[r]);
    const float shift = top == -kInfinity ? 0.0f : top;
    float total = 0;
    for (int64_t s = 0; s < task.splits; ++s) {
      float& factor = split(s).largest[r];  // in the place of the score that it comes from
      factor = exp2_weight<6>(set1(factor - shift), scale * kLog2E)[0];
      total += factor * split(s).total[r];
    }
    const float divisor = total == 0.0f ? 1.0f : total;
    const int64_t query = sequence.q_begin + r / group, head = task.head_k * group + r % group;
    T* const out = row_of<T>(args.out, sequence.batch, query, head);
    sweep_pairs(args.head_dim_v, [&](int64_t at, auto width) MMKERN_BODY {
      vf2 sum = pair(0.0f);
      for (int64_t s = 0; s < task.splits; ++s) {
        const SplitResult part = split(s);
        sum = fma(pair(part.largest[r]), load_pair(part.sums + r * part.pitch + at), sum);
      }
      store_pair(out + at, vf2{sum.a / divisor, sum.b / divisor}, width);
    });
    args.lse[(sequence.batch * args.heads_q + head) * args.lse_rows + query] =
        fma(set1(top), set1(scale), log(set1(total)))[0];
  }
}

}  // namespace

int64_t attention_decode_scratch(const AttentionArgs& args, int64_t keys) {
  return with_dtype(args.dtype, [&](auto element) {
    return DecodeScratch<decltype(element)>(args, nullptr, keys).bytes;
  });
}

int64_t attention_decode_result(const AttentionArgs& args, int64_t rows) {
  return rows * (scratch_pitch(args.head_dim_v) + 2);
}

void attention_decode(const AttentionArgs& args, const AttentionSplit& split, void* scratch) {
  with_dtype(args.dtype, [&](auto element) { run_split<decltype(element)>(args, split, scratch); });
}

void attention_combine(const AttentionArgs& args, const AttentionSplits& splits) {
  with_dtype(args.dtype, [&](auto element) { combine<decltype(element)>(args, splits); });
}

}  // namespace mmkern::MMKERN_ISA
