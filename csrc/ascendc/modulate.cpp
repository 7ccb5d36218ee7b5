#include "host.h"
#include "ops.h"

namespace mmkern::ascendc {
namespace {

// A modulation tensor as (B or 1, frames, C); x of (N, C) is one batch entry of N tokens.
Tensor framed(const Tensor& m, const Tensor& x) {
  if (m.dim() == 4) return m.squeeze(2);
  if (m.dim() == 3) return m;
  if (m.dim() == 1) return m.unsqueeze(0).unsqueeze(0);
  return x.dim() == 2 ? m.unsqueeze(0) : m.unsqueeze(1);
}

bool fits(const OptionalTensor& m, const Tensor& x) {
  return !m.has_value() ||
         ((m->scalar_type() == x.scalar_type() || m->scalar_type() == at::kFloat) &&
          has_unit_last_stride(*m) && m->numel() > 0);
}

ModulateVector vector_of(const OptionalTensor& m, const Tensor& x, int64_t tokens) {
  if (!m.has_value()) return {};
  const Tensor f = framed(*m, x);
  return {f.size(0) > 1 ? f.stride(0) : 0, f.size(1) > 1 ? f.stride(1) : 0,
          static_cast<int32_t>(tokens / f.size(1)), m->scalar_type() == at::kFloat ? 2 : 1};
}

// Tokens of one forward task are a tile; the sums of backward, of this many tokens each, cost 12
// bytes in 32 tokens and channel, 4 % of what it moves.
constexpr int32_t kSumTokens = 32;

struct Layout {        // how many buffers of the kernel there are, of rows and of single vectors
  int32_t half_tiles;  // queues of rows, `buffers` deep
  int32_t float_tiles;
  int32_t vectors;
};

int64_t bytes_of(const ModulateTiling& t, const Layout& layout) {
  const int64_t tile = int64_t{t.rows} * t.pitch;
  return tile * (layout.half_tiles * t.buffers * 2 + layout.float_tiles * 4) +
         layout.vectors * int64_t{t.pitch} * 4 + row_norm_bytes(t.rows, t.pitch);
}

// The most rows that fit with two buffers, else with one; false if not even one row does.
bool choose_rows(ModulateTiling& t, const Layout& layout, int64_t most) {
  for (t.buffers = 2; t.buffers >= 1; --t.buffers) {
    for (t.rows = static_cast<int32_t>(std::min<int64_t>(most, 255)); t.rows >= 1; --t.rows) {
      if (bytes_of(t, layout) <= chip().unified_buffer) return true;
    }
  }
  return false;
}

struct Strides {
  int64_t batch = 0, row = 0;
};

Strides strides_of(const OptionalTensor& t) {
  if (!t.has_value()) return {};
  if (t->dim() == 2) return {0, t->stride(0)};
  return {t->stride(0), t->stride(1)};
}

// False if the kernels do not take the case.
bool describe(ModulateTiling& t, const Tensor& x, const OptionalTensor& branch,
              const OptionalTensor& gate, const OptionalTensor& shift, const OptionalTensor& scale,
              const OptionalTensor& weight, const OptionalTensor& bias, std::string_view norm,
              double eps) {
  const bool sizes = is_half(x) && x.numel() > 0 && x.size(-1) <= kMaxChannels &&
                     x.numel() / x.size(-1) < (int64_t{1} << 30);
  if (!sizes || !has_rows(x) || (branch.has_value() && !has_rows(*branch))) return false;
  for (const OptionalTensor* m : {&gate, &shift, &scale, &weight, &bias}) {
    if (!fits(*m, x)) return false;
  }
  const int64_t tokens = x.size(-2);
  t.batch = static_cast<int32_t>(x.dim() == 3 ? x.size(0) : 1);
  t.tokens = static_cast<int32_t>(tokens);
  t.cols = static_cast<int32_t>(x.size(-1));
  t.pitch = static_cast<int32_t>(align_up(t.cols, 16));
  const Strides xs = strides_of(x), bs = strides_of(branch);
  t.x_batch_stride = xs.batch;
  t.x_row_stride = xs.row;
  t.branch_batch_stride = bs.batch;
  t.branch_row_stride = bs.row;
  t.gate = vector_of(gate, x, tokens);
  t.shift = vector_of(shift, x, tokens);
  t.scale = vector_of(scale, x, tokens);
  t.weight = vector_of(weight, x, tokens);
  t.bias = vector_of(bias, x, tokens);
  t.norm = norm_of(norm);
  t.eps = static_cast<float>(eps);
  t.branched = branch.has_value();
  t.segment = t.tokens;
  for (const ModulateVector* v : {&t.gate, &t.shift, &t.scale}) {
    if (v->kind) t.segment = std::gcd(t.segment, v->tokens);
  }
  return true;
}

int64_t tasks_of(const ModulateTiling& t) {
  return int64_t{t.batch} * (t.tokens / t.segment) * ceil_div(t.segment, t.chunk);
}

uint32_t blocks_of(const ModulateTiling& t) {
  return static_cast<uint32_t>(std::min<int64_t>(chip().vector_cores, tasks_of(t)));
}

}  // namespace

std::tuple<Tensor, Tensor> modulate(const Tensor& x, const OptionalTensor& branch,
                                    const OptionalTensor& gate, const OptionalTensor& shift,
                                    const OptionalTensor& scale, const OptionalTensor& weight,
                                    const OptionalTensor& bias, std::string_view norm, double eps) {
  ModulateTiling t{};
  bool taken = describe(t, x, branch, gate, shift, scale, weight, bias, norm, eps);
  if (taken) {
    const int32_t half_tiles = 1 + 2 * t.branched + (t.norm != 0);
    const int64_t share = ceil_div(int64_t{t.batch} * t.tokens, chip().vector_cores);
    taken = choose_rows(t, {half_tiles, 2, 4}, std::min<int64_t>(t.segment, share));
    t.chunk = t.rows;
  }
  if (!taken) {
    return reference<std::tuple<Tensor, Tensor>>("mmkern::modulate", x, branch, gate, shift, scale,
                                                 weight, bias, norm, eps);
  }
  const Tensor h = empty_like_if(t.branched, x), y = empty_like_if(t.norm != 0, x);
  const uint32_t blocks = blocks_of(t);
  const bool bfloat16 = is_bfloat16(x);
  submit({"modulate",
          x.device(),
          false,
          blocks,
          {input(x), input(branch), input(gate), input(shift), input(scale), input(weight),
           input(bias), output(h), output(y)}},
         [=](void* stream, uint8_t** p) { launch_modulate(bfloat16, blocks, stream, p, t); });
  return {h, y};
}

namespace {

// Sums over segments, (B, segments, C) in float32, down to the shape and dtype of the tensor m.
Tensor sum_like(const Tensor& sums, const Tensor& m, const Tensor& x) {
  const Tensor f = framed(m, x);
  const int64_t frames = f.size(1), channels = sums.size(2);
  Tensor s = sums.reshape({sums.size(0), frames, sums.size(1) / frames, channels}).sum(2);
  if (f.size(0) == 1) s = s.sum(0, true);
  return s.reshape(m.sizes()).to(m.scalar_type());
}

// m for each segment: (B or 1, segments, C) in float32.
Tensor per_segment(const Tensor& m, const Tensor& x, int64_t segments) {
  const Tensor f = framed(m, x).to(at::kFloat);
  return f.repeat_interleave(segments / f.size(1), 1);
}

}  // namespace

SevenTensors modulate_backward(const OptionalTensor& grad_h, const OptionalTensor& grad_y,
                               const Tensor& h, const OptionalTensor& branch,
                               const OptionalTensor& gate, const OptionalTensor& shift,
                               const OptionalTensor& scale, const OptionalTensor& weight,
                               const OptionalTensor& bias, std::string_view norm, double eps,
                               std::array<bool, 7> mask) {
  ModulateTiling t{};
  bool taken = describe(t, h, branch, gate, shift, scale, weight, bias, norm, eps) &&
               (!mask[2] || branch.has_value());
  t.has_grad_h = grad_h.has_value();
  t.has_grad_y = grad_y.has_value() && t.norm != 0;
  if (taken) {
    const int32_t normed = t.has_grad_y;
    const int32_t half_tiles = 2 * normed + t.has_grad_h + t.branched + mask[0] + mask[1];
    const int32_t vectors = 2 * normed + t.branched + (t.gate.kind != 0) + 2 * normed;
    t.chunk = std::min(t.segment, kSumTokens);
    taken = choose_rows(t, {half_tiles, 2 + normed, vectors}, t.chunk);
  }
  if (!taken || (!t.has_grad_h && !t.has_grad_y)) {
    return reference<SevenTensors>("mmkern::modulate_backward", grad_h, grad_y, h, branch, gate,
                                   shift, scale, weight, bias, norm, eps, mask);
  }
  const auto dense_rows = [](const OptionalTensor& g) {
    return g.has_value() ? OptionalTensor(g->contiguous()) : g;
  };
  const OptionalTensor dh = dense_rows(grad_h);
  const OptionalTensor dy = t.has_grad_y ? dense_rows(grad_y) : OptionalTensor();
  const Tensor dx = empty_like_if(mask[0], h), dbranch = empty_like_if(mask[1], h);
  const int64_t segments = t.tokens / t.segment, chunks = ceil_div(t.segment, t.chunk);
  const Tensor sums =
      at::empty({t.batch, segments, chunks, 3, t.cols}, h.options().dtype(at::kFloat));
  const uint32_t blocks = blocks_of(t);
  const bool bfloat16 = is_bfloat16(h);
  submit(
      {"modulate_backward",
       h.device(),
       false,
       blocks,
       {input(dh), input(dy), input(h), input(branch), input(gate), input(scale), input(weight),
        output(dx), output(dbranch), workspace(sums)}},
      [=](void* stream, uint8_t** p) { launch_modulate_backward(bfloat16, blocks, stream, p, t); });
  std::array<Tensor, 7> grads;
  grads.fill(no_tensor(h));
  grads[0] = dx;
  grads[1] = dbranch;
  const auto over_chunks = [&](int64_t which) { return sums.select(3, which).sum(2); };
  if (mask[2]) grads[2] = sum_like(over_chunks(2), *gate, h);
  if (t.has_grad_y && (mask[3] || mask[4] || mask[5] || mask[6])) {
    const Tensor sum_y = over_chunks(0), sum_xhat = over_chunks(1);
    if (mask[3]) grads[3] = sum_like(sum_y, *shift, h);
    if (mask[4]) {
      Tensor s = weight.has_value() ? sum_xhat * weight->to(at::kFloat) : sum_xhat;
      if (bias.has_value()) s = s + sum_y * bias->to(at::kFloat);
      grads[4] = sum_like(s, *scale, h);
    }
    const auto scaled = [&](const Tensor& s) {
      return scale.has_value() ? s * (per_segment(*scale, h, segments) + 1) : s;
    };
    if (mask[5]) grads[5] = scaled(sum_xhat).sum({0, 1}).to(weight->scalar_type());
    if (mask[6]) grads[6] = scaled(sum_y).sum({0, 1}).to(bias->scalar_type());
  }
  return {grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], grads[6]};
}

}  // namespace mmkern::ascendc
