// What the backward of attention keeps and prepares: its scratch, the chunk of keys as operands,
// and a block of query rows as operands. attention_backward.cpp works with them.
#pragma once

#include "attention_block.h"

namespace mmkern::MMKERN_ISA {

// Keys per block: its scores and their gradients stay in L2, and mostly in L1. Of few rows the
// chunk is one block, so that their weights can be normalised (see normalize).
inline constexpr int64_t kBackwardKeys = 128;
MMKERN_INLINE int64_t backward_key_block(int64_t chunk, int64_t rows) {
  return rows <= kFewRows ? greatest<int64_t>(chunk, 1) : kBackwardKeys;
}

MMKERN_INLINE int64_t whole_vectors(int64_t n) { return (n + kLanes - 1) / kLanes; }

template <class T>
struct BackwardScratch {
  using C = Cell<T>;
  int64_t width, width_v;          // of rows of head_dim, head_dim_v floats in whole vectors
  C *keys, *values, *keys_across;  // the chunk: by rows, and across keys
  float *dk, *dv;                  // [key][width], [key][width_v]
  RowBlock* rows;
  C *queries_t, *grads_t, *outputs_t;  // Q^T, dO^T, O^T: [cell of head_dim][lanes]
  C *queries_across, *grads_across;    // [cell of rows][width], [cell of rows][width_v]
  vf *lse, *delta;
  float *scores, *dweights;  // of a block of keys; then weights and dscores as cells
  C* dscores_across;         // dscores as cells of the key dimension
  float* dq;                 // dQ^T
  int64_t bytes;

  BackwardScratch(const AttentionBackwardArgs& backward, void* buffer, int64_t chunk,
                  int64_t row_count) {
    const AttentionArgs& args = backward.forward;
    Arena arena{static_cast<char*>(buffer)};
    const int64_t cells_qk = cells<C>(args.head_dim), cells_v = cells<C>(args.head_dim_v);
    width = whole_vectors(args.head_dim) * kLanes;
    width_v = whole_vectors(args.head_dim_v) * kLanes;
    keys = arena.take<C>(chunk * cells_qk);
    values = arena.take<C>(chunk * cells_v);
    keys_across = arena.take<C>(kDepth<C> == 2 ? cells<C>(chunk) * args.head_dim : 0);
    dk = arena.take<float>(chunk * width);
    dv = arena.take<float>(chunk * width_v);
    rows = arena.take<RowBlock>(1);
    queries_t = arena.take<C>(cells_qk * kBlockRows);
    grads_t = arena.take<C>(cells_v * kBlockRows);
    queries_across = arena.take<C>(cells<C>(kBlockRows) * width);
    grads_across = arena.take<C>(cells<C>(kBlockRows) * width_v);
    lse = arena.take<vf>(kTileVectors);
    delta = arena.take<vf>(kTileVectors);
    const int64_t key_block = least(backward_key_block(chunk, row_count), chunk);
    const int64_t lanes = row_count <= kFewRows ? least<int64_t>(kBlockRows, 16) : kBlockRows;
    const int64_t score_count = (key_block + key_block % 2) * lanes;
    scores = arena.take<float>(score_count);
    dweights = arena.take<float>(score_count);
    dscores_across = arena.take<C>(kDepth<C> == 2 ? score_count / 2 : 0);
    outputs_t = arena.take<C>(cells_v * kBlockRows);
    dq = arena.take<float>(int64_t{args.head_dim} * kBlockRows);
    bytes = arena.used;
  }
};

// The chunk's keys and values as operands. `across` has one row for each element of head_dim.
template <class T>
struct ChunkOperands {
  Rows<Cell<T>, int64_t, Unit> keys, values;
  Rows<Cell<T>, Unit, int64_t> across;
};

template <class T>
ChunkOperands<T> chunk_operands(const AttentionArgs& args, const AttentionChunk& chunk,
                                const BackwardScratch<T>& scratch) {
  using C = Cell<T>;
  const auto row = [&](const AttentionTensor& t, int64_t key) {
    return row_of<T>(t, chunk.sequence.batch, chunk.sequence.k_begin + chunk.key_begin + key,
                     chunk.head_k);
  };
  const int64_t n = args.head_dim, n_v = args.head_dim_v;
  const int64_t count = chunk.key_end - chunk.key_begin;
  for (int64_t i = 0; i < count; ++i) {
    pack_row(row(args.k, i), n, scratch.keys + i * cells<C>(n));
    pack_row(row(args.v, i), n_v, scratch.values + i * cells<C>(n_v));
  }
  const Rows<C, int64_t, Unit> keys{scratch.keys, cells<C>(n), {}};
  const Rows<C, int64_t, Unit> values{scratch.values, cells<C>(n_v), {}};
  if constexpr (kDepth<C> == 1) return {keys, values, {scratch.keys, {}, n}};
  for (int64_t i = 0; i < count; i += kDepth<C>) {
    pack_across_rows(row(args.k, i), i + 1 < count ? row(args.k, i + 1) : nullptr, n,
                     scratch.keys_across + i / kDepth<C> * n);
  }
  return {keys, values, {scratch.keys_across, {}, n}};
}

// ---- a block of rows ----------------------------------------------------------------------------

template <class T>
void pack_rows_across(const AttentionTensor& t, const AttentionSequence& sequence,
                      const RowBlock& rows, int64_t n, int64_t lanes, Cell<T>* out, int64_t width) {
  using C = Cell<T>;
  const auto row = [&](int lane) -> const T* {
    if (lane >= rows.rows) return nullptr;
    return row_of<T>(t, sequence.batch, sequence.q_begin + rows.query[lane], rows.head[lane]);
  };
  for (int lane = 0; lane < lanes; lane += kDepth<C>) {
    pack_across_rows(row(lane), row(lane + 1), n, out + lane / kDepth<C> * width);
  }
}

// rowsum(dO * O), summed as the micro-kernel sums dweights: where one key has all the weight the
// two are the same number, and dscores exactly 0. O^T is packed in `outputs_t` for it.
template <class T, int NV>
void row_sums(const AttentionBackwardArgs& backward, const AttentionSequence& sequence,
              const BackwardScratch<T>& scratch, Cell<T>* outputs_t, vf* sums) {
  const int64_t n = backward.forward.head_dim_v;
  pack_lanes<T, NV>(backward.forward.out, sequence, *scratch.rows, n, false, outputs_t);
  for (int j = 0; j < NV; ++j) sums[j] = zero();
  constexpr int64_t kChain = kLongestChain<Cell<T>, NV>;
  const int64_t depth = cells<Cell<T>>(n), chain = least(kChain, depth);
  for (int64_t begin = 0; begin < depth; begin += chain) {
    vf part[NV] = {};
    for (int64_t c = begin; c < least(depth, begin + chain); ++c) {
      for (int j = 0; j < NV; ++j) {
        const int64_t at = (c * NV + j) * kLanes;
        part[j] =
            multiply_add(part[j], load_cells(outputs_t + at), load_cells(scratch.grads_t + at));
      }
    }
    for (int j = 0; j < NV; ++j) sums[j] += part[j];
  }
}

// `whole`: the rows' keys are one block, which adds the row sums to delta itself.
// Weights of a row without keys, and of a lane without a row, are 0: their lse is made +inf.
template <class T, int NV>
void begin_rows(const AttentionBackwardArgs& backward, const AttentionSequence& sequence,
                const BackwardScratch<T>& scratch, bool whole) {
  const AttentionArgs& args = backward.forward;
  const RowBlock& rows = *scratch.rows;
  constexpr int kRows = NV * kLanes;
  pack_lanes<T, NV>(backward.grad_out, sequence, rows, args.head_dim_v, false, scratch.grads_t);
  vf sums[NV] = {};
  if (!whole) row_sums<T, NV>(backward, sequence, scratch, scratch.outputs_t, sums);
  pack_lanes<T, NV>(args.q, sequence, rows, args.head_dim, args.scale < 0, scratch.queries_t);
  pack_rows_across<T>(args.q, sequence, rows, args.head_dim, kRows, scratch.queries_across,
                      scratch.width);
  pack_rows_across<T>(backward.grad_out, sequence, rows, args.head_dim_v, kRows,
                      scratch.grads_across, scratch.width_v);
  float lse[kRows], grad_lse[kRows];
  for (int lane = 0; lane < kRows; ++lane) {
    lse[lane] = kInfinity;
    grad_lse[lane] = 0;
    if (lane >= rows.rows) continue;
    const int64_t query = sequence.q_begin + rows.query[lane];
    const int64_t head = sequence.batch * args.heads_q + rows.head[lane];
    const int64_t at = head * args.lse_rows + query;
    if (args.lse[at] == -kInfinity) continue;
    lse[lane] = args.lse[at];
    if (backward.grad_lse != nullptr) grad_lse[lane] = backward.grad_lse[at];
  }
  for (int j = 0; j < NV; ++j) {
    scratch.lse[j] = load(lse + j * kLanes);
    scratch.delta[j] = sums[j] - load(grad_lse + j * kLanes);
  }
}

}  // namespace mmkern::MMKERN_ISA
