"""Tiles of the kernels around matrix products: attention, patch_embed, mlp.

head_dim is the padded one: 72 counts as 80. BM: queries, BN: keys. Chosen by the compile gate (no
spill, matrix instructions) among the shapes that published Triton kernels use.
"""


def _tile(bm, bn, warps, stages):
    return {"BM": bm, "BN": bn, "num_warps": warps, "num_stages": stages}


ATTENTION_SM90 = {
    "attention": [
        ({"half": True, "mode": "few", "head_dim": 128}, _tile(64, 64, 4, 3)),
        ({"half": True, "mode": "few", "head_dim": 256}, _tile(64, 64, 4, 2)),
        ({"half": True, "mode": "packed", "head_dim": 128}, _tile(64, 64, 4, 3)),
        ({"half": True, "head_dim": 128}, _tile(128, 128, 8, 3)),
        ({"half": True, "head_dim": 256}, _tile(128, 64, 8, 2)),
        ({"half": True, "head_dim": 512}, _tile(64, 32, 8, 2)),
        ({"half": False, "head_dim": 128}, _tile(32, 32, 4, 2)),
        ({"half": False, "head_dim": 512}, _tile(16, 32, 4, 1)),
    ],
    "attention_dq": [
        ({"half": True, "head_dim": 128}, _tile(128, 64, 8, 2)),
        ({"half": True, "head_dim": 256}, _tile(64, 32, 8, 2)),
        ({"half": False, "head_dim": 256}, _tile(32, 32, 4, 1)),
    ],
    "attention_dkdv": [
        ({"half": True, "head_dim": 128}, _tile(64, 128, 8, 2)),
        ({"half": True, "head_dim": 256}, _tile(32, 64, 8, 2)),
        ({"half": False, "head_dim": 256}, _tile(32, 32, 4, 1)),
    ],
}


def _gemm(bm, bn, bk, warps, stages):
    return {"BM": bm, "BN": bn, "BK": bk, "GROUP": 8, "num_warps": warps, "num_stages": stages}


_PLAIN = [
    ({"half": True}, _gemm(128, 128, 64, 8, 3)),
    ({"half": False}, _gemm(64, 64, 32, 4, 2)),
]
GEMM_SM90 = {
    name: _PLAIN
    for name in (
        "linear",
        "linear_gradient",
        "patch_forward",
        "patch_grad_x",
        "patch_grad_weight",
    )
}
SM90 = {**ATTENTION_SM90, **GEMM_SM90}
SM80 = SM100 = GFX942 = ASCEND = SM90
