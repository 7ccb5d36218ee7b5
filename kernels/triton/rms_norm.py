"""RMSNorm, with the residual added in front, and its gradients.

Bytes that must move, for N elements of e bytes: forward 2 N e (x, y), with a residual 4 N e (also
residual, h); backward N e for each of grad_h, grad_y, h, dx. The kernels move these once, the
weight once a tile (from L2 but for the first time), and for the gradient of the weight 8 more bytes
per column and program of at least 16 rows: half a byte an element.
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
    lay_out,
    normalized,
    normalized_gradient,
    nothing,
    row_base,
    unit,
)

_UNSPECIALISED = ["middle", "run", "columns", "tiles", "programs", "tiles_each"]
_UNSPECIALISED += [f"{t}_{s}" for t in ("x", "r", "gh", "gy") for s in "omr"]


@triton.jit(do_not_specialize=_UNSPECIALISED)
def rms_norm_forward(
    X, RESIDUAL, WEIGHT, H, Y,
    x_o, x_m, x_r, r_o, r_m, r_r,
    middle, run, columns, tiles, programs, eps,
    CAST_FIRST: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = columns * UNIT
    c = tl.arange(0, BLOCK)[None, :]
    per_run = tl.cdiv(run, ROWS)
    for tile in range(tl.program_id(0), tiles, programs):
        first = tile // per_run
        i = (tile % per_run * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        mask = (i < run) & (c < n)
        out = (first.to(tl.int64) * run + i) * n + c
        x_at = X + row_base(first, middle, x_o, x_m, UNIT) + i * x_r * UNIT + c
        h = tl.load(x_at, mask=mask, other=0.0).to(tl.float32)
        if RESIDUAL is not None:
            r_at = RESIDUAL + row_base(first, middle, r_o, r_m, UNIT) + i * r_r * UNIT + c
            h += tl.load(r_at, mask=mask, other=0.0).to(tl.float32)
            rounded = h.to(H.dtype.element_ty)
            tl.store(H + out, rounded, mask=mask)
            h = rounded.to(tl.float32)
        y, _ = normalized(h, mask, n, eps, "rms")
        if CAST_FIRST:
            y = y.to(X.dtype.element_ty).to(tl.float32)
        if WEIGHT is not None:
            y = y * tl.load(WEIGHT + c, mask=c < n, other=0.0).to(tl.float32)
        tl.store(Y + out, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def rms_norm_gradient(
    GRAD_H, GRAD_Y, X, WEIGHT, DX, DWEIGHT,
    gh_o, gh_m, gh_r, gy_o, gy_m, gy_r, x_o, x_m, x_r,
    middle, run, columns, tiles, tiles_each, eps,
    UNIT: tl.constexpr, ROWS: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = columns * UNIT
    c = tl.arange(0, BLOCK)[None, :]
    inside = c < n
    per_run = tl.cdiv(run, ROWS)
    pid = tl.program_id(0)
    weight = tl.zeros([1, BLOCK], tl.float32) + 1.0
    if KEEP and WEIGHT is not None:
        weight = tl.load(WEIGHT + c, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in range(pid * tiles_each, tl.minimum((pid + 1) * tiles_each, tiles)):
        first = tile // per_run
        i = (tile % per_run * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        mask = (i < run) & inside
        grad = tl.zeros([ROWS, BLOCK], tl.float32)
        if GRAD_Y is not None:
            x_at = X + row_base(first, middle, x_o, x_m, UNIT) + i * x_r * UNIT + c
            h = tl.load(x_at, mask=mask, other=0.0).to(tl.float32)
            at = GRAD_Y + row_base(first, middle, gy_o, gy_m, UNIT) + i * gy_r * UNIT + c
            dy = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            xhat, rstd = normalized(h, mask, n, eps, "rms")
            if DWEIGHT is not None:
                dweight += dy * xhat
            if not KEEP and WEIGHT is not None:
                weight = tl.load(WEIGHT + c, mask=inside, other=0.0).to(tl.float32)
            grad = normalized_gradient(dy * weight, xhat, rstd, n, "rms")
        if GRAD_H is not None:
            at = GRAD_H + row_base(first, middle, gh_o, gh_m, UNIT) + i * gh_r * UNIT + c
            grad += tl.load(at, mask=mask, other=0.0).to(tl.float32)
        if DX is not None:
            out = (first.to(tl.int64) * run + i) * n + c
            tl.store(DX + out, grad.to(DX.dtype.element_ty), mask=mask)
    if DWEIGHT is not None:
        total = tl.sum(dweight, 0)[None, :]
        out = pid.to(tl.int64) * n + c
        tl.store(DWEIGHT + out, total.to(DWEIGHT.dtype.element_ty), mask=inside)


def _fits(x, weight, *like_x):
    return x.dim() > 0 and fits(x, weight) and all(t is None or fits(x, t) for t in like_x)


def rms_norm(x, weight, residual, eps, cast):
    """``mmkern::rms_norm`` in one pass."""
    if not _fits(x, weight, residual) or (residual is not None and residual.dtype != x.dtype):
        return NotImplemented
    columns = x.shape[-1]
    laid_out = lay_out(x.shape, x, residual)
    tile = tuning.pick("rms_norm", x.device, columns=columns, itemsize=x.dtype.itemsize)
    if laid_out is None or tile is None:
        return NotImplemented
    wide = cast == "after" and weight is not None
    dtype = torch.promote_types(x.dtype, weight.dtype) if wide else x.dtype
    h = empty_if(residual is not None, x)
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.numel() == 0:
        return h, y
    (outer, middle, run), strides = laid_out
    numbers = [n for three in strides for n in three]
    step = unit(columns, *numbers)
    tiles = outer * middle * cdiv(run, tile["ROWS"])
    programs = tuning.programs(x.device, tiles)
    rms_norm_forward[(programs,)](
        x, residual, weight, h, y, *in_units(step, numbers),
        middle, run, columns // step, tiles, programs, eps,
        CAST_FIRST=cast == "after", UNIT=step, BLOCK=block_size(columns), **tile,
    )  # fmt: skip
    return h, y


def _tiles_each(tiles, rows):
    """Tiles of a backward program: of the shape alone, as the bits of dweight hang on it."""
    count = max(1, 16 // rows)
    while tiles > 2048 * count and count * rows < 64:
        count *= 2
    return count


def rms_norm_backward(grad_h, grad_y, h, weight, eps, cast, mask):
    """``mmkern::rms_norm_backward``: one pass, and a second stage for the weight."""
    grad_h, grad_y = dense(grad_h), dense(grad_y)
    if not _fits(h, weight, grad_h, grad_y):
        return NotImplemented
    columns = h.shape[-1]
    laid_out = lay_out(h.shape, grad_h, grad_y, h)
    tile = tuning.pick("rms_norm_backward", h.device, columns=columns, itemsize=h.dtype.itemsize)
    if laid_out is None or tile is None:
        return NotImplemented
    dx = empty_if(mask[0], h)
    weighted = mask[1] and grad_y is not None
    if h.numel() == 0:
        return dx, torch.zeros_like(weight) if weighted else nothing(h)
    (outer, middle, run), strides = laid_out
    numbers = [n for three in strides for n in three]
    step = unit(columns, *numbers)
    tiles = outer * middle * cdiv(run, tile["ROWS"])
    tiles_each = _tiles_each(tiles, tile["ROWS"])
    programs = cdiv(tiles, tiles_each)
    if tuning.too_many(h.device, programs):
        return NotImplemented
    dweight = nothing(h)
    partials = None
    if weighted:
        dweight = torch.empty(weight.shape, dtype=weight.dtype, device=h.device)
        partials = torch.empty((programs, columns), dtype=torch.float32, device=h.device)
    rms_norm_gradient[(programs,)](
        grad_h, grad_y, h, weight, dx if mask[0] else None, partials, *in_units(step, numbers),
        middle, run, columns // step, tiles, tiles_each, eps,
        UNIT=step, BLOCK=block_size(columns), **tile,
    )  # fmt: skip
    if weighted:
        add_partials(partials, dweight, groups=1, inner=programs)
    return dx, dweight
