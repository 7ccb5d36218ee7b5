"""Flash attention backward from the log-sum-exp: one kernel for dq (and delta), one for dk and dv.

delta = rowsum(grad_out * out) - grad_lse is formed where dq needs it and kept for the second
kernel. Programs share no output: dk and dv of a key block sum over its query heads in one program,
in a fixed order, so there are no atomics and no workspace but delta.
Head dimensions over 256 and what the forward leaves out are left out. A grad_out whose last stride
is not 1 is copied.
"""

import torch
import triton
import triton.language as tl

from mmkern.kernels.triton import tuning
from mmkern.kernels.triton.attention_common import (
    INTEGERS,
    batched,
    key_range,
    load_rows,
    options,
    padding_strides,
    row_strides,
    segment_of,
    store_rows,
    supported,
    visible,
    weights,
    widths,
)
from mmkern.kernels.triton.common import cdiv, dense


@triton.jit(do_not_specialize=INTEGERS)
def attention_dq(
    Q, K, V, GRAD, OUT, LSE, GRAD_LSE, PAD, CU_Q, CU_K, DQ, DELTA,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    grad_batch, grad_row, grad_head, out_batch, out_row, out_head, pad_batch, pad_row,
    sq, sk, heads_q, lse_head, blocks, segments, group, scale, left, right,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, UNIT: tl.constexpr, VARLEN: tl.constexpr,
    PADDED: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head: delta, then dq over the keys it sees."""
    q_row, out_row, grad_row = q_row * UNIT, out_row * UNIT, grad_row * UNIT
    k_row, v_row = k_row * UNIT, v_row * UNIT
    pid = tl.program_id(0)
    block = pid % blocks
    if HAS_RIGHT:
        block = blocks - 1 - block  # the longest rows first: the last ones then fill the gaps
    head = tl.cast(pid // blocks % heads_q, tl.int64)
    batch = tl.cast(pid // blocks // heads_q, tl.int64)
    q_start, k_start, token = batch * 0, batch * 0, batch * sq
    if VARLEN:
        segment, block = segment_of(CU_Q, segments, block, BM)
        q_start = tl.load(CU_Q + segment).to(tl.int64)
        k_start = tl.load(CU_K + segment).to(tl.int64)
        sq = (tl.load(CU_Q + segment + 1) - q_start).to(tl.int32)
        sk = (tl.load(CU_K + segment + 1) - k_start).to(tl.int32)
        token = q_start
    first = block * BM
    q_start += first
    rows = tl.arange(0, BM)
    limit = sq - first
    Q += (batch * q_batch + head * q_head) * UNIT + q_start * q_row
    OUT += (batch * out_batch + head * out_head) * UNIT + q_start * out_row
    GRAD += (batch * grad_batch + head * grad_head) * UNIT + q_start * grad_row
    DQ += ((token + first) * heads_q + head) * D
    K += (batch * k_batch + head // group * k_head) * UNIT + k_start * k_row
    V += (batch * v_batch + head // group * v_head) * UNIT + k_start * v_row
    if PADDED:
        PAD += batch * pad_batch
    place = (batch * heads_q + head) * lse_head + q_start + rows

    lse = tl.load(LSE + place, mask=rows < limit, other=float("-inf"))
    g0 = load_rows(GRAD, grad_row, rows, limit, DV, 0, V0, True)
    o = load_rows(OUT, out_row, rows, limit, DV, 0, V0, True)
    delta = tl.sum(g0.to(tl.float32) * o.to(tl.float32), 1)
    g1 = g0
    if V1 > 0:
        g1 = load_rows(GRAD, grad_row, rows, limit, DV, V0, V1, True)
        o = load_rows(OUT, out_row, rows, limit, DV, V0, V1, True)
        delta += tl.sum(g1.to(tl.float32) * o.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        delta -= tl.load(GRAD_LSE + place, mask=rows < limit, other=0.0).to(tl.float32)
    # a row without keys has lse -inf: weights of exp2(-huge) = 0, and no gradient of its lse
    unseen = lse == float("-inf")
    lse = tl.where(unseen, 1.0e30, lse)
    delta = tl.where(unseen, 0.0, delta)
    tl.store(DELTA + place, delta, mask=rows < limit)

    q0 = load_rows(Q, q_row, rows, limit, D, 0, D0, True)
    q1 = q0
    if D1 > 0:
        q1 = load_rows(Q, q_row, rows, limit, D, D0, D1, True)
    pos = first + rows + (sk - sq)
    last = tl.minimum(first + BM, sq) - 1
    lo, _, _, hi = key_range(first + sk - sq, last + sk - sq, sk, left, right, HAS_LEFT, HAS_RIGHT)
    if VARLEN:
        hi = tl.where(first < sq, hi, 0)
    dq0 = tl.zeros([BM, D0], tl.float32)
    dq1 = tl.zeros([BM, D1 if D1 > 0 else 16], tl.float32)
    cols = tl.arange(0, BN)
    # masked throughout: a second loop for the blocks that need it spills registers
    for n in range(tl.maximum(lo, 0) // BN * BN, hi, BN):
        keys_left = sk - n
        k_base = K + tl.cast(n, tl.int64) * k_row
        v_base = V + tl.cast(n, tl.int64) * v_row
        k0 = load_rows(k_base, k_row, cols, keys_left, D, 0, D0, True)
        s = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
        k1 = k0
        if D1 > 0:
            k1 = load_rows(k_base, k_row, cols, keys_left, D, D0, D1, True)
            s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION)
        p = weights(s, lse[:, None], scale, EXACT)
        seen = visible(pos[:, None], (n + cols)[None, :], sk, left, right, HAS_LEFT, HAS_RIGHT)
        if PADDED:
            kept = tl.load(PAD + (n + cols) * pad_row, mask=cols < keys_left, other=0)
            seen = seen & (kept[None, :] != 0)
        p = tl.where(seen, p, 0.0)
        v0 = load_rows(v_base, v_row, cols, keys_left, DV, 0, V0, True)
        dp = tl.dot(g0, tl.trans(v0), input_precision=PRECISION)
        if V1 > 0:
            v1 = load_rows(v_base, v_row, cols, keys_left, DV, V0, V1, True)
            dp = tl.dot(g1, tl.trans(v1), dp, input_precision=PRECISION)
        ds = (p * (dp - delta[:, None])).to(K.dtype.element_ty)
        dq0 = tl.dot(ds, k0, dq0, input_precision=PRECISION)
        if D1 > 0:
            dq1 = tl.dot(ds, k1, dq1, input_precision=PRECISION)
    store_rows(DQ, heads_q * D, rows, limit, dq0 * scale, D, 0, D0)
    if D1 > 0:
        store_rows(DQ, heads_q * D, rows, limit, dq1 * scale, D, D0, D1)


@triton.jit(do_not_specialize=INTEGERS)
def attention_dkdv(
    Q, K, V, GRAD, LSE, DELTA, PAD, CU_Q, CU_K, DK, DV_OUT,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    grad_batch, grad_row, grad_head, pad_batch, pad_row,
    sq, sk, heads_k, lse_head, blocks, segments, group, scale, left, right,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, UNIT: tl.constexpr, VARLEN: tl.constexpr,
    PADDED: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of keys of one key head: dk and dv over the queries of its group that see it."""
    q_row, grad_row, k_row, v_row = q_row * UNIT, grad_row * UNIT, k_row * UNIT, v_row * UNIT
    pid = tl.program_id(0)
    block = pid % blocks
    head = tl.cast(pid // blocks % heads_k, tl.int64)
    batch = tl.cast(pid // blocks // heads_k, tl.int64)
    q_start, k_start, token = batch * 0, batch * 0, batch * sk
    if VARLEN:
        segment, block = segment_of(CU_K, segments, block, BN)
        q_start = tl.load(CU_Q + segment).to(tl.int64)
        k_start = tl.load(CU_K + segment).to(tl.int64)
        sq = (tl.load(CU_Q + segment + 1) - q_start).to(tl.int32)
        sk = (tl.load(CU_K + segment + 1) - k_start).to(tl.int32)
        token = k_start
    first = block * BN
    k_start += first
    cols = tl.arange(0, BN)
    limit = sk - first
    K += (batch * k_batch + head * k_head) * UNIT + k_start * k_row
    V += (batch * v_batch + head * v_head) * UNIT + k_start * v_row
    k0 = load_rows(K, k_row, cols, limit, D, 0, D0, True)
    v0 = load_rows(V, v_row, cols, limit, DV, 0, V0, True)
    k1 = k0
    v1 = v0
    if D1 > 0:
        k1 = load_rows(K, k_row, cols, limit, D, D0, D1, True)
    if V1 > 0:
        v1 = load_rows(V, v_row, cols, limit, DV, V0, V1, True)
    dk0 = tl.zeros([BN, D0], tl.float32)
    dk1 = tl.zeros([BN, D1 if D1 > 0 else 16], tl.float32)
    dv0 = tl.zeros([BN, V0], tl.float32)
    dv1 = tl.zeros([BN, V1 if V1 > 0 else 16], tl.float32)

    shift = sk - sq
    last = tl.minimum(first + BN, sk) - 1
    lo, hi = 0, sq
    if HAS_RIGHT:
        lo = tl.maximum(first - right - shift, 0) // BM * BM
    if HAS_LEFT:
        hi = tl.minimum(sq, last + left - shift + 1)
    if VARLEN:
        hi = tl.where(first < sk, hi, 0)
    keys = (first + cols)[:, None]
    count = (tl.maximum(hi - lo, 0) + BM - 1) // BM
    Q += batch * q_batch * UNIT + q_start * q_row
    GRAD += batch * grad_batch * UNIT + q_start * grad_row
    LSE += batch * heads_k * group * lse_head + q_start
    DELTA += batch * heads_k * group * lse_head + q_start
    # one loop, not one a head and one more for masked blocks: three of them spill registers
    for i in range(0, count * group):
        m = lo + i % count * BM
        q_index = head * group + i // count
        q_base = Q + q_index * q_head * UNIT + m.to(tl.int64) * q_row
        g_base = GRAD + q_index * grad_head * UNIT + m.to(tl.int64) * grad_row
        rows = tl.arange(0, BM)
        rows_left = sq - m
        q0 = load_rows(q_base, q_row, rows, rows_left, D, 0, D0, True)
        s = tl.dot(k0, tl.trans(q0), input_precision=PRECISION)
        q1 = q0
        if D1 > 0:
            q1 = load_rows(q_base, q_row, rows, rows_left, D, D0, D1, True)
            s = tl.dot(k1, tl.trans(q1), s, input_precision=PRECISION)
        # a query past the end, and one without keys, has lse -inf
        at = q_index * lse_head + m + rows
        lse = tl.load(LSE + at, mask=rows < rows_left, other=float("-inf"))
        lse = tl.where(lse == float("-inf"), 1.0e30, lse)
        p = weights(s, lse[None, :], scale, EXACT)
        if HAS_LEFT or HAS_RIGHT:
            pos = (m + rows + shift)[None, :]
            seen = visible(pos, keys, 2147483647, left, right, HAS_LEFT, HAS_RIGHT)
            p = tl.where(seen, p, 0.0)
        g0 = load_rows(g_base, grad_row, rows, rows_left, DV, 0, V0, True)
        dv0 = tl.dot(p.to(GRAD.dtype.element_ty), g0, dv0, input_precision=PRECISION)
        dp = tl.dot(v0, tl.trans(g0), input_precision=PRECISION)
        if V1 > 0:
            g1 = load_rows(g_base, grad_row, rows, rows_left, DV, V0, V1, True)
            dv1 = tl.dot(p.to(GRAD.dtype.element_ty), g1, dv1, input_precision=PRECISION)
            dp = tl.dot(v1, tl.trans(g1), dp, input_precision=PRECISION)
        delta = tl.load(DELTA + at, mask=rows < rows_left, other=0.0)
        ds = (p * (dp - delta[None, :])).to(Q.dtype.element_ty)
        dk0 = tl.dot(ds, q0, dk0, input_precision=PRECISION)
        if D1 > 0:
            dk1 = tl.dot(ds, q1, dk1, input_precision=PRECISION)
    if PADDED:
        kept = tl.load(
            PAD + batch * pad_batch + (first + cols) * pad_row, mask=cols < limit, other=0
        )
        kept = kept[:, None] != 0
        dk0, dv0 = tl.where(kept, dk0, 0.0), tl.where(kept, dv0, 0.0)
        dk1, dv1 = tl.where(kept, dk1, 0.0), tl.where(kept, dv1, 0.0)
    place = (token + first) * heads_k + head
    store_rows(DK + place * D, heads_k * D, cols, limit, dk0 * scale, D, 0, D0)
    store_rows(DV_OUT + place * DV, heads_k * DV, cols, limit, dv0, DV, 0, V0)
    if D1 > 0:
        store_rows(DK + place * D, heads_k * D, cols, limit, dk1 * scale, D, D0, D1)
    if V1 > 0:
        store_rows(DV_OUT + place * DV, heads_k * DV, cols, limit, dv1, DV, V0, V1)


def attention_backward(
    grad_out, grad_lse, q, k, v, out, lse, key_padding_mask, cu_seqlens_q, cu_seqlens_k,
    max_seqlen_q, max_seqlen_k, causal, window_left, window_right, scale,
):  # fmt: skip
    """``mmkern::attention_backward``: (dq, dk, dv)."""
    grad_out = dense(grad_out)
    if not supported(scale, q, k, v, grad_out):
        return NotImplemented
    varlen = cu_seqlens_q is not None
    q4, k4, v4, out4, grad4 = map(batched, (q, k, v, out, grad_out))
    b, sq, hq, dim = q4.shape
    sk, hk, dim_v = v4.shape[1:]
    width, widest = widths(dim, dim_v)
    half = q.dtype != torch.float32
    tile_q, tile_k = (
        tuning.pick(name, q.device, half=half, head_dim=widest)
        for name in ("attention_dq", "attention_dkdv")
    )
    if tile_q is None or tile_k is None:
        return NotImplemented
    segments = len(cu_seqlens_q) - 1 if varlen else 0
    blocks_q, blocks_k = (
        n // tile[size] + segments if varlen else cdiv(n, tile[size])
        for n, tile, size in ((sq, tile_q, "BM"), (sk, tile_k, "BN"))
    )
    if tuning.too_many(q.device, b * max(blocks_q * hq, blocks_k * hk)):
        return NotImplemented
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    if lse.numel() == 0:
        return dq, dk.zero_(), dv.zero_()
    delta = torch.empty_like(lse)
    unit, strides = row_strides(q4, k4, v4, grad4, out4)
    pad = padding_strides(key_padding_mask)
    common = {
        **options(q.dtype, causal, window_left, window_right, key_padding_mask, cu_seqlens_q),
        **width, "UNIT": unit,
    }  # fmt: skip
    attention_dq[(blocks_q * hq * b,)](
        q, k, v, grad_out, out, lse, None if grad_lse is None else grad_lse.contiguous(),
        key_padding_mask, cu_seqlens_q, cu_seqlens_k, dq, delta,
        *strides, *pad, sq, sk, hq, sq, blocks_q, segments, hq // hk, scale,
        HAS_GRAD_LSE=grad_lse is not None, **common, **tile_q,
    )  # fmt: skip
    if blocks_k:
        attention_dkdv[(blocks_k * hk * b,)](
            q, k, v, grad_out, lse, delta, key_padding_mask, cu_seqlens_q, cu_seqlens_k, dk, dv,
            *strides[:12], *pad, sq, sk, hk, sq, blocks_k, segments, hq // hk, scale,
            **common, **tile_k,
        )  # fmt: skip
    return dq, dk, dv
