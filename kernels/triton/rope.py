"""Rotary position embedding of q and k, with QK-norm in front, in one launch; and its gradients.

A program takes tokens one after another, and of each the heads of q and then of k in tiles. A head
is kept as the first members of its pairs, the second members, and what the tables leave out: for
rotate-half these are three loads, for interleaved pairs one load that is split in registers.

Bytes that must move, for N elements of q and k together of e bytes: forward 2 N e and the tables
once; backward 2 N e (gradients in and out), with QK-norm 3 N e. The kernels move these once, the
tables once a sample and a norm weight once a token (from L2 but for the first time), and for the
gradient of a norm weight 8 more bytes per column and program of several tokens.
"""

import torch
import triton
import triton.language as tl

from mmkern.kernels.triton import tuning
from mmkern.kernels.triton.common import (
    add_partials,
    block_size,
    cdiv,
    dense,
    empty_if,
    fits,
    in_units,
    nothing,
    unit,
)

_UNSPECIALISED = ["seqlen", "tokens", "each", "heads_q", "heads_k"]
_UNSPECIALISED += [f"{t}_{s}" for t in ("q", "k", "dq", "dk", "cos", "sin") for s in "bsh"]


@triton.jit
def _load(P, heads, s_h, mask_h, D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr,
          PAIRS: tl.constexpr, REST: tl.constexpr, other: tl.constexpr):  # fmt: skip
    """(first members, second members, rest) of rows ``heads`` of P, in float32."""
    c = tl.arange(0, PAIRS)[None, :]
    if INTERLEAVED:
        both = tl.arange(0, 2 * PAIRS)[None, :]
        x = tl.load(P + heads * s_h + both, mask=mask_h & (both < R), other=other).to(tl.float32)
        a, b = tl.split(tl.reshape(x, [heads.shape[0], PAIRS, 2]))
    else:
        mask = mask_h & (c < R // 2)
        a = tl.load(P + heads * s_h + c, mask=mask, other=other).to(tl.float32)
        b = tl.load(P + heads * s_h + R // 2 + c, mask=mask, other=other).to(tl.float32)
    rest = tl.zeros([heads.shape[0], REST], tl.float32)
    if R < D:
        c = tl.arange(0, REST)[None, :]
        rest = tl.load(P + heads * s_h + R + c, mask=mask_h & (c < D - R), other=other)
        rest = rest.to(tl.float32)
    return a, b, rest


@triton.jit
def _store(P, heads, s_h, mask_h, a, b, rest, D: tl.constexpr, R: tl.constexpr,
           INTERLEAVED: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr):  # fmt: skip
    kind: tl.constexpr = P.dtype.element_ty
    c = tl.arange(0, PAIRS)[None, :]
    if INTERLEAVED:
        both = tl.arange(0, 2 * PAIRS)[None, :]
        x = tl.reshape(tl.join(a, b), [heads.shape[0], 2 * PAIRS])
        tl.store(P + heads * s_h + both, x.to(kind), mask=mask_h & (both < R))
    else:
        mask = mask_h & (c < R // 2)
        tl.store(P + heads * s_h + c, a.to(kind), mask=mask)
        tl.store(P + heads * s_h + R // 2 + c, b.to(kind), mask=mask)
    if R < D:
        c = tl.arange(0, REST)[None, :]
        tl.store(P + heads * s_h + R + c, rest.to(kind), mask=mask_h & (c < D - R))


@triton.jit
def _weight(W, D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, PAIRS: tl.constexpr,
            REST: tl.constexpr):  # fmt: skip
    row = tl.zeros([1, 1], tl.int32)
    return _load(W, row, 0, row < 1, D, R, INTERLEAVED, PAIRS, REST, 0.0)


@triton.jit
def _rstd(a, b, rest, eps, D: tl.constexpr):
    total = tl.sum(a * a, 1) + tl.sum(b * b, 1) + tl.sum(rest * rest, 1)
    return (1.0 / tl.sqrt(total / D + eps))[:, None]


@triton.jit
def _rotate(X, Y, W, cos_a, cos_b, sin_a, sin_b, heads_n, s_h, eps, D: tl.constexpr,
            R: tl.constexpr, INTERLEAVED: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
            REST: tl.constexpr):  # fmt: skip
    """All heads of one token. X and Y point to its first head; Y is contiguous."""
    if W is not None:
        w_a, w_b, w_rest = _weight(W, D, R, INTERLEAVED, PAIRS, REST)
    for h in range(0, heads_n, HEADS):
        heads = (h + tl.arange(0, HEADS)[:, None]).to(tl.int64)
        mask = heads < heads_n
        a, b, rest = _load(X, heads, s_h, mask, D, R, INTERLEAVED, PAIRS, REST, 0.0)
        if W is not None:
            rstd = _rstd(a, b, rest, eps, D)
            a, b, rest = a * rstd * w_a, b * rstd * w_b, rest * rstd * w_rest
        y_a = a * cos_a - b * sin_a
        y_b = b * cos_b + a * sin_b
        _store(Y, heads, D, mask, y_a, y_b, rest, D, R, INTERLEAVED, PAIRS, REST)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def rope_forward(
    Q, K, COS, SIN, Q_WEIGHT, K_WEIGHT, Q_OUT, K_OUT,
    q_b, q_s, q_h, k_b, k_s, k_h, cos_b, cos_s, sin_b, sin_s,
    seqlen, tokens, each, heads_q, heads_k, eps,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, UNIT: tl.constexpr,
    HEADS_Q: tl.constexpr, HEADS_K: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row = tl.zeros([1, 1], tl.int32)
    q_h, k_h = tl.cast(q_h, tl.int64) * UNIT, tl.cast(k_h, tl.int64) * UNIT
    for token in range(pid * each, tl.minimum((pid + 1) * each, tokens)):
        at = tl.cast(token, tl.int64)
        b, s = at // seqlen, at % seqlen
        cos_at = COS + (b * cos_b + s * cos_s) * UNIT
        sin_at = SIN + (b * sin_b + s * sin_s) * UNIT
        cos_1, cos_2, _ = _load(cos_at, row, 0, row < 1, R, R, INTERLEAVED, PAIRS, 1, 0.0)
        sin_1, sin_2, _ = _load(sin_at, row, 0, row < 1, R, R, INTERLEAVED, PAIRS, 1, 0.0)
        _rotate(
            Q + (b * q_b + s * q_s) * UNIT, Q_OUT + at * heads_q * D, Q_WEIGHT,
            cos_1, cos_2, sin_1, sin_2, heads_q, q_h, eps,
            D, R, INTERLEAVED, HEADS_Q, PAIRS, REST,
        )  # fmt: skip
        _rotate(
            K + (b * k_b + s * k_s) * UNIT, K_OUT + at * heads_k * D, K_WEIGHT,
            cos_1, cos_2, sin_1, sin_2, heads_k, k_h, eps,
            D, R, INTERLEAVED, HEADS_K, PAIRS, REST,
        )  # fmt: skip


@triton.jit
def _rotate_back(G, X, DX, W, sum_a, sum_b, sum_rest, cos_a, cos_b, sin_a, sin_b, heads_n, g_h, x_h,
                 eps, SUMS: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
                 INTERLEAVED: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
                 REST: tl.constexpr):  # fmt: skip
    """All heads of one token; returns the sums for the gradient of W with theirs added."""
    if W is not None:
        w_a, w_b, w_rest = _weight(W, D, R, INTERLEAVED, PAIRS, REST)
    for h in range(0, heads_n, HEADS):
        heads = (h + tl.arange(0, HEADS)[:, None]).to(tl.int64)
        mask = heads < heads_n
        g_1, g_2, rest = _load(G, heads, g_h, mask, D, R, INTERLEAVED, PAIRS, REST, 0.0)
        # the transpose of the rotation
        a = g_1 * cos_a + g_2 * sin_b
        b = g_2 * cos_b - g_1 * sin_a
        if W is not None:
            x_a, x_b, x_rest = _load(X, heads, x_h, mask, D, R, INTERLEAVED, PAIRS, REST, 0.0)
            # a head that is all mask has an rstd of inf where eps is 0
            rstd = tl.where(mask, _rstd(x_a, x_b, x_rest, eps, D), 0.0)
            x_a, x_b, x_rest = x_a * rstd, x_b * rstd, x_rest * rstd
            if SUMS:
                sum_a += a * x_a
                sum_b += b * x_b
                sum_rest += rest * x_rest
            a, b, rest = a * w_a, b * w_b, rest * w_rest
            along = tl.sum(a * x_a, 1) + tl.sum(b * x_b, 1) + tl.sum(rest * x_rest, 1)
            along = (along / D)[:, None]
            a, b = (a - x_a * along) * rstd, (b - x_b * along) * rstd
            rest = (rest - x_rest * along) * rstd
        if DX is not None:
            _store(DX, heads, D, mask, a, b, rest, D, R, INTERLEAVED, PAIRS, REST)
    return sum_a, sum_b, sum_rest


@triton.jit
def _store_sums(P, pid, a, b, rest, D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr,
                PAIRS: tl.constexpr, REST: tl.constexpr):  # fmt: skip
    row = tl.zeros([1, 1], tl.int32)
    a, b, rest = tl.sum(a, 0)[None, :], tl.sum(b, 0)[None, :], tl.sum(rest, 0)[None, :]
    _store(P + pid.to(tl.int64) * D, row, 0, row < 1, a, b, rest, D, R, INTERLEAVED, PAIRS, REST)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def rope_gradient(
    DQ_OUT, DK_OUT, Q, K, COS, SIN, Q_WEIGHT, K_WEIGHT, DQ, DK, DQ_WEIGHT, DK_WEIGHT,
    dq_b, dq_s, dq_h, dk_b, dk_s, dk_h, q_b, q_s, q_h, k_b, k_s, k_h, cos_b, cos_s, sin_b, sin_s,
    seqlen, tokens, each, heads_q, heads_k, eps,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, UNIT: tl.constexpr,
    HEADS_Q: tl.constexpr, HEADS_K: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row = tl.zeros([1, 1], tl.int32)
    q_h, k_h = tl.cast(q_h, tl.int64) * UNIT, tl.cast(k_h, tl.int64) * UNIT
    dq_h, dk_h = tl.cast(dq_h, tl.int64) * UNIT, tl.cast(dk_h, tl.int64) * UNIT
    q_1 = tl.zeros([HEADS_Q, PAIRS], tl.float32)
    q_2 = tl.zeros([HEADS_Q, PAIRS], tl.float32)
    q_rest = tl.zeros([HEADS_Q, REST], tl.float32)
    k_1 = tl.zeros([HEADS_K, PAIRS], tl.float32)
    k_2 = tl.zeros([HEADS_K, PAIRS], tl.float32)
    k_rest = tl.zeros([HEADS_K, REST], tl.float32)
    for token in range(pid * each, tl.minimum((pid + 1) * each, tokens)):
        at = tl.cast(token, tl.int64)
        b, s = at // seqlen, at % seqlen
        cos_at = COS + (b * cos_b + s * cos_s) * UNIT
        sin_at = SIN + (b * sin_b + s * sin_s) * UNIT
        cos_1, cos_2, _ = _load(cos_at, row, 0, row < 1, R, R, INTERLEAVED, PAIRS, 1, 0.0)
        sin_1, sin_2, _ = _load(sin_at, row, 0, row < 1, R, R, INTERLEAVED, PAIRS, 1, 0.0)
        if DQ is not None or DQ_WEIGHT is not None:
            q_1, q_2, q_rest = _rotate_back(
                DQ_OUT + (b * dq_b + s * dq_s) * UNIT, Q + (b * q_b + s * q_s) * UNIT,
                DQ + at * heads_q * D if DQ is not None else None, Q_WEIGHT, q_1, q_2, q_rest,
                cos_1, cos_2, sin_1, sin_2, heads_q, dq_h, q_h, eps,
                DQ_WEIGHT is not None, D, R, INTERLEAVED, HEADS_Q, PAIRS, REST,
            )  # fmt: skip
        if DK is not None or DK_WEIGHT is not None:
            k_1, k_2, k_rest = _rotate_back(
                DK_OUT + (b * dk_b + s * dk_s) * UNIT, K + (b * k_b + s * k_s) * UNIT,
                DK + at * heads_k * D if DK is not None else None, K_WEIGHT, k_1, k_2, k_rest,
                cos_1, cos_2, sin_1, sin_2, heads_k, dk_h, k_h, eps,
                DK_WEIGHT is not None, D, R, INTERLEAVED, HEADS_K, PAIRS, REST,
            )  # fmt: skip
    if DQ_WEIGHT is not None:
        _store_sums(DQ_WEIGHT, pid, q_1, q_2, q_rest, D, R, INTERLEAVED, PAIRS, REST)
    if DK_WEIGHT is not None:
        _store_sums(DK_WEIGHT, pid, k_1, k_2, k_rest, D, R, INTERLEAVED, PAIRS, REST)


def _heads(t):
    """Strides of (batch, token, head) of (B, S, H, D) or (T, H, D)."""
    return ((0,) if t.dim() == 3 else ()) + t.stride()[:-1]


def _table(t):
    """Strides of (batch, token) of a table (S, R) or (B, S, R), where B may be 1."""
    return (t.stride(0) if t.dim() == 3 and t.shape[0] > 1 else 0, t.stride(-2))


class _Problem:
    """What both kernels are told of the shapes."""

    def __init__(self, kernel, q, k, cos, sin, interleaved):
        dim, width = q.shape[-1], cos.shape[-1]
        self.seqlen, self.heads = q.shape[-3], (q.shape[-2], k.shape[-2])
        self.tokens = self.seqlen * (q.shape[0] if q.dim() == 4 else 1)
        pairs = block_size(width // 2) if width > 2 else 1
        tile = tuning.pick(kernel, q.device, head_dim=dim, heads=max(self.heads))
        self.tile = tile
        if tile is None:
            return
        self.each, most = tile["TOKENS"], tile["HEADS"]
        self.meta = {
            "D": dim,
            "R": width,
            "INTERLEAVED": interleaved,
            "PAIRS": pairs,
            "REST": 1 if width == dim else block_size(dim - width),
            "HEADS_Q": min(most, block_size(self.heads[0])),
            "HEADS_K": min(most, block_size(self.heads[1])),
            "num_warps": tile.get("num_warps", 4),
        }

    def numbers(self, tensors, tables):
        """UNIT, and the strides in it."""
        strides = [n for t in tensors for n in _heads(t)]
        strides += [n for t in tables for n in _table(t)]
        step = unit(*strides)
        return step, in_units(step, strides)


def _fits(q, k, cos, sin, *rest):
    return k.dtype == q.dtype and fits(q, k, cos, sin, *rest)


def rope(q, k, cos, sin, q_weight, k_weight, interleaved, eps):
    """``mmkern::rope`` in one launch."""
    if not _fits(q, k, cos, sin, q_weight, k_weight):
        return NotImplemented
    p = _Problem("rope", q, k, cos, sin, interleaved)
    if p.tile is None:
        return NotImplemented
    outs = empty_if(True, q), empty_if(True, k)
    if q.numel() + k.numel() == 0:
        return outs
    step, numbers = p.numbers((q, k), (cos, sin))
    programs = cdiv(p.tokens, p.each)
    if tuning.too_many(q.device, programs):
        return NotImplemented
    rope_forward[(programs,)](
        q, k, cos, sin, q_weight, k_weight, *outs, *numbers,
        p.seqlen, p.tokens, p.each, *p.heads, eps, UNIT=step, **p.meta,
    )  # fmt: skip
    return outs


def rope_backward(
    grad_q, grad_k, q, k, cos, sin, q_weight, k_weight, interleaved, eps, mask
):  # fmt: skip
    """``mmkern::rope_backward``: one launch, and a second stage for the norm weights."""
    grad_q, grad_k = dense(grad_q), dense(grad_k)
    if not _fits(q, k, cos, sin, q_weight, k_weight, grad_q, grad_k):
        return NotImplemented
    p = _Problem("rope_backward", q, k, cos, sin, interleaved)
    if p.tile is None:
        return NotImplemented
    asked = [mask[0], mask[1], mask[2] and q_weight is not None, mask[3] and k_weight is not None]
    if q.numel() + k.numel() == 0:
        grads = zip((q, k, q_weight, k_weight), asked, strict=True)
        return tuple(torch.zeros(t.shape, dtype=t.dtype, device=q.device) if a else nothing(q)
                     for t, a in grads)  # fmt: skip
    step, numbers = p.numbers((grad_q, grad_k, q, k), (cos, sin))
    programs = cdiv(p.tokens, p.each)
    if tuning.too_many(q.device, programs):
        return NotImplemented
    dq, dk = empty_if(asked[0], q), empty_if(asked[1], k)
    size = (programs, q.shape[-1])
    partials = [
        torch.empty(size, dtype=torch.float32, device=q.device) if a else None for a in asked[2:]
    ]
    rope_gradient[(programs,)](
        grad_q, grad_k, q, k, cos, sin, q_weight, k_weight,
        dq if asked[0] else None, dk if asked[1] else None, *partials, *numbers,
        p.seqlen, p.tokens, p.each, *p.heads, eps, UNIT=step, **p.meta,
    )  # fmt: skip
    weights = []
    for partial, weight in zip(partials, (q_weight, k_weight), strict=True):
        weights.append(nothing(q) if partial is None else torch.empty_like(weight))
        if partial is not None:
            add_partials(partial, weights[-1], groups=1, inner=programs)
    return dq, dk, *weights
