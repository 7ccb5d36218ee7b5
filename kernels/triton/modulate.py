"""adaLN: gated residual, norm and modulation in one pass, and all seven gradients.

A sample's tokens are cut into runs within which every modulation tensor is constant or per token;
a forward tile is ROWS whole rows of a run, a backward program a chunk of consecutive rows of one.

Bytes that must move, for N elements of e bytes, modulation left out where it is not per token:
forward N e for each of x, branch, h, y that there is; backward N e for each of grad_h, grad_y, h,
branch (for the gradient of gate), dx, dbranch. The kernels move these once. Modulation comes once a
tile (from L2 but for the first time); backward writes and reads again 4 bytes per column, chunk of
16 to 64 rows, and gradient that is a sum: 2 (3 with gate) x 8 / 16 = 1.5 bytes an element at worst.
"""

import math
from typing import NamedTuple

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
    normalized,
    normalized_gradient,
    nothing,
    unit,
)

_UNSPECIALISED = ["tokens", "run", "channels", "tiles", "programs", "chunk_rows", "chunks", "per"]
_UNSPECIALISED += [f"{t}_{s}" for t in ("x", "branch", "grad_h", "grad_y") for s in "bt"]
_UNSPECIALISED += [f"{t}_{s}" for t in ("gate", "shift", "scale") for s in ("b", "f", "per")]


@triton.jit
def _rows(P, b, i, s_b, s_t, c, mask, UNIT: tl.constexpr):
    """Rows i of sample b, in float32."""
    return tl.load(P + b * s_b * UNIT + i * s_t * UNIT + c, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _modulation(
    P, b, t, i, s_b, s_f, per, c, n, mask, PER_TOKEN: tl.constexpr, UNIT: tl.constexpr
):  # fmt: skip
    """Of rows i if it is per token, else the one row for the run that token t is in."""
    if PER_TOKEN:
        return _rows(P, b, i, s_b, s_f, c, mask, UNIT)
    else:
        return _rows(P, b, (t // per).to(tl.int64), s_b, s_f, c, c < n, UNIT)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def modulate_forward(
    X, BRANCH, GATE, SHIFT, SCALE, WEIGHT, BIAS, H, Y,
    x_b, x_t, branch_b, branch_t,
    gate_b, gate_f, gate_per, shift_b, shift_f, shift_per, scale_b, scale_f, scale_per,
    tokens, run, channels, tiles, programs, eps,
    NORM: tl.constexpr, GATE_PER_TOKEN: tl.constexpr, SHIFT_PER_TOKEN: tl.constexpr,
    SCALE_PER_TOKEN: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = channels * UNIT
    c = tl.arange(0, BLOCK)[None, :]
    per_run = tl.cdiv(run, ROWS)
    runs = tokens // run
    for tile in range(tl.program_id(0), tiles, programs):
        b = (tile // per_run // runs).to(tl.int64)
        start = tile // per_run % runs * run
        t = start + tile % per_run * ROWS
        i = (t + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        mask = (i < start + run) & (c < n)
        out = (b * tokens + i) * n + c
        h = _rows(X, b, i, x_b, x_t, c, mask, UNIT)
        if BRANCH is not None:
            branch = _rows(BRANCH, b, i, branch_b, branch_t, c, mask, UNIT)
            if GATE is not None:
                branch *= _modulation(
                    GATE, b, t, i, gate_b, gate_f, gate_per, c, n, mask, GATE_PER_TOKEN, UNIT
                )
            rounded = (h + branch).to(H.dtype.element_ty)
            tl.store(H + out, rounded, mask=mask)
            h = rounded.to(tl.float32)
        if NORM != "none":
            y, _ = normalized(h, mask, n, eps, NORM)
            if WEIGHT is not None:
                y = y * tl.load(WEIGHT + c, mask=c < n, other=0.0).to(tl.float32)
            if BIAS is not None:
                y = y + tl.load(BIAS + c, mask=c < n, other=0.0).to(tl.float32)
            if SCALE is not None:
                y = y * (1.0 + _modulation(
                    SCALE, b, t, i, scale_b, scale_f, scale_per, c, n, mask, SCALE_PER_TOKEN, UNIT
                ))  # fmt: skip
            if SHIFT is not None:
                y = y + _modulation(
                    SHIFT, b, t, i, shift_b, shift_f, shift_per, c, n, mask, SHIFT_PER_TOKEN, UNIT
                )
            tl.store(Y + out, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def modulate_gradient(
    GRAD_H, GRAD_Y, X, BRANCH, GATE, SCALE, WEIGHT, BIAS,
    DX, DBRANCH, DGATE, DSHIFT, DSCALE, DWEIGHT, DBIAS,
    grad_h_b, grad_h_t, grad_y_b, grad_y_t, x_b, x_t, branch_b, branch_t,
    gate_b, gate_f, gate_per, scale_b, scale_f, scale_per,
    tokens, run, channels, chunk_rows, chunks, eps,
    NORM: tl.constexpr, GATE_PER_TOKEN: tl.constexpr, SCALE_PER_TOKEN: tl.constexpr,
    SUM_GATE: tl.constexpr, SUM_MODULATION: tl.constexpr,
    UNIT: tl.constexpr, ROWS: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = channels * UNIT
    c = tl.arange(0, BLOCK)[None, :]
    inside = c < n
    chunk = tl.program_id(0)
    runs = tokens // run
    b = (chunk // chunks // runs).to(tl.int64)
    start = chunk // chunks % runs * run
    first = start + chunk % chunks * chunk_rows
    end = tl.minimum(first + chunk_rows, start + run)
    scale = tl.zeros([1, BLOCK], tl.float32)
    gate = tl.zeros([1, BLOCK], tl.float32) + 1.0
    weight = tl.zeros([1, BLOCK], tl.float32) + 1.0
    bias = tl.zeros([1, BLOCK], tl.float32)
    scale_at = SCALE
    gate_at = GATE
    if SCALE is not None:
        scale_at = SCALE + (b * scale_b + (start // scale_per).to(tl.int64) * scale_f) * UNIT + c
    if GATE is not None:
        gate_at = GATE + (b * gate_b + (start // gate_per).to(tl.int64) * gate_f) * UNIT + c
    # KEEP: what is constant over the rows stays in registers
    if KEEP and (SCALE is not None and not SCALE_PER_TOKEN):
        scale = tl.load(scale_at, mask=inside, other=0.0).to(tl.float32)
    if KEEP and (GATE is not None and not GATE_PER_TOKEN):
        gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    if WEIGHT is not None:
        weight = tl.load(WEIGHT + c, mask=inside, other=0.0).to(tl.float32)
    if BIAS is not None:
        bias = tl.load(BIAS + c, mask=inside, other=0.0).to(tl.float32)
    # sums over the rows: of grad * branch; of d and of d * xhat, where d is dy, from which those
    # of shift, scale, weight and bias follow, or with a scale per token d is dy * (1 + scale)
    sum_gate = tl.zeros([ROWS, BLOCK], tl.float32)
    sum_d = tl.zeros([ROWS, BLOCK], tl.float32)
    sum_dx = tl.zeros([ROWS, BLOCK], tl.float32)
    for t in range(first, end, ROWS):
        i = (t + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        mask = (i < end) & inside
        out = (b * tokens + i) * n + c
        grad = tl.zeros([ROWS, BLOCK], tl.float32)
        if GRAD_Y is not None:
            h = _rows(X, b, i, x_b, x_t, c, mask, UNIT)
            dy = _rows(GRAD_Y, b, i, grad_y_b, grad_y_t, c, mask, UNIT)
            xhat, rstd = normalized(h, mask, n, eps, NORM)
            dn = dy
            if SCALE_PER_TOKEN:
                dn += dy * _rows(SCALE, b, i, scale_b, scale_f, c, mask, UNIT)
            elif KEEP:
                dn += dy * scale
            elif SCALE is not None:
                dn += dy * tl.load(scale_at, mask=inside, other=0.0).to(tl.float32)
            if SUM_MODULATION:
                sum_d += dy
                sum_dx += dy * xhat
            else:
                if DSHIFT is not None:
                    tl.store(DSHIFT + out, dy.to(DSHIFT.dtype.element_ty), mask=mask)
                if DSCALE is not None:
                    dscale = dy * (xhat * weight + bias)
                    tl.store(DSCALE + out, dscale.to(DSCALE.dtype.element_ty), mask=mask)
                if DBIAS is not None:
                    sum_d += dn
                if DWEIGHT is not None:
                    sum_dx += dn * xhat
            grad = normalized_gradient(dn * weight, xhat, rstd, n, NORM)
        if GRAD_H is not None:
            grad += _rows(GRAD_H, b, i, grad_h_b, grad_h_t, c, mask, UNIT)
        if DX is not None:
            tl.store(DX + out, grad.to(DX.dtype.element_ty), mask=mask)
        if DBRANCH is not None:
            dbranch = grad
            if GATE_PER_TOKEN:
                dbranch = grad * _rows(GATE, b, i, gate_b, gate_f, c, mask, UNIT)
            elif KEEP:
                dbranch = grad * gate
            elif GATE is not None:
                dbranch = grad * tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
            tl.store(DBRANCH + out, dbranch.to(DBRANCH.dtype.element_ty), mask=mask)
        if DGATE is not None:
            dgate = grad * _rows(BRANCH, b, i, branch_b, branch_t, c, mask, UNIT)
            if SUM_GATE:
                sum_gate += dgate
            else:
                tl.store(DGATE + out, dgate.to(DGATE.dtype.element_ty), mask=mask)
    out = chunk.to(tl.int64) * n + c
    d = tl.sum(sum_d, 0)[None, :]
    dx = tl.sum(sum_dx, 0)[None, :]
    if DGATE is not None and SUM_GATE:
        dgate = tl.sum(sum_gate, 0)[None, :]
        tl.store(DGATE + out, dgate.to(DGATE.dtype.element_ty), mask=inside)
    factor = tl.zeros([1, BLOCK], tl.float32) + 1.0
    if SUM_MODULATION:
        if not KEEP and SCALE is not None:
            scale = tl.load(scale_at, mask=inside, other=0.0).to(tl.float32)
        factor += scale
        if DSHIFT is not None:
            tl.store(DSHIFT + out, d.to(DSHIFT.dtype.element_ty), mask=inside)
        if DSCALE is not None:
            dscale = dx * weight + d * bias
            tl.store(DSCALE + out, dscale.to(DSCALE.dtype.element_ty), mask=inside)
    if DWEIGHT is not None:
        tl.store(DWEIGHT + out, (dx * factor).to(DWEIGHT.dtype.element_ty), mask=inside)
    if DBIAS is not None:
        tl.store(DBIAS + out, (d * factor).to(DBIAS.dtype.element_ty), mask=inside)


class _Modulation(NamedTuple):
    """A modulation tensor as (samples or 1, frames, C), or what stands for none."""

    tensor: torch.Tensor | None
    per: int  # tokens to a frame
    per_token: bool

    def numbers(self):
        if self.tensor is None:
            return (0, 0)
        samples, frames, _ = self.tensor.shape
        stride = self.tensor.stride()
        return (stride[0] if samples > 1 else 0, stride[1] if frames > 1 else 0)


def _as_samples(t, single):
    """x, or one of its shape, as (B, T, C); samples of a single token as one sample of B."""
    if t is None:
        return None
    return (t if t.dim() == 3 else t.unsqueeze(1)).transpose(0, 1) if single else t


def _as_frames(m, single, tokens):
    if m is None:
        return _Modulation(None, 1, False)
    if m.dim() == 1:
        m = m[None, None]
    elif m.dim() == 2:
        m = m.unsqueeze(1)
    elif m.dim() == 4:
        m = m.squeeze(2)
    if single:
        m = m.transpose(0, 1)
    frames = m.shape[1]
    return _Modulation(m, tokens // max(frames, 1), frames == tokens > 1)


class _Problem:
    """The op's tensors as the kernels see them, and the numbers that are common to both."""

    def __init__(self, kernel, x, gate, shift, scale):
        self.single = x.dim() == 2 or x.shape[1] == 1
        self.x = _as_samples(x, self.single)
        self.samples, self.tokens, self.channels = self.x.shape
        self.gate, self.shift, self.scale = (
            _as_frames(m, self.single, self.tokens) for m in (gate, shift, scale)
        )
        constant = [m.per for m in (self.gate, self.shift, self.scale)
                    if m.tensor is not None and not m.per_token]  # fmt: skip
        self.run = math.gcd(self.tokens, *constant)
        self.tile = tuning.pick(kernel, x.device, columns=self.channels, itemsize=x.dtype.itemsize)
        self.block = block_size(self.channels)

    def rows(self, t):
        return _as_samples(t, self.single)


def _strides(t):
    return (0, 0) if t is None else t.stride()[:2]


def modulate(x, branch, gate, shift, scale, weight, bias, norm, eps):
    """``mmkern::modulate`` in one pass."""
    if not fits(x, branch, gate, shift, scale, weight, bias):
        return NotImplemented
    p = _Problem("modulate", x, gate, shift, scale)
    if p.tile is None:
        return NotImplemented
    h, y = empty_if(branch is not None, x), empty_if(norm != "none", x)
    if x.numel() == 0:
        return h, y
    branch = p.rows(branch)
    strides = [*_strides(p.x), *_strides(branch)]
    frames = [m.numbers() for m in (p.gate, p.shift, p.scale)]
    step = unit(p.channels, *strides, *(n for pair in frames for n in pair))
    frames = [(*in_units(step, pair), m.per)
              for pair, m in zip(frames, (p.gate, p.shift, p.scale), strict=True)]  # fmt: skip
    tiles = p.samples * (p.tokens // p.run) * cdiv(p.run, p.tile["ROWS"])
    programs = tuning.programs(x.device, tiles)
    modulate_forward[(programs,)](
        p.x, branch, p.gate.tensor, p.shift.tensor, p.scale.tensor, weight, bias,
        h, y, *in_units(step, strides), *(n for three in frames for n in three),
        p.tokens, p.run, p.channels // step, tiles, programs, eps,
        NORM=norm, GATE_PER_TOKEN=p.gate.per_token, SHIFT_PER_TOKEN=p.shift.per_token,
        SCALE_PER_TOKEN=p.scale.per_token, UNIT=step, BLOCK=p.block, **p.tile,
    )  # fmt: skip
    return h, y


def _chunk_rows(rows, tile_rows):
    """Rows of a backward program: a number of the shape alone, as the bits of sums hang on it."""
    count = max(16, tile_rows)
    while rows > 2048 * count and count < 64:
        count *= 2
    return count


class _Sum:
    """The gradient of ``like``: what the kernel writes to, and its second stage if there is one.

    ``slots`` is how many rows the kernel writes for each sample, in order.
    """

    def __init__(self, like, samples, slots):
        self.result = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        channels = like.shape[-1]
        self.groups = self.result.numel() // max(channels, 1)
        own_samples = samples == 1 or (like.dim() > 1 and like.shape[0] == samples)
        frames = self.groups // (samples if own_samples else 1)
        self.inner = slots // max(frames, 1)
        self.outer = 1 if own_samples else samples
        self.outer_stride = 0 if own_samples else slots
        self.target = self.result
        if self.inner * self.outer > 1:
            size = (samples * slots, channels)
            self.target = torch.empty(size, dtype=torch.float32, device=like.device)

    def finish(self):
        if self.target is not self.result:
            add_partials(
                self.target, self.result, self.groups, self.inner, self.outer, self.outer_stride
            )
        return self.result


def modulate_backward(
    grad_h, grad_y, h, branch, gate, shift, scale, weight, bias, norm, eps, mask
):  # fmt: skip
    """``mmkern::modulate_backward``: one pass, and a second stage for gradients that are sums."""
    grad_h, grad_y = dense(grad_h), dense(grad_y)
    if not fits(h, grad_h, grad_y, branch, gate, shift, scale, weight, bias):
        return NotImplemented
    p = _Problem("modulate_backward", h, gate, shift, scale)
    per_token = [m.per_token for m in (p.shift, p.scale) if m.tensor is not None]
    if p.tile is None or len(set(per_token)) > 1:
        return NotImplemented
    through_norm = grad_y is not None and norm != "none"
    mask = [*mask[:3], *(asked and through_norm for asked in mask[3:])]
    likes = [h, h, gate, shift, scale, weight, bias]
    if h.numel() == 0:
        return tuple(
            torch.zeros_like(t, memory_format=torch.contiguous_format) if asked else nothing(h)
            for t, asked in zip(likes, mask, strict=True)
        )
    chunk_rows = min(_chunk_rows(p.samples * p.tokens, p.tile["ROWS"]), p.run)
    chunks = cdiv(p.run, chunk_rows)
    slots = p.tokens // p.run * chunks
    programs = p.samples * slots
    if tuning.too_many(h.device, programs):
        return NotImplemented
    sum_modulation = not any(per_token)
    per_row = [p.gate.per_token, not sum_modulation, not sum_modulation, False, False]
    sums = [
        _Sum(t, p.samples, p.tokens if rows else slots) if asked else None
        for t, asked, rows in zip(likes[2:], mask[2:], per_row, strict=True)
    ]
    dx, dbranch = empty_if(mask[0], h), empty_if(mask[1], h)
    grad_h, grad_y, branch = p.rows(grad_h), p.rows(grad_y), p.rows(branch)
    strides = [n for t in (grad_h, grad_y, p.x, branch) for n in _strides(t)]
    frames = [*p.gate.numbers(), *p.scale.numbers()]
    step = unit(p.channels, *strides, *frames)
    gate_b, gate_f, scale_b, scale_f = in_units(step, frames)
    modulate_gradient[(programs,)](
        grad_h, grad_y if through_norm else None, p.x, branch, p.gate.tensor, p.scale.tensor,
        weight, bias, dx if mask[0] else None, dbranch if mask[1] else None,
        *(s and s.target for s in sums), *in_units(step, strides),
        gate_b, gate_f, p.gate.per, scale_b, scale_f, p.scale.per,
        p.tokens, p.run, p.channels // step, chunk_rows, chunks, eps,
        NORM=norm, GATE_PER_TOKEN=p.gate.per_token, SCALE_PER_TOKEN=p.scale.per_token,
        SUM_GATE=not p.gate.per_token, SUM_MODULATION=sum_modulation,
        UNIT=step, BLOCK=p.block, **p.tile,
    )  # fmt: skip
    return dx, dbranch, *(s.finish() if s else nothing(h) for s in sums)
