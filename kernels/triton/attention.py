"""Flash attention forward: online softmax over key blocks, and the log-sum-exp.

One program per block of queries and head. Key blocks that nobody in the block sees are skipped,
blocks that everybody sees carry no mask. Few queries against many keys (decoding) are split: each
program takes SPLIT keys for all query heads of one key head, and a second kernel joins the parts.

docs/triton.md says what share of the products padding is, by head dimension.
Head dimensions over 512, other dtypes, a last stride that is not 1, and scale <= 0 are left out.
"""

import torch
import triton
import triton.language as tl

from mmkern.kernels.triton import tuning
from mmkern.kernels.triton.attention_backward import attention_backward
from mmkern.kernels.triton.attention_common import (
    INTEGERS,
    batched,
    edge,
    key_range,
    load_rows,
    options,
    padding_strides,
    ranges,
    row_strides,
    segment_of,
    supported,
    visible,
    widths,
)
from mmkern.kernels.triton.common import block_size, cdiv

__all__ = ["attention", "attention_backward"]

# Queries x query heads per key head up to which the heads of a group share one tile of rows.
_FEW = 64
# Keys that one program takes then, unless that made more parts than this.
_SPLIT, _PARTS = 256, 64


@triton.jit
def _step(
    acc0, acc1, top, total, q0, q1, K, V, PAD, n, pos, sk, k_row, v_row, pad_row, scale_log2,
    left, right,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, BN: tl.constexpr,
    MASK: tl.constexpr, PADDED: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Join one block of keys, from key n on, to the running maximum, sum and product."""
    cols = tl.arange(0, BN)
    left_over = sk - n
    base = K + tl.cast(n, tl.int64) * k_row
    k0 = load_rows(base, k_row, cols, left_over, D, 0, D0, MASK)
    s = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
    if D1 > 0:
        k1 = load_rows(base, k_row, cols, left_over, D, D0, D1, MASK)
        s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION)
    if MASK:
        seen = visible(pos[:, None], (n + cols)[None, :], sk, left, right, HAS_LEFT, HAS_RIGHT)
    if PADDED:
        kept = tl.load(PAD + (n + cols) * pad_row, mask=cols < left_over, other=0)[None, :] != 0
        seen = seen & kept if MASK else kept
    if MASK or PADDED:
        s = tl.where(seen, s, -1.0e30)
    new = tl.maximum(top, tl.max(s, 1))
    if EXACT:
        # the difference first: a row with one key gets a weight of exactly 1
        p = tl.exp2((s - new[:, None]) * scale_log2)
    else:
        p = tl.exp2(s * scale_log2 - (new * scale_log2)[:, None])
    if MASK or PADDED:
        p = tl.where(seen, p, 0.0)
    decay = tl.exp2((top - new) * scale_log2)
    total = total * decay + tl.sum(p, 1)
    p = p.to(V.dtype.element_ty)
    base = V + tl.cast(n, tl.int64) * v_row
    v0 = load_rows(base, v_row, cols, left_over, DV, 0, V0, MASK)
    acc0 = tl.dot(p, v0, acc0 * decay[:, None], input_precision=PRECISION)
    if V1 > 0:
        v1 = load_rows(base, v_row, cols, left_over, DV, V0, V1, MASK)
        acc1 = tl.dot(p, v1, acc1 * decay[:, None], input_precision=PRECISION)
    return acc0, acc1, new, total


@triton.jit(do_not_specialize=INTEGERS)
def attention_forward(
    Q, K, V, PAD, CU_Q, CU_K, OUT, LSE,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, pad_batch, pad_row,
    lse_split, heads_q, sq, sk, lse_head, heads, blocks, splits, segments, group, scale,
    left, right,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    DV: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, UNIT: tl.constexpr, PACK: tl.constexpr,
    SPLIT: tl.constexpr, VARLEN: tl.constexpr, PADDED: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """PACK > 1: a row is (query, one of PACK query heads that share a key head)."""
    q_row, q_head, q_batch = q_row * UNIT, q_head * UNIT, q_batch * UNIT
    k_row, k_head, k_batch = k_row * UNIT, k_head * UNIT, k_batch * UNIT
    v_row, v_head, v_batch = v_row * UNIT, v_head * UNIT, v_batch * UNIT
    pid = tl.program_id(0)
    block = pid % blocks
    if HAS_RIGHT:
        block = blocks - 1 - block  # the longest rows first: the last ones then fill the gaps
    head = tl.cast(pid // blocks % heads, tl.int64)
    batch = tl.cast(pid // blocks // heads, tl.int64)
    split = batch % splits
    batch = batch // splits
    if VARLEN:
        segment, block = segment_of(CU_Q, segments, block, BM)
        q_start = tl.load(CU_Q + segment).to(tl.int64)
        k_start = tl.load(CU_K + segment).to(tl.int64)
        sq = (tl.load(CU_Q + segment + 1) - q_start).to(tl.int32)
        sk = (tl.load(CU_K + segment + 1) - k_start).to(tl.int32)
        OUT += q_start * heads_q * DV
        LSE += q_start
    else:
        q_start, k_start = batch * 0, batch * 0
        OUT += batch * sq * heads_q * DV
        LSE += batch * heads_q * lse_head
    if SPLIT > 0:
        OUT += split * lse_split * DV
        LSE += split * lse_split
    index = block * BM + tl.arange(0, BM)
    rows = index // PACK
    q_heads = head * PACK + index % PACK
    kv_head = head * PACK // group
    Q += batch * q_batch + q_start * q_row
    K += batch * k_batch + k_start * k_row + kv_head * k_head
    V += batch * v_batch + k_start * v_row + kv_head * v_head
    if PADDED:
        PAD += batch * pad_batch
    inside = (rows < sq)[:, None]
    q_ptrs = Q + (rows.to(tl.int64) * q_row + q_heads * q_head)[:, None]
    cols = tl.arange(0, D0)[None, :]
    q0 = tl.load(q_ptrs + cols, mask=inside & (cols < D), other=0.0)
    q1 = q0
    if D1 > 0:
        cols = D0 + tl.arange(0, D1)[None, :]
        q1 = tl.load(q_ptrs + cols, mask=inside & (cols < D), other=0.0)

    first = block * BM // PACK
    last = tl.minimum((block * BM + BM - 1) // PACK, sq - 1)
    lo, full_lo, full_hi, hi = key_range(
        first + sk - sq, last + sk - sq, sk, left, right, HAS_LEFT, HAS_RIGHT
    )
    if SPLIT > 0:
        begin = (split * SPLIT).to(tl.int32)
        lo, full_lo = tl.maximum(lo, begin), tl.maximum(full_lo, begin)
        hi, full_hi = tl.minimum(hi, begin + SPLIT), tl.minimum(full_hi, begin + SPLIT)
    if VARLEN:
        hi = tl.where(first < sq, hi, 0)
    lo, before, full_lo, full_hi, edges = ranges(lo, full_lo, full_hi, hi, BN)
    pos = rows + (sk - sq)
    top = tl.full([BM], -1.0e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc0 = tl.zeros([BM, V0], tl.float32)
    acc1 = tl.zeros([BM, V1 if V1 > 0 else 16], tl.float32)
    scale_log2 = scale * 1.4426950408889634
    for n in range(full_lo, full_hi, BN):
        acc0, acc1, top, total = _step(
            acc0, acc1, top, total, q0, q1, K, V, PAD, n, pos, sk, k_row, v_row, pad_row,
            scale_log2, left, right, D, D0, D1, DV, V0, V1, BN,
            False, PADDED, HAS_LEFT, HAS_RIGHT, EXACT, PRECISION,
        )  # fmt: skip
    for i in range(0, edges):
        n = edge(i, lo, before, full_hi, BN)
        acc0, acc1, top, total = _step(
            acc0, acc1, top, total, q0, q1, K, V, PAD, n, pos, sk, k_row, v_row, pad_row,
            scale_log2, left, right, D, D0, D1, DV, V0, V1, BN,
            True, PADDED, HAS_LEFT, HAS_RIGHT, EXACT, PRECISION,
        )  # fmt: skip

    some = total > 0
    inverse = tl.where(some, 1.0 / tl.where(some, total, 1.0), 0.0)[:, None]
    out_ptrs = OUT + ((rows.to(tl.int64) * heads_q + q_heads) * DV)[:, None]
    cols = tl.arange(0, V0)[None, :]
    tl.store(out_ptrs + cols, (acc0 * inverse).to(OUT.dtype.element_ty), mask=inside & (cols < DV))
    if V1 > 0:
        cols = V0 + tl.arange(0, V1)[None, :]
        tl.store(
            out_ptrs + cols, (acc1 * inverse).to(OUT.dtype.element_ty), mask=inside & (cols < DV)
        )
    lse = tl.where(some, top * scale + tl.log(tl.where(some, total, 1.0)), float("-inf"))
    tl.store(LSE + q_heads * lse_head + rows, lse, mask=rows < sq)


@triton.jit(do_not_specialize=INTEGERS)
def attention_join(
    PARTS, PARTS_LSE, OUT, LSE, parts, sq, heads_q, rows, DV: tl.constexpr,
    P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One output row from the parts that the key ranges of a split gave, by their lse."""
    row = tl.program_id(0).to(tl.int64)  # of (B, Sq, Hq)
    head = row % heads_q
    query = row // heads_q % sq
    place = (row // heads_q // sq * heads_q + head) * sq + query
    part = tl.arange(0, P)
    lse = tl.load(PARTS_LSE + part * rows + place, mask=part < parts, other=float("-inf"))
    top = tl.max(lse, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp2((lse - top) * 1.4426950408889634)
    total = tl.sum(weight, 0)
    some = total > 0
    total = tl.where(some, total, 1.0)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    out = tl.load(
        PARTS + (part[:, None] * rows + row) * DV + cols[None, :],
        mask=(part < parts)[:, None] & (cols < DV)[None, :],
        other=0.0,
    )
    out = tl.sum(out * (weight / total)[:, None], 0)
    tl.store(OUT + row * DV + cols, out.to(OUT.dtype.element_ty), mask=cols < DV)
    # every column block writes the same value
    tl.store(LSE + place, tl.where(some, top + tl.log(total), float("-inf")))


def _split(keys):
    """(keys of a part, parts): by the keys alone, so that no neighbour changes a sum."""
    length = cdiv(cdiv(keys, _PARTS), _SPLIT) * _SPLIT
    return length, max(1, cdiv(keys, max(1, length)))


def attention(
    q, k, v, key_padding_mask, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal,
    window_left, window_right, scale,
):  # fmt: skip
    """``mmkern::attention``: (out, lse)."""
    if not supported(scale, q, k, v):
        return NotImplemented
    varlen = cu_seqlens_q is not None
    q4, k4, v4 = map(batched, (q, k, v))
    b, sq, hq, dim = q4.shape
    sk, hk, dim_v = v4.shape[1:]
    out = q.new_empty(*q.shape[:-1], dim_v)
    lse = q.new_empty((hq, sq) if varlen else (b, hq, sq), dtype=torch.float32)
    if lse.numel() == 0:
        return out, lse
    width, widest = widths(dim, dim_v)
    few = not varlen and sq * (hq // hk) <= _FEW
    padded = key_padding_mask is not None
    mode = "few" if few else "packed" if varlen else "padded" if padded else "batched"
    half = q.dtype != torch.float32
    tile = tuning.pick("attention", q.device, mode=mode, half=half, head_dim=widest)
    # rows of several heads are not evenly spaced
    pack = hq // hk if few and tuning.gathers(q.device) else 1
    split, parts = _split(sk) if few else (0, 1)
    if tile is None:
        return NotImplemented
    segments = len(cu_seqlens_q) - 1 if varlen else 0
    blocks = sq // tile["BM"] + segments if varlen else cdiv(sq * pack, tile["BM"])
    programs = blocks * (hq // pack) * b * parts
    if tuning.too_many(q.device, programs):
        return NotImplemented
    to, to_lse = out, lse
    if parts > 1:
        to = q.new_empty(parts, *out.shape, dtype=torch.float32)
        to_lse = q.new_empty(parts, *lse.shape, dtype=torch.float32)
    unit, strides = row_strides(q4, k4, v4)
    attention_forward[(programs,)](
        q, k, v, key_padding_mask, cu_seqlens_q, cu_seqlens_k, to, to_lse,
        *strides, *padding_strides(key_padding_mask), lse.numel(), hq, sq, sk, sq,
        hq // pack, blocks, parts, segments, hq // hk, scale,
        UNIT=unit, PACK=pack, SPLIT=split if parts > 1 else 0, **width, **tile,
        **options(q.dtype, causal, window_left, window_right, key_padding_mask, cu_seqlens_q),
    )  # fmt: skip
    if parts > 1:
        block = max(16, min(128, block_size(dim_v)))
        attention_join[(lse.numel(), cdiv(dim_v, block))](
            to, to_lse, out, lse, parts, sq, hq, lse.numel(), DV=dim_v, P=block_size(parts),
            BLOCK=block,
        )  # fmt: skip
    return out, lse
