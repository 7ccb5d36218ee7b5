"""The tile tables: {target: {kernel: [(limits, tile), ...]}}; tuning.py says how they are read.

Ours were chosen by reasoning and the compile gate (no spill, 128-bit accesses); what measurement
has improved is said beside the entry.
"""

# Streaming: 16 elements of each operand a thread, in two 128-bit accesses for the half types.
GPU = {
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

TABLES = {
    "sm_80": GPU,
    "sm_90": GPU,
    "sm_100": GPU,
    "gfx942": GPU,
    "ascend910b": ASCEND,
}
