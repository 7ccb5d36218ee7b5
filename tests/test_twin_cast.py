"""The AscendC twin's Cast against rounding by the modes' definitions."""

import math

import numpy as np
import pytest
from twin_forms import (
    BYTES,
    FLOAT,
    HALF,
    NAMES,
    Form,
    lanes,
    numbers,
    place,
    run,
)
from twin_run import copied, prepare

prepare("vector")


def bits_to_float(bits: np.ndarray, name: str) -> np.ndarray:
    if name == "bfloat16_t":
        return (bits.astype(np.uint32) << 16).view(FLOAT)
    return bits.view(HALF).astype(FLOAT)


def finite_values(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Every finite number of a 16-bit format, ascending, and its bits; one zero."""
    bits = np.arange(65536, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
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
