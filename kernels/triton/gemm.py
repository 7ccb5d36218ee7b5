"""Pieces of a matrix product that the kernels of patch_embed and mlp share."""

import triton
import triton.language as tl


@triton.jit
def grouped(pid, row_blocks, column_blocks, GROUP: tl.constexpr):
    """(row block, column block) of a program: GROUP row blocks by all columns, then the next.

    The programs that run at one time then share rows and columns in the L2 cache.
    """
    width = GROUP * column_blocks
    first = pid // width * GROUP
    height = tl.minimum(row_blocks - first, GROUP)
    return first + pid % width % height, pid % width // height


@triton.jit
def load_weight(
    W, w_row, cols, k, columns, depth, BK: tl.constexpr, BN: tl.constexpr,
    ROWS_ARE_COLUMNS: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """[BK, BN] of the second operand. ROWS_ARE_COLUMNS: it is stored (columns, depth)."""
    ks = k + tl.arange(0, BK)
    if ROWS_ARE_COLUMNS:
        mask = cols[:, None] < columns
        if TAIL:
            mask = mask & (ks[None, :] < depth)
        offsets = cols.to(tl.int64)[:, None] * w_row + ks[None, :]
        return tl.trans(tl.load(W + offsets, mask=mask, other=0.0))
    else:
        mask = cols[None, :] < columns
        if TAIL:
            mask = mask & (ks[:, None] < depth)
        offsets = ks.to(tl.int64)[:, None] * w_row + cols[None, :]
        return tl.load(W + offsets, mask=mask, other=0.0)


@triton.jit
def load_activations(
    A, a_row, rows, k, height, depth, BM: tl.constexpr, BK: tl.constexpr, TAIL: tl.constexpr
):  # fmt: skip
    ks = k + tl.arange(0, BK)
    mask = rows[:, None] < height
    if TAIL:
        mask = mask & (ks[None, :] < depth)
    return tl.load(A + rows.to(tl.int64)[:, None] * a_row + ks[None, :], mask=mask, other=0.0)


@triton.jit
def product(
    A, W, a_row, w_row, rows, cols, height, columns, depth,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ROWS_ARE_COLUMNS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A[rows] @ W[:, cols] in float32. EVEN: depth is a multiple of BK."""
    acc = tl.zeros([BM, BN], tl.float32)
    full = depth // BK * BK
    for k in range(0, full, BK):
        a = load_activations(A, a_row, rows, k, height, depth, BM, BK, False)
        w = load_weight(W, w_row, cols, k, columns, depth, BK, BN, ROWS_ARE_COLUMNS, False)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    if not EVEN:
        a = load_activations(A, a_row, rows, full, height, depth, BM, BK, True)
        w = load_weight(W, w_row, cols, full, columns, depth, BK, BN, ROWS_ARE_COLUMNS, True)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    return acc
