"""Two linear layers with an activation between; optionally a norm and a merge in front.

Forward: one product with bias and activation in its epilogue, which also keeps the activation's
input if it is to be saved, and one with bias. The norm is a pass of rows in front, modulate's
kernel, and so is the gather of a merge; a merge of consecutive rows is a view.

Backward: one product with the activation's gradient in its epilogue, which also computes the
activation again, and one for the input. Both are ours because rows must not depend on how many
others there are, as they may in a library that picks an algorithm by size. Gradients of weights
sum over all rows and have nothing to fuse: they are torch's products and sums.

An x whose rows are not evenly spaced is copied.
"""

import torch
import triton
import triton.language as tl

from mmkern.kernels.triton import tuning
from mmkern.kernels.triton.common import (
    activation,
    activation_grad,
    cdiv,
    dense,
    fits,
    in_units,
    nothing,
    unit,
)
from mmkern.kernels.triton.gemm import grouped, product
from mmkern.ops._math import ACTIVATIONS

_INTEGERS = ["a_row", "w_row", "height", "columns", "depth", "row_blocks", "column_blocks"]


@triton.jit(do_not_specialize=_INTEGERS)
def linear(
    A, W, BIAS, Z, Y, a_row, w_row, height, columns, depth, row_blocks, column_blocks,
    ACTIVATION: tl.constexpr, SAVE: tl.constexpr, UNIT: tl.constexpr, EVEN: tl.constexpr,
    ROWS_ARE_COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Y = activation(Z), Z = A @ W + BIAS. SAVE: keep Z."""
    a_row, w_row, columns, depth = a_row * UNIT, w_row * UNIT, columns * UNIT, depth * UNIT
    row_block, column_block = grouped(tl.program_id(0), row_blocks, column_blocks, GROUP)
    rows = row_block * BM + tl.arange(0, BM)
    cols = column_block * BN + tl.arange(0, BN)
    z = product(
        A, W, a_row, w_row, rows, cols, height, columns, depth, BM, BN, BK,
        ROWS_ARE_COLUMNS, EVEN, PRECISION,
    )  # fmt: skip
    if BIAS is not None:
        z += tl.load(BIAS + cols, mask=cols < columns, other=0.0).to(tl.float32)[None, :]
    at = rows.to(tl.int64)[:, None] * columns + cols[None, :]
    mask = (rows < height)[:, None] & (cols < columns)[None, :]
    if SAVE:
        tl.store(Z + at, z.to(Z.dtype.element_ty), mask=mask)
    if ACTIVATION is not None:
        z = activation(z, ACTIVATION)
    tl.store(Y + at, z.to(Y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_INTEGERS)
def linear_gradient(
    A, W, Z, H, Y, a_row, w_row, height, columns, depth, row_blocks, column_blocks,
    ACTIVATION: tl.constexpr, SAVE: tl.constexpr, UNIT: tl.constexpr, EVEN: tl.constexpr,
    ROWS_ARE_COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Y = (A @ W) * activation'(Z). SAVE: keep H = activation(Z)."""
    a_row, w_row, columns, depth = a_row * UNIT, w_row * UNIT, columns * UNIT, depth * UNIT
    row_block, column_block = grouped(tl.program_id(0), row_blocks, column_blocks, GROUP)
    rows = row_block * BM + tl.arange(0, BM)
    cols = column_block * BN + tl.arange(0, BN)
    dh = product(
        A, W, a_row, w_row, rows, cols, height, columns, depth, BM, BN, BK,
        ROWS_ARE_COLUMNS, EVEN, PRECISION,
    )  # fmt: skip
    at = rows.to(tl.int64)[:, None] * columns + cols[None, :]
    mask = (rows < height)[:, None] & (cols < columns)[None, :]
    z = tl.load(Z + at, mask=mask, other=0.0).to(tl.float32)
    if SAVE:
        tl.store(H + at, activation(z, ACTIVATION).to(H.dtype.element_ty), mask=mask)
    dz = dh * activation_grad(z, ACTIVATION)
    tl.store(Y + at, dz.to(Y.dtype.element_ty), mask=mask)


def _multiply(kernel, a, w, first, second, columns, activation=None, save=False, stored_by="rows"):
    """Launch linear or linear_gradient; its result (a.shape[0], columns), or NotImplemented.

    ``stored_by``: "rows" if w is (columns, depth), as nn.Linear stores it, "depth" if transposed.
    """
    height, depth = a.shape
    y = a.new_empty(height, columns)
    tile = tuning.pick(
        kernel.__name__, a.device, half=a.dtype != torch.float32, rows=height, columns=columns
    )
    if tile is None:
        return NotImplemented
    blocks = cdiv(height, tile["BM"]), cdiv(columns, tile["BN"])
    programs = blocks[0] * blocks[1]
    if tuning.too_many(a.device, programs):
        return NotImplemented
    if programs:
        numbers = a.stride(0), w.stride(0), columns, depth
        step = unit(*numbers)
        a_row, w_row, columns, depth = in_units(step, numbers)
        kernel[(programs,)](
            a, w, first, second, y, a_row, w_row, height, columns, depth, *blocks,
            ACTIVATION=activation, SAVE=save, UNIT=step, EVEN=depth * step % tile["BK"] == 0,
            ROWS_ARE_COLUMNS=stored_by == "rows", PRECISION="ieee", **tile,
        )  # fmt: skip
    return y


def _flat(t):
    """(rows, C), a view where the strides allow one."""
    t = t.flatten(0, -2) if t.dim() > 1 else t[None]
    return t if t.stride(-1) == 1 else t.contiguous()


def _normed(x, norm_weight, norm_bias, norm, eps):
    if norm == "none":
        return x
    run = torch.ops.mmkern.modulate.default
    return run(x, None, None, None, None, norm_weight, norm_bias, norm, eps)[1]


def _merged(x, rows, merge):
    x = x if rows is None else x.index_select(0, rows)
    return x if merge == 1 else x.reshape(x.shape[0] // merge**2, merge**2 * x.shape[1])


def _taken(x, *others):
    return fits(x, *others) and all(t is None or t.dtype == x.dtype for t in others)


def mlp(x, rows, w1, b1, w2, b2, norm_weight, norm_bias, activation, norm, eps, merge, save):
    """``mmkern::mlp``: (y, z)."""
    if not _taken(x, w1, b1, w2, b2, norm_weight, norm_bias):
        return NotImplemented
    a = _merged(_normed(_flat(x), norm_weight, norm_bias, norm, eps), rows, merge)
    z = a.new_empty(a.shape[0], w1.shape[0]) if save else nothing(x)
    h = _multiply(linear, a, w1, b1, z, w1.shape[0], activation, save)
    if h is NotImplemented:
        return NotImplemented
    y = _multiply(linear, h, w2, b2, None, w2.shape[0])
    if merge == 1:
        y = y.reshape(*x.shape[:-1], w2.shape[0])
        z = z.reshape(*x.shape[:-1], w1.shape[0]) if save else z
    return y, z


def mlp_backward(
    grad, x, rows, w1, w2, norm_weight, norm_bias, z, activation, norm, eps, merge, mask
):  # fmt: skip
    """``mmkern::mlp_backward``: gradients of x, w1, b1, w2, b2, norm_weight, norm_bias."""
    if not _taken(x, w1, w2, norm_weight, norm_bias):
        return NotImplemented
    grads = [nothing(x) for _ in range(7)]
    g, z = _flat(dense(grad)), _flat(z)
    h = None
    if any(mask[:3]) or any(mask[5:]):
        h = torch.empty_like(z) if mask[3] else None
        dz = _multiply(
            linear_gradient, g, w2, z, h, z.shape[1], activation, mask[3], stored_by="depth"
        )
        if dz is NotImplemented:
            return NotImplemented
        flat = _flat(x)
        if mask[1]:
            a = _merged(_normed(flat, norm_weight, norm_bias, norm, eps), rows, merge)
            grads[1] = dz.T @ a
        if mask[2]:
            grads[2] = dz.sum(0, dtype=torch.float32).to(x.dtype)
        if mask[0] or any(mask[5:]):
            dn = _multiply(linear, dz, w1, None, None, w1.shape[1], stored_by="depth")
            dn = _unmerged(dn, flat, rows)
            grads[0], *grads[5:] = _norm_backward(dn, flat, norm_weight, norm_bias, norm, eps, mask)
            grads[0] = grads[0].reshape(x.shape) if mask[0] else grads[0]
    if mask[3]:
        grads[3] = g.T @ (ACTIVATIONS[activation](z) if h is None else h)
    if mask[4]:
        grads[4] = g.sum(0, dtype=torch.float32).to(x.dtype)
    return tuple(grads)


def _unmerged(grad, x, rows):
    """The gradient of each row of x, given that of the merged rows."""
    if rows is None:
        return grad.reshape(x.shape)
    # a row may be gathered more than once: this sum is in a fixed order, index_add's is not
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    parts = grad.reshape(rows.shape[0], x.shape[1]).float()
    return total.index_put_((rows,), parts, accumulate=True).to(x.dtype)


def _norm_backward(dn, x, norm_weight, norm_bias, norm, eps, mask):
    """Gradients of x, norm_weight, norm_bias."""
    if norm == "none":
        return dn, nothing(x), nothing(x)
    run = torch.ops.mmkern.modulate_backward.default
    wanted = [mask[0], False, False, False, False, mask[5], mask[6]]
    grads = run(None, dn, x, None, None, None, None, norm_weight, norm_bias, norm, eps, wanted)
    return grads[0], grads[5], grads[6]
