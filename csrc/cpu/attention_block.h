// What the forward and the backward of attention share. Both hold a block of query rows in the
// lanes of vectors and walk over the keys:
//
//   scores[key][row] = K[key][:] . Q^T[:][row]
//
// so softmax runs lane by lane, without sums across a vector, and any head_dim costs what it has:
// it is a row count or a loop length, never padded to a vector.
#pragma once

#include "attention.h"
#include "microkernel.h"
#include "vecmath.h"

namespace mmkern::MMKERN_ISA {

inline constexpr int kBlockRows = kTileVectors * kLanes;
inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kInfinity = __builtin_inff();

template <class X>
MMKERN_INLINE constexpr X greatest(X a, X b) {
  return a > b ? a : b;
}

template <class T>
MMKERN_INLINE T* row_of(const AttentionTensor& t, int64_t batch, int64_t row, int64_t head) {
  return static_cast<T*>(t.data) + batch * t.batch_stride + row * t.row_stride +
         head * t.head_stride;
}

// Deals out pieces of a scratch buffer, each on its own cache lines. With no buffer it measures.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class X>
  X* take(int64_t count) {
    char* piece = base == nullptr ? nullptr : base + used;
    used += (count * static_cast<int64_t>(sizeof(X)) + 63) / 64 * 64;
    return reinterpret_cast<X*>(piece);
  }
};

// ---- rows and keys ------------------------------------------------------------------------------

// The query rows in the lanes of one block. Lanes past `rows` are computed and dropped.
struct RowBlock {
  int rows;
  int vectors;  // that hold them: kTileVectors, or a half or quarter of it for a short last block
  int32_t first_position, last_position;
  int32_t position[kBlockRows];  // of the key that the query is aligned with
  int32_t query[kBlockRows];     // within the sequence
  int32_t head[kBlockRows];
};

// The rows from `begin` on of a (sequence, key head) that has `row_end` of them to take.
MMKERN_INLINE void fill_block(const AttentionArgs& args, const AttentionSequence& sequence,
                              int32_t head_k, int64_t begin, int64_t row_end, RowBlock& block) {
  const int group = args.heads_q / args.heads_k;
  const int32_t shift = sequence.seqlen_k - sequence.seqlen_q;
  block.rows = static_cast<int>(least<int64_t>(kBlockRows, row_end - begin));
  block.vectors = kTileVectors;
  while (block.vectors > 1 && block.rows <= block.vectors / 2 * kLanes) block.vectors /= 2;
  int32_t query = static_cast<int32_t>(begin / group);
  int32_t head = static_cast<int32_t>(begin % group);
  for (int lane = 0; lane < kBlockRows; ++lane) {
    block.query[lane] = query;
    block.head[lane] = head_k * group + head;
    block.position[lane] = query + shift;
    if (lane + 1 < block.rows && ++head == group) head = 0, ++query;
  }
  block.first_position = block.position[0];
  block.last_position = block.position[block.rows - 1];
}

struct KeyRange {
  int64_t begin, end;
};

// The keys of a sequence that its padding mask leaves between the first and the last that it keeps.
MMKERN_INLINE KeyRange unpadded_keys(const AttentionArgs& args, const AttentionSequence& sequence) {
  KeyRange range{0, sequence.seqlen_k};
  if (args.key_padding_mask == nullptr) return range;
  const bool* mask = args.key_padding_mask + sequence.batch * args.mask_batch_stride;
  while (range.end > 0 && !mask[(range.end - 1) * args.mask_key_stride]) --range.end;
  while (range.begin < range.end && !mask[range.begin * args.mask_key_stride]) ++range.begin;
  return range;
}

// Those of them that some query of the block sees by the window.
MMKERN_INLINE KeyRange visible_keys(const AttentionArgs& args, const KeyRange& keys,
                                    int32_t first_position, int32_t last_position) {
  return {greatest<int64_t>(keys.begin, first_position - args.window_left),
          least<int64_t>(keys.end, int64_t{last_position} + args.window_right + 1)};
}

// Which scores of a block of keys count. It is applied to sums that are still in registers, and
// only to strips that cross an edge of the window.
struct ScoreMask {
  const RowBlock* block;
  const bool* padding;  // null: none; else of the first key of the block of keys
  int64_t padding_stride;
  int32_t first_key;
  int32_t left, right;

  template <int R, int NV>
  MMKERN_INLINE void window(int32_t key, const RowBlock& rows, int32_t left, int32_t right,
                            vf (&scores)[R][NV]) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      const vi position = load_bits<vi>(rows.position + j * kLanes);
      const vi nearest = position - left, farthest = position + right;
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const vi at = set1(key + i);
        const vi seen = (at >= nearest) & (at <= farthest);
        scores[i][j] = select(seen, scores[i][j], set1(-kInfinity));
      }
    }
  }

  template <int R, int NV>
  __attribute__((always_inline)) void apply(int64_t row, vf (&scores)[R][NV]) const {
    const int32_t key = first_key + static_cast<int32_t>(row);
    if (key + R - 1 > block->first_position + right || key < block->last_position - left) {
      window(key, *block, left, right, scores);
    }
    if (padding == nullptr) return;
    for (int i = 0; i < R; ++i) {
      if (padding[(row + i) * padding_stride]) continue;
      for (int j = 0; j < NV; ++j) scores[i][j] = set1(-kInfinity);
    }
  }
};

MMKERN_INLINE ScoreMask score_mask(const AttentionArgs& args, const AttentionSequence& sequence,
                                   const RowBlock& block, int64_t first_key) {
  const bool* padding = args.key_padding_mask;
  if (padding != nullptr) {
    padding += sequence.batch * args.mask_batch_stride + first_key * args.mask_key_stride;
  }
  return {&block,           padding,          args.mask_key_stride, static_cast<int32_t>(first_key),
          args.window_left, args.window_right};
}

// ---- exponentials -------------------------------------------------------------------------------

// 2^(x * scale) for products <= 0 (and a little above) and scale > 0; 2^-inf is exactly 0, as are
// denormals without AVX-512, and NaN stays NaN. The product is not rounded before its fraction is
// taken. Relative error of the minimax polynomials: degree 4 3.6e-6, for weights that are rounded
// to bf16; degree 6 2.6e-9.
template <int kDegree>
MMKERN_INLINE vf exp2_weight(vf x, float scale) {
#if defined(__AVX512F__)
  constexpr float kLowest = -200.0f;
  constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23 leaves no room for a fraction
#else
  constexpr float kLowest = -127.0f;
  constexpr float kRounding = 12582912.0f + 127.0f;  // and the low bits are the biased exponent
#endif
  x = max(set1(greatest(kLowest / scale, -__FLT_MAX__)), x);
  const vf shifted = fma(x, set1(scale), set1(kRounding));
  const vf n = shifted - kRounding;
  const vf f = fma(x, set1(scale), -n);
  vf p;
  if constexpr (kDegree == 4) {
    p = fma(set1(9.782912553e-3f), f, set1(5.597688363e-2f));
    p = fma(p, f, set1(2.402071108e-1f));
    p = fma(p, f, set1(6.931136044e-1f));
  } else {
    static_assert(kDegree == 6);
    p = fma(set1(1.559467759e-4f), f, set1(1.340664391e-3f));
    p = fma(p, f, set1(9.617692975e-3f));
    p = fma(p, f, set1(5.550310551e-2f));
    p = fma(p, f, set1(2.402265278e-1f));
    p = fma(p, f, set1(6.931472150e-1f));
  }
  p = fma(p, f, set1(1.0f));
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else
  return p * bit_cast<vf>(bit_cast<vi>(shifted) << 23);
#endif
}
template <class C>
inline constexpr int kWeightDegree = kDepth<C> == 2 ? 4 : 6;

// ---- between rows in memory and lanes -----------------------------------------------------------

// Q^T: the rows of the block become lanes, out[cell][NV * kLanes]. sign is xor-ed to every value.
template <class T, int NV>
static void pack_lanes(const AttentionTensor& t, const AttentionSequence& sequence,
                       const RowBlock& block, int64_t n, bool negate, Cell<T>* out) {
  constexpr int64_t kDeep = kDepth<Cell<T>>;
  const int64_t count = cells<Cell<T>>(n);
  const vu sign = vu{} + (!negate ? 0u : kDeep == 2 ? 0x80008000u : 0x80000000u);
  for (int j = 0; j < NV; ++j) {
    const T* source[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int lane = j * kLanes + i;
      source[i] =
          row_of<T>(t, sequence.batch, sequence.q_begin + block.query[lane], block.head[lane]);
    }
    const int used = least(kLanes, greatest(0, block.rows - j * kLanes));
    for (int64_t c = 0; c < count; c += kLanes) {
      vu rows[kLanes];
      if (used == kLanes && n - c * kDeep >= kLanes * kDeep) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) rows[i] = read_full_cells(source[i] + c * kDeep) ^ sign;
      } else {
        for (int i = 0; i < kLanes; ++i) {
          rows[i] = i < used ? read_cells(source[i] + c * kDeep, n - c * kDeep) ^ sign : vu{};
        }
      }
      transpose(rows);
      Cell<T>* const to = out + (c * NV + j) * kLanes;
      if (count - c >= kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store_bits(to + i * NV * kLanes, rows[i]);
      } else {
        for (int i = 0; i < count - c; ++i) store_bits(to + i * NV * kLanes, rows[i]);
      }
    }
  }
}

// The way back, by way of finish(value, j) for vector j of lanes: n rows of NV * kLanes sums become
// rows of the block in memory. destination(lane) is where the lane's row begins.
template <class T, int NV, class Finish, class Destination>
MMKERN_INLINE void unpack_lanes(const float* sums, int64_t n, const RowBlock& block,
                                const Finish& finish, const Destination& destination) {
  for (int j = 0; j < NV && j * kLanes < block.rows; ++j) {
    const int lanes = least(kLanes, block.rows - j * kLanes);
    for (int64_t d = 0; d < n; d += kLanes) {
      const float* const from = sums + (d * NV + j) * kLanes;
      vu rows[kLanes];
      if (n - d >= kLanes && lanes == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          rows[i] = bit_cast<vu>(finish(load(from + i * NV * kLanes), j));
        }
        transpose(rows);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
          store(destination(j * kLanes + i) + d, bit_cast<vf>(rows[i]));
      } else {
        const Part width{static_cast<int>(least<int64_t>(kLanes, n - d))};
        for (int i = 0; i < kLanes; ++i) {
          rows[i] = i < width.n ? bit_cast<vu>(finish(load(from + i * NV * kLanes), j)) : vu{};
        }
        transpose(rows);
        for (int i = 0; i < lanes; ++i) {
          store(destination(j * kLanes + i) + d, bit_cast<vf>(rows[i]), width);
        }
      }
    }
  }
}

// Weights that one chain of additions sums up. A single one over all keys would double the error of
// the log-sum-exp.
inline constexpr int64_t kSumRows = 16;

// Calls body.template operator()<NV>() for the block's number of vectors.
template <class Body>
MMKERN_INLINE void with_vectors(int vectors, const Body& body) {
  if (vectors == kTileVectors) return body.template operator()<kTileVectors>();
  if constexpr (kTileVectors >= 4) {
    if (vectors == kTileVectors / 2) return body.template operator()<kTileVectors / 2>();
  }
  return body.template operator()<1>();
}

}  // namespace mmkern::MMKERN_ISA
