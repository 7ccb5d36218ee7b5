"""The AscendC twin's vector instructions against plain loops over lanes."""

import itertools
import math
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
    tree,
    wide,
)
from twin_run import copied

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


# ---- Cast ----


def bits_to_float(bits: np.ndarray, name: str) -> np.ndarray:
    if name == "bfloat16_t":
        return (bits.astype(np.uint32) << 16).view(FLOAT)
    return bits.view(HALF).astype(FLOAT)


def finite_values(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Every finite number of a 16-bit format, ascending, and its bits; one zero."""
    bits = np.arange(65536, dtype=np.uint16)
    values = bits_to_float(bits, name).astype(np.float64)
    keep = np.isfinite(values) & (bits != 0x8000)
    order = np.argsort(values[keep], kind="stable")
    return values[keep][order], bits[keep][order]


def round_to_bits(x: float, mode: int, values: np.ndarray, bits: np.ndarray) -> int:
    """The bits of the neighbour of x that a RoundMode names."""
    at = int(np.searchsorted(values, x))
    if values[at] == x:
        return int(bits[at])
    low, high = at - 1, at
    below, above = x - values[low], values[high] - x
    toward_zero, away = (low, high) if x > 0 else (high, low)
    pick = {2: low, 3: high, 5: toward_zero}.get(mode)
    if pick is None and mode == 6:
        pick = low if bits[low] & 1 else high
    if pick is None and below != above:
        pick = low if below < above else high
    if pick is None:
        pick = away if mode == 4 else (low if not bits[low] & 1 else high)
    return int(bits[pick])


@pytest.mark.parametrize(("name", "modes"), [("half", range(7)), ("bfloat16_t", range(1, 6))])
def test_cast_rounds_to_16_bits_as_the_mode_says(name, modes):
    values, bits = finite_values(name)
    generator = np.random.default_rng(0)
    x = numbers(FLOAT, 1, -100, 100)
    x[:512] = generator.uniform(-1e-4, 1e-4, 512)
    x[512:640] = generator.uniform(-6e4, 6e4, 128)
    middle = len(values) // 2 + np.arange(128) * 7  # halfway between neighbours
    x[640:768] = (values[middle] + values[middle + 1]) / 2
    x[768:896] = -x[640:768]
    for mode in modes:
        got = run(f"Cast_{name}_float", np.uint16, Form(count=1000, mode=mode), x)
        for i in range(1000):
            want = round_to_bits(float(x[i]), mode, values, bits)
            if got[i] != want:  # zero keeps the sign of what was rounded
                assert got[i] & 0x7FFF == 0 == want & 0x7FFF, (mode, float(x[i]), got[i], want)


def round_whole(x: float, mode: int) -> int:
    low = math.floor(x)
    if mode in (0, 1):
        return round(x)
    if mode == 4:
        return int(math.copysign(math.floor(abs(x) + 0.5), x))
    return {2: low, 3: math.ceil(x), 5: math.trunc(x)}[mode]


@pytest.mark.parametrize(
    ("to", "source", "modes"),
    [
        ("int32_t", "float", range(1, 6)),
        ("int16_t", "float", range(1, 6)),
        ("float", "float", range(1, 6)),
        ("int32_t", "half", range(1, 6)),
        ("int8_t", "half", range(6)),
        ("uint8_t", "half", range(6)),
    ],
)
def test_cast_rounds_to_whole_numbers_and_saturates(to, source, modes):
    target = NAMES.get(to, np.dtype(to.removesuffix("_t")).type)
    x = numbers(NAMES[source], 1, -20, 20)
    x[:64] = np.arange(-32, 32) / 2
    if to != "float":
        x[64:70] = [127.5, 128, 300, -129, -300, 255.5]
    for mode in modes:
        got = run(f"Cast_{to}_{source}", target, Form(count=500, mode=mode), x)
        for i in range(500):
            want = round_whole(float(x[i]), mode)
            if to != "float":
                want = min(max(want, np.iinfo(target).min), np.iinfo(target).max)
            assert got[i] == want, (mode, x[i])


@pytest.mark.parametrize("source", ["half", "bfloat16_t", "int32_t"])
def test_cast_to_float_is_exact(source):
    if source == "int32_t":
        x = numbers(np.int32, 1)
        want = x.astype(FLOAT)
    else:
        x = copied((np.arange(BYTES // 2) * 7).astype(np.uint16) & 0x7BFF)
        want = bits_to_float(x, source)
    got = run(f"Cast_float_{source}", FLOAT, Form(count=1000), x)
    assert np.array_equal(got[:1000], want[:1000])


@pytest.mark.parametrize("source", ["int16_t", "int8_t"])
def test_cast_of_integers_to_half(source):
    x = copied((np.arange(BYTES) % 255 - 127).astype(source.removesuffix("_t")))
    got = run(f"Cast_half_{source}", HALF, Form(count=500), x)
    assert np.array_equal(got[:500], x[:500].astype(HALF))


def test_cast_with_a_mask_counts_lanes_of_the_wider_type():
    """Per repeat 64 lanes; the half side's repeat stride is in blocks of its own type."""
    form = Form(kind=1, mask=(33, 0), repeats=3, repeat=(4, 8, 0), mode=1)
    x = numbers(FLOAT, 1)
    want = numbers(HALF, 9)
    for repeat, lane in lanes(form, 4):
        want[place(form, 0, 2, 4, repeat, lane)] = x[place(form, 1, 4, 4, repeat, lane)]
    assert run("Cast_half_float", HALF, form, x).tobytes() == want.tobytes()


# ---- reductions ----


def reduced(kind: str, values: list, dtype):
    return {"Sum": lambda: tree(values, dtype), "Max": lambda: max(values)}.get(
        kind, lambda: min(values)
    )()


REDUCE_FORMS = (
    Form(mask=(64, 0), repeats=3, repeat=(1, 8, 0)),
    Form(mask=(37, 0), repeats=4, repeat=(2, 16, 0), block=(1, 2, 1)),
    Form(mask=(8, 0), repeats=5, repeat=(1, 1, 0)),
)


@pytest.mark.parametrize("name", ["half", "float"])
@pytest.mark.parametrize("kind", ["Sum", "Max", "Min"])
def test_whole_reduce(kind, name):
    dtype = NAMES[name]
    size = np.dtype(dtype).itemsize
    x = numbers(dtype, 1)
    for form, order in itertools.product(REDUCE_FORMS, range(1 if kind == "Sum" else 4)):
        form = replace(form, mode=order, kind=1)
        got = run(f"WholeReduce{kind}_{name}", dtype, form, x)
        raw = got.view(np.uint8)
        for repeat in range(form.repeats):
            at = [place(form, 1, size, size, repeat, lane) for lane in range(form.mask[0])]
            values = [x[i] for i in at]
            want = reduced(kind, values, dtype)
            index = values.index(want) if kind != "Sum" else None
            step = form.repeat[0]
            if kind == "Sum" or order == 2:
                assert got[repeat * step] == want
            elif order == 3:
                assert raw.view(np.uint32)[repeat * step] == index
            else:
                pair = raw[repeat * step * 2 * size :][: 2 * size]
                as_index = np.uint16 if size == 2 else np.uint32
                value_at, index_at = (0, 1) if order == 0 else (1, 0)
                assert pair.view(dtype)[value_at] == want
                assert pair.view(as_index)[index_at] == index


@pytest.mark.parametrize("name", ["half", "float"])
def test_repeat_reduce_sum_is_whole_reduce_sum(name):
    x = numbers(NAMES[name], 1)
    for form in REDUCE_FORMS:
        results = [run(f"{op}ReduceSum_{name}", NAMES[name], form, x) for op in ("Repeat", "Whole")]
        assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.parametrize("name", ["half", "float"])
@pytest.mark.parametrize(
    "kind", ["BlockReduceSum", "BlockReduceMax", "BlockReduceMin", "PairReduceSum"]
)
def test_group_reduce(kind, name):
    dtype = NAMES[name]
    size = np.dtype(dtype).itemsize
    group = 2 if kind.startswith("Pair") else 32 // size
    results = 256 // size // group
    x = numbers(dtype, 1)
    for mask, step in ((256 // size, 1), (32 // size * 3, 2)):
        form = Form(kind=1, mask=(mask, 0), repeats=2, repeat=(step, 8, 0))
        want = numbers(dtype, 9)
        for repeat, first in itertools.product(range(2), range(0, mask, group)):
            at = [place(form, 1, size, size, repeat, first + i) for i in range(group)]
            values = [x[i] for i in at]
            want[repeat * step * results + first // group] = reduced(kind[-3:], values, dtype)
        assert run(f"{kind}_{name}", dtype, form, x).tobytes() == want.tobytes()


@pytest.mark.parametrize("name", ["half", "float"])
def test_reduce_of_a_whole_tensor(name):
    dtype = NAMES[name]
    x = numbers(dtype, 1)
    per_repeat = 256 // np.dtype(dtype).itemsize
    for count in (1, 63, 200, 1024):
        sums = list(x[:count])
        while len(sums) > 1:
            chunks = [sums[i : i + per_repeat] for i in range(0, len(sums), per_repeat)]
            sums = [tree(chunk, dtype) for chunk in chunks]
        assert run(f"ReduceSum_{name}", dtype, Form(count=count), x)[0] == sums[0]
        for op in ("Max", "Min"):
            got = run(f"Reduce{op}_{name}", dtype, Form(count=count, mode=1), x)
            best = x[:count].argmax() if op == "Max" else x[:count].argmin()
            assert got[0] == x[best]
            assert got.view(np.uint16 if name == "half" else np.uint32)[1] == best


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
