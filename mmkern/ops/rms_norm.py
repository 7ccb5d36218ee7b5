"""RMSNorm, with the residual added in front where there is one.

    h = x + residual
    y = weight * (h * rsqrt(mean(h^2) + eps))

Source: Zhang & Sennrich, "Root Mean Square Layer Normalization". Two casting orders are in use and
differ in a quarter of bfloat16 results: Hugging Face's Llama family rounds to the input dtype
before it multiplies by the weight ("after": the weight comes after the cast), torch.nn.RMSNorm
multiplies first ("before").
"""

import torch
from torch.autograd.function import once_differentiable

from mmkern import library
from mmkern.ops import _check
from mmkern.ops._math import accumulate, empty, given, normalize, normalize_backward

CASTS = ("after", "before")


def reference(x, weight, residual, eps, cast):
    """(h, y) as eager PyTorch computes them; h has shape (0,) where there is no residual."""
    h = x if residual is None else x + residual
    xhat, _ = normalize(accumulate(h), "rms", eps)
    if cast == "after":
        y = xhat.to(x.dtype)
        y = y if weight is None else weight * y
    else:
        y = (xhat if weight is None else xhat * weight).to(x.dtype)
    return empty(x) if residual is None else h.contiguous(), y.contiguous()


def backward_reference(grad_h, grad_y, h, weight, eps, cast, mask):
    """Gradients of x (and, the same, of residual) and weight."""
    wide = accumulate(h)
    grad = torch.zeros_like(wide) if grad_h is None else grad_h.to(wide.dtype)
    dweight = empty(h)
    if grad_y is not None:
        xhat, rstd = normalize(wide, "rms", eps)
        dy = grad_y.to(wide.dtype)
        if mask[1]:
            dweight = (dy * xhat).sum_to_size(weight.shape).to(weight.dtype, copy=True)
        dxhat = dy if weight is None else dy * weight
        grad = grad + normalize_backward(dxhat, xhat, rstd, "rms")
    return grad.to(h.dtype, copy=True).contiguous() if mask[0] else empty(h), dweight


_forward = library.define(
    "rms_norm(Tensor x, Tensor? weight, Tensor? residual, float eps, str cast) -> (Tensor, Tensor)",
    reference,
)
_backward = library.define(
    "rms_norm_backward(Tensor? grad_h, Tensor? grad_y, Tensor h, Tensor? weight, float eps, "
    "str cast, bool[2] mask) -> (Tensor, Tensor)",
    backward_reference,
)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, residual, eps, cast):
        h, y = _forward(x, weight, residual, eps, cast)
        ctx.save_for_backward(x if residual is None else h, weight)
        ctx.args, ctx.added = (eps, cast), residual is not None
        ctx.set_materialize_grads(False)
        if residual is None:
            ctx.mark_non_differentiable(h)
        return h, y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_h, grad_y):
        # torch.compile hands a gradient of shape (0,) to an output that does not exist
        grad_h = grad_h if ctx.added else None
        if grad_h is None and grad_y is None:
            return (None,) * 5
        h, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        mask = (need[0] or need[2], need[1] and grad_y is not None)
        dh, dweight = _backward(grad_h, grad_y, h, weight, *ctx.args, mask)
        return *given((need[0], mask[1], need[2]), (dh, dweight, dh)), None, None


_op = library.Op(_forward, reference, _RmsNorm, light=True)


def rms_norm(x, weight=None, *, eps=1e-6, residual=None, cast="after"):
    """Root-mean-square norm over the last dimension, optionally of ``x + residual``.

    Args:
        x: (..., C), any strides with a unit last one.
        weight: (C,) or None; dtype of x, or float32.
        eps: added to the mean square before the square root.
        residual: shape and dtype of x, added to x first; or None.
        cast: "after": round to the dtype of x, then multiply by the weight, in their common dtype
            (Hugging Face; a float32 weight makes a float32 result). "before": multiply in float32,
            then round to the dtype of x (torch.nn.RMSNorm).

    Returns:
        y, with the shape of x; with a residual (h, y), where h = x + residual.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, device, or shape.
    """
    _check.floating("rms_norm", "x", x)
    if x.dim() == 0:
        raise ValueError("mmkern.rms_norm: x has shape (); wanted (..., C)")
    if cast not in CASTS:
        _check.choice("rms_norm", "cast", cast, CASTS)
    if weight is not None:
        _check.like("rms_norm", "weight", weight, "x", x, or_float32=True)
        _check.shape("rms_norm", "weight", weight, x.shape[-1:], "the last dimension of x")
    if residual is not None:
        _check.like("rms_norm", "residual", residual, "x", x)
        _check.shape("rms_norm", "residual", residual, x.shape, "the shape of x")
        return _op(x, weight, residual, eps, cast)
    return _op(x, weight, None, eps, cast)[1]
