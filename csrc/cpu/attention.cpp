// The forward of attention: online softmax over blocks of keys, query rows in the lanes.
//
// A task is a tile of up to 256 rows. For each block of keys it packs keys and values once, and
// then every block of rows of the tile takes
//
//   scores = K Q^T,   weights = 2^((scores - largest) * scale * log2(e)),   sums = sums * alpha +
//   V^T weights
//
// A row's result does not depend on the tile that it is in.
#include "attention_block.h"

namespace mmkern::MMKERN_ISA {
namespace {

// Keys per block. Scores of one block of rows (kKeyBlock x 64 floats) stay in L2 beside the packed
// keys and values. Other lengths were not measured here.
constexpr int64_t kKeyBlock = 256;
constexpr int64_t kPrefetchRows = 32;

// One block of rows of the tile and what it has summed up so far.
template <class T>
struct RowState {
  RowBlock* rows;
  Cell<T>* queries;  // Q^T
  float* sums;       // O^T, [head_dim_v][vectors * kLanes]
  vf* largest;       // score
  vf* total;         // of the weights
};

template <class T>
struct ForwardScratch {
  int64_t blocks;
  RowBlock* rows;
  vf *largest, *total;
  Cell<T>*queries, *keys, *values;
  float *sums, *scores;
  int64_t query_cells, sum_cells;
  int64_t bytes;

  ForwardScratch(const AttentionArgs& args, void* buffer, int64_t row_count, int64_t key_count) {
    Arena arena{static_cast<char*>(buffer)};
    const int64_t key_block = least<int64_t>(kKeyBlock, key_count + key_count % 2);
    blocks = (row_count + kBlockRows - 1) / kBlockRows;
    query_cells = cells<Cell<T>>(args.head_dim) * kBlockRows;
    sum_cells = int64_t{args.head_dim_v} * kBlockRows;
    rows = arena.take<RowBlock>(blocks);
    largest = arena.take<vf>(blocks * kTileVectors);
    total = arena.take<vf>(blocks * kTileVectors);
    queries = arena.take<Cell<T>>(blocks * query_cells);
    sums = arena.take<float>(blocks * sum_cells);
    scores = arena.take<float>(key_block * kBlockRows);
    keys = arena.take<Cell<T>>(key_block * cells<Cell<T>>(args.head_dim));
    values = arena.take<Cell<T>>(cells<Cell<T>>(key_block) * args.head_dim_v);
    bytes = arena.used;
  }

  RowState<T> state(int64_t b) const {
    return {rows + b, queries + b * query_cells, sums + b * sum_cells, largest + b * kTileVectors,
            total + b * kTileVectors};
  }
};

// One block of keys and values as operands of the micro-kernel.
template <class T>
struct KeyBlock {
  int64_t begin, count;
  Rows<Cell<T>, int64_t, Unit> keys;    // row = key, step = cell of head_dim
  Rows<Cell<T>, Unit, int64_t> values;  // row = element of head_dim_v, step = cell of keys
};

// Packed in float too, though no value changes: rows that lie a power of two apart, as those of one
// head often do, share a few sets of the cache, and walks across them would miss it.
template <class T>
KeyBlock<T> key_block(const AttentionArgs& args, const AttentionTask& task,
                      const ForwardScratch<T>& scratch, int64_t begin, int64_t count) {
  const AttentionSequence& sequence = task.sequence;
  const auto row = [&](const AttentionTensor& t, int64_t key) {
    return row_of<T>(t, sequence.batch, sequence.k_begin + begin + key, task.head_k);
  };
  using C = Cell<T>;
  const int64_t width = cells<C>(args.head_dim);
  for (int64_t i = 0; i < count; ++i) {
    if (i + kPrefetchRows < count) prefetch(row(args.k, i + kPrefetchRows), args.head_dim);
    pack_row(row(args.k, i), args.head_dim, scratch.keys + i * width);
  }
  for (int64_t i = 0; i < count; i += kDepth<C>) {
    if (i + kPrefetchRows < count) {
      prefetch(row(args.v, i + kPrefetchRows), args.head_dim_v);
      prefetch(row(args.v, i + kPrefetchRows + 1), args.head_dim_v);
    }
    const T* odd = kDepth<C> == 2 && i + 1 < count ? row(args.v, i + 1) : nullptr;
    pack_across_rows(row(args.v, i), odd, args.head_dim_v,
                     scratch.values + i / kDepth<C> * args.head_dim_v);
  }
  return {begin, count, Rows{static_cast<const C*>(scratch.keys), width, Unit{}},
          Rows{static_cast<const C*>(scratch.values), Unit{}, int64_t{args.head_dim_v}}};
}

struct StoreScores {
  float* scores;
  vf* largest;
  ScoreMask mask;

  template <int R, int NV>
  MMKERN_BODY void operator()(int64_t row, vf (&acc)[R][NV]) const {
    mask.apply(row, acc);
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      vf top = largest[j];
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        store(scores + ((row + i) * NV + j) * kLanes, acc[i][j]);
        top = max(top, acc[i][j]);
      }
      largest[j] = top;
    }
  }
};

struct AddWeightedValues {
  float* sums;
  const vf* alpha;  // null: there are no sums yet

  template <int R, int NV>
  MMKERN_BODY void operator()(int64_t row, vf (&acc)[R][NV]) const {
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        float* const sum = sums + ((row + i) * NV + j) * kLanes;
        if (alpha != nullptr) acc[i][j] = fma(alpha[j], load(sum), acc[i][j]);
        store(sum, acc[i][j]);
      }
    }
  }
};

// Replaces `count` rows of scores by their weights, as cells of the key dimension, in place (the
// cells of a row never lie behind the scores that they come from), and adds the weights up.
// The difference comes before the scale, so that the largest score weighs exactly 1.
template <class C, int NV>
__attribute__((noinline)) void weigh(float* scores, int64_t count, float scale, const vf* largest,
                                     vf* total) {
  vf top[NV];
  for (int j = 0; j < NV; ++j) top[j] = largest[j];
  const auto weight = [&](int64_t row, int j) MMKERN_BODY {
    const vf score = load(scores + (row * NV + j) * kLanes);
    return exp2_weight<kWeightDegree<C>>(score - top[j], scale);
  };
  for (int64_t begin = 0; begin < count; begin += kSumRows) {
    const int64_t end = least(begin + kSumRows, count);
    vf sum[NV];
    for (int j = 0; j < NV; ++j) sum[j] = zero();
    for (int64_t i = begin; i < end; i += kDepth<C>) {
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        const vf first = weight(i, j);
        if constexpr (kDepth<C> == 1) {
          sum[j] += first;
          store(scores + (i * NV + j) * kLanes, first);
        } else {
          const vf second = weight(i + 1, j);
          sum[j] += first + second;
          store_bits(scores + (i / 2 * NV + j) * kLanes, make_pairs(first, second));
        }
      }
    }
    for (int j = 0; j < NV; ++j) total[j] += sum[j];
  }
}

// Takes the largest scores of a block of keys into account: `largest` becomes what to subtract from
// its scores, and alpha what earlier sums are worth now.
template <int NV>
MMKERN_INLINE void rescale(vf* largest, float scale, vf* state_largest, vf* total, vf* alpha) {
  for (int j = 0; j < NV; ++j) {
    const vf top = max(state_largest[j], largest[j]);
    // of a row without keys so far, 0: -inf - 0 weighs 0, while -inf + inf would be NaN
    largest[j] = select(top == -kInfinity, zero(), top);
    alpha[j] = exp2_weight<6>(state_largest[j] - largest[j], scale);
    state_largest[j] = top;
    total[j] *= alpha[j];
  }
}

template <class T, int NV>
void attend(const AttentionArgs& args, const AttentionSequence& sequence, const RowState<T>& state,
            const KeyBlock<T>& block, int64_t count, float* scores, bool first) {
  using C = Cell<T>;
  const float scale = __builtin_fabsf(args.scale) * kLog2E;
  vf largest[NV], alpha[NV];
  for (int j = 0; j < NV; ++j) largest[j] = set1(-kInfinity);
  const StoreScores store_scores{scores, largest,
                                 score_mask(args, sequence, *state.rows, block.begin)};
  multiply_rows<NV>(count, block.keys, static_cast<const C*>(state.queries), NV * kLanes,
                    cells<C>(args.head_dim), store_scores);
  if (count % kDepth<C> != 0) {
    for (int j = 0; j < NV; ++j) store(scores + (count * NV + j) * kLanes, set1(-kInfinity));
  }
  rescale<NV>(largest, scale, state.largest, state.total, alpha);
  const int64_t steps = cells<C>(count);
  weigh<C, NV>(scores, steps * kDepth<C>, scale, largest, state.total);
  multiply_rows<NV>(args.head_dim_v, block.values, reinterpret_cast<const C*>(scores), NV * kLanes,
                    steps, AddWeightedValues{state.sums, first ? nullptr : alpha});
}

template <class T, int NV>
void begin_rows(const AttentionArgs& args, const AttentionSequence& sequence,
                const RowState<T>& state) {
  pack_lanes<T, NV>(args.q, sequence, *state.rows, args.head_dim, args.scale < 0, state.queries);
  for (int j = 0; j < NV; ++j) {
    state.largest[j] = set1(-kInfinity);
    state.total[j] = zero();
  }
}

template <class T, int NV>
void finish_rows(const AttentionArgs& args, const AttentionSequence& sequence,
                 const RowState<T>& state, bool seen) {
  const RowBlock& rows = *state.rows;
  const float scale = __builtin_fabsf(args.scale);
  vf divisor[NV];
  float lse[NV * kLanes];
  for (int j = 0; j < NV; ++j) {
    divisor[j] = select(state.total[j] == 0.0f, set1(1.0f), state.total[j]);
    store(lse + j * kLanes, fma(state.largest[j], set1(scale), log(state.total[j])));
  }
  if (!seen) {
    for (int64_t i = 0; i < args.head_dim_v * NV; ++i) store(state.sums + i * kLanes, zero());
  }
  const auto average = [&](vf sum, int j) MMKERN_BODY { return sum / divisor[j]; };
  unpack_lanes<T, NV>(state.sums, args.head_dim_v, rows, average, [&](int lane) MMKERN_BODY {
    return row_of<T>(args.out, sequence.batch, sequence.q_begin + rows.query[lane],
                     rows.head[lane]);
  });
  for (int lane = 0; lane < rows.rows; ++lane) {
    const int64_t head = sequence.batch * args.heads_q + rows.head[lane];
    args.lse[head * args.lse_rows + sequence.q_begin + rows.query[lane]] = lse[lane];
  }
}

template <class T>
void run_tile(const AttentionArgs& args, const AttentionTask& task, void* buffer) {
  const AttentionSequence& sequence = task.sequence;
  const int64_t row_count = task.row_end - task.row_begin;
  const ForwardScratch<T> scratch(args, buffer, row_count, sequence.seqlen_k);
  const KeyRange keys = unpadded_keys(args, sequence);
  for (int64_t b = 0; b < scratch.blocks; ++b) {
    const RowState<T> state = scratch.state(b);
    fill_block(args, sequence, task.head_k, task.row_begin + b * kBlockRows, task.row_end,
               *state.rows);
    with_vectors(state.rows->vectors, [&]<int NV>() { begin_rows<T, NV>(args, sequence, state); });
  }
  const auto visible = [&](int64_t first, int64_t last) {
    return visible_keys(args, keys, scratch.rows[first].first_position,
                        scratch.rows[last].last_position);
  };
  const KeyRange tile = visible(0, scratch.blocks - 1);
  for (int64_t begin = tile.begin / kKeyBlock * kKeyBlock; begin < tile.end; begin += kKeyBlock) {
    const int64_t count = least(kKeyBlock, tile.end - begin);
    const KeyBlock<T> block = key_block(args, task, scratch, begin, count);
    for (int64_t b = 0; b < scratch.blocks; ++b) {
      const KeyRange own = visible(b, b);
      if (own.end <= greatest(begin, own.begin) || own.begin >= begin + count) continue;
      const RowState<T> state = scratch.state(b);
      with_vectors(state.rows->vectors, [&]<int NV>() {
        attend<T, NV>(args, sequence, state, block, least(count, own.end - begin), scratch.scores,
                      begin <= own.begin);
      });
    }
  }
  for (int64_t b = 0; b < scratch.blocks; ++b) {
    const RowState<T> state = scratch.state(b);
    const KeyRange own = visible(b, b);
    with_vectors(state.rows->vectors,
                 [&]<int NV>() { finish_rows<T, NV>(args, sequence, state, own.begin < own.end); });
  }
}

}  // namespace

int64_t attention_forward_scratch(const AttentionArgs& args, int64_t rows, int64_t keys) {
  return with_dtype(args.dtype, [&](auto element) {
    return ForwardScratch<decltype(element)>(args, nullptr, rows, keys).bytes;
  });
}

void attention_forward(const AttentionArgs& args, const AttentionTask& task, void* scratch) {
  with_dtype(args.dtype, [&](auto element) { run_tile<decltype(element)>(args, task, scratch); });
}

}  // namespace mmkern::MMKERN_ISA
