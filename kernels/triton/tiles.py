"""The tile tables: {target: {kernel: [(limits, tile), ...]}}; tuning.py says how they are read.

Ours were chosen by reasoning and the compile gate (no spill, 128-bit accesses); what measurement
has improved is said beside the entry.
"""

from mmkern.kernels.triton import tiles_dense

# A row of a tile is a row of the tensor, so that a norm sees it whole; longer rows than the last
# entry's are the reference's.
WHOLE_ROWS = [
    ({"columns": 64}, {"ROWS": 32, "num_warps": 4}),
    ({"columns": 256}, {"ROWS": 8, "num_warps": 4}),
    ({"columns": 512}, {"ROWS": 4, "num_warps": 4}),
    ({"columns": 1024}, {"ROWS": 2, "num_warps": 4}),
    ({"columns": 2048}, {"ROWS": 1, "num_warps": 4}),
    ({"columns": 4096}, {"ROWS": 1, "num_warps": 8}),
    ({"columns": 8192}, {"ROWS": 1, "num_warps": 16}),
]
# KEEP: modulation and weights stay in registers over the rows of a program; for the longest rows
# there are too few of them, and for three sums over such rows of float32 none would do.
WHOLE_ROWS_BACKWARD = [
    ({"columns": 64}, {"ROWS": 16, "KEEP": True, "num_warps": 4}),
    ({"columns": 256}, {"ROWS": 4, "KEEP": True, "num_warps": 4}),
    ({"columns": 512}, {"ROWS": 2, "KEEP": True, "num_warps": 4}),
    ({"columns": 1024}, {"ROWS": 1, "KEEP": True, "num_warps": 4}),
    ({"columns": 2048}, {"ROWS": 1, "KEEP": True, "num_warps": 8}),
    ({"columns": 4096}, {"ROWS": 1, "KEEP": True, "num_warps": 16}),
    ({"columns": 8192, "itemsize": 2}, {"ROWS": 1, "KEEP": False, "num_warps": 16}),
]

# Streaming: 16 elements of each operand a thread, in two 128-bit accesses for the half types.
GPU = {
    "modulate": WHOLE_ROWS,
    "modulate_backward": WHOLE_ROWS_BACKWARD,
    "rms_norm": [*WHOLE_ROWS, ({"columns": 16384}, {"ROWS": 1, "num_warps": 16})],
    # with 4 warps and 8 the compiler held to 64 registers and spilled two
    "rms_norm_backward": [
        *WHOLE_ROWS_BACKWARD[:3],
        ({"columns": 1024}, {"ROWS": 1, "KEEP": True, "num_warps": 2}),
        ({"columns": 2048}, {"ROWS": 1, "KEEP": False, "num_warps": 8}),
        *WHOLE_ROWS_BACKWARD[5:],
        ({"columns": 8192}, {"ROWS": 1, "KEEP": False, "num_warps": 32}),
    ],
    "rope": [
        ({"head_dim": 128, "heads": 4}, {"TOKENS": 4, "HEADS": 4, "num_warps": 1}),
        ({"head_dim": 128}, {"TOKENS": 1, "HEADS": 16, "num_warps": 4}),
        ({"head_dim": 256}, {"TOKENS": 1, "HEADS": 8, "num_warps": 4}),
    ],
    "rope_backward": [
        ({"head_dim": 128, "heads": 4}, {"TOKENS": 8, "HEADS": 4, "num_warps": 1}),
        ({"head_dim": 128}, {"TOKENS": 8, "HEADS": 16, "num_warps": 4}),
        ({"head_dim": 256}, {"TOKENS": 8, "HEADS": 8, "num_warps": 4}),
    ],
    "sum_partials": [({}, {"ROWS": 64, "BLOCK": 32, "num_warps": 4})],
    "glu": [
        ({"columns": 256}, {"ROWS": 8, "BLOCK": 256, "num_warps": 4}),
        ({}, {"ROWS": 2, "BLOCK": 1024, "num_warps": 4}),
    ],
    "glu_backward": [
        ({"columns": 256}, {"ROWS": 4, "BLOCK": 256, "num_warps": 4}),
        ({}, {"ROWS": 1, "BLOCK": 1024, "num_warps": 4}),
    ],
}

# 192 KiB of on-chip memory a core; num_warps and num_stages mean nothing there.
ASCEND = {
    "modulate": [
        ({"columns": 256}, {"ROWS": 16}),
        ({"columns": 1024}, {"ROWS": 4}),
        ({"columns": 8192}, {"ROWS": 1}),
    ],
    "modulate_backward": [
        ({"columns": 256}, {"ROWS": 8, "KEEP": True}),
        ({"columns": 1024}, {"ROWS": 2, "KEEP": True}),
        ({"columns": 4096}, {"ROWS": 1, "KEEP": True}),
    ],
    "rms_norm": [
        ({"columns": 256}, {"ROWS": 16}),
        ({"columns": 1024}, {"ROWS": 4}),
        ({"columns": 8192}, {"ROWS": 1}),
    ],
    "rms_norm_backward": [
        ({"columns": 256}, {"ROWS": 16, "KEEP": True}),
        ({"columns": 1024}, {"ROWS": 4, "KEEP": True}),
        ({"columns": 4096}, {"ROWS": 1, "KEEP": True}),
    ],
    "rope": [({"head_dim": 256}, {"TOKENS": 8, "HEADS": 16})],
    "rope_backward": [({"head_dim": 256}, {"TOKENS": 8, "HEADS": 8})],
    "sum_partials": [({}, {"ROWS": 32, "BLOCK": 128})],
    "glu": [
        ({"columns": 256}, {"ROWS": 16, "BLOCK": 256}),
        ({}, {"ROWS": 1, "BLOCK": 4096}),
    ],
    "glu_backward": [
        ({"columns": 256}, {"ROWS": 8, "BLOCK": 256}),
        ({}, {"ROWS": 1, "BLOCK": 2048}),
    ],
}

# for sm_80 and sm_100 the compiler spills in the last entry, where for sm_90 it does not
SHORTER = {**GPU, "modulate_backward": WHOLE_ROWS_BACKWARD[:-1]}
SM80 = {
    **SHORTER,
    "rms_norm_backward": [*WHOLE_ROWS_BACKWARD, GPU["rms_norm_backward"][-1]],
}

# 64 threads a warp
GFX = {
    kernel: [(limits, {**tile, "num_warps": max(1, tile["num_warps"] // 2)}) for limits, tile in e]
    for kernel, e in GPU.items()
}

TABLES = {
    "sm_80": {**SM80, **tiles_dense.SM80},
    "sm_90": {**GPU, **tiles_dense.SM90},
    "sm_100": {**SHORTER, **tiles_dense.SM100},
    "gfx942": {**GFX, **tiles_dense.GFX942},
    "ascend910b": {**ASCEND, **tiles_dense.ASCEND},
}
