"""Rotary position embedding of q and k, with QK-norm in front where it is asked for.

    out = x * cos + rotate(x) * sin

over the first R of D elements per head, R the width of the tables. rotate turns each pair by a
quarter: pairs (i, i + R / 2) for rotate-half, (2 i, 2 i + 1) for interleaved.

Source: Su et al., "RoFormer"; rotate-half as in GPT-NeoX, Llama and Qwen, interleaved as in FLUX
and Wan; the QK-norm is RMSNorm over each head, multiplied by its weight before the cast.
"""

import torch
from torch.autograd.function import once_differentiable

from mmkern import library
from mmkern.ops import _check
from mmkern.ops._math import accumulate, empty, given, normalize, normalize_backward


def _quarter_turn(x, interleaved):
    if interleaved:
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((-odd, even), -1).flatten(-2)
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _normalized(x, weight, eps):
    if weight is None:
        return x
    return (normalize(accumulate(x), "rms", eps)[0] * weight).to(x.dtype)


def _rotated(x, cos, sin, interleaved):
    width = cos.shape[-1]
    head = x[..., :width]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    out = head.to(torch.promote_types(x.dtype, cos.dtype))
    out = (out * cos + _quarter_turn(out, interleaved) * sin).to(x.dtype)
    return torch.cat((out, x[..., width:]), -1)


def reference(q, k, cos, sin, q_weight, k_weight, interleaved, eps):
    """(q, k) rotated, as eager PyTorch computes them: maths in the wider dtype of q and cos."""
    return (
        _rotated(_normalized(q, q_weight, eps), cos, sin, interleaved),
        _rotated(_normalized(k, k_weight, eps), cos, sin, interleaved),
    )


def _one_backward(grad, x, cos, sin, weight, interleaved, eps, need_x, need_weight):
    width = cos.shape[-1]
    g = accumulate(grad)
    head = g[..., :width].to(torch.promote_types(g.dtype, cos.dtype))
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    # the transpose of a quarter turn is its negative
    head = head * cos - _quarter_turn(head * sin, interleaved)
    g = torch.cat((head, g[..., width:]), -1)
    dweight = empty(x)
    if weight is not None:
        xhat, rstd = normalize(accumulate(x), "rms", eps)
        if need_weight:
            dweight = (g * xhat).flatten(0, -2).sum(0).to(weight.dtype)
        g = normalize_backward(g * weight, xhat, rstd, "rms")
    return g.to(x.dtype).contiguous() if need_x else empty(x), dweight


def backward_reference(grad_q, grad_k, q, k, cos, sin, q_weight, k_weight, interleaved, eps, mask):
    """Gradients of q, k, q_weight, k_weight."""
    rest = (interleaved, eps)
    dq, dq_weight = _one_backward(grad_q, q, cos, sin, q_weight, *rest, mask[0], mask[2])
    dk, dk_weight = _one_backward(grad_k, k, cos, sin, k_weight, *rest, mask[1], mask[3])
    return dq, dk, dq_weight, dk_weight


_forward = library.define(
    "rope(Tensor q, Tensor k, Tensor cos, Tensor sin, Tensor? q_weight, Tensor? k_weight, "
    "bool interleaved, float eps) -> (Tensor, Tensor)",
    reference,
)
_backward = library.define(
    "rope_backward(Tensor grad_q, Tensor grad_k, Tensor q, Tensor k, Tensor cos, Tensor sin, "
    "Tensor? q_weight, Tensor? k_weight, bool interleaved, float eps, bool[4] mask) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    backward_reference,
)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin, q_weight, k_weight, interleaved, eps):
        ctx.save_for_backward(q, k, cos, sin, q_weight, k_weight)
        ctx.args = interleaved, eps
        return _forward(q, k, cos, sin, q_weight, k_weight, interleaved, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q, grad_k):
        need = ctx.needs_input_grad
        mask = (need[0], need[1], need[4], need[5])
        dq, dk, dqw, dkw = given(
            mask, _backward(grad_q, grad_k, *ctx.saved_tensors, *ctx.args, mask)
        )
        return dq, dk, None, None, dqw, dkw, None, None


_op = library.Op(_forward, reference, _Rope, light=True)


def rope(q, k, cos, sin, *, interleaved=False, q_weight=None, k_weight=None, eps=1e-6):
    """Rotate q and k by position, after an optional RMSNorm of each head.

    Args:
        q: (B, S, Hq, D), or packed (T, Hq, D), any strides with a unit last one.
        k: (B, S, Hk, D) or (T, Hk, D), dtype of q.
        cos, sin: (S, R) or (B, S, R), for packed q (T, R); R <= D, even; one entry for each member
            of a pair, as Hugging Face and diffusers build them. Elements beyond R pass through.
            The maths is in the wider dtype of q and cos (in float32 inside kernels), the result in
            that of q. 1-D, vision, axial and M-RoPE differ in the tables alone.
        interleaved: pairs (2 i, 2 i + 1) instead of (i, i + R / 2).
        q_weight, k_weight: (D,), RMSNorm of each head in front (QK-norm), dtype of q, or float32.
        eps: of the RMSNorm.

    Returns:
        (q, k) rotated, contiguous, with the shapes and dtype of the inputs. cos and sin get no
        gradient unless one requires it; then plain PyTorch runs instead of the kernel.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, device, or shape.
    """
    _validate(q, k, cos, sin, q_weight, k_weight)
    args = (q, k, cos, sin, q_weight, k_weight, interleaved, eps)
    if (cos.requires_grad or sin.requires_grad) and torch.is_grad_enabled():
        return reference(*args)
    return _op(*args)


def _validate(q, k, cos, sin, q_weight, k_weight):
    _check.floating("rope", "q", q)
    _check.like("rope", "k", k, "q", q)
    shape, shape_k = tuple(q.shape), tuple(k.shape)
    if len(shape) not in (3, 4):
        raise ValueError(f"mmkern.rope: q has shape {shape}; wanted (B, S, H, D) or (T, H, D)")
    if shape_k[:-2] != shape[:-2] or shape_k[-1:] != shape[-1:]:
        raise ValueError(
            f"mmkern.rope: k has shape {shape_k}; wanted {shape[:-2]} + (Hk, {shape[-1]}), as q"
        )
    _validate_table("cos", cos, q, shape)
    if sin.__class__ is not cos.__class__ or sin.dtype != cos.dtype or sin.shape != cos.shape:
        _validate_table("sin", sin, q, shape)
        raise ValueError(
            f"mmkern.rope: sin is {tuple(sin.shape)} {sin.dtype}; wanted {tuple(cos.shape)} "
            f"{cos.dtype}, as cos"
        )
    if sin.device != q.device:
        _check.like("rope", "sin", sin, "q", q, or_float32=True)
    for name, t in (("q_weight", q_weight), ("k_weight", k_weight)):
        if t is not None:
            _check.like("rope", name, t, "q", q, or_float32=True)
            _check.shape("rope", name, t, shape[-1:], "head_dim")


def _validate_table(name, t, q, shape):
    _check.like("rope", name, t, "q", q, or_float32=True)
    *lead, rotated = table = tuple(t.shape) or (0,)
    lead = tuple(lead)
    good = lead and (
        lead in (shape[:-2], shape[-3:-2])
        or (len(table) == 3 and len(shape) == 4 and lead == (1, shape[1]))
    )
    if not good or rotated > shape[-1] or rotated % 2 or rotated == 0:
        raise ValueError(
            f"mmkern.rope: {name} has shape {tuple(t.shape)}; wanted {shape[-3:-2]} + (R,)"
            + (f" or {shape[:2]} + (R,)" if len(shape) == 4 else "")
            + f" with an even R from 2 to {shape[-1]}"
        )
