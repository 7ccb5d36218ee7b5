"""Tiles of the kernels around matrix products: attention, patch_embed, mlp.

head_dim is the padded one: 72 counts as 80. BM: queries or rows, BN: keys or columns, BK: the step
in depth. Chosen by the compile gate (no spill, matrix instructions) among the shapes that published
Triton kernels use; none of them was timed. Entries of a product differ by shape in BM and BN alone:
BK sets the order of a sum, which must not depend on how many rows there are.
"""


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


SM90 = {
    **_attention(
        [
            (True, _to(128, "few"), 64, 64, 4, 3),
            (True, _to(256, "few"), 64, 32, 8, 2),
            (True, _to(128, "packed"), 64, 64, 4, 3),
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
SM100 = {
    **SM90,
    **_attention(
        [],
        [(True, _to(128), 64, 32, 8, 2), (True, _to(256), 32, 32, 8, 1), *_FULL_DQ],
        [(True, _to(128), 32, 64, 8, 2), (True, _to(256), 32, 64, 8, 2), *_FULL_DKDV],
    ),
    "attention": [
        (limits, {**tile, "BN": min(tile["BN"], 64)}) for limits, tile in SM90["attention"]
    ],
}
# 164 KiB of shared memory, and operands of products in registers
SM80 = {
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
GFX942 = {
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
ASCEND = {
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
