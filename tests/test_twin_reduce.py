"""The AscendC twin's reductions against plain loops."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from twin_forms import (
    NAMES,
    Form,
    numbers,
    place,
    run,
    tree,
)
from twin_run import prepare

prepare("vector")


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
