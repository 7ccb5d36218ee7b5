"""The AscendC twin's vector instructions against plain loops over lanes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from twin_forms import (
    BYTES,
    FLOAT,
    HALF,
    NAMES,
    STRIDED,
    Form,
    forms,
    lanes,
    numbers,
    place,
    run,
    wide,
)
from twin_run import copied, prepare

prepare("vector")

BINARY = {
    "Add": lambda a, b, c: a + b,
    "Sub": lambda a, b, c: a - b,
    "Mul": lambda a, b, c: a * b,
    "Max": lambda a, b, c: max(a, b),
    "Min": lambda a, b, c: min(a, b),
    "Div": lambda a, b, c: a / b,
    "MulAddDst": lambda a, b, c: a * b + c,
    "FusedMulAdd": lambda a, b, c: a * c + b,
    "FusedMulAddRelu": lambda a, b, c: max(a * c + b, FLOAT(0)),
    "AddRelu": lambda a, b, c: max(a + b, FLOAT(0)),
    "SubRelu": lambda a, b, c: max(a - b, FLOAT(0)),
    "And": lambda a, b, c: a & b,
    "Or": lambda a, b, c: a | b,
}
FLOATING = ("Div", "MulAddDst", "FusedMulAdd", "FusedMulAddRelu", "AddRelu", "SubRelu")
BINARY_TYPES = [
    (op, name)
    for op in BINARY
    for name in NAMES
    if (op in ("And", "Or")) == (name == "int16_t" and op in ("And", "Or"))
    and not (op in FLOATING and name.startswith("int"))
]


@pytest.mark.parametrize(("op", "name"), BINARY_TYPES)
def test_binary(op, name):
    dtype = NAMES[name]
    size = np.dtype(dtype).itemsize
    a, b = numbers(dtype, 1), numbers(dtype, 2)
    if op == "Div":
        b = copied(np.where(np.abs(b) < 0.5, 1, b).astype(dtype))
    for form in forms(size):
        old = numbers(dtype, seed=9)
        want = old.copy()
        for repeat, lane in lanes(form, size):
            d, i, j = (place(form, o, size, size, repeat, lane) for o in range(3))
            with np.errstate(over="ignore"):
                want[d] = BINARY[op](wide(a[i : i + 1])[0], wide(b[j : j + 1])[0], wide(old)[d])
        assert run(f"{op}_{name}", dtype, form, a, b, old=old).tobytes() == want.tobytes(), form


def test_counter_mode_takes_the_count_and_not_the_repeats():
    form = Form(kind=1, counter=1, count=150)
    a, b = numbers(FLOAT, 1), numbers(FLOAT, 2)
    want = numbers(FLOAT, 9)
    want[:150] = a[:150] + b[:150]
    assert np.array_equal(run("Add_float", FLOAT, form, a, b), want)


SCALAR = {
    "Adds": lambda a, s: a + s,
    "Muls": lambda a, s: a * s,
    "Maxs": lambda a, s: max(a, s),
    "Mins": lambda a, s: min(a, s),
    "LeakyRelu": lambda a, s: a if a >= 0 else a * s,
    "ShiftLeft": lambda a, s: a << s,
    "ShiftRight": lambda a, s: a >> s,
}


SCALAR_TYPES = [
    (op, name)
    for op in SCALAR
    for name in NAMES
    if not (op == "LeakyRelu" and name.startswith("int"))
    and not (op.startswith("Shift") and not name.startswith("int"))
]


@pytest.mark.parametrize(("op", "name"), SCALAR_TYPES)
def test_scalar(op, name):
    dtype = NAMES[name]
    size = np.dtype(dtype).itemsize
    a = numbers(dtype, 1)
    for form in forms(size):
        form = replace(form, scalar=3.0 if name.startswith("int") else 1.7)
        scalar = wide(np.array([form.scalar], dtype))[0]
        old = numbers(dtype, seed=9)
        want = old.copy()
        for repeat, lane in lanes(form, size):
            d, i = (place(form, o, size, size, repeat, lane) for o in range(2))
            want[d] = SCALAR[op](wide(a[i : i + 1])[0], scalar)
        assert run(f"{op}_{name}", dtype, form, a, old=old).tobytes() == want.tobytes(), form


@pytest.mark.parametrize(
    ("to", "source"), [("half", "half"), ("float", "float"), ("float", "half")]
)
def test_axpy_adds_to_what_is_there(to, source):
    dtype, size = NAMES[to], max(np.dtype(NAMES[t]).itemsize for t in (to, source))
    a, kernel = numbers(NAMES[source], 1), f"Axpy_{to}" + ("" if to == source else f"_{source}")
    for form in STRIDED if to == source else STRIDED[:3]:
        form = replace(form, scalar=1.75)
        old = numbers(dtype, seed=9)
        want = old.copy()
        for repeat, lane in lanes(form, size):
            d = place(form, 0, np.dtype(dtype).itemsize, size, repeat, lane)
            i = place(form, 1, a.itemsize, size, repeat, lane)
            want[d] = wide(a[i : i + 1])[0] * FLOAT(1.75) + wide(old)[d]
        assert run(kernel, dtype, form, a, old=old).tobytes() == want.tobytes(), form


UNARY = {"Exp": np.exp, "Ln": np.log, "Sqrt": np.sqrt, "Abs": np.abs}


@pytest.mark.parametrize("op", [*UNARY, "Rsqrt", "Reciprocal", "Relu"])
@pytest.mark.parametrize("name", ["half", "float"])
def test_unary(op, name):
    dtype = NAMES[name]
    size = np.dtype(dtype).itemsize
    a = numbers(dtype, 1, *((-8, 8) if op in ("Exp", "Abs", "Relu") else (0.1, 8)))
    for form in forms(size):
        old = numbers(dtype, seed=9)
        got = run(f"{op}_{name}", dtype, form, a, old=old)
        want = old.copy()
        for repeat, lane in lanes(form, size):
            d, i = (place(form, o, size, size, repeat, lane) for o in range(2))
            x = wide(a[i : i + 1])[0]
            if op in UNARY:
                want[d] = UNARY[op](x)
            elif op == "Relu":
                want[d] = max(x, 0)
            else:
                want[d] = 1 / np.sqrt(x) if op == "Rsqrt" else 1 / x
        # The device's reciprocals hold about 11 bits; the others are compared to the last one.
        tolerance = 2**-10 if op in ("Rsqrt", "Reciprocal") else 2 * np.finfo(dtype).eps
        np.testing.assert_allclose(got.astype(FLOAT), want.astype(FLOAT), rtol=tolerance, atol=0)


def test_reciprocals_are_no_better_than_the_device():
    a = numbers(FLOAT, 1, 0.1, 8)
    got = run("Reciprocal_float", FLOAT, Form(count=512), a)[:512]
    assert np.abs(got * a[:512] - 1).max() > 2**-14


def test_not():
    a = numbers(np.int16, 1)
    assert np.array_equal(run("Not_int16_t", np.int16, Form(count=300), a)[:300], ~a[:300])


# ---- filling, moving, choosing ----


@pytest.mark.parametrize("name", ["half", "float"])
def test_duplicate_and_copy(name):
    dtype = NAMES[name]
    size = np.dtype(dtype).itemsize
    x = numbers(dtype, 1)
    for op, form in itertools.product(("Duplicate", "Copy"), forms(size)):
        if op == "Copy" and form.kind != 1:
            continue
        form = replace(form, scalar=2.25)
        want = numbers(dtype, 9)
        for repeat, lane in lanes(form, size):
            d, i = (place(form, o, size, size, repeat, lane) for o in range(2))
            want[d] = form.scalar if op == "Duplicate" else x[i]
        assert run(f"{op}_{name}", dtype, form, x).tobytes() == want.tobytes(), form


@pytest.mark.parametrize("name", ["half", "float"])
def test_brcb_spreads_each_element_over_a_block(name):
    dtype = NAMES[name]
    per_block = 32 // np.dtype(dtype).itemsize
    x = numbers(dtype, 1)
    for block, repeat in ((1, 8), (2, 16), (1, 16)):
        form = Form(repeats=3, block=(block, 0, 0), repeat=(repeat, 0, 0))
        want = numbers(dtype, 9)
        for i in range(24):
            start = (i // 8 * repeat + i % 8 * block) * per_block
            want[start : start + per_block] = x[i]
        assert run(f"Brcb_{name}", dtype, form, x).tobytes() == want.tobytes()


def test_index_and_transpose():
    got = run("CreateVecIndex_float", FLOAT, Form(count=100, scalar=5), numbers(FLOAT, 1))
    assert np.array_equal(got[:100], np.arange(5, 105, dtype=FLOAT))
    x = numbers(HALF, 1)
    got = run("Transpose_half", HALF, Form(), x)
    assert np.array_equal(got[:256].reshape(16, 16), x[:256].reshape(16, 16).T)


COMPARE = (np.less, np.greater, np.equal, np.less_equal, np.greater_equal, np.not_equal)


@pytest.mark.parametrize("name", ["half", "float"])
@pytest.mark.parametrize("mode", range(6))
def test_compare_writes_a_bit_per_element(name, mode):
    dtype = NAMES[name]
    a, b = copied(np.round(numbers(dtype, 1))), copied(np.round(numbers(dtype, 2)))
    form = Form(count=512, mode=mode, scalar=2.0)
    old = np.zeros(BYTES, np.uint8)
    for got, right in (
        (run(f"Compare_{name}", np.uint8, form, a, b, old=copied(old)), b[:512]),
        (run(f"CompareScalar_{name}", np.uint8, form, a, old=copied(old)), dtype(2.0)),
    ):
        bits = np.unpackbits(got[:64], bitorder="little")
        assert np.array_equal(bits.astype(bool), COMPARE[mode](a[:512], right))


@pytest.mark.parametrize("name", ["half", "float"])
@pytest.mark.parametrize("mode", range(3))
def test_select(name, mode):
    dtype = NAMES[name]
    per_repeat = 256 // np.dtype(dtype).itemsize
    a, b = numbers(dtype, 1), numbers(dtype, 2)
    bits = copied(np.random.default_rng(3).integers(0, 256, BYTES).astype(np.uint8))
    form = Form(count=300, mode=mode, scalar=2.5)
    got = run(f"Select_{name}", dtype, form, a, b, old=bits)
    take = np.unpackbits(bits, bitorder="little").astype(bool)
    for i in range(300):
        # Mode 0 uses one repeat's bits for all.
        live = take[i % per_repeat if mode == 0 else i]
        other = dtype(2.5) if mode == 1 else b[i]
        assert got[i] == (a[i] if live else other)
    assert np.array_equal(got[300:], a[300:])


def test_gather_takes_byte_offsets():
    x = numbers(FLOAT, 1)
    offsets = copied(np.random.default_rng(3).integers(0, 1000, BYTES // 4).astype(np.uint32) * 4)
    got = run("Gather_float", FLOAT, Form(count=100, mode=64), x, offsets)
    assert np.array_equal(got[:100], x[16 + offsets[:100] // 4])
