"""The projector: [norm ->] [merge of neighbours ->] linear -> activation -> linear.

Source: LLaVA's two-layer projector; Qwen-VL's patch merger (norm, 2 x 2 merge as a view); Kimi-VL's
projector (norm, 2 x 2 merge gathered from raster order).
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mmkern import library
from mmkern.ops import _check
from mmkern.ops._math import (
    ACTIVATIONS,
    accumulate,
    activation_grad,
    empty,
    given,
    normalize,
    normalize_backward,
)

NORMS = ("layer", "rms")
MLP_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu")


def _normed(x, weight, bias, norm, eps):
    if norm == "none":
        return x
    if norm == "layer":
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    y = F.rms_norm(x, x.shape[-1:], weight, eps)
    return y if bias is None else y + bias


def _merged(x, rows, merge):
    if merge == 1:
        return x
    x = x.flatten(0, -2)
    if rows is not None:
        x = x.index_select(0, rows)
    return x.reshape(x.shape[0] // merge**2, merge**2 * x.shape[-1])


def reference(
    x, rows, w1, b1, w2, b2, norm_weight, norm_bias, activation, norm, eps, merge, save
):  # fmt: skip
    """(y, z) as eager PyTorch computes them; z, the input of the activation, only if ``save``."""
    z = F.linear(_merged(_normed(x, norm_weight, norm_bias, norm, eps), rows, merge), w1, b1)
    y = F.linear(ACTIVATIONS[activation](z), w2, b2)
    return y.contiguous(), z.contiguous() if save else empty(x)


def backward_reference(
    grad, x, rows, w1, w2, norm_weight, norm_bias, z, activation, norm, eps, merge, mask
):  # fmt: skip
    """Gradients of x, w1, b1, w2, b2, norm_weight, norm_bias; the activation is computed again."""
    grads = [empty(x) for _ in range(7)]
    g, zrows = grad.flatten(0, -2), z.flatten(0, -2)
    if mask[3]:
        grads[3] = g.T @ ACTIVATIONS[activation](zrows)
    if mask[4]:
        grads[4] = accumulate(g).sum(0).to(grad.dtype)
    if any(mask[:3]) or any(mask[5:]):
        dz = activation_grad(activation, accumulate(zrows), accumulate(g @ w2)).to(z.dtype)
        if mask[1]:
            merged = _merged(_normed(x, norm_weight, norm_bias, norm, eps), rows, merge)
            grads[1] = dz.T @ merged.flatten(0, -2)
        if mask[2]:
            grads[2] = accumulate(dz).sum(0).to(grad.dtype)
        if mask[0] or any(mask[5:]):
            dn = _unmerged(accumulate(dz @ w1), x, rows)
            grads[0], *grads[5:] = _norm_backward(dn, x, norm_weight, norm_bias, norm, eps, mask)
    return tuple(t.contiguous() for t in grads)


def _unmerged(grad, x, rows):
    """The gradient of each row of x, given that of the merged rows."""
    if rows is None:
        return grad.reshape(x.shape)
    # index_select's backward: a row may be gathered more than once
    flat = grad.new_zeros(x.shape[:-1].numel(), x.shape[-1])
    return flat.index_add(0, rows, grad.reshape(rows.shape[0], x.shape[-1])).reshape(x.shape)


def _norm_backward(dn, x, weight, bias, norm, eps, mask):
    if norm == "none":
        return dn.to(x.dtype, copy=True), empty(x), empty(x)
    xhat, rstd = normalize(accumulate(x), norm, eps)
    dweight = (dn * xhat).flatten(0, -2).sum(0).to(x.dtype) if mask[5] else empty(x)
    dbias = dn.flatten(0, -2).sum(0).to(x.dtype) if mask[6] else empty(x)
    dx = empty(x)
    if mask[0]:
        dx = normalize_backward(dn if weight is None else dn * weight, xhat, rstd, norm)
    return dx.to(x.dtype), dweight, dbias


_NORM_ARGS = "Tensor? norm_weight, Tensor? norm_bias"
_forward = library.define(
    f"mlp(Tensor x, Tensor? rows, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, {_NORM_ARGS}, "
    "str activation, str norm, float eps, int merge, bool save) -> (Tensor, Tensor)",
    reference,
)
_backward = library.define(
    f"mlp_backward(Tensor grad, Tensor x, Tensor? rows, Tensor w1, Tensor w2, {_NORM_ARGS}, "
    "Tensor z, str activation, str norm, float eps, int merge, bool[7] mask) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward_reference,
)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows, w1, b1, w2, b2, norm_weight, norm_bias, *args):
        y, z = _forward(x, rows, w1, b1, w2, b2, norm_weight, norm_bias, *args[:-1], True)
        ctx.save_for_backward(x, rows, w1, w2, norm_weight, norm_bias, z)
        ctx.args = args[:-1]
        ctx.mark_non_differentiable(z)
        return y, z

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        need = ctx.needs_input_grad
        mask = (need[0], *need[2:8])
        grads = given(mask, _backward(grad, *ctx.saved_tensors, *ctx.args, mask))
        return grads[0], None, *grads[1:], *(None,) * 5


_op = library.Op(_forward, reference, _Mlp)


def mlp(
    x, w1, b1, w2, b2, *, activation="gelu", norm=None, norm_weight=None, norm_bias=None, eps=1e-6,
    merge=1, grid_hw=None,
):  # fmt: skip
    """Two linear layers with an activation between; optionally a norm and a merge in front.

    Args:
        x: (..., Cin).
        w1, b1: (hidden, merge^2 Cin) and (hidden,) or None, as nn.Linear stores them.
        w2, b2: (Cout, hidden) and (Cout,) or None.
        activation: "gelu" (erf), "gelu_tanh", "quick_gelu" (CLIP), "silu" or "relu".
        norm: None, "layer" or "rms", over Cin, before the merge. To normalise merged rows, pass
            them merged: ``x.view(-1, 4 * C)`` with merge=1.
        norm_weight, norm_bias: (Cin,) or None.
        eps: of the norm.
        merge: k joins each k x k neighbourhood of tokens into one row of k^2 Cin.
        grid_hw: [(h, w), ...], the token grid of each image when the rows of x are in raster order,
            image after image; neighbours are then gathered, in raster order. None: the k^2 members
            of a neighbourhood follow each other in x already, and merging is a view.

    Returns:
        (..., Cout); with merge > 1, (rows / merge^2, Cout). dtype of x. Under torch.autocast, all
        tensors are cast to its dtype, as a linear layer's are.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, device, or shape.
    """
    x, w1, b1, w2, b2, norm_weight, norm_bias = _check.autocast(
        x, w1, b1, w2, b2, norm_weight, norm_bias
    )
    _validate(x, w1, b1, w2, b2, activation, norm, norm_weight, norm_bias, merge)
    rows = None if grid_hw is None or merge == 1 else _raster_rows(x, merge, grid_hw)
    args = (activation, norm or "none", eps, merge, False)
    return _op(x, rows, w1, b1, w2, b2, norm_weight, norm_bias, *args)[0]


def _raster_rows(x, merge, grid_hw):
    """Row numbers of x, neighbourhood by neighbourhood."""
    pieces, start = [], 0
    for h, w in grid_hw:
        if h % merge or w % merge:
            raise ValueError(
                f"mmkern.mlp: grid_hw holds {(h, w)}; wanted multiples of merge={merge}"
            )
        grid = torch.arange(start, start + h * w, device=x.device)
        grid = grid.reshape(h // merge, merge, w // merge, merge)
        pieces.append(grid.transpose(1, 2).flatten())
        start += h * w
    n = x.shape[:-1].numel()
    if start != n:
        raise ValueError(f"mmkern.mlp: grid_hw covers {start} tokens; wanted the {n} rows of x")
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64, device=x.device)


def _validate(x, w1, b1, w2, b2, activation, norm, norm_weight, norm_bias, merge):
    _check.floating("mlp", "x", x)
    if x.dim() == 0:
        raise ValueError("mmkern.mlp: x has shape (); wanted (..., Cin)")
    if activation not in MLP_ACTIVATIONS:
        _check.choice("mlp", "activation", activation, MLP_ACTIVATIONS)
    if norm is not None and norm not in NORMS:
        _check.choice("mlp", "norm", norm, (None, *NORMS))
    if not isinstance(merge, int) or merge < 1:
        raise ValueError(f"mmkern.mlp: merge is {merge!r}; wanted an int >= 1")
    if merge > 1 and x.shape[:-1].numel() % (merge * merge):
        raise ValueError(
            f"mmkern.mlp: x has {x.shape[:-1].numel()} rows; wanted a multiple of merge^2 = "
            f"{merge * merge}"
        )
    for name, w in (("w1", w1), ("w2", w2)):
        _check.like("mlp", name, w, "x", x)
        if w.dim() != 2:
            raise ValueError(
                f"mmkern.mlp: {name} has shape {tuple(w.shape)}; wanted (out, in), as nn.Linear"
            )
    channels, (hidden, inputs), (out, _) = x.shape[-1], w1.shape, w2.shape
    if inputs != merge * merge * channels:
        _check.shape("mlp", "w1", w1, (hidden, merge * merge * channels), "hidden, merge^2 Cin")
    _check.shape("mlp", "w2", w2, (out, hidden), "Cout, hidden")
    vectors = (
        ("b1", b1, hidden), ("b2", b2, out),
        ("norm_weight", norm_weight, channels), ("norm_bias", norm_bias, channels),
    )  # fmt: skip
    for name, t, n in vectors:
        if t is not None:
            _check.like("mlp", name, t, "x", x)
            _check.shape("mlp", name, t, (n,))
            if norm is None and name.startswith("norm"):
                raise ValueError(f"mmkern.mlp: {name} came with norm=None; wanted a norm to use it")
