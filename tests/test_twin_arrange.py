"""The AscendC twin's sorting, gathering, transposing and choosing, and its reductions, by loops."""

import itertools

import numpy as np
import pytest
import twin_forms
from twin_forms import BYTES, FLOAT, HALF, NAMES, Form, lanes, numbers, place, tree
from twin_run import copied, prepare

prepare("arrange")

names = pytest.mark.parametrize("name", ["half", "float"])


def run(kernel, out_dtype, form, *inputs, old=None):
    """Kernels here take two operands; the second may be anything."""
    inputs = [*inputs, numbers(FLOAT, 7)][:2]
    return twin_forms.run(kernel, out_dtype, form, *inputs, old=old, source="arrange")


def pairs(raw: np.ndarray, dtype) -> tuple[np.ndarray, np.ndarray]:
    """Values and indices of the pairs of 8 bytes in an array."""
    rows = raw.view(np.uint8).reshape(-1, 8)
    size = np.dtype(dtype).itemsize
    return rows[:, :size].copy().view(dtype)[:, 0], rows[:, 4:].copy().view(np.uint32)[:, 0]


@names
def test_sort32_sorts_each_32_down_and_keeps_the_order_of_equals(name):
    dtype = NAMES[name]
    x = copied(np.round(numbers(dtype, 1)))
    index = copied(np.arange(BYTES // 4, dtype=np.uint32) * 3)
    values, got = pairs(run(f"sort_{name}", dtype, Form(repeats=5), x, index), dtype)
    for first in range(0, 160, 32):
        order = sorted(range(first, first + 32), key=lambda i: (-x[i], i))
        assert list(values[first : first + 32]) == [x[i] for i in order]
        assert list(got[first : first + 32]) == [index[i] for i in order]


@names
@pytest.mark.parametrize(
    ("valid", "queues", "repeats"), [(3, 2, 1), (7, 3, 1), (15, 4, 1), (15, 4, 3)]
)
def test_mrgsort_merges_queues(name, valid, queues, repeats):
    dtype, length = NAMES[name], 24
    raw = np.zeros((BYTES // 8, 8), np.uint8)
    values = np.round(numbers(dtype, 1)[: BYTES // 8], 1)
    for first in range(0, len(values) - length, length):
        values[first : first + length] = np.sort(values[first : first + length])[::-1]
    size = np.dtype(dtype).itemsize
    raw[:, :size] = values[:, None].view(np.uint8).reshape(-1, size)
    raw[:, 4:] = np.arange(len(values), dtype=np.uint32)[:, None].view(np.uint8)
    form = Form(count=length, repeats=repeats, mode=valid)
    got = run(f"merge_{name}", dtype, form, copied(raw.reshape(-1).view(dtype)))
    merged, index = pairs(got, dtype)
    for first in range(0, repeats * queues * length, queues * length):
        order = sorted(range(first, first + queues * length), key=lambda i: (-values[i], i))
        assert list(merged[first : first + queues * length]) == [values[i] for i in order]
        assert list(index[first : first + queues * length]) == order


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(("block", "repeat"), [(1, 8), (2, 16), (0, 8)])
def test_gatherb_takes_blocks_by_byte_offsets(bits, block, repeat):
    dtype = np.dtype(f"uint{bits}")
    x = copied(np.arange(BYTES // dtype.itemsize).astype(dtype))
    offsets = copied(np.random.default_rng(3).integers(0, 200, BYTES // 4).astype(np.uint32) * 32)
    old = copied(np.zeros(BYTES // dtype.itemsize, dtype))
    form = Form(repeats=3, block=(block, 1, 1), repeat=(repeat, 8, 8))
    want, per_block = old.copy(), 32 // dtype.itemsize
    for i in range(24):
        at = (i // 8 * repeat + i % 8 * (block or 1)) * per_block
        first = offsets[i] // dtype.itemsize
        want[at : at + per_block] = x[first : first + per_block]
    got = run(f"gather_blocks_{bits}", dtype, form, x, offsets, old=old)
    assert np.array_equal(got, want)


def picked(pattern, i: int) -> bool:
    if isinstance(pattern, int):
        return pattern == 7 or (i % 2 == pattern - 1 if pattern < 3 else i % 4 == pattern - 3)
    return bool(pattern[i // 8] >> (i % 8) & 1)


@names
@pytest.mark.parametrize("pattern", [1, 2, 3, 6, 7, "bits"])
@pytest.mark.parametrize("counter", [0, 1])
def test_gathermask_packs_what_the_pattern_names(name, pattern, counter):
    dtype, repeats = NAMES[name], 3
    size = np.dtype(dtype).itemsize
    x = numbers(dtype, 1)
    bits = copied(np.random.default_rng(3).integers(0, 256, BYTES).astype(np.uint8))
    per_repeat = 41 if counter else 256 // size
    form = Form(
        count=per_repeat if counter else 0,
        repeats=repeats,
        mode=0 if pattern == "bits" else pattern,
        block=(1, 2, 1),
        repeat=(8, 17, 3),
        counter=counter,
    )
    want = []
    for repeat, i in itertools.product(range(repeats), range(per_repeat)):
        source = bits[repeat * 3 * 32 :] if pattern == "bits" else pattern
        if picked(source, i):
            want.append(x[(repeat * 17 + i // (32 // size) * 2) * (32 // size) + i % (32 // size)])
    kernel = f"pick_by_bits_{name}" if pattern == "bits" else f"pick_{name}"
    got = run(kernel, dtype, form, x, bits)
    assert list(got[: len(want)]) == want
    assert got[-1] == len(want)


@pytest.mark.parametrize("back", [0, 1])
def test_transpose_moves_channels(back):
    n, c, h, w = 2, 3, 5, 16
    x = numbers(HALF, 1)
    count = n * c * h * w
    form = Form(count=n, block=(c, h, w), mode=back)
    got = run("channels", HALF, form, x)[:count]
    shape, axes = ((n, h, w, c), (0, 3, 1, 2)) if back else ((n, c, h, w), (0, 2, 3, 1))
    assert np.array_equal(got, x[:count].reshape(shape).transpose(axes).reshape(-1))


@pytest.mark.parametrize("kernel", ["rows_half", "rows_by_address", "rows_float"])
def test_transdatato5hd_turns_16_blocks_into_columns(kernel):
    dtype = FLOAT if kernel.endswith("float") else HALF
    x, per_block = numbers(dtype, 1), 32 // np.dtype(dtype).itemsize
    got = run(kernel, dtype, Form(count=32, repeats=2, repeat=(16, 1, 0)), x)
    for repeat in range(2):
        block = x[: 16 * 32].reshape(16, 32)[:, repeat * per_block :][:, :per_block]
        start = repeat * 16 * per_block
        assert np.array_equal(got[start : start + 16 * per_block], block.T.reshape(-1))


COMPARE = (np.less, np.greater, np.equal, np.less_equal, np.greater_equal, np.not_equal)


@names
@pytest.mark.parametrize("mode", range(6))
def test_compare_into_the_register(name, mode):
    dtype = NAMES[name]
    per_block, per_repeat = 32 // np.dtype(dtype).itemsize, 256 // np.dtype(dtype).itemsize
    a, b = copied(np.round(numbers(dtype, 1))), copied(np.round(numbers(dtype, 2)))
    form = Form(mask=(per_repeat - 5, 0), mode=mode, block=(1, 2, 1))
    old = np.zeros(BYTES, np.uint8)
    got = np.unpackbits(run(f"compare_register_{name}", np.uint8, form, a, b, old=copied(old))[:16])
    got = got.reshape(-1, 8)[:, ::-1].reshape(-1).astype(bool)
    for lane in range(128):
        at = lane // per_block * 2 * per_block + lane % per_block
        want = lane < per_repeat - 5 and COMPARE[mode](a[at], b[lane])
        assert got[lane] == want


@names
def test_select_by_the_register(name):
    dtype = NAMES[name]
    per_repeat = 256 // np.dtype(dtype).itemsize
    a, old = numbers(dtype, 1), numbers(dtype, 9)
    bits = copied(np.random.default_rng(3).integers(0, 256, BYTES).astype(np.uint8))
    take = np.unpackbits(bits, bitorder="little").astype(bool)
    got = run(f"select_register_{name}", dtype, Form(repeats=3), a, bits, old=old)
    for i in range(3 * per_repeat):
        assert got[i] == (a[i] if take[i % per_repeat] else old[i])
    assert np.array_equal(got[3 * per_repeat :], old[3 * per_repeat :])


def test_compares_is_comparescalar():
    a = copied(np.round(numbers(FLOAT, 1)))
    got = run("compares", np.uint8, Form(count=256, mode=3, scalar=1.0), a)[:32]
    assert np.array_equal(np.unpackbits(got, bitorder="little").astype(bool), a[:256] <= 1)


def nibbles(raw: np.ndarray) -> np.ndarray:
    both = np.stack([raw & 15, raw >> 4], 1).reshape(-1).astype(np.int8)
    return np.where(both > 7, both - 16, both)


@pytest.mark.parametrize("mode", range(6))
@pytest.mark.parametrize(
    "form",
    [Form(count=300), Form(kind=1, mask=(128, 0), repeats=3, repeat=(2, 8, 0))],
    ids=["count", "mask"],
)
def test_cast_to_int4_rounds_and_saturates(mode, form):
    x = numbers(HALF, 1, -12, 12)
    x[:40] = np.arange(-20, 20) / 2
    form = Form(form.kind, form.count, form.repeats, form.mask, (1, 1, 1), form.repeat, mode=mode)
    count = form.count or 3 * 128
    ways = (np.rint, np.rint, np.floor, np.ceil, None, np.trunc)
    want = x[:count].astype(FLOAT)
    want = ways[mode](want) if mode != 4 else np.sign(want) * np.floor(np.abs(want) + 0.5)
    got = nibbles(run("narrow_int4", np.uint8, form, x)[: count // 2])
    assert np.array_equal(got, np.clip(want, -8, 7))


def test_cast_from_int4():
    x = copied(np.arange(BYTES).astype(np.uint8))
    got = run("widen_int4", HALF, Form(count=500), x)[:500]
    assert np.array_equal(got, nibbles(x[:250]))


def test_copy_in_counter_mode_counts_for_each_repeat():
    """144 elements a repeat, 18 blocks that lie 8 apart in the source."""
    x, want = numbers(FLOAT, 1), numbers(FLOAT, 9)
    for repeat, i in itertools.product(range(2), range(144)):
        want[repeat * 20 * 8 + i] = x[(repeat + i // 8 * 8) * 8 + i % 8]
    form = Form(count=144, repeats=2, block=(1, 8, 0), repeat=(20, 1, 0))
    assert np.array_equal(run("copy_counted", FLOAT, form, x), want)


# ---- reductions ----

KINDS = ("Sum", "Max", "Min")


def reduced(mode: int, values: list, dtype):
    return (tree(list(values), dtype), max(values), min(values))[mode]


@names
@pytest.mark.parametrize(
    ("what", "mode"),
    [*itertools.product(["blocks", "repeats"], range(3)), ("pairs", 0)],
    ids=[f"{what}-{kind}" for what in ("blocks", "repeats") for kind in KINDS] + ["pairs-Sum"],
)
@pytest.mark.parametrize("kind", [1, 2], ids=["lanes", "bits"])
def test_reductions_by_their_newer_names(name, what, mode, kind):
    dtype = NAMES[name]
    size = np.dtype(dtype).itemsize
    group = {"blocks": 32 // size, "pairs": 2, "repeats": 256 // size}[what]
    results = 256 // size // group
    x, want = numbers(dtype, 1), numbers(dtype, 9)
    mask = (50, 0) if kind == 1 else (0x0FFF_0F0F_FFFF_0003, 0)
    form = Form(kind=kind, mask=mask, repeats=3, block=(1, 2, 1), repeat=(2, 16, 0), mode=mode)
    live = {}
    for repeat, lane in lanes(form, size):
        element = x[place(form, 1, size, size, repeat, lane)]
        live.setdefault((repeat, lane // group), []).append(element)
    for (repeat, at), values in live.items():
        want[repeat * 2 * results + at] = reduced(mode, values, dtype)
    assert run(f"{what}_{name}", dtype, form, x).tobytes() == want.tobytes()


@names
def test_reductions_of_repeats(name):
    dtype = NAMES[name]
    size = np.dtype(dtype).itemsize
    x = numbers(dtype, 1)
    form = Form(kind=1, mask=(40, 0), repeats=5, repeat=(1, 6, 0))
    at = [place(form, 1, size, size, *lane) for lane in lanes(form, size)]
    sums = [tree(list(x[at[i : i + 40]]), dtype) for i in range(0, len(at), 40)]
    assert run(f"sum_{name}", dtype, form, x)[0] == tree(sums, dtype)
    got = run(f"max_{name}", dtype, form, x)
    as_index = np.uint16 if size == 2 else np.uint32
    assert got[0] == max(x[at]) == x[got.view(as_index)[1]]
    form = Form(kind=2, mask=(0xFF00_00FF, 0), repeats=5, repeat=(1, 6, 0))
    at = [place(form, 1, size, size, *lane) for lane in lanes(form, size)]
    got = run(f"min_by_bits_{name}", dtype, form, x)
    assert got[0] == min(x[at]) == x[got.view(as_index)[1]]


def test_registers_hold_the_last_reduction():
    x = numbers(FLOAT, 1)
    got = run("registers", FLOAT, Form(count=64), x)[:6]
    assert got[0] == got[1] == tree(list(x[:64]), FLOAT)
    assert got[2] == got[4] == max(x[:64])
    assert got[3:4].view(np.uint32)[0] == got[5:6].view(np.uint32)[0] == x[:64].argmax()


# ---- slices and padding ----


def test_slices_in_and_out():
    x = numbers(FLOAT, 1)
    rows, columns = range(1, 8, 3), (16, 24, 32, 40)  # every third row; blocks from 16 to 47
    want = [x[r * 48 + c + e] for r in rows for c in columns for e in range(8)]
    form = Form(count=32, repeats=3, block=(16, 47, 0), repeat=(1, 7, 2))
    assert list(run("slice_in", FLOAT, form, x)[:96]) == want
    old = numbers(FLOAT, 9)
    form = Form(count=24, block=(8, 63, 16))  # at 8, 32 and 56
    got, want = run("slice_out", FLOAT, form, x, old=old), old.copy()
    for i in range(3):
        want[8 + i * 24 : 16 + i * 24] = old[i * 8 : i * 8 + 8]
    assert np.array_equal(got, want)


def test_padding_without_ispad_takes_the_register():
    x, want = numbers(FLOAT, 1), numbers(FLOAT, 9)
    for row in range(3):
        want[row * 16 : row * 16 + 2] = want[row * 16 + 13 : row * 16 + 16] = 4.5
        want[row * 16 + 2 : row * 16 + 13] = x[row * 11 : row * 11 + 11]
    form = Form(count=11, repeats=3, block=(2, 3, 0), scalar=4.5)
    assert np.array_equal(run("pad_by_register", FLOAT, form, x), want)
