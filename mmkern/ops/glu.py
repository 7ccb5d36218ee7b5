"""Gated linear unit: ``activation(gate) * up``.

Source: Shazeer, "GLU Variants Improve Transformer".
"""

import torch
from torch.autograd.function import once_differentiable

from mmkern import library
from mmkern.ops import _check
from mmkern.ops._math import ACTIVATIONS, accumulate, activation_grad, empty, given


def _halves(gate, up, gate_first):
    if up is not None:
        return gate, up
    first, second = gate.chunk(2, -1)
    return (first, second) if gate_first else (second, first)


def reference(gate, up, activation, gate_first):
    """activation(gate) * up as eager PyTorch computes it."""
    gate, up = _halves(gate, up, gate_first)
    return (ACTIVATIONS[activation](gate) * up).contiguous()


def backward_reference(grad, gate, up, activation, gate_first):
    """Gradients of gate and up; of the packed tensor, and (0,), where there is one."""
    a, b = (accumulate(t) for t in _halves(gate, up, gate_first))
    g = accumulate(grad)
    da = activation_grad(activation, a, g * b).to(gate.dtype)
    db = (g * ACTIVATIONS[activation](a)).to(gate.dtype)
    if up is None:
        return torch.cat((da, db) if gate_first else (db, da), -1), empty(gate)
    return da.contiguous(), db.contiguous()


_forward = library.define(
    "glu(Tensor gate, Tensor? up, str activation, bool gate_first) -> Tensor", reference
)
_backward = library.define(
    "glu_backward(Tensor grad, Tensor gate, Tensor? up, str activation, bool gate_first) "
    "-> (Tensor, Tensor)",
    backward_reference,
)


class _Glu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, activation, gate_first):
        ctx.save_for_backward(gate, up)
        ctx.args = activation, gate_first
        return _forward(gate, up, activation, gate_first)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grads = _backward(grad, *ctx.saved_tensors, *ctx.args)
        return *given(ctx.needs_input_grad[:2], grads), None, None


_op = library.Op(_forward, reference, _Glu, light=True)


def glu(gate, up=None, *, activation="silu", gate_first=True):
    """Gated linear unit: ``activation(gate) * up``.

    Args:
        gate: (..., I); or, with up None, one packed tensor (..., 2 I) of both halves.
        up: (..., I) with the shape and dtype of gate, or None.
        activation: "silu" (SwiGLU), "gelu", "gelu_tanh" (GeGLU), "quick_gelu", "relu" or "sigmoid"
            (GLU).
        gate_first: which half of the packed tensor is the gate. Hugging Face and Flux2 put it
            first, diffusers' SwiGLU second. Without effect on two tensors.

    Returns:
        (..., I), contiguous, in the dtype of gate.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, device, or shape.
    """
    _check.floating("glu", "gate", gate)
    if activation not in ACTIVATIONS:
        _check.choice("glu", "activation", activation, tuple(ACTIVATIONS))
    if up is not None:
        _check.like("glu", "up", up, "gate", gate)
        _check.shape("glu", "up", up, gate.shape, "the shape of gate")
    elif gate.dim() == 0 or gate.shape[-1] % 2:
        raise ValueError(
            f"mmkern.glu: gate has shape {tuple(gate.shape)}; wanted an even last dimension to "
            "split, or up"
        )
    return _op(gate, up, activation, gate_first)
