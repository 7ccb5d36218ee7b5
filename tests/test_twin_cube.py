"""The AscendC twin's cube core and what leaves L0C against plain loops, pipes early and late."""

import struct

import numpy as np
import pytest
from twin_run import aligned, copied, library, prepare

prepare("cube")

TYPES = {
    "half": np.float16,
    "bfloat16": np.uint16,
    "float": np.float32,
    "int8": np.int8,
    "uint8": np.uint8,
    "int32": np.int32,
}


def encoded(values: np.ndarray, name: str) -> np.ndarray:
    """Float values that the type holds exactly, in its bits."""
    if name == "bfloat16":
        return copied((values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))
    return copied(values.astype(TYPES[name]))


def decoded(values: np.ndarray, name: str) -> np.ndarray:
    if name == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def clean(report):
    assert not report["findings"], report["lines"]


def multiply(
    kernel, m, n, k, nk=1, k_step=0, bias=0, relu=0, nz=0, add=0, how=0, unfolds=0, scale=0
):
    """Small whole numbers, so that any order of summation is exact."""
    source, target = kernel.split("_")
    generator = np.random.default_rng(m * n + k)
    a = generator.integers(-3, 4, (m, k)).astype(np.float32)
    b = generator.integers(-3, 4, (k, n)).astype(np.float32)
    row = copied(generator.integers(-9, 9, 256).astype(np.float32))
    scales = copied(np.full(128, scale, np.uint64))
    out = aligned(m * -(-n // 16) * 16 if nz else m * n, TYPES[target])
    out[...] = 0
    right = encoded(b.T if nk else b, source)
    value = struct.pack(
        "<11i4xQ", m, n, k, nk, k_step or k, bias, relu, nz, add, how, unfolds, scale
    )
    report = library("cube").run_early_and_late(
        kernel,
        ("inout" if add else "out", out),
        ("in", encoded(a, source)),
        ("in", right),
        ("in", scales if how else row),
        value,
        type="aic",
    )
    want = a @ b + (row[:n] if bias else 0)
    return report, decoded(out, target), np.maximum(want, 0) if relu else want


@pytest.mark.parametrize("kernel", ["half_float", "bfloat16_float"])
@pytest.mark.parametrize("nk", [0, 1])
@pytest.mark.parametrize(("m", "n", "k"), [(16, 16, 16), (33, 20, 24), (64, 48, 40), (17, 128, 7)])
def test_products(kernel, m, n, k, nk):
    report, got, want = multiply(kernel, m, n, k, nk)
    clean(report)
    assert np.array_equal(got.reshape(m, n), want)
    assert sum(core["macs"] for core in report["cores"]) == m * n * k


@pytest.mark.parametrize(("m", "n", "k"), [(16, 16, 8), (33, 20, 24)])
def test_products_of_floats(m, n, k):
    report, got, want = multiply("float_float", m, n, k)
    clean(report)
    assert np.array_equal(got.reshape(m, n), want)


@pytest.mark.parametrize(
    "options", [{"k_step": 32}, {"bias": 1}, {"bias": 2}, {"relu": 1}, {"add": 1}]
)
def test_epilogues(options):
    report, got, want = multiply("half_float", 48, 32, 80, **options)
    clean(report)
    assert np.array_equal(got.reshape(48, 32), want)


@pytest.mark.parametrize("kernel", ["half_half", "bfloat16_bfloat16"])
def test_narrow_results(kernel):
    report, got, want = multiply(kernel, 32, 24, 16)
    clean(report)
    assert np.array_equal(got.reshape(32, 24), want)


def test_results_in_fractals():
    report, got, want = multiply("half_half", 21, 32, 16, nz=1)
    clean(report)
    blocks = got.reshape(2, 21, 16)
    for row in range(21):
        for column in range(32):
            assert blocks[column // 16, row, column % 16] == want[row, column]


def test_one_row_reads_a_vector_and_not_fractals():
    """With m == 1 Mmad takes A as a plain vector: fractals with a single row give another product.

    Of a fractal's 16 rows the first is the row that was loaded, which is what the first C0 numbers
    are; the vector goes on where the fractal's second row lies.
    """
    _, got, want = multiply("half_float", 1, 16, 16)
    assert np.array_equal(got.reshape(1, 16), want)
    _, got, want = multiply("half_float", 1, 16, 32)
    assert not np.array_equal(got.reshape(1, 16), want)


def test_transposed_square():
    generator = np.random.default_rng(0)
    a, b = (copied(generator.integers(-3, 4, (16, 16)).astype(np.float16)) for _ in range(2))
    out = aligned((16, 16), np.float32)
    clean(
        library("cube").run_early_and_late("square", ("out", out), ("in", a), ("in", b), type="aic")
    )
    assert np.array_equal(out, a.astype(np.float32) @ b.astype(np.float32))


def test_integer_products():
    report, got, want = multiply("int8_int32", 20, 32, 64)
    clean(report)
    assert np.array_equal(got.reshape(20, 32), want)


@pytest.mark.parametrize("k_step", [0, 16])
def test_a_matrix_unfolded_into_l0b(k_step):
    report, got, want = multiply("half_float", 32, 48, 40, nk=0, k_step=k_step, unfolds=1)
    clean(report)
    assert np.array_equal(got.reshape(32, 48), want)


@pytest.mark.parametrize("turn", [0, 1])
def test_a_matrix_unfolded_into_l0a(turn):
    x = copied(np.random.default_rng(0).integers(-99, 99, (32, 32)).astype(np.float16))
    out, one = aligned((32, 32), np.float32), copied(np.eye(32, dtype=np.float16))
    value = struct.pack("<i", turn)
    report = library("cube").run_early_and_late(
        "unfolded", ("out", out), ("in", x), ("in", one), value, type="aic"
    )
    clean(report)
    assert np.array_equal(out, x.T if turn else x)


def scale_bits(factor: float, offset: int = 0, signed: bool = True) -> int:
    (bits,) = struct.unpack("<I", struct.pack("<f", factor))
    return bits | (offset & 0x1FF) << 37 | signed << 46


#: by the scalar or the tensor of scales, through Fixpipe or through DataCopy
@pytest.mark.parametrize("how", [1, 2, 3, 4])
@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize("kernel", ["int8_half", "int8_int8", "half_int8", "half_uint8"])
def test_quantised_results(kernel, relu, how):
    target, offset = kernel.split("_")[1], 0 if kernel == "int8_half" else -3
    scale = scale_bits(0.7, offset, target != "uint8")
    report, got, want = multiply(kernel, 20, 32, 64, relu=relu, how=how, scale=scale)
    clean(report)
    factor = np.float64(np.uint32(scale & 0xFFFFE000).view(np.float32))  # 10 bits of mantissa
    want = want.astype(np.float64) * factor
    if target != "half":
        low, high = (0, 255) if target == "uint8" else (-128, 127)
        want = np.clip(np.rint(np.clip(want, -256, 255)) + offset, low, high)
    assert np.array_equal(got.reshape(20, 32), want.astype(TYPES[target]).astype(np.float32))


def test_bytes_in_fractals_are_32_wide():
    scale = scale_bits(1.0)
    report, got, want = multiply("half_int8", 21, 64, 16, nz=1, how=3, scale=scale)
    clean(report)
    blocks = got.reshape(2, 21, 32)
    for row, column in np.ndindex(21, 64):
        assert blocks[column // 32, row, column % 32] == np.clip(want[row, column], -128, 127)
