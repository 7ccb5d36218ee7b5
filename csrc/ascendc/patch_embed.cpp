#include "linear_backward.h"
#include "ops.h"

namespace mmkern::ascendc {
namespace {

// Runs of fewer pixels cost a move of its own for a few bytes: at::copy_ makes rows of them first.
constexpr int64_t kLeastRun = 8, kMostRun = 240;

// As mmkern/ops/patch_embed.py: patches, not pixels.
bool is_flattened(const Tensor& x, const Tensor& weight) {
  return x.dim() != weight.dim() || weight.dim() == 2;
}

// Windows (B, grid, Cin, kernel), a view.
Tensor windows_of(const Tensor& x, const Tensor& weight) {
  Tensor w = x;
  for (int64_t dim = 2; dim < weight.dim(); ++dim) {
    const int64_t size = weight.size(dim), count = w.size(dim) / size;
    w = w.narrow(dim, 0, count * size).unfold(dim, size, size);
  }
  return w.movedim(1, x.dim() - 1);
}

// False where the kernel cannot take the windows out of the pixels.
bool describe(PixelTiling& p, const Tensor& x, const Tensor& weight) {
  const Tensor pixels = x.dim() == 4 ? x.unsqueeze(2) : x;
  const Tensor kernel = weight.dim() == 4 ? weight.unsqueeze(2) : weight;
  p.batch_stride = pixels.stride(0);
  p.channel_stride = pixels.stride(1);
  p.frame_stride = pixels.stride(2);
  p.row_stride = pixels.stride(3);
  p.channels = static_cast<int32_t>(kernel.size(1));
  p.depth = static_cast<int32_t>(kernel.size(2));
  p.height = static_cast<int32_t>(kernel.size(3));
  p.width = static_cast<int32_t>(kernel.size(4));
  p.frames = static_cast<int32_t>(pixels.size(2) / p.depth);
  p.rows = static_cast<int32_t>(pixels.size(3) / p.height);
  p.columns = static_cast<int32_t>(pixels.size(4) / p.width);
  return p.width >= kLeastRun && p.width <= kMostRun && x.stride(-1) == 1;
}

}  // namespace

Tensor patch_embed(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& pos_embed) {
  const Tensor flat = weight.reshape({weight.size(0), -1});
  const bool taken = is_half(x) && x.numel() > 0 && is_matrix(flat) && is_vector(bias, x) &&
                     (!pos_embed.has_value() || pos_embed->scalar_type() == x.scalar_type() ||
                      pos_embed->scalar_type() == at::kFloat);
  LinearTiling t{};
  PixelTiling p{};
  Tensor a = x;
  std::vector<int64_t> shape = x.sizes().vec();  // of the result
  if (taken) {
    p.flattened = is_flattened(x, weight);
    shape.back() = weight.size(0);
    if (!p.flattened) {
      const bool direct = describe(p, x, weight);
      const int64_t tokens = int64_t{p.frames} * p.rows * p.columns;
      shape = {x.size(0), tokens, weight.size(0)};
      if (!direct) {
        a = windows_of(x, weight).reshape({x.size(0) * tokens, flat.size(1)});
        p.flattened = 1;
      }
    }
    if (p.flattened) a = a.reshape({-1, flat.size(1)});
  }
  if (!taken || (p.flattened && !is_matrix(a))) {
    return reference<Tensor>("mmkern::patch_embed", x, weight, bias, pos_embed);
  }
  t.n = static_cast<int32_t>(weight.size(0));
  t.m = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) t.m *= shape[i];
  t.k = static_cast<int32_t>(flat.size(1));
  t.a_stride = p.flattened && t.m > 1 ? a.stride(0) : t.k;
  t.b_stride = row_stride(flat);
  t.has_bias = bias.has_value();
  OptionalTensor pos;
  if (pos_embed.has_value()) {
    pos = pos_embed->reshape({-1, t.n}).contiguous();
    t.pos_kind = pos->scalar_type() == at::kFloat ? 2 : 1;
    t.pos_rows = pos->size(0);
    t.pos_stride = pos->stride(0);
  }
  choose_tiles(t);
  const Tensor y = at::empty(shape, x.options()), ring = ring_of(t, x);
  const uint32_t blocks = blocks_of(t);
  const bool bfloat16 = is_bfloat16(x);
  submit({"patch_embed",
          x.device(),
          true,
          blocks,
          {input(a), input(flat), input(bias), input(pos), output(y), workspace(ring)}},
         [=](void* stream, uint8_t** q) { launch_patch_embed(bfloat16, blocks, stream, q, t, p); });
  return y;
}

FourTensors patch_embed_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                 const OptionalTensor& pos_embed, std::array<bool, 4> mask) {
  const int64_t channels = weight.size(0);
  const Tensor flat = weight.reshape({channels, -1});
  const bool taken =
      is_half(x) && x.numel() > 0 && is_matrix(flat) && grad.scalar_type() == x.scalar_type() &&
      can_be_operand(grad.numel() / channels, channels) && is_row_stride(flat.size(1)) &&
      (!mask[3] || pos_embed->numel() < (int64_t{1} << 30));
  if (!taken) {
    return reference<FourTensors>("mmkern::patch_embed_backward", grad, x, weight, pos_embed, mask);
  }
  const bool flattened = is_flattened(x, weight);
  const Tensor g = as_operand(grad.reshape({-1, channels}));
  std::array<Tensor, 4> grads;
  grads.fill(no_tensor(x));
  if (mask[0]) {
    const Tensor patches = product(g, false, flat);
    if (flattened) {
      grads[0] = patches.reshape(x.sizes());
    } else {
      grads[0] = at::zeros(x.sizes(), x.options());
      const Tensor windows = windows_of(grads[0], weight);
      windows.copy_(patches.reshape(windows.sizes()));
    }
  }
  if (mask[1]) {
    const Tensor patches = flattened ? x : windows_of(x, weight);
    const Tensor rows = as_operand(patches.reshape({-1, flat.size(1)}));
    grads[1] = product(g, true, rows).reshape(weight.sizes());
  }
  if (mask[2]) grads[2] = column_sums(g).to(x.scalar_type());
  if (mask[3]) {
    // each token's sum over the batch: a token is `channels` columns
    const Tensor tokens = grad.reshape({-1, pos_embed->numel()}).contiguous();
    const Tensor sums = tokens.size(0) == 1 ? tokens.to(at::kFloat) : column_sums(tokens);
    grads[3] = sums.reshape(pos_embed->sizes()).to(pos_embed->scalar_type());
  }
  return {grads[0], grads[1], grads[2], grads[3]};
}

}  // namespace mmkern::ascendc
