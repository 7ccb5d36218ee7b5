// Host side of mmkern::attention and its backward: tensors to plain structs, and tasks to threads.
//
// The kernels take float32, bfloat16 and float16 with a unit last stride, and a finite scale that
// is not 0; anything else goes to the reference. grad_out and lse are made contiguous where they
// are not (the gradient of a sum is an expanded scalar).
#include "cpu/attention.h"

#include <cmath>
#include <vector>

#include "host.h"

namespace mmkern {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Positions and windows must fit an int32 with room to add them.
constexpr int64_t kMaxSeqlen = kUnlimitedWindow / 2;
// Rows of one task. Results do not depend on it; small tiles pack keys and values more often.
constexpr int64_t kTileRows = 256;
constexpr int64_t kMinTileRows = 64;

// Keys of a split, in the forward of few rows.
constexpr int64_t kSplitKeys = 512;

// Floats of dq shares that may wait to be added up; more (sequence, key head)s than these belong to
// come one wave after another.
constexpr int64_t kMaxShareFloats = int64_t{32} << 20;

bool kernel_takes(const Tensor& q, const Tensor& k, const Tensor& v, double scale) {
  const int64_t axis = q.dim() - 3;
  for (const Tensor* t : {&q, &k, &v}) {
    if (!is_kernel_dtype(t->scalar_type()) || t->scalar_type() != q.scalar_type() ||
        !has_unit_last_stride(*t) || t->size(axis) >= kMaxSeqlen) {
      return false;
    }
  }
  return std::isfinite(scale) && static_cast<float>(scale) != 0.0f;
}

AttentionTensor describe(const Tensor& t) {
  const bool packed = t.dim() == 3;
  return {const_cast<void*>(data_or_null(t)), packed ? 0 : t.stride(0), t.stride(-3), t.stride(-2)};
}

int32_t window_limit(int64_t window) {
  return window < 0 ? kUnlimitedWindow
                    : static_cast<int32_t>(std::min<int64_t>(window, kUnlimitedWindow));
}

AttentionArgs describe(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                       const Tensor& lse, const OptionalTensor& key_padding_mask, bool causal,
                       int64_t window_left, int64_t window_right, double scale) {
  AttentionArgs args{};
  args.dtype = kernel_dtype(q.scalar_type());
  args.heads_q = static_cast<int32_t>(q.size(-2));
  args.heads_k = static_cast<int32_t>(k.size(-2));
  args.head_dim = static_cast<int32_t>(q.size(-1));
  args.head_dim_v = static_cast<int32_t>(v.size(-1));
  args.window_left = window_limit(window_left);
  args.window_right = causal ? 0 : window_limit(window_right);
  args.scale = static_cast<float>(scale);
  args.q = describe(q);
  args.k = describe(k);
  args.v = describe(v);
  args.out = describe(out);
  args.lse = lse.numel() ? lse.data_ptr<float>() : nullptr;
  args.lse_rows = lse.size(-1);
  if (key_padding_mask.has_value()) {
    args.key_padding_mask = static_cast<const bool*>(data_or_null(*key_padding_mask));
    args.mask_batch_stride = key_padding_mask->stride(0);
    args.mask_key_stride = key_padding_mask->stride(1);
  }
  return args;
}

// Reads cu_seqlens, which must rise from 0 to the number of packed rows.
std::vector<int32_t> read_offsets(const char* name, const Tensor& cu_seqlens, int64_t total) {
  const Tensor values = cu_seqlens.contiguous();
  const int32_t* data = values.const_data_ptr<int32_t>();
  std::vector<int32_t> offsets(data, data + values.numel());
  TORCH_CHECK_VALUE(!offsets.empty() && offsets.front() == 0 && offsets.back() == total &&
                        std::is_sorted(offsets.begin(), offsets.end()),
                    "mmkern::attention: ", name, " is ", offsets,
                    "; wanted values that rise from 0 to the ", total, " packed tokens");
  return offsets;
}

std::vector<AttentionSequence> list_sequences(const Tensor& q, const Tensor& k,
                                              const OptionalTensor& cu_seqlens_q,
                                              const OptionalTensor& cu_seqlens_k) {
  std::vector<AttentionSequence> sequences;
  if (q.dim() == 4) {
    for (int64_t b = 0; b < q.size(0); ++b) {
      sequences.push_back(
          {b, 0, 0, static_cast<int32_t>(q.size(1)), static_cast<int32_t>(k.size(1))});
    }
    return sequences;
  }
  const auto starts_q = read_offsets("cu_seqlens_q", *cu_seqlens_q, q.size(0));
  const auto starts_k = read_offsets("cu_seqlens_k", *cu_seqlens_k, k.size(0));
  TORCH_CHECK_VALUE(starts_q.size() == starts_k.size(), "mmkern::attention: cu_seqlens_k has ",
                    starts_k.size(), " values; wanted ", starts_q.size(), ", as cu_seqlens_q");
  for (size_t i = 0; i + 1 < starts_q.size(); ++i) {
    sequences.push_back({0, starts_q[i], starts_k[i], starts_q[i + 1] - starts_q[i],
                         starts_k[i + 1] - starts_k[i]});
  }
  // The longest first, so that no thread is left with one at the end.
  const auto cost = [](const AttentionSequence& s) { return int64_t{s.seqlen_q} * s.seqlen_k; };
  std::stable_sort(sequences.begin(), sequences.end(),
                   [&](const auto& a, const auto& b) { return cost(a) > cost(b); });
  return sequences;
}

// Tiles of every (sequence, key head), those that see the most keys under a causal mask first.
std::vector<AttentionTask> list_tiles(const AttentionArgs& args,
                                      const std::vector<AttentionSequence>& sequences,
                                      int64_t tile_rows) {
  const int64_t group = args.heads_q / args.heads_k;
  std::vector<AttentionTask> tasks;
  for (const AttentionSequence& sequence : sequences) {
    const int64_t rows = sequence.seqlen_q * group;
    for (int32_t head = 0; head < args.heads_k; ++head) {
      for (int64_t tile = (rows - 1) / tile_rows; tile >= 0 && rows > 0; --tile) {
        const int64_t begin = tile * tile_rows;
        tasks.push_back({sequence, head, begin, std::min(begin + tile_rows, rows)});
      }
    }
  }
  return tasks;
}

std::vector<AttentionTask> list_tiles(const AttentionArgs& args,
                                      const std::vector<AttentionSequence>& sequences) {
  const size_t enough = 4 * static_cast<size_t>(at::get_num_threads());
  int64_t tile_rows = kTileRows;
  auto tasks = list_tiles(args, sequences, tile_rows);
  while (tasks.size() < enough && tile_rows > kMinTileRows) {
    tile_rows /= 2;
    tasks = list_tiles(args, sequences, tile_rows);
  }
  return tasks;
}

void run_tiles(const AttentionArgs& args, const std::vector<AttentionSequence>& sequences) {
  const auto tasks = list_tiles(args, sequences);
  if (tasks.empty()) return;
  int64_t most_rows = 0, most_keys = 0;
  double work = 0;
  for (const AttentionTask& task : tasks) {
    const int64_t rows = task.row_end - task.row_begin, keys = task.sequence.seqlen_k;
    most_rows = std::max(most_rows, rows);
    most_keys = std::max(most_keys, keys);
    work += static_cast<double>(rows) * keys;
  }
  // a vectorised step does a few dozen multiplications in the time of one element of memory
  work *= (args.head_dim + args.head_dim_v) / 32.0 / static_cast<double>(tasks.size());
  const int64_t bytes = MMKERN_PICK(attention_forward_scratch)(args, most_rows, most_keys);
  parallel_dynamic(tasks.size(), static_cast<int64_t>(work), 1, [&](const auto& next) {
    const Scratch<char> scratch(bytes);
    for (int64_t begin, end; next(begin, end);) {
      MMKERN_PICK(attention_forward)(args, tasks[begin], scratch.get());
    }
  });
}

void run_splits(const AttentionArgs& args, const std::vector<AttentionSequence>& sequences) {
  std::vector<AttentionSplits> joints;
  int64_t floats = 0;
  for (const AttentionSequence& sequence : sequences) {
    const int64_t rows = int64_t{sequence.seqlen_q} * (args.heads_q / args.heads_k);
    const int64_t splits = std::max<int64_t>(1, (sequence.seqlen_k + kSplitKeys - 1) / kSplitKeys);
    const int64_t stride = MMKERN_PICK(attention_decode_result)(args, rows);
    for (int32_t head = 0; head < args.heads_k; ++head) {
      joints.push_back({sequence, head, rows, splits, nullptr, stride});
      floats += splits * stride;
    }
  }
  if (joints.empty()) return;
  const Scratch<float> results(floats);
  float* result = results.get();
  std::vector<AttentionSplit> tasks;
  int64_t most_keys = 0, keys = 0;
  for (AttentionSplits& joint : joints) {
    joint.first = result;
    for (int64_t split = 0; split < joint.splits; ++split, result += joint.stride) {
      const int64_t begin = split * kSplitKeys;
      const int64_t end = std::min<int64_t>(begin + kSplitKeys, joint.sequence.seqlen_k);
      tasks.push_back({joint.sequence, joint.head_k, joint.rows, begin, end, result});
      most_keys = std::max(most_keys, end - begin);
      keys += end - begin;
    }
  }
  const int64_t count = static_cast<int64_t>(tasks.size());
  const int64_t work = keys * (args.head_dim + args.head_dim_v) / count;
  const int64_t bytes = MMKERN_PICK(attention_decode_scratch)(args, most_keys);
  parallel_dynamic(count, work, 1, [&](const auto& next) {
    const Scratch<char> scratch(bytes);
    for (int64_t begin, end; next(begin, end);) {
      MMKERN_PICK(attention_decode)(args, tasks[begin], scratch.get());
    }
  });
  const int64_t joined = static_cast<int64_t>(joints.size());
  parallel_even(joined, floats / joined, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) MMKERN_PICK(attention_combine)(args, joints[begin]);
  });
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const OptionalTensor& key_padding_mask,
                                     const OptionalTensor& cu_seqlens_q,
                                     const OptionalTensor& cu_seqlens_k, int64_t max_seqlen_q,
                                     int64_t max_seqlen_k, bool causal, int64_t window_left,
                                     int64_t window_right, double scale) {
  if (!kernel_takes(q, k, v, scale)) {
    return call_reference<std::tuple<Tensor, Tensor>>(
        "mmkern::attention", q, k, v, key_padding_mask, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, causal, window_left, window_right, scale);
  }
  auto shape = q.sizes().vec();
  shape.back() = v.size(-1);
  const Tensor out = new_tensor(shape, q.options());
  const auto lse_shape = q.dim() == 4 ? std::vector<int64_t>{q.size(0), q.size(2), q.size(1)}
                                      : std::vector<int64_t>{q.size(1), q.size(0)};
  const Tensor lse = new_tensor(lse_shape, q.options().dtype(at::kFloat));
  const AttentionArgs args =
      describe(q, k, v, out, lse, key_padding_mask, causal, window_left, window_right, scale);
  auto sequences = list_sequences(q, k, cu_seqlens_q, cu_seqlens_k);
  // which way a sequence goes depends on itself alone, so that its neighbours do not change its
  // bits
  const auto few_rows = std::stable_partition(
      sequences.begin(), sequences.end(), [&](const AttentionSequence& sequence) {
        return int64_t{sequence.seqlen_q} * args.heads_q > kFewRows * args.heads_k;
      });
  run_tiles(args, {sequences.begin(), few_rows});
  run_splits(args, {few_rows, sequences.end()});
  return {out, lse};
}

// Keys of a chunk of the backward. Each chunk prepares all rows anew (1024 keys instead of
// 256: 1.15 times the speed in bf16 at head_dim 128), but few heads need chunks to occupy the
// threads. Few rows are the more accurate the more of their keys are in one place.
int64_t chunk_keys(const AttentionArgs& args, int64_t rows) {
  if (rows <= kFewRows) return 4096;
  const int64_t widest = std::max({args.head_dim, args.head_dim_v, 1});
  const int64_t most = args.heads_k < 4 ? 512 : 1024;
  return std::clamp<int64_t>(131072 / widest / 64 * 64, 256, most);
}

// One (sequence, key head), whose gradients no other one touches.
struct Unit {
  AttentionSequence sequence;
  int32_t head_k;
  int64_t rows, chunks;
  // dq of one chunk; with a single chunk none is kept
  int64_t share_floats(int64_t head_dim) const { return chunks > 1 ? rows * head_dim : 0; }
};

std::vector<Unit> list_units(const AttentionArgs& args,
                             const std::vector<AttentionSequence>& sequences) {
  std::vector<Unit> units;
  for (const AttentionSequence& sequence : sequences) {
    const int64_t rows = int64_t{sequence.seqlen_q} * (args.heads_q / args.heads_k);
    const int64_t keys = chunk_keys(args, rows);
    const int64_t chunks = std::max<int64_t>(1, (sequence.seqlen_k + keys - 1) / keys);
    for (int32_t head = 0; head < args.heads_k; ++head) {
      units.push_back({sequence, head, rows, chunks});
    }
  }
  return units;
}

// Runs the chunks of units [first, last) side by side, then adds up their shares of dq.
void run_wave(const AttentionBackwardArgs& args, const Unit* first, const Unit* last,
              int64_t share_floats) {
  const int64_t head_dim = args.forward.head_dim;
  const Scratch<float> share_buffer(share_floats);
  float* share = share_buffer.get();
  std::vector<AttentionChunk> chunks;
  std::vector<AttentionShares> shares;
  int64_t bytes = 0;
  double work = 0;
  for (const Unit* unit = first; unit != last; ++unit) {
    const int64_t stride = unit->share_floats(head_dim);
    const int64_t keys = chunk_keys(args.forward, unit->rows);
    const int64_t most_keys = std::min<int64_t>(keys, unit->sequence.seqlen_k);
    bytes = std::max(bytes, MMKERN_PICK(attention_backward_scratch)(args, most_keys, unit->rows));
    for (int64_t c = 0; c < unit->chunks; ++c) {
      const int64_t end = std::min<int64_t>((c + 1) * keys, unit->sequence.seqlen_k);
      float* const own = unit->chunks > 1 ? share + c * stride : nullptr;
      chunks.push_back({unit->sequence, unit->head_k, c * keys, end, own});
      work += static_cast<double>(unit->rows + 1) * (end - c * keys) + unit->rows;
    }
    for (int64_t row = 0; unit->chunks > 1 && row < unit->rows; row += kTileRows) {
      const int64_t end = std::min(row + kTileRows, unit->rows);
      shares.push_back({{unit->sequence, unit->head_k, row, end}, share, stride, unit->chunks});
    }
    share += unit->chunks * stride;
  }
  work *= (head_dim + args.forward.head_dim_v) / 16.0 / static_cast<double>(chunks.size());
  parallel_dynamic(chunks.size(), static_cast<int64_t>(work), 1, [&](const auto& next) {
    const Scratch<char> scratch(bytes);
    for (int64_t begin, end; next(begin, end);) {
      MMKERN_PICK(attention_backward)(args, chunks[begin], scratch.get());
    }
  });
  parallel_even(shares.size(), kTileRows * head_dim, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) MMKERN_PICK(attention_add_shares)(args, shares[begin]);
  });
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& q, const Tensor& k,
    const Tensor& v, const Tensor& out, const Tensor& lse, const OptionalTensor& key_padding_mask,
    const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k, int64_t max_seqlen_q,
    int64_t max_seqlen_k, bool causal, int64_t window_left, int64_t window_right, double scale) {
  if (!kernel_takes(q, k, v, scale) || grad_out.scalar_type() != q.scalar_type() ||
      out.scalar_type() != q.scalar_type() || lse.scalar_type() != at::kFloat) {
    return call_reference<std::tuple<Tensor, Tensor, Tensor>>(
        "mmkern::attention_backward", grad_out, grad_lse, q, k, v, out, lse, key_padding_mask,
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, window_left, window_right,
        scale);
  }
  const auto rows_in_place = [](const Tensor& t) {
    return has_unit_last_stride(t) ? t : t.contiguous();
  };
  const Tensor grad = rows_in_place(grad_out), saved = rows_in_place(out);
  const Tensor logs = lse.contiguous();
  const Tensor grad_logs = grad_lse.has_value() ? grad_lse->to(at::kFloat).contiguous() : Tensor();
  const Tensor dq = new_tensor(q.sizes(), q.options()), dk = new_tensor(k.sizes(), k.options()),
               dv = new_tensor(v.sizes(), v.options());
  AttentionBackwardArgs args{};
  args.forward =
      describe(q, k, v, saved, logs, key_padding_mask, causal, window_left, window_right, scale);
  args.grad_out = describe(grad);
  args.dq = describe(dq);
  args.dk = describe(dk);
  args.dv = describe(dv);
  if (grad_logs.defined() && grad_logs.numel()) args.grad_lse = grad_logs.const_data_ptr<float>();
  const auto units = list_units(args.forward, list_sequences(q, k, cu_seqlens_q, cu_seqlens_k));
  const Unit* const end = units.data() + units.size();
  for (const Unit* first = units.data(); first != end;) {
    const Unit* last = first;
    int64_t floats = 0;
    do {
      floats += last->chunks * last->share_floats(q.size(-1));
      ++last;
    } while (last != end && floats < kMaxShareFloats);
    run_wave(args, first, last, floats);
    first = last;
  }
  return {dq, dk, dv};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmkern, CPU, m) {
  m.impl("attention", &attention);
  m.impl("attention_backward", &attention_backward);
}

}  // namespace mmkern
