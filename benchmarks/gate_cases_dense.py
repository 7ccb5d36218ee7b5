"""The compile gate's calls of attention, patch_embed and mlp; gate_cases.py says what for."""

import torch

from mmkern.kernels import triton as kernels
from mmkern.ops.mlp import MLP_ACTIVATIONS

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def _meta(*shape, dtype):
    return torch.empty(shape, dtype=dtype, device="meta")


def _entries(table, kernel, dtype):
    """The limits of the entries of a kernel that the dtype can pick."""
    half = dtype != F32
    return [limits for limits, _ in table[kernel] if limits.get("half", half) == half]


def _dims(limits, dtype):
    """Head dimensions (of q, of v) that an entry serves: the widest, and those with a tail."""
    widest = limits["head_dim"]
    dims = [(widest, widest)]
    if dtype == BF16:
        wide = [(192, 192), (192, 128)]
        dims += {64: [(40, 40)], 128: [(64, 64), (72, 72), (96, 96)], 192: wide[1:], 256: wide}.get(
            widest, []
        )
    return dims if dtype != F16 else dims[:1]


def _tensors(mode, dim, dim_v, dtype):
    """(q, k, v, key_padding_mask, cu_seqlens) of a mode of the table, or with padding."""
    if mode == "packed":
        cu = torch.empty(9, dtype=torch.int32, device="meta")
        q, k, v = (_meta(4096, 16, d, dtype=dtype) for d in (dim, dim, dim_v))
        return q, k, v, None, cu
    queries, group = (1, 4) if mode == "few" else (4096, 1)
    q = _meta(2, queries, 16, dim, dtype=dtype)
    k, v = (_meta(2, 4096, 16 // group, d, dtype=dtype) for d in (dim, dim_v))
    padding = _meta(2, 4096, dtype=torch.bool) if mode == "padded" else None
    return q, k, v, padding, None


#: The range that a query sees: (causal, left, right).
RANGES = {"full": (False, -1, -1), "causal": (True, -1, -1), "window": (False, 1024, 1024)}


def _attention(table, dtype):
    most = dtype == BF16
    ranges = ("full", "causal") if most else ("causal",)
    for run, kernel in ((_forward, "attention"), (_backward, "attention_dq")):
        calls = [
            (limits.get("mode", "batched"), *dims, seen)
            for limits in _entries(table, kernel, dtype)
            for dims in _dims(limits, dtype)
            for seen in (ranges if run is _forward or dims[0] <= 128 else ("causal",))
        ]
        if most:
            calls += [("packed", 80, 80, seen) for seen in ranges]
            calls += [("padded", 72, 72, "full"), ("batched", 128, 128, "window")]
        for mode, dim, dim_v, seen in calls:
            yield f"{mode} {seen}", lambda r=run, a=(mode, dim, dim_v, dtype, seen): r(*a)


def _forward(mode, dim, dim_v, dtype, seen):
    q, k, v, padding, cu = _tensors(mode, dim, dim_v, dtype)
    args = (padding, cu, cu, 4096, 4096, *RANGES[seen], 0.1)
    return kernels.host("attention")(q, k, v, *args)


def _backward(mode, dim, dim_v, dtype, seen):
    q, k, v, padding, cu = _tensors(mode, dim, dim_v, dtype)
    lse = _meta(*((16, 4096) if cu is not None else (2, 16, 4096)), dtype=F32)
    args = (padding, cu, cu, 4096, 4096, *RANGES[seen], 0.1)
    return kernels.host("attention_backward")(v, None, q, k, v, v, lse, *args)


def _mlp(table, dtype):
    names = MLP_ACTIVATIONS if dtype == BF16 else ("gelu",)
    for hidden in {limits.get("columns", 4608) for limits in _entries(table, "linear", dtype)}:
        x, w1 = _meta(1024, 4608, dtype=dtype), _meta(hidden, 4608, dtype=dtype)
        b, w2 = _meta(hidden, dtype=dtype), _meta(hidden, hidden, dtype=dtype)
        z = _meta(1024, hidden, dtype=dtype)
        rest = ("none", 1e-6, 1)
        for name in names:
            args = (x, None, w1, b, w2, b, None, None, name, *rest, True)
            yield name, lambda args=args: kernels.host("mlp")(*args)
            args = (z, x, None, w1, w2, None, None, z, name, *rest, [True] * 7)
            yield name, lambda args=args: kernels.host("mlp_backward")(*args)


def _patch_embed(table, dtype):
    # ViT, SigLIP (a patch of 14 pixels, cropped), Wan, and flattened patches of Qwen-VL
    shapes = [
        ((8, 3, 224, 224), (1024, 3, 16, 16)),
        ((8, 3, 384, 384), (1152, 3, 14, 14)),
        ((1, 16, 21, 60, 104), (1536, 16, 1, 2, 2)),
        ((4096, 1536), (1152, 3, 2, 16, 16)),
    ]
    for size, kernel in shapes if dtype == BF16 else shapes[:1]:
        x, w = _meta(*size, dtype=dtype), _meta(*kernel, dtype=dtype)
        b = _meta(kernel[0], dtype=dtype)
        y = kernels.host("patch_embed")
        label = "x".join(map(str, kernel))
        tokens = size[0] if len(size) == 2 else _tokens(size, kernel)
        out = (tokens, kernel[0]) if len(size) == 2 else (size[0], tokens, kernel[0])
        pos = _meta(*out[-2:], dtype=F32)
        yield label, lambda x=x, w=w, b=b, pos=pos, y=y: y(x, w, b, pos)
        args = (_meta(*out, dtype=dtype), x, w, pos, [True] * 4)
        yield label, lambda args=args: kernels.host("patch_embed_backward")(*args)


def _tokens(size, kernel):
    tokens = 1
    for n, k in zip(size[2:], kernel[2:], strict=True):
        tokens *= n // k
    return tokens


CALLS = {"attention": _attention, "mlp": _mlp, "patch_embed": _patch_embed}
