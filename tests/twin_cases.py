"""A small problem for each AscendC kernel, run on the twin without torch or the host code.

Shapes have tails in every dimension, more tiles than slots, and more tasks than cores.
"""

import struct
from dataclasses import dataclass
from functools import partial

import numpy as np
from twin_run import Library, aligned, copied

HALF, FLOAT = np.float16, np.float32


@dataclass(frozen=True)
class Case:
    """A kernel, its type, its blocks and its arguments, made anew for each run."""

    source: str
    kernel: str
    type: str
    blocks: int
    arguments: object  # a function without parameters: what Library.run takes; or several

    def run(self, library: Library, kernel: str = "", **options) -> tuple[set[str], list[bytes]]:
        """The rules broken, and the bytes of every output. `kernel` stands in for the case's."""
        rules, outputs = set(), []
        for make in self.arguments if isinstance(self.arguments, tuple) else (self.arguments,):
            arguments = make()
            report = library.run(
                kernel or self.kernel, *arguments, type=self.type, blocks=self.blocks, **options
            )
            rules |= report.rules
            outputs += [
                a[1].tobytes()
                for a in arguments
                if isinstance(a, tuple) and a[0] in ("out", "inout")
            ]
        return rules, outputs


def values(seed: int, *shape: int, dtype=HALF) -> tuple[str, np.ndarray]:
    return "in", copied(np.random.default_rng(seed).normal(0, 1, shape).astype(dtype))


def empty(*shape: int, dtype=HALF, role="out") -> tuple[str, np.ndarray]:
    return role, aligned(shape, dtype)


def up(x: int, to: int) -> int:
    return -(-x // to) * to


BATCH, TOKENS, COLUMNS = 3, 7, 72


def modulate_tiling(norm: int, grads: int, chunk: int, rows: int) -> bytes:
    """As ModulateTiling; rows of x lie COLUMNS apart, of the branch 8 further."""
    vector = struct.pack("<qqii", COLUMNS, 0, TOKENS, 1)
    none = struct.pack("<qqii", 0, 0, 1, 0)
    strides = struct.pack("<4q", TOKENS * COLUMNS, COLUMNS, TOKENS * (COLUMNS + 8), COLUMNS + 8)
    sizes = (BATCH, TOKENS, TOKENS, chunk, rows, COLUMNS, up(COLUMNS, 16), norm, 2, 1, grads, grads)
    return strides + vector * 3 + none * 2 + struct.pack("<12ifi", *sizes, 1e-5, 0)


def modulate():
    vectors = [values(i, BATCH, COLUMNS) for i in (3, 4, 5)]
    return [
        values(1, BATCH, TOKENS, COLUMNS),
        values(2, BATCH, TOKENS, COLUMNS + 8),
        *vectors,
        None,
        None,
        empty(BATCH, TOKENS, COLUMNS),
        empty(BATCH, TOKENS, COLUMNS),
        modulate_tiling(norm=1, grads=0, chunk=4, rows=3),
    ]


def modulate_backward(stores: bool = True):
    """Without the gradients of rows no queue orders the stores of the sums."""
    rows = (BATCH, TOKENS, COLUMNS)
    return [
        values(1, *rows),
        values(2, *rows),
        values(3, *rows),
        values(4, BATCH, TOKENS, COLUMNS + 8),
        values(5, BATCH, COLUMNS),
        values(6, BATCH, COLUMNS),
        None,
        empty(*rows) if stores else None,
        empty(*rows) if stores else None,
        empty(BATCH * 2, 3, COLUMNS, dtype=FLOAT),
        modulate_tiling(norm=1, grads=1, chunk=4, rows=3),
    ]


def linear_tiling(
    m, n, k, tile_m, tile_n, activation=0, saves=0, pos_rows=0, strides=None, turned=0, gradient=0,
    in_runs=0,
) -> bytes:  # fmt: skip
    """As LinearTiling; strides are those of a and b, and without a bias where they are given."""
    sizes = (n, k, tile_m, tile_n, activation, int(strides is None), saves, int(pos_rows > 0))
    flags = (turned, gradient, in_runs, 0)
    return struct.pack("<3q12i2q", m, *(strides or (k, k)), *sizes, *flags, pos_rows, n)


def ring(blocks: int, tile_m: int, tile_n: int):
    return empty(blocks * 2 * tile_m * tile_n, dtype=FLOAT, role="workspace")


def linear(m: int = 65, n: int = 168, k: int = 328):
    return [
        values(1, m, k),
        values(2, n, k),
        values(3, n),
        empty(m, n),
        empty(m, n),
        ring(2, 32, 144),
        linear_tiling(m, n, k, 32, 144, activation=1, saves=1),
    ]


def linear_normed(m: int = 70, members: int = 4, columns: int = 72, rows: int = 3, rms=False):
    """Several rows of tiles for each core, several depths, and a part that ends within one.

    The norm is LayerNorm with weight and bias, or RMSNorm without.
    """
    n, k, stride = 168, members * columns, columns + 8
    flags = members if members <= 7 else 1  # as kMostRowFlags
    affine = [None, None] if rms else [values(2, columns), values(3, columns)]
    return [
        values(1, m * members, stride),
        *affine,
        values(4, n, k),
        values(5, n),
        empty(m, n),
        empty(m, n),
        empty(2 * 2 * 16, k, role="workspace"),
        ring(2, 16, 144),
        linear_tiling(m, n, k, 16, 144, activation=1, saves=1, in_runs=1),
        struct.pack("<q6ifi", stride, columns, members, flags, rows, 2, 1 + rms, 1e-5, 0),
    ]


def linear_backward(activation: int = 1, m: int = 65, n: int = 168, k: int = 328):
    return [
        values(1, m, k),
        values(2, k, n),
        values(3, m, n),
        empty(m, n),
        empty(m, n),
        ring(2, 64, 144),
        linear_tiling(m, n, k, 64, 144, activation, saves=1, strides=(k, n), gradient=1),
    ]


def linear_turned():
    m, n, k = 65, 168, 328
    return [
        values(1, k, m),
        values(2, k, n),
        None,
        None,
        empty(m, n),
        ring(2, 32, 144),
        linear_tiling(m, n, k, 32, 144, strides=(m, n), turned=1),
    ]


def column_sums():
    rows, columns, stride, chunk = 75, 88, 96, 40
    return [
        values(1, rows, stride),
        empty(2, columns, dtype=FLOAT),
        struct.pack("<4q2i", rows, columns, stride, chunk, 48, 16),
    ]


def patch_embed():
    channels, height, width, patch, n = 3, 24, 20, 4, 40
    m, k = height // patch * (width // patch), channels * patch * patch
    strides = (channels * height * width, height * width, 0, width)
    grid = (1, height // patch, width // patch, channels, 1, patch, patch, 0)
    return [
        values(1, channels, height, width),
        values(2, n, k),
        values(3, n),
        values(4, 12, n),
        empty(m, n),
        ring(2, 16, 64),
        linear_tiling(m, n, k, 16, 64, activation=0, saves=0, pos_rows=12),
        struct.pack("<4q8i", *strides, *grid),
    ]


def attention(queries: int = 140, keys: int = 300):
    """Causal: with more queries than keys some rows see no key, and some blocks none."""
    heads, dim = 2, 72
    row, blocks = heads * dim, 2
    block = 128  # keys
    one_ring = 128 * (block * (2 * 4 + 3 * 2) + up(dim, 16) * 3 * 4)
    strides = (queries * row, row, dim, keys * row, row, dim, keys * row, row, dim, 0, one_ring)
    sizes = (1, heads, heads, queries, keys, queries, dim, dim, -1, 0, 0, 0)
    return [
        values(1, queries, heads, dim),
        values(2, keys, heads, dim),
        values(3, keys, heads, dim),
        None,
        None,
        None,
        empty(queries, heads, dim),
        empty(heads, queries, dtype=FLOAT),
        empty(blocks * one_ring, dtype=np.uint8, role="workspace"),
        struct.pack("<11q12ifi", *strides, *sizes, dim**-0.5, block),
    ]


def attention_backward_tiling(block_queries: int, block_keys: int, kinds: int) -> tuple[int, bytes]:
    """The bytes of a core's ring, and the tiling: causal, two heads that share keys and values."""
    tile, held = block_queries * block_keys, min(block_queries, block_keys)
    ring = tile * (3 * 2 * 4 + 3 * kinds * 2) + 3 * (up(DIM, 16) + up(DIM_V, 16)) * held * 4
    strides = [
        x for row, dim in ((2 * DIM, DIM), (DIM, DIM), (DIM_V, DIM_V)) for x in (0, row, dim)
    ]
    sizes = (1, 2, 1, QUERIES, KEYS, QUERIES, DIM, DIM_V, -1, 0, 0, 0)
    problem = struct.pack("<11q12ifi", *strides, 0, ring, *sizes, DIM**-0.5, block_keys)
    piece = 32
    return ring, problem + struct.pack("<3q2i", 0, 2 * DIM_V, DIM_V, block_queries, piece)


QUERIES, KEYS, DIM, DIM_V = 100, 90, 40, 24


def attention_backward(block_queries: int, block_keys: int, outputs: list):
    """Arguments of either kernel; weights are those of a row that sees a hundred keys."""
    stats = np.random.default_rng(5).normal(0, 1, (2, 2, QUERIES)).astype(FLOAT)
    stats[0] = -5
    ring, tiling = attention_backward_tiling(block_queries, block_keys, len(outputs))
    return [
        values(1, QUERIES, 2, DIM),
        values(2, KEYS, DIM),
        values(3, KEYS, DIM_V),
        values(4, QUERIES, 2, DIM_V),
        None,
        None,
        None,
        ("in", copied(stats)),
        *outputs,
        empty(2 * ring, dtype=np.uint8, role="workspace"),
        tiling,
    ]


def attention_dkdv():
    return attention_backward(48, 32, [empty(KEYS, DIM), empty(KEYS, DIM_V)])


def attention_dq():
    return attention_backward(32, 48, [empty(QUERIES, 2, DIM)])


def attention_delta():
    logs = np.random.default_rng(3).normal(0, 1, (2, QUERIES)).astype(FLOAT)
    logs[:, 7] = -np.inf
    return [
        values(1, QUERIES, 2, DIM_V),
        values(2, QUERIES, 2, DIM_V),
        ("in", copied(logs)),
        values(4, 2, QUERIES, dtype=FLOAT),
        empty(2, 2, QUERIES, dtype=FLOAT),
        attention_backward_tiling(48, 32, 2)[1],
    ]


CASES = {
    "linear_row": Case("mlp.cpp", "mmkern_linear_float16", "mix12", 2, partial(linear, 1, 40, 40)),
    "modulate_sums": Case(
        "modulate_backward.cpp",
        "mmkern_modulate_backward_float16",
        "aiv",
        4,
        partial(modulate_backward, stores=False),
    ),
    "attention_unseen": Case(
        "attention.cpp", "mmkern_attention_float16", "mix12", 2, partial(attention, 450, 60)
    ),
    "modulate": Case("modulate.cpp", "mmkern_modulate_float16", "aiv", 4, modulate),
    "modulate_backward": Case(
        "modulate_backward.cpp", "mmkern_modulate_backward_float16", "aiv", 4, modulate_backward
    ),
    "linear": Case("mlp.cpp", "mmkern_linear_float16", "mix12", 2, linear),
    "linear_normed_wide": Case(
        "mlp.cpp",
        "mmkern_linear_normed_float16",
        "mix12",
        2,
        partial(linear_normed, 20, 1, 800, 8),
    ),
    "linear_normed_tail": Case(
        "mlp.cpp",
        "mmkern_linear_normed_float16",
        "mix12",
        2,
        partial(linear_normed, 33, 9, 24, rms=True),
    ),
    "linear_normed_row": Case(
        "mlp.cpp", "mmkern_linear_normed_float16", "mix12", 2, partial(linear_normed, 1, 1, 40)
    ),
    "linear_normed": Case("mlp.cpp", "mmkern_linear_normed_float16", "mix12", 2, linear_normed),
    "linear_backward": Case(
        "linear_backward.cpp", "mmkern_linear_backward_float16", "mix12", 2, linear_backward
    ),
    "linear_backward_others": Case(
        "linear_backward.cpp",
        "mmkern_linear_backward_float16",
        "mix12",
        2,
        tuple(partial(linear_backward, activation, 20, 40, 24) for activation in (2, 3, 4, 5)),
    ),
    "linear_turned": Case(
        "linear_backward.cpp", "mmkern_linear_backward_float16", "mix12", 2, linear_turned
    ),
    "column_sums": Case("column_sums.cpp", "mmkern_column_sums_float16", "aiv", 4, column_sums),
    "patch_embed": Case("patch_embed.cpp", "mmkern_patch_embed_float16", "mix12", 2, patch_embed),
    "attention": Case("attention.cpp", "mmkern_attention_float16", "mix12", 2, attention),
    "attention_delta": Case(
        "attention_backward.cpp", "mmkern_attention_delta_float16", "aiv", 2, attention_delta
    ),
    "attention_dkdv": Case(
        "attention_backward.cpp", "mmkern_attention_dkdv_float16", "mix12", 2, attention_dkdv
    ),
    "attention_dq": Case(
        "attention_backward.cpp", "mmkern_attention_dq_float16", "mix12", 2, attention_dq
    ),
}
