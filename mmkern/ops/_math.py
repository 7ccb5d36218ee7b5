"""Plain-PyTorch pieces that several references share."""

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
}


def activation_grad(name, x, grad):
    """grad * d activation(x) / dx."""
    if name == "gelu":
        return torch.ops.aten.gelu_backward(grad, x)
    if name == "gelu_tanh":
        return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
    if name == "relu":
        return torch.where(x > 0, grad, 0)
    if name == "quick_gelu":
        s = torch.sigmoid(1.702 * x)
        return grad * s * (1 + 1.702 * x * (1 - s))
    s = torch.sigmoid(x)
    if name == "sigmoid":
        return grad * s * (1 - s)
    return grad * s * (1 + x * (1 - s))


def accumulate(x):
    """x in the dtype that its sums are taken in: float32 for the half types."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def normalize(h, norm, eps):
    """(xhat, rstd) of LayerNorm ("layer") or RMSNorm ("rms") over the last dimension."""
    centred = h - h.mean(-1, keepdim=True) if norm == "layer" else h
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return centred * rstd, rstd


def normalize_backward(grad, xhat, rstd, norm):
    """The gradient of normalize's input, given that of xhat."""
    grad = grad - xhat * (grad * xhat).mean(-1, keepdim=True)
    if norm == "layer":
        # xhat has zero mean, so the projection above leaves the mean of grad as it was
        grad = grad - grad.mean(-1, keepdim=True)
    return rstd * grad


def empty(ref):
    """What a raw op returns for an output that does not exist."""
    return ref.new_empty(0)


def given(mask, grads):
    """Gradients for autograd: None where none was asked for."""
    return tuple(g if m else None for m, g in zip(mask, grads, strict=True))
