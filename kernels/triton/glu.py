"""Gated linear unit, ``activation(gate) * up``, and its gradients.

Bytes that must move, for N results of e bytes: forward 3 N e, backward 5 N e. The kernels move
just these: each element is read once and written once, and nothing is saved but the inputs.
"""

import torch
import triton
import triton.language as tl

from mmkern.kernels.triton import tuning
from mmkern.kernels.triton.common import (
    activation,
    activation_grad,
    block_size,
    cdiv,
    dense,
    fits,
    in_units,
    lay_out,
    nothing,
    row_base,
    unit,
)

_UNSPECIALISED = ["run", "middle", "columns", "row_tiles", "column_tiles", "tiles", "programs"]
_UNSPECIALISED += [f"{t}_{s}" for t in ("a", "b", "g", "da", "db") for s in ("o", "m", "r")]
_UNSPECIALISED += ["y_r"]


@triton.jit(do_not_specialize=_UNSPECIALISED)
def glu_forward(
    A, B, Y,
    a_o, a_m, a_r, b_o, b_m, b_r, y_r,
    middle, run, columns, row_tiles, column_tiles, tiles, programs,
    ACTIVATION: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = columns * UNIT
    for tile in range(tl.program_id(0), tiles, programs):
        rows = tile // column_tiles
        c = (tile % column_tiles) * BLOCK + tl.arange(0, BLOCK)[None, :]
        first = rows // row_tiles  # the run of rows that the tile is in
        i = ((rows % row_tiles) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        mask = (i < run) & (c < n)
        a_at = A + row_base(first, middle, a_o, a_m, UNIT) + i * a_r * UNIT + c
        b_at = B + row_base(first, middle, b_o, b_m, UNIT) + i * b_r * UNIT + c
        a = tl.load(a_at, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(b_at, mask=mask, other=0.0).to(tl.float32)
        y = activation(a, ACTIVATION) * b
        y_at = Y + (first.to(tl.int64) * run + i) * y_r * UNIT + c
        tl.store(y_at, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def glu_gradient(
    G, A, B, DA, DB,
    g_o, g_m, g_r, a_o, a_m, a_r, b_o, b_m, b_r, da_r,
    middle, run, columns, row_tiles, column_tiles, tiles, programs,
    ACTIVATION: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = columns * UNIT
    for tile in range(tl.program_id(0), tiles, programs):
        rows = tile // column_tiles
        c = (tile % column_tiles) * BLOCK + tl.arange(0, BLOCK)[None, :]
        first = rows // row_tiles
        i = ((rows % row_tiles) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        mask = (i < run) & (c < n)
        g_at = G + row_base(first, middle, g_o, g_m, UNIT) + i * g_r * UNIT + c
        a_at = A + row_base(first, middle, a_o, a_m, UNIT) + i * a_r * UNIT + c
        b_at = B + row_base(first, middle, b_o, b_m, UNIT) + i * b_r * UNIT + c
        g = tl.load(g_at, mask=mask, other=0.0).to(tl.float32)
        a = tl.load(a_at, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(b_at, mask=mask, other=0.0).to(tl.float32)
        da = g * b * activation_grad(a, ACTIVATION)
        db = g * activation(a, ACTIVATION)
        at = (first.to(tl.int64) * run + i) * da_r * UNIT + c
        tl.store(DA + at, da.to(DA.dtype.element_ty), mask=mask)
        tl.store(DB + at, db.to(DB.dtype.element_ty), mask=mask)


def _halves(packed, gate_first):
    first, second = packed.chunk(2, -1)
    return (first, second) if gate_first else (second, first)


def _launch(kernel, name, tensors, outputs, row_stride, options):
    """Run ``kernel`` over tensors of one shape, writing outputs whose rows follow each other."""
    shape = tensors[0].shape
    columns = shape[-1]
    laid_out = lay_out(shape, *tensors)
    tile = tuning.pick(name, tensors[0].device, columns=columns)
    if laid_out is None or tile is None:
        return False
    if outputs[0].numel() == 0:
        return True
    (outer, middle, run), strides = laid_out
    numbers = [s for three in strides for s in three] + [row_stride]
    step = unit(columns, *numbers)
    block = min(tile["BLOCK"], block_size(columns))
    row_tiles, column_tiles = cdiv(run, tile["ROWS"]), cdiv(columns, block)
    tiles = outer * middle * row_tiles * column_tiles
    programs = tuning.programs(tensors[0].device, tiles)
    kernel[(programs,)](
        *tensors, *outputs, *in_units(step, numbers),
        middle, run, columns // step, row_tiles, column_tiles, tiles, programs,
        UNIT=step, **{**tile, "BLOCK": block}, **options,
    )  # fmt: skip
    return True


def glu(gate, up, activation, gate_first):
    """``mmkern::glu`` in one pass."""
    if gate.dim() == 0 or not fits(gate, up) or (up is not None and up.dtype != gate.dtype):
        return NotImplemented
    a, b = _halves(gate, gate_first) if up is None else (gate, up)
    y = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    done = _launch(glu_forward, "glu", (a, b), (y,), a.shape[-1], {"ACTIVATION": activation})
    return y if done else NotImplemented


def glu_backward(grad, gate, up, activation, gate_first):
    """``mmkern::glu_backward`` in one pass; the packed gradient is written in place."""
    grad = dense(grad)
    if gate.dim() == 0 or not fits(gate, up, grad) or (up is not None and up.dtype != gate.dtype):
        return NotImplemented
    a, b = _halves(gate, gate_first) if up is None else (gate, up)
    grads = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if up is None:
        da, db = _halves(grads, gate_first)
        result = grads, nothing(gate)
    else:
        da, db = result = grads, torch.empty_like(grads)
    done = _launch(
        glu_gradient, "glu_backward", (grad, a, b), (da, db), gate.shape[-1],
        {"ACTIVATION": activation},
    )  # fmt: skip
    return result if done else NotImplemented
