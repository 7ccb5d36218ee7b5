// The backward of attention, from the log-sum-exp: no softmax to redo, only weights.
//
// A task is a chunk of keys. For each block of query rows (in the lanes, as in the forward) and
// each block of the chunk's keys:
//
//   weights = exp(K Q^T * scale - lse)        dweights = V dO^T
//   dscores = weights * (dweights - delta)    delta = rowsum(dO * O) - dlse
//   dV += weights dO      dK += dscores Q     dQ^T += K^T dscores
//
// dK, dV (float, in scratch) belong to the chunk; dQ of a block of rows is complete after the
// chunk, or is its share of it. The scale of dK and dQ is applied at the end.
#include "attention_backward.h"

namespace mmkern::MMKERN_ISA {
namespace {

// ---- a block of rows against a block of keys ----------------------------------------------------

struct StoreMasked {
  float* scores;
  const ScoreMask* mask;  // null: every score counts

  template <int R, int NV>
  MMKERN_BODY void operator()(int64_t row, vf (&acc)[R][NV]) const {
    if (mask != nullptr) mask->apply(row, acc);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) store(scores + ((row + i) * NV + j) * kLanes, acc[i][j]);
    }
  }
};

struct Accumulate {
  float* sums;
  int64_t row_stride;
  bool first;  // there are no sums yet

  template <int R, int NV>
  MMKERN_BODY void operator()(int64_t row, vf (&acc)[R][NV]) const {
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        float* const sum = sums + (row + i) * row_stride + j * kLanes;
        store(sum, first ? acc[i][j] : acc[i][j] + load(sum));
      }
    }
  }
};

// sums[row][0, columns) += a[row][:] b, for a panel b of rows of `columns` cells (whole vectors).
template <class A, class C>
void add_product(int64_t rows, A a, const C* b, int64_t columns, int64_t depth, float* sums) {
  int64_t at = 0;
  const auto take = [&]<int NV>() {
    multiply_rows<NV>(rows, a, b + at, columns, depth, Accumulate{sums + at, columns, false});
    at += NV * kLanes;
  };
  while (columns - at >= kTileVectors * kLanes) take.template operator()<kTileVectors>();
  if constexpr (kTileVectors >= 4) {
    if (columns - at >= 2 * kLanes) take.template operator()<2>();
  }
  if (columns - at >= kLanes) take.template operator()<1>();
}

// The forward rounds largest * scale into the lse of a row with one key, so the backward rounds the
// product too, and that key weighs 1.
template <class C>
MMKERN_INLINE vf weight_of(vf score, float scale, vf lse) {
  return exp2_weight<kWeightDegree<C>>(rounded(score * scale) - lse, kLog2E);
}

// Where a block of keys is all that the rows see: replaces scores by weights, and returns what they
// must be multiplied by to sum up to 1, and the row sums of weights * dweights in delta. That
// cancels the rounding of lse and of dweights, which shows where few keys have all the weight: the
// gradient of q of the packed_window case had 5 times eager's error with lse and rowsum(dO * O).
template <class C, int NV>
void normalize(int64_t count, float scale, float* scores, const float* dweights, vf* delta,
               vf* inverse) {
  vf top[NV];
  for (int j = 0; j < NV; ++j) top[j] = set1(-kInfinity);
  for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) top[j] = max(top[j], load(scores + (i * NV + j) * kLanes));
  }
  for (int j = 0; j < NV; ++j) top[j] = select(top[j] == -kInfinity, zero(), top[j]);
  vf total[NV] = {}, sum[NV] = {};
  for (int64_t begin = 0; begin < count; begin += kSumRows) {
    vf part[NV] = {}, part_sum[NV] = {};
    for (int64_t i = begin; i < least(begin + kSumRows, count); ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        const int64_t at = (i * NV + j) * kLanes;
        const vf weight = exp2_weight<kWeightDegree<C>>(load(scores + at) - top[j], scale * kLog2E);
        store(scores + at, weight);
        part[j] += weight;
        part_sum[j] = fma(weight, load(dweights + at), part_sum[j]);
      }
    }
    for (int j = 0; j < NV; ++j) total[j] += part[j], sum[j] += part_sum[j];
  }
  for (int j = 0; j < NV; ++j) {
    inverse[j] = 1.0f / select(total[j] == 0.0f, set1(1.0f), total[j]);
    delta[j] += sum[j] * inverse[j];
  }
}

// Turns scores into weights and dweights into dscores, in place, as cells of the row dimension
// (pairs take the first half of a row's place); and dscores into cells of the key dimension.
// weight_from(score, j) makes the weight of a score of vector j.
template <class C, int NV, class Weight>
__attribute__((noinline)) void differentiate(int64_t count, const Weight& weight_from,
                                             const vf* delta, float* scores, float* dweights,
                                             C* dscores_across) {
  for (int64_t i = 0; i < count; i += kDepth<C>) {
    vf weight[kDepth<C>][NV], dscore[kDepth<C>][NV];
#pragma GCC unroll 2
    for (int u = 0; u < kDepth<C>; ++u) {
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        const int64_t at = ((i + u) * NV + j) * kLanes;
        weight[u][j] = weight_from(load(scores + at), j);
        dscore[u][j] = weight[u][j] * (load(dweights + at) - delta[j]);
        if constexpr (kDepth<C> == 1) {
          store(scores + at, weight[u][j]);
          store(dweights + at, dscore[u][j]);
        }
      }
    }
    if constexpr (kDepth<C> == 2) {
#pragma GCC unroll 2
      for (int u = 0; u < 2; ++u) {
        float* const weights_to = scores + (i + u) * NV * kLanes;
        float* const dscores_to = dweights + (i + u) * NV * kLanes;
#pragma GCC unroll 2
        for (int j = 0; j < NV; j += 2) {
          const int next = j + 1 < NV ? j + 1 : j;  // the second half of one vector is not read
          store_bits(weights_to + j / 2 * kLanes, make_pairs_along(weight[u][j], weight[u][next]));
          store_bits(dscores_to + j / 2 * kLanes, make_pairs_along(dscore[u][j], dscore[u][next]));
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        store_bits(dscores_across + (i / 2 * NV + j) * kLanes,
                   make_pairs(dscore[0][j], dscore[1][j]));
      }
    }
  }
}

// `begin` counts keys from the beginning of the chunk.
template <class T, int NV>
void add_key_block(const AttentionArgs& args, const AttentionChunk& chunk,
                   const BackwardScratch<T>& scratch, const ChunkOperands<T>& operands,
                   int64_t begin, int64_t count, bool first, bool whole) {
  using C = Cell<T>;
  constexpr int kRows = NV * kLanes;
  const ScoreMask mask = score_mask(args, chunk.sequence, *scratch.rows, chunk.key_begin + begin);
  multiply_rows<NV>(count, operands.keys.from_row(begin), static_cast<const C*>(scratch.queries_t),
                    kRows, cells<C>(args.head_dim), StoreMasked{scratch.scores, &mask});
  multiply_rows<NV>(count, operands.values.from_row(begin), static_cast<const C*>(scratch.grads_t),
                    kRows, cells<C>(args.head_dim_v), StoreMasked{scratch.dweights, nullptr});
  const int64_t steps = cells<C>(count);
  if (count % kDepth<C> != 0) {
    for (int j = 0; j < NV; ++j) {
      store(scratch.scores + (count * NV + j) * kLanes, set1(-kInfinity));
      store(scratch.dweights + (count * NV + j) * kLanes, zero());
    }
  }
  const float scale = __builtin_fabsf(args.scale);
  const auto differentiated = [&](const auto& weight_from) {
    differentiate<C, NV>(steps * kDepth<C>, weight_from, scratch.delta, scratch.scores,
                         scratch.dweights, scratch.dscores_across);
  };
  vf factor[NV];
  if (whole) {
    normalize<C, NV>(steps * kDepth<C>, scale, scratch.scores, scratch.dweights, scratch.delta,
                     factor);
    differentiated([&](vf weight, int j) MMKERN_BODY { return weight * factor[j]; });
  } else {
    for (int j = 0; j < NV; ++j) factor[j] = scratch.lse[j];
    differentiated([&](vf score, int j)
                       MMKERN_BODY { return weight_of<C>(score, scale, factor[j]); });
  }
  const C* const weights = reinterpret_cast<const C*>(scratch.scores);
  const C* const dscores = reinterpret_cast<const C*>(scratch.dweights);
  const C* const across = kDepth<C> == 2 ? scratch.dscores_across : dscores;
  const Rows keys_across{operands.across.data + begin / kDepth<C> * operands.across.step, Unit{},
                         operands.across.step};
  multiply_rows<NV>(args.head_dim, keys_across, across, kRows, steps,
                    Accumulate{scratch.dq, kRows, first});
  add_product(count, Rows{weights, int64_t{kRows}, Unit{}},
              static_cast<const C*>(scratch.grads_across), scratch.width_v, kRows / kDepth<C>,
              scratch.dv + begin * scratch.width_v);
  add_product(count, Rows{dscores, int64_t{kRows}, Unit{}},
              static_cast<const C*>(scratch.queries_across), scratch.width, kRows / kDepth<C>,
              scratch.dk + begin * scratch.width);
}

// Writes the rows' dQ of this chunk: to dq if there is no other chunk, else to its shares.
template <class T, int NV>
void finish_rows(const AttentionBackwardArgs& backward, const AttentionChunk& chunk,
                 const BackwardScratch<T>& scratch, int64_t row_begin, bool seen) {
  const AttentionArgs& args = backward.forward;
  const RowBlock& rows = *scratch.rows;
  const int64_t n = args.head_dim;
  if (!seen) {
    for (int64_t i = 0; i < n * NV; ++i) store(scratch.dq + i * kLanes, zero());
  }
  if (chunk.dq_share != nullptr) {
    unpack_lanes<float, NV>(
        scratch.dq, n, rows, [](vf sum, int) MMKERN_BODY { return sum; },
        [&](int lane) MMKERN_BODY { return chunk.dq_share + (row_begin + lane) * n; });
    return;
  }
  unpack_lanes<T, NV>(
      scratch.dq, n, rows, [&](vf sum, int) MMKERN_BODY { return sum * args.scale; },
      [&](int lane) MMKERN_BODY {
        return row_of<T>(backward.dq, chunk.sequence.batch,
                         chunk.sequence.q_begin + rows.query[lane], rows.head[lane]);
      });
}

// ---- a chunk of keys ----------------------------------------------------------------------------

template <class T>
void run_chunk(const AttentionBackwardArgs& backward, const AttentionChunk& chunk, void* buffer) {
  const AttentionArgs& args = backward.forward;
  const AttentionSequence& sequence = chunk.sequence;
  const int64_t chunk_keys = chunk.key_end - chunk.key_begin;
  const int64_t row_count = int64_t{sequence.seqlen_q} * (args.heads_q / args.heads_k);
  const int64_t key_block = backward_key_block(chunk_keys, row_count);
  const BackwardScratch<T> scratch(backward, buffer, chunk_keys, row_count);
  __builtin_memset(scratch.dk, 0, chunk_keys * scratch.width * sizeof(float));
  __builtin_memset(scratch.dv, 0, chunk_keys * scratch.width_v * sizeof(float));
  const int64_t row_cells = cells<Cell<T>>(kBlockRows);
  __builtin_memset(scratch.queries_across, 0, row_cells * scratch.width * sizeof(Cell<T>));
  __builtin_memset(scratch.grads_across, 0, row_cells * scratch.width_v * sizeof(Cell<T>));
  const ChunkOperands<T> operands = chunk_operands<T>(args, chunk, scratch);

  const KeyRange keys = unpadded_keys(args, sequence);
  for (int64_t row = 0; row < row_count; row += kBlockRows) {
    fill_block(args, sequence, chunk.head_k, row, row_count, *scratch.rows);
    const RowBlock& rows = *scratch.rows;
    const KeyRange all = visible_keys(args, keys, rows.first_position, rows.last_position);
    const int64_t begin = greatest(all.begin, chunk.key_begin) - chunk.key_begin;
    const int64_t end = least(all.end, chunk.key_end) - chunk.key_begin;
    const int64_t start = begin / key_block * key_block;
    const bool whole = all.begin == begin + chunk.key_begin && all.end == end + chunk.key_begin &&
                       end - start <= key_block;
    with_vectors(rows.vectors, [&]<int NV>() {
      if (begin < end) begin_rows<T, NV>(backward, sequence, scratch, whole);
      for (int64_t at = start; begin < end && at < end; at += key_block) {
        add_key_block<T, NV>(args, chunk, scratch, operands, at, least(key_block, end - at),
                             at == start, whole);
      }
      finish_rows<T, NV>(backward, chunk, scratch, row, begin < end);
    });
  }

  const auto write = [&](const AttentionTensor& to, int64_t key, const float* sums, int64_t n,
                         float scale) {
    T* const out =
        row_of<T>(to, sequence.batch, sequence.k_begin + chunk.key_begin + key, chunk.head_k);
    sweep(n, [&](int64_t d, auto width)
                 MMKERN_BODY { store(out + d, load(sums + d, width) * scale, width); });
  };
  for (int64_t key = 0; key < chunk_keys; ++key) {
    write(backward.dk, key, scratch.dk + key * scratch.width, args.head_dim, args.scale);
    write(backward.dv, key, scratch.dv + key * scratch.width_v, args.head_dim_v, 1.0f);
  }
}

template <class T>
void add_shares(const AttentionBackwardArgs& backward, const AttentionShares& shares) {
  const AttentionArgs& args = backward.forward;
  const AttentionSequence& sequence = shares.rows.sequence;
  const int64_t group = args.heads_q / args.heads_k, n = args.head_dim;
  for (int64_t row = shares.rows.row_begin; row < shares.rows.row_end; ++row) {
    T* const out = row_of<T>(backward.dq, sequence.batch, sequence.q_begin + row / group,
                             shares.rows.head_k * group + row % group);
    sweep(n, [&](int64_t d, auto width) MMKERN_BODY {
      vf sum = load(shares.first + row * n + d, width);
      for (int64_t c = 1; c < shares.chunks; ++c) {
        sum += load(shares.first + c * shares.share_stride + row * n + d, width);
      }
      store(out + d, sum * args.scale, width);
    });
  }
}

}  // namespace

int64_t attention_backward_scratch(const AttentionBackwardArgs& args, int64_t keys, int64_t rows) {
  return with_dtype(args.forward.dtype, [&](auto element) {
    return BackwardScratch<decltype(element)>(args, nullptr, keys, rows).bytes;
  });
}

void attention_backward(const AttentionBackwardArgs& args, const AttentionChunk& chunk,
                        void* scratch) {
  with_dtype(args.forward.dtype,
             [&](auto element) { run_chunk<decltype(element)>(args, chunk, scratch); });
}

void attention_add_shares(const AttentionBackwardArgs& args, const AttentionShares& shares) {
  with_dtype(args.forward.dtype,
             [&](auto element) { add_shares<decltype(element)>(args, shares); });
}

}  // namespace mmkern::MMKERN_ISA
