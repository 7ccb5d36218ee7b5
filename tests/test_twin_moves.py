"""The AscendC twin's copies against plain loops, with pipes early and late."""

import struct

import numpy as np
import pytest
from twin_run import aligned, copied, library, prepare

prepare("moves")

BYTES = 8192


def floats(seed: int, count: int = BYTES // 4, dtype=np.float32) -> np.ndarray:
    return copied(np.random.default_rng(seed).uniform(-4, 4, count).astype(dtype))


def move(kernel, *arrays, count=1, length=0, src_gap=0, dst_gap=0, left=0, right=0, pad=None):
    value = struct.pack(
        "<7if", count, length, src_gap, dst_gap, left, right, pad is not None, pad or 0.0
    )
    return library("moves").run_early_and_late(kernel, *arrays, value)


def clean(report):
    assert not report["findings"], report["lines"]


BURSTS = [(1, 5, 0, 0), (4, 3, 0, 0), (7, 2, 3, 0), (5, 1, 2, 4), (16, 4, 1, 2)]


@pytest.mark.parametrize(("count", "length", "src_gap", "dst_gap"), BURSTS)
@pytest.mark.parametrize("kernel", ["copy_in", "copy_out", "copy_local"])
def test_copies_in_blocks(kernel, count, length, src_gap, dst_gap):
    x, old, out = floats(1), floats(2), floats(3)
    into = copied(out if kernel == "copy_out" else old)
    want = copied(into)
    source = x if kernel == "copy_in" else old
    base = BYTES // 8 if kernel == "copy_local" else 0
    for i in range(count):
        for e in range(length * 8):
            want[base + i * (length + dst_gap) * 8 + e] = source[i * (length + src_gap) * 8 + e]
    arrays = [("inout", out), ("in", old)] + ([] if kernel == "copy_out" else [("in", x)])
    clean(move(kernel, *arrays, count=count, length=length, src_gap=src_gap, dst_gap=dst_gap))
    assert np.array_equal(out, want)


@pytest.mark.parametrize("kernel", ["copy_in_pad", "copy_in_pad_half"])
@pytest.mark.parametrize(
    ("count", "elements", "gap", "dst_gap", "left", "right", "pad"),
    [
        (1, 5, 0, 0, 0, 0, None),  # the rest of the last block holds the row's first element
        (3, 13, 7, 0, 0, 0, None),
        (3, 16, 0, 2, 0, 0, 9.0),
        (4, 11, 3, 1, 2, 3, 9.0),
        (2, 7, 0, 0, 0, 1, -1.0),
    ],
)
def test_padded_copies_in(kernel, count, elements, gap, dst_gap, left, right, pad):
    dtype = np.float16 if kernel.endswith("half") else np.float32
    size = np.dtype(dtype).itemsize
    x, old = floats(1, BYTES // size, dtype), floats(2)
    out = aligned(BYTES // 4, np.float32)
    want = copied(old).view(dtype)
    row = -(-(left + elements + right) * size // 32) * 32 // size
    for i in range(count):
        start = i * (row + dst_gap * 32 // size)
        source = x[i * (elements + gap) :]
        if left or right:
            want[start : start + left] = pad
            want[start + left + elements : start + left + elements + right] = pad
        else:
            want[start : start + row] = source[0]
        for e in range(elements):
            want[start + left + e] = source[e]
    report = move(
        kernel,
        ("out", out),
        ("in", old),
        ("in", x),
        count=count,
        length=elements * size,
        src_gap=gap * size,
        dst_gap=dst_gap,
        left=left,
        right=right,
        pad=pad,
    )
    clean(report)
    assert out.tobytes() == want.tobytes()


@pytest.mark.parametrize(
    ("count", "length", "src_gap", "dst_gap"), [(1, 20, 0, 0), (5, 52, 0, 12), (3, 96, 2, 4)]
)
def test_padded_copies_out(count, length, src_gap, dst_gap):
    """Gaps are bytes in global memory and blocks in UB, where each row starts on a block."""
    old, out = floats(2), floats(3)
    want = copied(out)
    for i in range(count):
        for e in range(length // 4):
            source = i * (-(-length // 32) + src_gap) * 8 + e
            want[i * (length + dst_gap) // 4 + e] = old[source]
    clean(
        move(
            "copy_out_pad",
            ("inout", out),
            ("in", old),
            count=count,
            length=length,
            src_gap=src_gap,
            dst_gap=dst_gap,
        )
    )
    assert np.array_equal(out, want)


def test_atomic_add():
    old, out = floats(2), floats(3)
    want = copied(out)
    want[:104] += old[:104]
    clean(move("add_out", ("inout", out), ("in", old), count=104))
    assert np.array_equal(out, want)


@pytest.mark.parametrize(
    "fields",
    [
        (1, 16, 32, 0, 32, 16, 1, 0),
        (1, 13, 21, 0, 40, 16, 1, 0),  # a tail of columns is zero to its block; rows keep theirs
        (1, 5, 9, 0, 9, 32, 2, 0),
        (3, 4, 16, 100, 20, 16, 1, 512),
        (1, 6, 16, 0, 0, 16, 1, 0),  # the same row again and again
    ],
)
@pytest.mark.parametrize("name", ["half", "float"])
def test_nd_to_nz(name, fields):
    dtype = np.float16 if name == "half" else np.float32
    size = np.dtype(dtype).itemsize
    nd, rows, columns, matrix, row, c0_stride, n_stride, dst_matrix = fields
    c0 = 32 // size
    x = floats(1, 4096, dtype)
    out = aligned(BYTES // size, dtype)
    want = np.full(BYTES // size, -1, dtype)
    for i in range(nd):
        for r in range(rows):
            for c in range(-(-columns // c0) * c0):
                at = i * dst_matrix + (c // c0 * c0_stride + r * n_stride) * c0 + c % c0
                want[at] = x[i * matrix + r * row + c] if c < columns else 0
    report = library("moves").run_early_and_late(
        f"nz_{name}", ("out", out), ("in", x), struct.pack("<8i", *fields), type="aic"
    )
    clean(report)
    assert np.array_equal(out, want)
