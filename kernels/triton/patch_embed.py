"""Patch embedding as one matrix product that gathers pixels by address: no im2col, no copy of x.

Pixels are (B, Cin, T, H, W) with any strides. Element k of a patch lies at the same distance from
the patch's first pixel in every patch, so an address is one number a row and one a column.
Flattened patches (B, N, K) are images of N patches of one pixel with K channels.

The gradient of x goes by the same addresses; patches do not overlap, so nothing is summed. That of
the weight splits the tokens in a way fixed by the shapes and adds the parts in order. Sums over
tokens or images alone, and the weight of flattened patches, are torch's. A weight or gradient that
is not contiguous is copied.

Ascend reads and writes such addresses one by one. There pixels are first copied to flattened
patches, and the gradient's patches to its pixels.
"""

import torch
import triton
import triton.language as tl

from mmkern.kernels.triton import tuning
from mmkern.kernels.triton.common import (
    add_partials,
    cdiv,
    dense,
    fits,
    in_units,
    nothing,
    unit,
)
from mmkern.kernels.triton.gemm import grouped, load_weight, product
from mmkern.ops.patch_embed import as_patches, as_windows

_INTEGERS = ["x_b", "x_c", "x_t", "x_h", "x_w", "tokens", "grid_h", "grid_w", "height", "columns"]
_INTEGERS += ["depth", "pos_b", "pos_row", "row_blocks", "column_blocks", "length", "parts"]


@triton.jit
def _patch_at(
    m, tokens, grid_h, grid_w, x_b, x_t, x_h, x_w,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, W1: tl.constexpr, EVENLY: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Offset of the first pixel of patch m of the batch; EVENLY: m times a stride, x_w."""
    if EVENLY:
        return m.to(tl.int64) * (x_w * UNIT)
    else:
        n = m % tokens
        w = (n % grid_w * KW).to(tl.int64)
        h = (n // grid_w % grid_h * KH).to(tl.int64)
        t = (n // grid_w // grid_h * KT).to(tl.int64)
        b = (m // tokens).to(tl.int64)
        at = (b * x_b + t * x_t + h * x_h) * UNIT
        return at + w if W1 else at + w * x_w


@triton.jit
def _pixel_at(
    k, x_c, x_t, x_h, x_w, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    C1: tl.constexpr, W1: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Offset of element k of a patch from the patch's first pixel."""
    w = (k % KW).to(tl.int64)
    h = (k // KW % KH).to(tl.int64)
    t = (k // (KW * KH) % KT).to(tl.int64)
    c = (k // (KW * KH * KT)).to(tl.int64)
    at = (t * x_t + h * x_h) * UNIT
    at += w if W1 else w * x_w
    return at + c if C1 else at + c * x_c * UNIT


@triton.jit(do_not_specialize=_INTEGERS)
def patch_forward(
    X, W, BIAS, POS, Y, x_b, x_c, x_t, x_h, x_w, tokens, grid_h, grid_w, height, columns, depth,
    pos_b, pos_row, row_blocks, column_blocks,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, C1: tl.constexpr, W1: tl.constexpr,
    EVENLY: tl.constexpr, X_UNIT: tl.constexpr, UNIT: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Y = patches @ W^T + BIAS + POS."""
    columns, depth, pos_row = columns * UNIT, depth * UNIT, pos_row * UNIT
    row_block, column_block = grouped(tl.program_id(0), row_blocks, column_blocks, GROUP)
    rows = row_block * BM + tl.arange(0, BM)
    cols = column_block * BN + tl.arange(0, BN)
    base = X + _patch_at(
        rows, tokens, grid_h, grid_w, x_b, x_t, x_h, x_w, KT, KH, KW, W1, EVENLY, X_UNIT
    )
    inside = (rows < height)[:, None]
    acc = tl.zeros([BM, BN], tl.float32)
    full = depth // BK * BK
    for k in range(0, full, BK):
        ks = k + tl.arange(0, BK)
        at = _pixel_at(ks, x_c, x_t, x_h, x_w, KT, KH, KW, C1, W1, X_UNIT)
        x = tl.load(base[:, None] + at[None, :], mask=inside, other=0.0)
        w = load_weight(W, depth, cols, k, columns, depth, BK, BN, True, False)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    if not EVEN:
        ks = full + tl.arange(0, BK)
        at = _pixel_at(ks, x_c, x_t, x_h, x_w, KT, KH, KW, C1, W1, X_UNIT)
        mask = inside & (ks < depth)[None, :]
        x = tl.load(base[:, None] + at[None, :], mask=mask, other=0.0)
        w = load_weight(W, depth, cols, full, columns, depth, BK, BN, True, True)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    mask = inside & (cols < columns)[None, :]
    if BIAS is not None:
        acc += tl.load(BIAS + cols, mask=cols < columns, other=0.0).to(tl.float32)[None, :]
    if POS is not None:
        at = (rows // tokens).to(tl.int64) * pos_b * UNIT + (rows % tokens).to(tl.int64) * pos_row
        acc += tl.load(POS + at[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    at = rows.to(tl.int64)[:, None] * columns + cols[None, :]
    tl.store(Y + at, acc.to(Y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_INTEGERS)
def patch_grad_x(
    GRAD, W, DX, x_b, x_c, x_t, x_h, x_w, tokens, grid_h, grid_w, height, columns, depth,
    row_blocks, column_blocks,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, C1: tl.constexpr, W1: tl.constexpr,
    EVENLY: tl.constexpr, X_UNIT: tl.constexpr, UNIT: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """GRAD @ W, each row to the pixels of its patch. columns: of a patch; depth: channels out."""
    columns, depth = columns * UNIT, depth * UNIT
    row_block, column_block = grouped(tl.program_id(0), row_blocks, column_blocks, GROUP)
    rows = row_block * BM + tl.arange(0, BM)
    cols = column_block * BN + tl.arange(0, BN)
    acc = product(
        GRAD, W, depth, columns, rows, cols, height, columns, depth, BM, BN, BK,
        False, EVEN, PRECISION,
    )  # fmt: skip
    row_at = _patch_at(
        rows, tokens, grid_h, grid_w, x_b, x_t, x_h, x_w, KT, KH, KW, W1, EVENLY, X_UNIT
    )
    at = _pixel_at(cols, x_c, x_t, x_h, x_w, KT, KH, KW, C1, W1, X_UNIT)
    mask = (rows < height)[:, None] & (cols < columns)[None, :]
    tl.store(DX + row_at[:, None] + at[None, :], acc.to(DX.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_INTEGERS)
def patch_grad_weight(
    GRAD, X, DW, x_b, x_c, x_t, x_h, x_w, tokens, grid_h, grid_w, height, columns, depth,
    row_blocks, column_blocks, length,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, C1: tl.constexpr, W1: tl.constexpr,
    EVENLY: tl.constexpr, X_UNIT: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """DW[part] = GRAD^T @ patches over ``length`` of the height tokens. depth: of a patch."""
    columns, depth = columns * UNIT, depth * UNIT
    blocks = row_blocks * column_blocks
    part = tl.program_id(0) // blocks
    row_block, column_block = grouped(tl.program_id(0) % blocks, row_blocks, column_blocks, GROUP)
    rows = row_block * BM + tl.arange(0, BM)
    cols = column_block * BN + tl.arange(0, BN)
    at = _pixel_at(cols, x_c, x_t, x_h, x_w, KT, KH, KW, C1, W1, X_UNIT)[None, :]
    acc = tl.zeros([BM, BN], tl.float32)
    end = tl.minimum(height, (part + 1) * length)
    for m in range(part * length, end, BK):
        ms = m + tl.arange(0, BK)
        inside = (ms < end)[:, None]
        g = tl.load(
            GRAD + ms.to(tl.int64)[:, None] * columns + rows[None, :],
            mask=inside & (rows < columns)[None, :], other=0.0,
        )  # fmt: skip
        base = _patch_at(
            ms, tokens, grid_h, grid_w, x_b, x_t, x_h, x_w, KT, KH, KW, W1, EVENLY, X_UNIT
        )
        x = tl.load(X + base[:, None] + at, mask=inside & (cols < depth)[None, :], other=0.0)
        acc = tl.dot(tl.trans(g), x, acc, input_precision=PRECISION)
    to = DW + part.to(tl.int64) * columns * depth
    mask = (rows < columns)[:, None] & (cols < depth)[None, :]
    at = rows.to(tl.int64)[:, None] * depth + cols[None, :]
    tl.store(to + at, acc.to(DW.dtype.element_ty), mask=mask)


def _images(x, weight):
    """(x as (B, Cin, T, H, W), kernel (kt, kh, kw)): flattened patches as pixels of K channels."""
    if x.dim() == weight.dim() and x.dim() > 3:
        size = weight.shape[2:]
        return (x, tuple(size)) if x.dim() == 5 else (x.unsqueeze(2), (1, *size))
    x = x if x.dim() == 3 else x[None]
    return x.transpose(1, 2)[:, :, None, None, :], (1, 1, 1)


def _to_flatten(x, weight):
    """Whether x is pixels on a device that would gather them one by one: it is copied then."""
    return x.dim() == weight.dim() and x.dim() > 3 and not tuning.gathers(x.device)


def _layout(x, kernel):
    """Kernel arguments for the pixels of x: (numbers, constexprs, patches of an image)."""
    strides = [s if n > 1 else 0 for s, n in zip(x.stride(), x.shape, strict=True)]
    grid = [n // k for n, k in zip(x.shape[2:], kernel, strict=True)]
    inner = {"C1": x.stride(1) == 1, "W1": x.stride(4) == 1}
    b, c, t, h, w = strides
    tokens = grid[0] * grid[1] * grid[2]
    # flattened patches, their rows in one run
    evenly = inner["C1"] and tokens == grid[2] and (x.shape[0] == 1 or b == tokens * w)
    evenly = evenly and kernel == (1, 1, 1)
    step = unit(b, *(() if inner["C1"] else (c,)), t, h, *((w,) if evenly else ()))
    kt, kh, kw = kernel
    flags = {"KT": kt, "KH": kh, "KW": kw, **inner, "EVENLY": evenly, "X_UNIT": step}
    numbers = [*in_units(step, (b, c, t, h)), w // step if evenly else w]
    return [*numbers, tokens, grid[1], grid[2]], flags, tokens


def _tile(kernel, x, height, columns, parts=1):
    """(tile, row blocks, column blocks) or None."""
    half = x.dtype != torch.float32
    tile = tuning.pick(kernel, x.device, half=half, rows=height, columns=columns)
    if tile is None:
        return None
    blocks = cdiv(height, tile["BM"]), cdiv(columns, tile["BN"])
    return None if tuning.too_many(x.device, blocks[0] * blocks[1] * parts) else (tile, blocks)


def patch_embed(x, weight, bias, pos_embed):
    """``mmkern::patch_embed``."""
    if not fits(weight, bias, pos_embed) or x.dtype != weight.dtype:
        return NotImplemented
    if bias is not None and bias.dtype != x.dtype:
        return NotImplemented
    if _to_flatten(x, weight):
        x = as_patches(x, weight)
    images, kernel = _images(x, weight)
    numbers, flags, tokens = _layout(images, kernel)
    weight = weight.flatten(1)
    columns, depth = weight.shape
    y = x.new_empty(images.shape[0], tokens, columns)
    height = y.shape[0] * tokens
    found = _tile("patch_forward", x, height, columns)
    if found is None:
        return NotImplemented
    tile, blocks = found
    if height:
        pos_b = pos_row = 0
        if pos_embed is not None:
            pos_row = pos_embed.stride(-2)
            pos_b = pos_embed.stride(0) if pos_embed.dim() == 3 and pos_embed.shape[0] > 1 else 0
        step = unit(columns, depth, pos_b, pos_row)
        patch_forward[(blocks[0] * blocks[1],)](
            images, weight.contiguous(), bias, pos_embed, y, *numbers, height,
            *in_units(step, (columns, depth, pos_b, pos_row)), *blocks,
            **flags, UNIT=step, EVEN=depth % tile["BK"] == 0, PRECISION="ieee", **tile,
        )  # fmt: skip
    return y[0] if x.dim() == 2 else y


def patch_embed_backward(grad, x, weight, pos_embed, mask):
    """``mmkern::patch_embed_backward``: gradients of x, weight, bias, pos_embed."""
    if not fits(weight) or x.dtype != weight.dtype:
        return NotImplemented
    grads = [nothing(x) for _ in range(4)]
    rows = dense(grad).reshape(-1, weight.shape[0])
    rows = rows if rows.stride(0) == rows.shape[1] else rows.contiguous()
    if mask[0]:
        grads[0] = _grad_x(rows, x, weight)
    if mask[1]:
        grads[1] = _grad_weight(rows, x, weight)
    if grads[0] is NotImplemented or grads[1] is NotImplemented:
        return NotImplemented
    if mask[2]:
        grads[2] = rows.sum(0, dtype=torch.float32).to(x.dtype)
    if mask[3]:
        if pos_embed.numel() < grad.numel():
            grad = grad.sum(0, dtype=torch.float32)
        grads[3] = grad.reshape(pos_embed.shape).to(pos_embed.dtype, copy=True).contiguous()
    return tuple(grads)


def _grad_x(rows, x, weight):
    if _to_flatten(x, weight):
        dpatches = _grad_x(rows, rows.new_empty(rows.shape[0], weight[0].numel()), weight)
        if dpatches is NotImplemented:
            return NotImplemented
        dx = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        to = as_windows(dx, weight)
        to.copy_(dpatches.reshape(to.shape))
        return dx
    dx = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    images, kernel = _images(dx, weight)
    numbers, flags, _ = _layout(images, kernel)
    weight = weight.flatten(1).contiguous()
    depth, columns = weight.shape
    found = _tile("patch_grad_x", x, rows.shape[0], columns)
    if found is None:
        return NotImplemented
    tile, blocks = found
    if rows.shape[0]:
        step = unit(columns, depth)
        patch_grad_x[(blocks[0] * blocks[1],)](
            rows, weight, images, *numbers, rows.shape[0], *in_units(step, (columns, depth)),
            *blocks, **flags, UNIT=step, EVEN=depth % tile["BK"] == 0, PRECISION="ieee", **tile,
        )  # fmt: skip
    return dx


# Tokens that one program sums for the weight, unless the parts grew larger than this together.
_LENGTH, _PART_ELEMENTS = 512, 1 << 24


def _grad_weight(rows, x, weight):
    if _to_flatten(x, weight):
        x = as_patches(x, weight)
    images, kernel = _images(x, weight)
    if kernel == (1, 1, 1) and x.dim() != weight.dim():
        return (rows.T @ x.reshape(rows.shape[0], -1)).reshape(weight.shape)
    numbers, flags, _ = _layout(images, kernel)
    height, columns = rows.shape
    depth = weight[0].numel()
    most = max(1, min(cdiv(height, _LENGTH), _PART_ELEMENTS // weight.numel()))
    found = _tile("patch_grad_weight", x, columns, depth, parts=most)
    if found is None:
        return NotImplemented
    tile, blocks = found
    dw = torch.zeros(weight.shape, dtype=x.dtype, device=x.device)
    if height == 0:
        return dw
    length = cdiv(cdiv(height, most), tile["BK"]) * tile["BK"]
    parts = cdiv(height, length)
    to = dw if parts == 1 else rows.new_empty(parts, weight.numel(), dtype=torch.float32)
    step = unit(columns, depth)
    patch_grad_weight[(blocks[0] * blocks[1] * parts,)](
        rows, images, to, *numbers, height, *in_units(step, (columns, depth)), *blocks, length,
        **flags, UNIT=step, PRECISION="ieee", **tile,
    )  # fmt: skip
    if parts > 1:
        add_partials(to, dw, groups=1, inner=parts)
    return dw
