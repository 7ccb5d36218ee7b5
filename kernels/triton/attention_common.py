"""What the attention kernels share: tiles of rows, visible keys, packed segments, host arguments.

A head dimension is a power-of-two main part and a narrow tail (72 = 64 + 8 of 16 lanes), because
one power of two around it would waste up to 44 % of the products.
"""

import torch
import triton
import triton.language as tl

from mmkern.kernels.triton.common import block_size, fits, in_units, unit

#: The integer arguments of the kernels, whose values none of them is compiled for.
INTEGERS = [f"{t}_{s}" for t in ("q", "k", "v", "out", "grad") for s in ("batch", "row", "head")]
INTEGERS += ["pad_batch", "pad_row", "lse_split", "lse_head", "sq", "sk", "left"]
INTEGERS += ["right", "heads_q", "heads_k", "heads", "blocks", "splits", "segments", "group"]
INTEGERS += ["parts", "rows"]


@triton.jit
def load_rows(
    ptr, stride, rows, limit, DIM: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    """Columns START to START + WIDTH of some rows; 0 past column DIM and, if MASK, row limit."""
    cols = START + tl.arange(0, WIDTH)
    ptrs = ptr + rows[:, None] * stride + cols[None, :]
    if MASK and START + WIDTH > DIM:
        return tl.load(ptrs, mask=(rows[:, None] < limit) & (cols[None, :] < DIM), other=0.0)
    elif MASK:
        return tl.load(ptrs, mask=rows[:, None] < limit, other=0.0)
    elif START + WIDTH > DIM:
        return tl.load(ptrs, mask=cols[None, :] < DIM, other=0.0)
    else:
        return tl.load(ptrs)


@triton.jit
def store_rows(
    ptr, stride, rows, limit, tile, DIM: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """The inverse of load_rows with MASK."""
    cols = START + tl.arange(0, WIDTH)
    mask = (rows[:, None] < limit) & (cols[None, :] < DIM)
    ptrs = ptr + rows[:, None] * stride + cols[None, :]
    tl.store(ptrs, tile.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def visible(pos, keys, sk, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """Whether the query at position pos sees the key; pos and keys broadcast to the tile."""
    seen = keys < sk
    if HAS_RIGHT:
        seen = seen & (keys <= pos + right)
    if HAS_LEFT:
        seen = seen & (keys >= pos - left)
    return seen


@triton.jit
def ranges(lo, full_lo, full_hi, hi, BLOCK: tl.constexpr):
    """(lo, number of masked blocks at lo, full_lo, full_hi, number of masked blocks in all).

    Walks [lo, hi) in blocks: those within [full_lo, full_hi) need no mask. Takes bounds in any
    order, also negative ones; lo comes back as a multiple of BLOCK.
    """
    lo = tl.maximum(lo, 0) // BLOCK * BLOCK
    hi = tl.maximum(hi, lo)
    end = (hi + BLOCK - 1) // BLOCK * BLOCK
    full_lo = (tl.maximum(full_lo, lo) + BLOCK - 1) // BLOCK * BLOCK
    full_lo = tl.minimum(full_lo, end)
    full_hi = tl.minimum(tl.maximum(full_hi, 0), hi) // BLOCK * BLOCK
    full_hi = tl.maximum(full_hi, full_lo)
    before = (full_lo - lo) // BLOCK
    after = (tl.maximum(hi - full_hi, 0) + BLOCK - 1) // BLOCK
    return lo, before, full_lo, full_hi, before + after


@triton.jit
def edge(i, lo, before, full_hi, BLOCK: tl.constexpr):
    """Where masked block i of ``ranges`` begins."""
    return tl.where(i < before, lo + i * BLOCK, full_hi + (i - before) * BLOCK)


@triton.jit
def key_range(first, last, sk, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """(lo, full_lo, full_hi, hi): keys that some, and that all, positions first..last see."""
    lo = 0
    full_lo = 0
    full_hi = sk
    hi = sk
    if HAS_RIGHT:
        full_hi = tl.minimum(sk, first + right + 1)
        hi = tl.minimum(sk, last + right + 1)
    if HAS_LEFT:
        lo = first - left
        full_lo = last - left
    return lo, full_lo, full_hi, hi


@triton.jit
def segment_of(cu, segments, block, BLOCK: tl.constexpr):
    """(segment, block within it) of the block-th block of a packed tensor.

    Segment s begins at block cu[s] // BLOCK + s: no segment needs more blocks than lie between its
    beginning and the next, so the host can launch total // BLOCK + segments of them unseen.
    """
    segment = 0
    for i in range(0, segments, 128):
        index = i + 1 + tl.arange(0, 128)
        starts = tl.load(cu + index, mask=index <= segments, other=0) // BLOCK + index
        segment += tl.sum(((index <= segments) & (starts <= block)).to(tl.int32), 0)
    return segment, block - (tl.load(cu + segment) // BLOCK + segment)


@triton.jit
def weights(s, lse, scale, EXACT: tl.constexpr):
    """exp(s * scale - lse). EXACT rounds as the forward's lse did, for rows with few keys."""
    if EXACT:
        return tl.exp2((s * scale - lse) * 1.4426950408889634)
    else:
        return tl.exp2(s * (scale * 1.4426950408889634) - lse * 1.4426950408889634)


def split_dim(dim):
    """(main, tail): powers of two of at least 16, together at least dim; tail 0 if none is needed.

    A tail as wide as the main part would cost what the next power of two does.
    """
    main = max(16, block_size(dim + 1) // 2)
    if dim <= main:
        return main, 0
    tail = max(16, block_size(dim - main))
    return (main, tail) if tail < main else (2 * main, 0)


def widths(dim, dim_v):
    """The constexprs of both head dimensions, and the wider padded one."""
    (d0, d1), (v0, v1) = split_dim(dim), split_dim(dim_v)
    named = {"D": dim, "D0": d0, "D1": d1, "DV": dim_v, "V0": v0, "V1": v1}
    return named, max(d0 + d1, v0 + v1)


def row_strides(*tensors):
    """(UNIT, the (batch, row, head) strides of each tensor in units)."""
    strides = [
        s if n > 1 else 0 for t in tensors for s, n in zip(t.stride()[:3], t.shape[:3], strict=True)
    ]
    step = unit(*strides)
    return step, in_units(step, strides)


def batched(t):
    """(B, S, H, D): packed tokens as a batch of one."""
    return t if t.dim() == 4 else t[None]


def supported(scale, *tensors):
    """Whether the kernels take these. A weight is exp2 of a difference times the scale."""
    return scale > 0 and fits(*tensors) and all(t.dtype == tensors[0].dtype for t in tensors)


def options(dtype, causal, window_left, window_right, key_padding_mask, cu_seqlens):
    """The arguments that all kernels take by name."""
    right = 0 if causal else window_right
    return {
        "left": window_left,
        "right": right,
        "HAS_LEFT": window_left >= 0,
        "HAS_RIGHT": right >= 0,
        "PADDED": key_padding_mask is not None,
        "VARLEN": cu_seqlens is not None,
        "EXACT": dtype == torch.float32,
        "PRECISION": "ieee",
    }


def padding_strides(key_padding_mask):
    return (0, 0) if key_padding_mask is None else key_padding_mask.stride()
