"""What the kernels move, counted element by element in Triton's interpreter.

Streaming: every operand of x's shape is read once, or written once and not read; what moves besides
comes to what docs/triton.md says of it. Products: operands once per block of rows or columns of the
other, results once. On a GPU a second access may hit a cache; here it counts.
"""

import numpy as np
import pytest
import torch
from interpreter import Builder, correct_bfloat16

from mmkern.kernels import triton as kernels

B, T, C = 2, 20, 1152
#: rows that a program sums for a gradient, of the 40 and of each sample's 20
CHUNK = 16
HALF, FULL = 2, 4


class Traffic:
    """The address of every element that kernels load and store, and its size."""

    def __init__(self, monkeypatch):
        self.loads, self.stores = [], []
        load, store = Builder.create_masked_load, Builder.create_masked_store

        def noted_load(builder, ptrs, mask, *rest, **named):
            self._note(self.loads, ptrs, mask)
            return load(builder, ptrs, mask, *rest, **named)

        def noted_store(builder, ptrs, value, mask, *rest, **named):
            self._note(self.stores, ptrs, mask)
            return store(builder, ptrs, value, mask, *rest, **named)

        monkeypatch.setattr(Builder, "create_masked_load", noted_load)
        monkeypatch.setattr(Builder, "create_masked_store", noted_store)

    def _note(self, accesses, ptrs, mask):
        addresses, mask = np.broadcast_arrays(ptrs.data, mask.data)
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        accesses.append((addresses[mask].astype(np.int64), size))

    def total(self):
        """Bytes loaded and stored."""
        return sum(len(addresses) * size for addresses, size in self.loads + self.stores)

    def times(self, accesses, t):
        """How often each element of a contiguous tensor is among the accesses."""
        assert t.is_contiguous()
        at = np.concatenate([addresses for addresses, _ in accesses]) - t.data_ptr()
        at = at[(at >= 0) & (at < t.numel() * t.element_size())]
        return np.bincount(at // t.element_size(), minlength=t.numel())


@pytest.fixture
def traffic(monkeypatch):
    correct_bfloat16()
    return Traffic(monkeypatch)


def r(*shape, dtype=torch.bfloat16):
    return torch.randn(shape).to(dtype)


def modulate():
    x, branch = r(B, T, C), r(B, T, C)
    gate, shift, scale = r(3, B, C).unbind()
    out = kernels.host("modulate")(x, branch, gate, shift, scale, None, None, "layer", 1e-6)
    # a tile is a row
    return (x, branch), out, 3 * B * T * C * HALF


def modulate_backward():
    grad_h, grad_y, h, branch = r(4, B, T, C).unbind()
    gate, shift, scale = r(3, B, C).unbind()
    mask = [True] * 5 + [False] * 2
    args = (gate, shift, scale, None, None, "layer", 1e-6, mask)
    dx, dbranch, *_ = kernels.host("modulate_backward")(grad_h, grad_y, h, branch, *args)
    chunks = B * -(-T // CHUNK)
    vectors = 2 * chunks * C * HALF
    sums = 3 * (chunks * C * 2 * FULL + B * C * HALF)
    return (grad_h, grad_y, h, branch), (dx, dbranch), vectors + sums


def rms_norm():
    x, residual, weight = r(B * T, C), r(B * T, C), r(C)
    out = kernels.host("rms_norm")(x, weight, residual, 1e-6, "after")
    return (x, residual), out, B * T * C * HALF


def rms_norm_backward():
    grad_h, grad_y, h = r(3, B * T, C).unbind()
    call = kernels.host("rms_norm_backward")
    dx, _ = call(grad_h, grad_y, h, r(C), 1e-6, "after", [True, True])
    sums = -(-B * T // CHUNK) * C * 2 * FULL + C * HALF
    return (grad_h, grad_y, h), (dx,), B * T * C * HALF + sums


def _rope(weighted, backward):
    heads, dim = (4, 2), 64
    q, k, grad_q, grad_k = (r(B, T, h, dim) for h in (*heads, *heads))
    tables = [r(T, dim, dtype=torch.float32) for _ in range(2)]
    weights = [r(dim) if weighted else None for _ in range(2)]
    besides = B * T * 2 * dim * FULL + (B * T * 2 * dim * HALF if weighted else 0)
    if not backward:
        out = kernels.host("rope")(q, k, *tables, *weights, False, 1e-6)
        return (q, k), out, besides
    mask = [True, True, weighted, weighted]
    call = kernels.host("rope_backward")
    dq, dk, *_ = call(grad_q, grad_k, q, k, *tables, *weights, False, 1e-6, mask)
    if not weighted:
        return (grad_q, grad_k), (dq, dk), besides
    # a program sums 8 tokens
    sums = 2 * (B * T // 8 * dim * 2 * FULL + dim * HALF)
    return (grad_q, grad_k, q, k), (dq, dk), besides + sums


def glu():
    gate, up = r(B * T, C), r(B * T, C)
    return (gate, up), (kernels.host("glu")(gate, up, "silu", True),), 0


def glu_backward():
    grad, gate, up = r(3, B * T, C).unbind()
    return (grad, gate, up), kernels.host("glu_backward")(grad, gate, up, "silu", True), 0


CALLS = {
    "modulate": modulate,
    "modulate_backward": modulate_backward,
    "rms_norm": rms_norm,
    "rms_norm_backward": rms_norm_backward,
    "rope": lambda: _rope(False, False),
    "rope_backward": lambda: _rope(False, True),
    "rope with QK-norm": lambda: _rope(True, False),
    "rope_backward with QK-norm": lambda: _rope(True, True),
    "glu": glu,
    "glu_backward": glu_backward,
}


@pytest.mark.parametrize("name", CALLS)
def test_each_operand_moves_once(name, traffic):
    inputs, results, besides = CALLS[name]()
    for t in inputs:
        assert (traffic.times(traffic.loads, t) == 1).all()
        assert not traffic.times(traffic.stores, t).any()
    for t in results:
        assert (traffic.times(traffic.stores, t) == 1).all()
        assert not traffic.times(traffic.loads, t).any()
    must = sum(t.numel() * t.element_size() for t in (*inputs, *results))
    assert traffic.total() == must + besides


# Around products, with the tiles of sm_90: (operand, loads of each element); what is stored once.


def attention():
    q, k, v = r(3, 1, 200, 2, 64).unbind()
    rest = (None, None, None, 200, 200, False, -1, -1, 0.125)
    # 2 blocks of 128 queries
    return [(q, 1), (k, 2), (v, 2)], kernels.host("attention")(q, k, v, *rest)


def attention_backward():
    grad, q, k, v, out = r(5, 1, 200, 2, 64).unbind()
    lse = torch.zeros(1, 2, 200)
    rest = (None, None, None, 200, 200, False, -1, -1, 0.125)
    grads = kernels.host("attention_backward")(grad, None, q, k, v, out, lse, *rest)
    # dq: 2 blocks of 128 queries; dk and dv: 2 blocks of 128 keys
    return [(q, 1 + 2), (grad, 1 + 2), (out, 1), (k, 2 + 1), (v, 2 + 1), (lse, 1 + 2)], grads


def patch_embed():
    x, weight = r(2, 3, 24, 32), r(136, 3, 8, 8)
    # 24 patches are 1 block of rows, 136 channels 2 of columns
    return [(x, 2), (weight, 1)], (kernels.host("patch_embed")(x, weight, None, None),)


def patch_embed_backward():
    grad, x, weight = r(2, 12, 136), r(2, 3, 24, 32), r(136, 3, 8, 8)
    call = kernels.host("patch_embed_backward")
    dx, dweight, *_ = call(grad, x, weight, None, [True, True, False, False])
    # 192 pixels of a patch: 3 blocks of 64 columns for dx; for the weight 2 of 128 by 2 of rows
    return [(grad, 3 + 2), (weight, 1), (x, 2)], (dx, dweight)


def mlp():
    x, w1, w2 = r(200, 96), r(300, 96), r(136, 300)
    rest = (None, None, None, "gelu", "none", 1e-6, 1, True)
    # 2 blocks of 128 rows, 3 of 128 columns
    return [(x, 3), (w1, 2), (w2, 2)], kernels.host("mlp")(x, None, w1, None, w2, *rest)


def mlp_backward():
    grad, x, z, w1, w2 = r(200, 136), r(200, 96), r(200, 300), r(300, 96), r(136, 300)
    rest = (None, None, z, "gelu", "none", 1e-6, 1, [True] + [False] * 6)
    dx, *_ = kernels.host("mlp_backward")(grad, x, None, w1, w2, *rest)
    # 5 blocks of 64 columns
    return [(grad, 5), (z, 1), (w2, 2), (w1, 2)], (dx,)


PRODUCTS = (
    attention, attention_backward, patch_embed, patch_embed_backward, mlp, mlp_backward,
)  # fmt: skip


@pytest.mark.parametrize("call", PRODUCTS, ids=lambda c: c.__name__)
def test_operands_of_products_move_once_per_block(call, traffic):
    inputs, results = call()
    for t, times in inputs:
        assert (traffic.times(traffic.loads, t) == times).all()
        assert not traffic.times(traffic.stores, t).any()
    for t in results:
        assert (traffic.times(traffic.stores, t) == 1).all()
        assert not traffic.times(traffic.loads, t).any()


def test_a_second_load_is_seen(traffic):
    """The counting itself: glu of a tensor with itself loads it twice."""
    x = r(8, 64)
    kernels.host("glu")(x, x, "silu", True)
    assert (traffic.times(traffic.loads, x) == 2).all()
