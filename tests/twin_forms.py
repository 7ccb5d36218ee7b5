"""How a vector instruction is called, and which lanes it then takes: for tests of the twin."""

import itertools
import struct
from dataclasses import dataclass, field

import numpy as np
from twin_run import aligned, copied, library

BYTES = 8192
HALF, FLOAT = np.float16, np.float32
NAMES = {"half": HALF, "float": FLOAT, "int16_t": np.int16, "int32_t": np.int32}


@dataclass(frozen=True)
class Form:
    """As in tests/twin/vector.cpp."""

    kind: int = 0
    count: int = 0
    repeats: int = 1
    mask: tuple = (0, 0)
    block: tuple = (1, 1, 1)
    repeat: tuple = (8, 8, 8)
    scalar: float = 0.0
    mode: int = 0
    counter: int = 0
    extra: dict = field(default_factory=dict, compare=False)

    def packed(self) -> bytes:
        return struct.pack(
            "<iii4xQQ6ifii4x",
            self.kind,
            self.count,
            self.repeats,
            *self.mask,
            *self.block,
            *self.repeat,
            self.scalar,
            self.mode,
            self.counter,
        )


def lanes(form: Form, widest: int):
    """(repeat, lane) of every lane that takes part."""
    per_repeat = 256 // widest
    if form.kind == 0 or form.counter:
        for i in range(form.count):
            yield i // per_repeat, i % per_repeat
        return
    for repeat, lane in itertools.product(range(form.repeats), range(per_repeat)):
        bit = form.mask[lane // 64] >> (lane % 64) & 1
        if lane < form.mask[0] if form.kind == 1 else bit:
            yield repeat, lane


def place(form: Form, operand: int, size: int, widest: int, repeat: int, lane: int) -> int:
    """The element that a lane of an operand stands at. Counted forms are contiguous."""
    if form.kind == 0 and not form.counter:
        return repeat * (256 // widest) + lane
    per_block = 32 // size
    blocks = repeat * form.repeat[operand] + lane // per_block * form.block[operand]
    return blocks * per_block + lane % per_block


def numbers(dtype, seed=0, low=-8.0, high=8.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    count = BYTES // np.dtype(dtype).itemsize
    if np.dtype(dtype).kind in "iu":
        return copied(generator.integers(-90, 90, count).astype(dtype))
    return copied(generator.uniform(low, high, count).astype(dtype))


def run(
    kernel: str, out_dtype, form: Form, *inputs, old=None, rules=(), source="vector"
) -> np.ndarray:
    """What a kernel of tests/twin/SOURCE.cpp leaves in its target, which held `old`."""
    old = numbers(out_dtype, seed=9) if old is None else old
    out = aligned(BYTES // np.dtype(out_dtype).itemsize, out_dtype)
    arguments = [("out", out), ("in", old), *[("in", x) for x in inputs], form.packed()]
    report = library(source).run_early_and_late(kernel, *arguments)
    assert report.rules <= set(rules), report["lines"]
    return out


STRIDED = (
    Form(kind=0, count=1),
    Form(kind=0, count=77),
    Form(kind=0, count=500),
    Form(kind=1, mask=(64, 0), repeats=3),
    Form(kind=1, mask=(37, 0), repeats=4, block=(1, 2, 1), repeat=(8, 16, 4)),
    Form(kind=1, mask=(50, 0), repeats=3, block=(1, 1, 0), repeat=(8, 8, 1)),
    Form(kind=1, mask=(64, 0), repeats=5, block=(1, 1, 1), repeat=(8, 8, 0)),
    Form(kind=2, mask=(0xF0F0_0000_1234_5679, 0), repeats=2, repeat=(9, 8, 10)),
    Form(kind=2, mask=(1 << 63, 0), repeats=3, block=(2, 1, 1), repeat=(16, 8, 8)),
)
HALF_ONLY = (
    Form(kind=1, mask=(128, 0), repeats=2),
    Form(kind=1, mask=(100, 0), repeats=3, block=(1, 0, 1), repeat=(8, 1, 8)),
    Form(kind=2, mask=(0xFF, 0x8000_0000_0000_0001), repeats=2),
)


def forms(size: int):
    return STRIDED + (HALF_ONLY if size == 2 else ())


def wide(values):
    return values.astype(FLOAT) if values.dtype == HALF else values


def tree(values: list, dtype):
    """Neighbours first, rounded at each step; a missing partner counts as zero."""
    while len(values) > 1:
        pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
        values = [dtype(sum(FLOAT(v) for v in pair)) for pair in pairs]
    return values[0]
