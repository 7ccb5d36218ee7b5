"""adaLN: gated residual, norm, and modulation in one pass.

    h = x + gate * branch
    y = norm(h) [* weight + bias] * (1 + scale) + shift

norm is LayerNorm or RMSNorm over the last dimension. Source: Peebles & Xie, "Scalable Diffusion
Models with Transformers" (adaLN-Zero); Wan's blocks give shift, scale and gate in float32 with a
bfloat16 x.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mmkern import library
from mmkern.ops import _check
from mmkern.ops._math import accumulate, empty, given, normalize, normalize_backward

NORMS = ("layer", "rms")


def _per_token(m, x):
    """The modulation tensor m in a shape that broadcasts against x."""
    if m.dim() < 2 or x.dim() < 3:
        return m
    _, tokens, channels = x.shape
    if m.dim() == 2:
        return m.unsqueeze(1)
    if m.dim() == 4:
        m = m.squeeze(2)
    frames = m.shape[1]
    if frames in (1, tokens):
        return m
    each = tokens // frames
    return m.unsqueeze(2).expand(-1, -1, each, -1).reshape(m.shape[0], tokens, channels)


def _sum_like(grad, m, x):
    """Sum grad, of x's shape, down to the shape and dtype of the modulation tensor m."""
    if x.dim() == 3:
        batch, tokens, channels = x.shape
        if m.dim() == 2:
            grad = grad.sum(1)
        elif m.dim() > 2:
            frames = m.shape[1]
            grad = grad.reshape(batch, frames, tokens // max(frames, 1), channels).sum(2)
            grad = grad.unsqueeze(2) if m.dim() == 4 else grad
    return grad.sum_to_size(m.shape).to(m.dtype, copy=True)


def _wide(x, *others):
    """x in the widest dtype among it and the others: float32 modulation asks for float32 maths."""
    for other in others:
        if other is not None:
            x = x.to(torch.promote_types(x.dtype, other.dtype))
    return x


def reference(x, branch, gate, shift, scale, weight, bias, norm, eps):
    """(h, y) as eager PyTorch computes them; an output that does not exist has shape (0,)."""
    h = x
    if branch is not None:
        h = (x + branch if gate is None else x + _per_token(gate, x) * branch).to(x.dtype)
    kept = empty(x) if branch is None else h
    if norm == "none":
        return kept, empty(x)
    y = _wide(h, shift, scale, weight, bias)
    cast = (None if t is None else t.to(y.dtype) for t in (weight, bias))
    if norm == "layer":
        y = F.layer_norm(y, x.shape[-1:], *cast, eps)
    else:
        weight, bias = cast
        y = F.rms_norm(y, x.shape[-1:], weight, eps)
        y = y if bias is None else y + bias
    if scale is not None:
        y = y * (1 + _per_token(scale, x))
    if shift is not None:
        y = y + _per_token(shift, x)
    return kept, y.to(x.dtype).contiguous()


def backward_reference(
    grad_h, grad_y, h, branch, gate, shift, scale, weight, bias, norm, eps, mask
):
    """Gradients of x, branch, gate, shift, scale, weight, bias.

    h is x where there is no branch; branch is given only where the gradient of gate is asked for.
    """
    grads = [empty(h) for _ in range(7)]
    wide = accumulate(_wide(h, gate, shift, scale, weight, bias))
    grad = torch.zeros_like(wide) if grad_h is None else grad_h.to(wide.dtype)
    if grad_y is not None:
        xhat, rstd = normalize(wide, norm, eps)
        dy = grad_y.to(wide.dtype)
        n = xhat if weight is None else xhat * weight
        n = n if bias is None else n + bias
        dn = dy if scale is None else dy * (1 + _per_token(scale, h).to(wide.dtype))
        if mask[3]:
            grads[3] = _sum_like(dy, shift, h)
        if mask[4]:
            grads[4] = _sum_like(dy * n, scale, h)
        if mask[5]:
            grads[5] = (dn * xhat).flatten(0, -2).sum(0).to(weight.dtype)
        if mask[6]:
            grads[6] = dn.flatten(0, -2).sum(0).to(bias.dtype)
        dxhat = dn if weight is None else dn * weight
        grad = grad + normalize_backward(dxhat, xhat, rstd, norm)
    if mask[0]:
        grads[0] = grad.to(h.dtype, copy=True)
    if mask[1]:
        scaled = grad if gate is None else grad * _per_token(gate, h)
        grads[1] = scaled.to(h.dtype, copy=True)
    if mask[2]:
        grads[2] = _sum_like(grad * branch, gate, h)
    return tuple(g.contiguous() for g in grads)


_forward = library.define(
    "modulate(Tensor x, Tensor? branch, Tensor? gate, Tensor? shift, Tensor? scale, "
    "Tensor? weight, Tensor? bias, str norm, float eps) -> (Tensor, Tensor)",
    reference,
)
_backward = library.define(
    "modulate_backward(Tensor? grad_h, Tensor? grad_y, Tensor h, Tensor? branch, Tensor? gate, "
    "Tensor? shift, Tensor? scale, Tensor? weight, Tensor? bias, str norm, float eps, "
    "bool[7] mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward_reference,
)


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, branch, gate, shift, scale, weight, bias, norm, eps):
        h, y = _forward(x, branch, gate, shift, scale, weight, bias, norm, eps)
        # branch is needed for the gradient of gate alone
        kept = branch if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(x if branch is None else h, kept, gate, shift, scale, weight, bias)
        ctx.norm, ctx.eps, ctx.branched = norm, eps, branch is not None
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*([h] if branch is None else [y] if norm == "none" else []))
        return h, y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_h, grad_y):
        h, branch, gate, shift, scale, weight, bias = ctx.saved_tensors
        # torch.compile hands a gradient of shape (0,) to an output that does not exist
        grad_h = grad_h if ctx.branched else None
        grad_y = None if ctx.norm == "none" else grad_y
        if grad_h is None and grad_y is None:
            return (None,) * 9
        need = ctx.needs_input_grad
        mask = (*need[:3], *(n and grad_y is not None for n in need[3:7]))
        grads = _backward(
            grad_h, grad_y, h, branch, gate, shift, scale, weight, bias, ctx.norm, ctx.eps, mask
        )
        return *given(mask, grads), None, None


_op = library.Op(_forward, reference, _Modulate, light=True)


def modulate(x, shift=None, scale=None, *, norm="layer", weight=None, bias=None, eps=1e-6):
    """Normalise and modulate: ``norm(x) [* weight + bias] * (1 + scale) + shift``.

    Args:
        x: (B, T, C), or (N, C), which is read as B = N samples of one token.
        shift, scale: (C,), (B, C) per sample, (B, F, C) or (B, F, 1, C) per frame of T / F
            consecutive tokens (F = T: per token). B may be 1. dtype of x, or float32. Any strides
            (a chunk of one (B, 6 C) projection is taken as it is).
        norm: "layer" or "rms", over the last dimension.
        weight, bias: (C,) or None; dtype of x, or float32.
        eps: added to the variance (or mean square) before the square root.

    Returns:
        y with shape and dtype of x. The maths is in float32 for the half types.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, device, or shape.
    """
    _validate("modulate", x, None, None, shift, scale, weight, bias, norm)
    return _op(x, None, None, shift, scale, weight, bias, norm, eps)[1]


def gated_residual(x, branch, gate=None):
    """Add a branch to the residual stream: ``h = x + gate * branch``.

    Args:
        x, branch: (B, T, C) or (N, C), of one dtype.
        gate: as ``shift`` of :func:`modulate`; None means 1.

    Returns:
        h with shape and dtype of x.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, device, or shape.
    """
    _validate("gated_residual", x, branch, gate, None, None, None, None, "layer")
    return _op(x, branch, gate, None, None, None, None, "none", 0.0)[0]


def gated_modulate(
    x, branch, gate=None, shift=None, scale=None, *, norm="layer", weight=None, bias=None, eps=1e-6
):
    """Add a gated branch, normalise, and modulate, in one pass.

    ``h = x + gate * branch; y = norm(h) [* weight + bias] * (1 + scale) + shift``

    Args:
        x, branch: (B, T, C) or (N, C), of one dtype.
        gate, shift, scale, norm, weight, bias, eps: as in :func:`modulate`; a gate of None is 1.

    Returns:
        (h, y), each with shape and dtype of x.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, device, or shape.
    """
    _validate("gated_modulate", x, branch, gate, shift, scale, weight, bias, norm)
    return _op(x, branch, gate, shift, scale, weight, bias, norm, eps)


def _validate(op, x, branch, gate, shift, scale, weight, bias, norm):
    _check.floating(op, "x", x)
    if x.dim() not in (2, 3):
        raise ValueError(f"mmkern.{op}: x has shape {tuple(x.shape)}; wanted (B, T, C) or (N, C)")
    if norm not in NORMS:
        _check.choice(op, "norm", norm, NORMS)
    if op != "modulate":
        _check.like(op, "branch", branch, "x", x)
        _check.shape(op, "branch", branch, x.shape, "the shape of x")
    for name, m in (("gate", gate), ("shift", shift), ("scale", scale)):
        if m is not None:
            _check.like(op, name, m, "x", x, or_float32=True)
            _check_modulation(op, name, m, x.shape)
    for name, m in (("weight", weight), ("bias", bias)):
        if m is not None:
            _check.like(op, name, m, "x", x, or_float32=True)
            _check.shape(op, name, m, x.shape[-1:], "the last dimension of x")


def _check_modulation(op, name, m, x_shape):
    got = m.shape
    tokens = x_shape[1] if len(x_shape) == 3 else 1
    good = 0 < len(got) <= len(x_shape) + (len(x_shape) == 3) and got[-1] == x_shape[-1]
    if good and len(got) > 1:
        good = got[0] == x_shape[0] or got[0] == 1
    if good and len(got) > 2:
        frames = got[1]
        good = tokens % frames == 0 if frames else tokens == 0
    if good and len(got) == 4:
        good = got[2] == 1
    if not good:
        wanted = f"({x_shape[-1]},) or (B, {x_shape[-1]})"
        if len(x_shape) == 3:
            wanted += (
                f", (B, F, {x_shape[-1]}), (B, F, 1, {x_shape[-1]}) with F a divisor of {tokens}"
            )
        raise ValueError(
            f"mmkern.{op}: {name} has shape {tuple(got)}; wanted {wanted}, and B 1 or {x_shape[0]}"
        )
