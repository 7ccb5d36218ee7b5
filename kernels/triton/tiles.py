"""The tile tables: {target: {kernel: [(limits, tile), ...]}}; tuning.py says how they are read.

First the kernels that stream rows, then those around matrix products, then TABLES, where they meet.
Chosen by reasoning and the compile gate (no spill, 128-bit accesses, matrix instructions) among the
shapes that published Triton kernels use; what measurement has improved is said beside the entry.
"""

# ---- kernels that stream rows: modulate, rms_norm, rope, glu -------------------------------------

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
STREAM = {
    "modulate": WHOLE_ROWS,
    "modulate_backward": WHOLE_ROWS_BACKWARD,
    "rms_norm": [*WHOLE_ROWS, ({"columns": 16384}, {"ROWS": 1, "num_warps": 16})],
    # with 4 warps and 8 the compiler held to 64 registers and spilled two
    "rms_norm_backward": [
        *WHOLE_ROWS_BACKWARD[:3],
        ({"columns": 1024}, {"ROWS": 1, "KEEP": True, "num_warps": 2}),
        ({"columns": 2048}, {"ROWS": 1, "KEEP": False, "num_warps": 8}),
        ({"columns": 4096, "itemsize": 2}, {"ROWS": 1, "KEEP": True, "num_warps": 16}),
        # with 16 warps Triton 3.6 holds to 64 registers, so that two blocks fit, and spills
        ({"columns": 4096}, {"ROWS": 1, "KEEP": True, "num_warps": 8}),
        WHOLE_ROWS_BACKWARD[6],
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
STREAM_ASCEND = {
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
STREAM_SM100 = {**STREAM, "modulate_backward": WHOLE_ROWS_BACKWARD[:-1]}
STREAM_SM80 = {
    **STREAM_SM100,
    "rms_norm_backward": [*WHOLE_ROWS_BACKWARD, STREAM["rms_norm_backward"][-1]],
}

# 64 threads a warp
STREAM_GFX = {
    kernel: [(limits, {**tile, "num_warps": max(1, tile["num_warps"] // 2)}) for limits, tile in e]
    for kernel, e in STREAM.items()
}

# ---- kernels around matrix products: attention, patch_embed, mlp ---------------------------------
# head_dim is the padded one: 72 counts as 80. BM: queries or rows, BN: keys or columns, BK: the
# step in depth. Entries of a product differ by shape in BM and BN alone: BK sets the order of a
# sum, which must not depend on how many rows there are.


def _attention(forward, dq, dkdv):
    """Entries of the three kernels, each (limits, BM, BN, warps, stages); 0 warps: not a GPU."""
    kernels = {"attention": forward, "attention_dq": dq, "attention_dkdv": dkdv}
    return {
        name: [({"half": half, **limits}, _tile(*tile)) for half, limits, *tile in entries]
        for name, entries in kernels.items()
    }


def _tile(bm, bn, warps, stages):
    tile = {"BM": bm, "BN": bn}
    return {**tile, "num_warps": warps, "num_stages": stages} if warps else tile


def _gemm(half, full):
    """Entries of the matrix products, (BM, BN, BK, warps, stages) for half types and float32."""
    names = ("linear", "linear_gradient", "patch_forward", "patch_grad_x", "patch_grad_weight")
    entries = []
    for is_half, (bm, bn, bk, *launch) in ((True, half), (False, full)):
        entries.append(({"half": is_half}, {**_tile(bm, bn, *launch), "BK": bk, "GROUP": 8}))
    return dict.fromkeys(names, entries)


def _to(head_dim, mode=None):
    return {"head_dim": head_dim} if mode is None else {"head_dim": head_dim, "mode": mode}


# Float32 products run on the ordinary units, whole rows of their operands in registers. Gradients
# of heads over 128 spill with every tile tried (16 to 64 rows, 4 to 16 warps): left out.
_FULL_FORWARD = [
    (False, _to(64), 32, 32, 4, 1),
    (False, _to(128), 32, 32, 8, 1),
    (False, _to(512), 16, 16, 8, 1),
]
_FULL_DQ = [(False, _to(64), 32, 32, 8, 1), (False, _to(128), 16, 16, 8, 1)]
_FULL_DKDV = [(False, _to(128), 16, 32, 8, 1)]
_FULL_GEMM = (64, 64, 16, 8, 2)


def _narrow(half):
    """The gradient of the erf GELU and addresses of pixels spill with 128 columns."""
    entries = _gemm(half, _FULL_GEMM)
    return {name: entries[name] for name in ("linear_gradient", "patch_grad_x")}


DENSE_SM90 = {
    **_attention(
        [
            (True, _to(128, "few"), 64, 64, 4, 3),
            (True, _to(256, "few"), 64, 32, 8, 2),
            (True, _to(128, "packed"), 64, 64, 4, 3),
            (True, _to(80), 128, 128, 8, 3),
            # 128 keys leave no register here, and Triton 3.6 spills
            (True, _to(96), 128, 64, 8, 3),
            (True, _to(128), 128, 128, 8, 3),
            (True, _to(192), 128, 64, 8, 3),
            (True, _to(256), 128, 32, 8, 2),
            (True, _to(512), 32, 16, 8, 1),
            *_FULL_FORWARD,
        ],
        [(True, _to(128), 128, 64, 8, 3), (True, _to(256), 64, 32, 8, 2), *_FULL_DQ],
        [(True, _to(128), 32, 128, 8, 2), (True, _to(256), 32, 64, 8, 2), *_FULL_DKDV],
    ),
    **_gemm((128, 128, 64, 8, 3), _FULL_GEMM),
    **_narrow((128, 64, 64, 8, 3)),
}
# the tiles of Hopper, but for 128 keys at a time, which spill when causal, and for the gradients
DENSE_SM100 = {
    **DENSE_SM90,
    **_attention(
        [],
        [(True, _to(128), 64, 32, 8, 2), (True, _to(256), 32, 32, 8, 1), *_FULL_DQ],
        [(True, _to(128), 32, 64, 8, 2), (True, _to(256), 32, 64, 8, 2), *_FULL_DKDV],
    ),
    "attention": [
        (limits, {**tile, "BN": min(tile["BN"], 64)}) for limits, tile in DENSE_SM90["attention"]
    ],
}
# 164 KiB of shared memory, and operands of products in registers
DENSE_SM80 = {
    **_attention(
        [
            (True, _to(256, "few"), 16, 32, 4, 2),
            (True, _to(128), 128, 64, 8, 2),
            (True, _to(192), 32, 32, 4, 2),
            (True, _to(256), 64, 32, 8, 2),
            (True, _to(512), 32, 16, 8, 1),
            *_FULL_FORWARD,
        ],
        [(True, _to(128), 64, 32, 4, 2), (True, _to(256), 32, 32, 8, 1), *_FULL_DQ],
        [(True, _to(128), 32, 64, 8, 2), (True, _to(256), 32, 32, 8, 1), *_FULL_DKDV],
    ),
    **_gemm((128, 128, 32, 8, 3), _FULL_GEMM),
    **_narrow((128, 64, 32, 8, 3)),
}
# 64 KiB of shared memory, 512 registers, waves of 64
DENSE_GFX = {
    **_attention(
        [
            (True, _to(256, "few"), 16, 32, 4, 1),
            (True, _to(128), 128, 64, 4, 1),
            (True, _to(256), 64, 32, 4, 1),
            (True, _to(512), 32, 16, 4, 1),
            *_FULL_FORWARD[:2],
            (False, _to(512), 16, 16, 4, 1),
        ],
        [(True, _to(128), 64, 32, 4, 1), (True, _to(256), 32, 32, 4, 1), *_FULL_DQ],
        [(True, _to(128), 32, 64, 4, 1), (True, _to(256), 32, 32, 4, 1), *_FULL_DKDV],
    ),
    **_gemm((128, 128, 32, 8, 2), _FULL_GEMM),
}
# on-chip buffers: 192 KiB for vectors, 128 KiB for the results of products
DENSE_ASCEND = {
    **_attention(
        [
            (True, _to(128, "few"), 16, 64, 0, 0),
            (True, _to(128, "padded"), 64, 32, 0, 0),
            (True, _to(128), 64, 64, 0, 0),
            (False, _to(128), 32, 32, 0, 0),
        ],
        [(True, _to(128), 64, 32, 0, 0), (False, _to(128), 32, 32, 0, 0)],
        [(True, _to(128), 64, 64, 0, 0), (False, _to(128), 32, 32, 0, 0)],
    ),
    **_gemm((128, 128, 64, 0, 0), (64, 64, 32, 0, 0)),
    # the position embedding needs room beside the sum
    "patch_forward": _gemm((64, 128, 64, 0, 0), (64, 64, 32, 0, 0))["patch_forward"],
}

TABLES = {
    "sm_80": {**STREAM_SM80, **DENSE_SM80},
    "sm_90": {**STREAM, **DENSE_SM90},
    "sm_100": {**STREAM_SM100, **DENSE_SM100},
    "gfx942": {**STREAM_GFX, **DENSE_GFX},
    "ascend910b": {**STREAM_ASCEND, **DENSE_ASCEND},
}
