"""Sums in float32 that add their terms one by one, as the loops do to which MLIR lowers a sum.

Eager PyTorch adds in blocks, and of a long sum its error is a fraction of the other's. The accuracy
rule compares with eager's error; for lowered code it compares with eager's in this order.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def _added(terms, like):
    total = torch.zeros_like(like)
    for term in terms:
        total += term
    return total


def _sum(x, dim=None, keepdim=False, *, dtype=None):
    for d in sorted(range(x.dim()) if not dim else {d % x.dim() for d in dim}, reverse=True):
        total = _added(x.unbind(d), x.select(d, 0)) if x.shape[d] else x.sum(d)
        x = total.unsqueeze(d) if keepdim else total
    return x


def _mean(x, dim=None, keepdim=False, *, dtype=None):
    total = _sum(x, dim, keepdim)
    return total / (x.numel() / max(total.numel(), 1))


def _product(a, b):
    outers = (a[..., :, k, None] * b[..., k, None, :] for k in range(a.shape[-1]))
    return _added(outers, a.new_empty(*a.shape[:-1], b.shape[-1]))


def _addmm(c, a, b, *, beta=1, alpha=1):
    return alpha * _product(a, b) + beta * c


def _layer_norm(x, shape, weight, bias, eps):
    assert weight is None and bias is None and len(shape) == 1
    mean = _mean(x, [-1], True)
    rstd = torch.rsqrt(_mean((x - mean).square(), [-1], True) + eps)
    return (x - mean) * rstd, mean, rstd


def _layer_norm_backward(grad, x, shape, mean, rstd, weight, bias, mask):
    assert weight is None and bias is None and len(shape) == 1
    xhat = (x - mean) * rstd
    dx = grad - xhat * _mean(grad * xhat, [-1], True) - _mean(grad, [-1], True)
    return dx * rstd, None, None


_SUMS = {
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.dim: _mean,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _addmm,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
}


class OneByOne(TorchDispatchMode):
    """Inside it PyTorch's float32 sums and matrix products add term by term."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        dtypes = {a.dtype for a in args if isinstance(a, torch.Tensor)} | {kwargs.get("dtype")}
        plain = op not in _SUMS or dtypes - {torch.float32, None}
        return op(*args, **kwargs) if plain else _SUMS[op](*args, **kwargs)
