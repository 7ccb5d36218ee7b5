"""What the host side and the kernels of several ops share.

Strides and row lengths go to a kernel in units of UNIT elements, a constexpr: from
``stride * UNIT`` the compiler knows that rows begin on 16 bytes, whatever the numbers, so it emits
128-bit accesses for a head of 72 elements as for one of 64, and one compiled kernel serves both.
"""

import math

import torch
import triton
import triton.language as tl

from mmkern.kernels.triton import tuning

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# ---- host ----------------------------------------------------------------------------------------


def cdiv(a, b):
    """a / b rounded up."""
    return -(-a // b)


def block_size(n):
    """The power of two that covers n elements, as tl.arange wants it; at least 2."""
    return max(2, 1 << (n - 1).bit_length())


def fits(x, *others):
    """True if kernels take x, and each other tensor (or None) in the dtype of x or float32."""
    return x.dtype in DTYPES and all(
        t is None or (t.dtype in (x.dtype, torch.float32) and unit_stride(t)) for t in (x, *others)
    )


def unit_stride(t):
    """True if the elements of the last dimension lie side by side, or there is at most one."""
    return t.dim() == 0 or t.shape[-1] <= 1 or t.stride(-1) == 1 or t.numel() == 0


def dense(grad):
    """grad with a unit last stride: autograd hands out expanded ones, as that of y.sum()."""
    return grad if grad is None or unit_stride(grad) else grad.contiguous()


def nothing(ref):
    """The (0,) tensor that a raw op returns for an output that does not exist."""
    return ref.new_empty(0)


def empty_if(exists, ref):
    """A contiguous output of ref's shape, or nothing."""
    return torch.empty(ref.shape, dtype=ref.dtype, device=ref.device) if exists else nothing(ref)


def unit(*numbers):
    """The largest power of two, at most 16, that divides all the numbers."""
    return math.gcd(16, *numbers)


def lay_out(shape, *tensors):
    """Leading dimensions of tensors of one shape as (outer, middle, run) rows; None if more.

    Returns (sizes, strides): three sizes, and for each tensor (or None) its three strides in
    elements. Neighbouring dimensions merge where the strides of all tensors allow it, so rows of
    dense tensors, and of chunks of one, are a single run.
    """
    sizes, slot = [1, 1, 1], 3
    strides = [[0, 0, 0] for _ in tensors]
    present = [(t, s) for t, s in zip(tensors, strides, strict=True) if t is not None]
    for dim in reversed(range(len(shape) - 1)):
        if shape[dim] == 1:
            continue
        if slot == 3 or any(t.stride(dim) != s[slot] * sizes[slot] for t, s in present):
            slot -= 1
            if slot < 0:
                return None
            for t, s in present:
                s[slot] = t.stride(dim)
        sizes[slot] *= shape[dim]
    return sizes, strides


def in_units(step, numbers):
    """The numbers in units of ``step`` elements."""
    return [n // step for n in numbers]


def add_partials(partials, out, groups, inner, outer=1, outer_stride=0):
    """out[g] = sum of partials[g * inner + j * outer_stride + i] over i < inner, j < outer.

    The second stage of a sum over rows. partials: (rows, C) in float32; out: groups * C elements
    of any dtype. The order of the sum depends on these numbers and on the tile alone.
    """
    if groups == 1 and outer_stride == inner:
        inner, outer, outer_stride = inner * outer, 1, 0
    columns = partials.shape[-1]
    tile = tuning.pick("sum_partials", partials.device)
    column_tiles = cdiv(columns, tile["BLOCK"])
    tiles = groups * column_tiles
    if tiles == 0:
        return
    step = unit(columns)
    programs = tuning.programs(partials.device, tiles)
    sum_partials[(programs,)](
        partials, out, columns // step, inner, outer, outer_stride, column_tiles, tiles, programs,
        UNIT=step, **tile,
    )  # fmt: skip


# ---- kernels -------------------------------------------------------------------------------------


@triton.jit
def sigmoid(x):
    # exp of a large positive number is inf, and 1 / inf the right limit
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def activation(x, NAME: tl.constexpr):
    """gelu_tanh by the sigmoid: 0.5 (1 + tanh u) = sigmoid(2 u); tl.math.tanh is not portable."""
    if NAME == "silu":
        return x * sigmoid(x)
    elif NAME == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        return x * sigmoid(x * (1.5957691216057308 + 0.07135481282553423 * x * x))
    elif NAME == "quick_gelu":
        return x * sigmoid(1.702 * x)
    elif NAME == "relu":
        # not tl.maximum: a NaN must stay one
        return tl.where(x < 0.0, 0.0, x)
    else:
        tl.static_assert(NAME == "sigmoid")
        return sigmoid(x)


@triton.jit
def activation_grad(x, NAME: tl.constexpr):
    """d activation(x) / dx."""
    if NAME == "silu":
        s = sigmoid(x)
        return s * (1.0 + x * (1.0 - s))
    elif NAME == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        return cdf + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    elif NAME == "gelu_tanh":
        s = sigmoid(x * (1.5957691216057308 + 0.07135481282553423 * x * x))
        return s + x * s * (1.0 - s) * (1.5957691216057308 + 0.2140644384766027 * x * x)
    elif NAME == "quick_gelu":
        s = sigmoid(1.702 * x)
        return s * (1.0 + 1.702 * x * (1.0 - s))
    elif NAME == "relu":
        return tl.where(x > 0.0, 1.0, 0.0)
    else:
        tl.static_assert(NAME == "sigmoid")
        s = sigmoid(x)
        return s * (1.0 - s)


@triton.jit
def normalized(h, mask, n, eps, NORM: tl.constexpr):
    """(xhat, rstd) of the rows of h, "layer" or "rms"; 0 where mask is not."""
    if NORM == "layer":
        h = tl.where(mask, h - tl.sum(h, 1)[:, None] / n, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(h * h, 1)[:, None] / n + eps)
    # a row that is all mask has an rstd of inf where eps is 0
    return tl.where(mask, h * rstd, 0.0), rstd


@triton.jit
def normalized_gradient(g, xhat, rstd, n, NORM: tl.constexpr):
    """The gradient of the input of ``normalized``, given that of xhat."""
    grad = g - xhat * (tl.sum(g * xhat, 1)[:, None] / n)
    if NORM == "layer":
        grad = grad - tl.sum(g, 1)[:, None] / n
    return grad * rstd


@triton.jit
def row_base(run, middle, s_outer, s_middle, UNIT: tl.constexpr):
    """Offset of the first row of run number ``run``, for strides of lay_out, in elements."""
    outer = (run // middle).to(tl.int64)
    inner = (run % middle).to(tl.int64)
    return (outer * s_outer + inner * s_middle) * UNIT


_UNSPECIALISED = ["columns", "inner", "outer", "outer_stride"]
_UNSPECIALISED += ["column_tiles", "tiles", "programs"]


@triton.jit(do_not_specialize=_UNSPECIALISED)
def sum_partials(
    PARTIALS, OUT,
    columns, inner, outer, outer_stride, column_tiles, tiles, programs,
    UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = columns * UNIT
    for tile in range(tl.program_id(0), tiles, programs):
        group = (tile // column_tiles).to(tl.int64)
        c = (tile % column_tiles) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros([ROWS, BLOCK], tl.float32)
        for j in range(0, outer):
            first = group * inner + j * outer_stride
            for i in range(0, inner, ROWS):
                row = i + tl.arange(0, ROWS)[:, None]
                at = PARTIALS + (first + row) * n + c[None, :]
                total += tl.load(at, mask=(row < inner) & (c[None, :] < n), other=0.0)
        out = tl.sum(total, 0)
        tl.store(OUT + group * n + c, out.to(OUT.dtype.element_ty), mask=c < n)
