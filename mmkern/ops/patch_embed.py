"""Patch embedding: a convolution whose kernel equals its stride, as one matrix product.

    out[b, n] = weight.flatten(1) @ patch(x[b], n) + bias + pos_embed[n]

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2-D); Qwen2-VL and Wan (3-D).
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mmkern import library
from mmkern.ops import _check
from mmkern.ops._math import accumulate, empty, given


def _flattened(x, weight):
    """True if x holds patches, (N, K) or (B, N, K), and not pixels."""
    return x.dim() != weight.dim() or weight.dim() == 2


def _grid(x, weight):
    """Patches along each spatial dimension; what does not fill a patch is dropped, as conv does."""
    return [size // k for size, k in zip(x.shape[2:], weight.shape[2:], strict=True)]


def as_windows(x, weight):
    """Pixels (B, Cin, *space) as a view (B, *grid, Cin, *kernel): one window per patch."""
    for dim, (n, k) in enumerate(zip(_grid(x, weight), weight.shape[2:], strict=True), 2):
        x = x.narrow(dim, 0, n * k).unfold(dim, k, k)
    return x.movedim(1, x.dim() - weight.dim() + 1)


def as_patches(x, weight):
    """Pixels (B, Cin, *space) to patches (B, N, K), in raster order."""
    tokens = math.prod(_grid(x, weight))
    return as_windows(x, weight).reshape(x.shape[0], tokens, weight[0].numel())


def reference(x, weight, bias, pos_embed):
    """The convolution (or, for flattened patches, the linear layer) and the additions."""
    if _flattened(x, weight):
        out = F.linear(x, weight.flatten(1), bias)
    else:
        conv = F.conv2d if x.dim() == 4 else F.conv3d
        out = conv(x, weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)
    if pos_embed is not None:
        out = (out + pos_embed).to(x.dtype)
    return out.contiguous()


def backward_reference(grad, x, weight, pos_embed, mask):
    """Gradients of x, weight, bias, pos_embed."""
    grads = [empty(x) for _ in range(4)]
    flat = weight.flatten(1)
    if mask[0]:
        dpatches = grad @ flat
        if _flattened(x, weight):
            grads[0] = dpatches
        else:
            grads[0] = torch.zeros_like(x, memory_format=torch.contiguous_format)
            windows = as_windows(grads[0], weight)
            windows.copy_(dpatches.reshape(windows.shape))
    rows = grad.flatten(0, -2)
    if mask[1]:
        patches = x if _flattened(x, weight) else as_patches(x, weight)
        grads[1] = (rows.T @ patches.flatten(0, -2)).reshape(weight.shape)
    if mask[2]:
        grads[2] = accumulate(rows).sum(0).to(grad.dtype)
    if mask[3]:
        grads[3] = accumulate(grad).sum_to_size(pos_embed.shape).to(pos_embed.dtype, copy=True)
    return tuple(g.contiguous() for g in grads)


_forward = library.define(
    "patch_embed(Tensor x, Tensor weight, Tensor? bias, Tensor? pos_embed) -> Tensor", reference
)
_backward = library.define(
    "patch_embed_backward(Tensor grad, Tensor x, Tensor weight, Tensor? pos_embed, bool[4] mask) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    backward_reference,
)


class _PatchEmbed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, pos_embed):
        ctx.save_for_backward(x, weight, pos_embed)
        return _forward(x, weight, bias, pos_embed)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        mask = ctx.needs_input_grad
        return given(mask, _backward(grad, *ctx.saved_tensors, mask))


_op = library.Op(_forward, reference, _PatchEmbed)


def patch_embed(x, weight, bias=None, *, pos_embed=None):
    """Embed non-overlapping patches: ``conv(x, weight, bias, stride=kernel)`` as tokens.

    Args:
        x: pixels (B, Cin, H, W) or (B, Cin, T, H, W), any strides; sizes that the kernel does not
            divide are cropped at the end, as a convolution does. Or flattened patches (N, K) or
            (B, N, K), each in the order of ``weight[0].flatten()``.
        weight: (C, Cin, kh, kw) or (C, Cin, kt, kh, kw), as nn.Conv2d and nn.Conv3d hold it; for
            flattened patches any weight (C, ...) with K elements per output channel.
        bias: (C,) or None.
        pos_embed: (N, C), (1, N, C) or (B, N, C), added to the tokens; dtype of x, or float32.

    Returns:
        (B, N, C) in raster order (T, H, W), or (N, C) for flattened patches (N, K); dtype of x.
        Under torch.autocast, x, weight and bias are cast to its dtype, as a convolution's are.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, device, or shape.
    """
    x, weight, bias = _check.autocast(x, weight, bias)
    _validate(x, weight, bias, pos_embed)
    return _op(x, weight, bias, pos_embed)


def _validate(x, weight, bias, pos_embed):
    _check.floating("patch_embed", "x", x)
    _check.like("patch_embed", "weight", weight, "x", x)
    size, kernel = x.shape, weight.shape
    if len(kernel) not in (2, 4, 5) or 0 in kernel:
        raise ValueError(
            f"mmkern.patch_embed: weight has shape {tuple(kernel)}; wanted (C, Cin, kh, kw), "
            "(C, Cin, kt, kh, kw) or (C, K), without a zero"
        )
    if _flattened(x, weight):
        k = math.prod(kernel[1:])
        if len(size) not in (2, 3) or size[-1] != k:
            raise ValueError(
                f"mmkern.patch_embed: x has shape {tuple(size)}; wanted {len(kernel)} "
                f"dimensions of pixels, or patches (N, {k}) or (B, N, {k}), to go with weight "
                f"{tuple(kernel)}"
            )
    else:
        if size[1] != kernel[1]:
            raise ValueError(
                f"mmkern.patch_embed: x has {size[1]} channels; wanted {kernel[1]}, as "
                f"weight {tuple(kernel)}"
            )
        if any(n < k for n, k in zip(size[2:], kernel[2:], strict=True)):
            raise ValueError(
                f"mmkern.patch_embed: x has shape {tuple(size)}; wanted at least one patch of "
                f"{tuple(kernel[2:])}"
            )
    if bias is not None:
        _check.like("patch_embed", "bias", bias, "x", x)
        _check.shape("patch_embed", "bias", bias, kernel[:1], "the output channels")
    if pos_embed is not None:
        _check.like("patch_embed", "pos_embed", pos_embed, "x", x, or_float32=True)
        tokens = size[:-1] if _flattened(x, weight) else (size[0], math.prod(_grid(x, weight)))
        out = (*tokens, kernel[0])
        allowed = (out[-2:], (1, *out[-2:]), out)
        if tuple(pos_embed.shape) not in allowed or pos_embed.dim() > len(out):
            raise ValueError(
                f"mmkern.patch_embed: pos_embed has shape {tuple(pos_embed.shape)}; wanted "
                f"{out[-2:]}, or with a batch in front of 1 or {out[0]}"
            )
