"""The calls that the compile gate makes: each op's host functions on meta tensors.

CALLS: {op: function of (tables, dtype) that yields Call}. Together the calls of an op pick every
entry of its tile tables. Sampled: every entry in bfloat16 and float32 with the arguments that need
the most registers, float16 (which differs from bfloat16 in its conversions) and other arguments on
one entry each.
"""

from typing import NamedTuple

import gate_cases_dense
import torch

from mmkern.kernels import triton as kernels
from mmkern.ops._math import ACTIVATIONS

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32

#: Kernels that need not have 128-bit accesses both ways: a sum writes a row for many that it reads.
SCALAR = {"sum_partials", "attention_join"}


class Call(NamedTuple):
    """label: what of the call is not in the kernel's constexprs. bits: of the widest access."""

    label: str
    run: object
    bits: int = 128


def meta(*shape, dtype):
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _columns(table, kernel, dtype, largest=4304):
    """A length for each entry of a table by columns; for float16 for one entry."""
    found = [
        limits.get("columns", largest)
        for limits, _ in table[kernel]
        if dtype.itemsize <= limits.get("itemsize", 4)
    ]
    return found if dtype != F16 else [n for n in found if n <= 4304][-1:]


def _activations(columns, dtype):
    return ACTIVATIONS if dtype == BF16 and columns > 256 else ("silu",)


def _glu(table, dtype):
    for n in _columns(table, "glu", dtype):
        for name in _activations(n, dtype):
            x = meta(64, 2 * n, dtype=dtype)
            yield Call("packed", lambda x=x, a=name: kernels.host("glu")(x, None, a, True))
    for n in _columns(table, "glu_backward", dtype):
        for name in _activations(n, dtype):
            x, g = meta(64, 2 * n, dtype=dtype), meta(64, n, dtype=dtype)
            yield Call(
                "packed",
                lambda x=x, g=g, a=name: kernels.host("glu_backward")(g, x, None, a, True),
            )


def _modulate_arguments(kind, n, dtype):
    """(branch, gate, shift, scale, weight, bias, norm) of a kind of call."""
    x, c = meta(2, 64, n, dtype=dtype), meta(n, dtype=dtype)
    if kind == "affine":
        return None, None, None, None, c, c, "layer"
    per_token = kind == "per_token"
    m = x if per_token else meta(2, n, dtype=F32 if kind == "wan" else dtype)
    return x, m, m, m, None, None, "rms" if per_token else "layer"


def _modulate(table, dtype):
    for kernel in ("modulate", "modulate_backward"):
        columns = _columns(table, kernel, dtype)
        kinds = [("dit", n) for n in columns]
        if dtype == BF16:
            # the shortest rows, several to a tile, and the longest
            ends = (columns[0], columns[-1])
            kinds += [(k, n) for k in ("affine", "per_token", "wan") for n in ends]
        for kind, n in kinds:
            x = meta(2, 64, n, dtype=dtype)
            branch, *modulation, norm = _modulate_arguments(kind, n, dtype)
            if kernel == "modulate":
                args = (x, branch, *modulation, norm, 1e-6)
            else:
                # branch and gate; shift and scale; weight and bias
                mask = [True, *[kind != "affine"] * 4, *[kind == "affine"] * 2]
                grad_h = None if kind == "affine" else x
                args = (grad_h, x, x, branch, *modulation, norm, 1e-6, mask)
            yield Call(kind, lambda k=kernel, args=args: kernels.host(k)(*args))


def _rms_norm(table, dtype):
    for n in _columns(table, "rms_norm", dtype, 4096):
        x, w = meta(128, n, dtype=dtype), meta(n, dtype=dtype)
        args = (x, w, x, 1e-6, "after")
        yield Call("residual", lambda args=args: kernels.host("rms_norm")(*args))
    for n in _columns(table, "rms_norm_backward", dtype, 4096):
        x, w = meta(128, n, dtype=dtype), meta(n, dtype=dtype)
        args = (x, x, x, w, 1e-6, "after", [True, True])
        yield Call("residual", lambda args=args: kernels.host("rms_norm_backward")(*args))


def _rope(table, dtype):
    # (head_dim, heads, QK-norm, interleaved); half a head of 72 or 80 is not whole 16 bytes
    shapes = [(limits["head_dim"], limits.get("heads", 32), False, False)
              for limits, _ in table["rope"]]  # fmt: skip
    if dtype == BF16:
        shapes += [(72, 16, False, False), (80, 16, False, False), (128, 24, True, False),
                   (128, 24, True, True), (128, 4, True, False)]  # fmt: skip
    for dim, heads, norm, interleaved in shapes if dtype != F16 else shapes[:1]:
        q, k = meta(2, 64, heads, dim, dtype=dtype), meta(2, 64, heads // 4, dim, dtype=dtype)
        table_ = meta(64, dim, dtype=dtype)
        w = meta(dim, dtype=dtype) if norm else None
        # a few heads are less than 16 bytes for each of the 64 threads of an AMD warp
        bits = 64 if heads <= 4 or dim // 2 * dtype.itemsize % 16 else 128
        label = f"heads={heads}"
        rest = (table_, table_, w, w, interleaved, 1e-6)
        yield Call(label, lambda q=q, k=k, r=rest: kernels.host("rope")(q, k, *r), bits)
        mask = [True, True, norm, norm]
        args = (q, k, q, k, *rest, mask)
        yield Call(label, lambda args=args: kernels.host("rope_backward")(*args), bits)


def _dense(op):
    def calls(table, dtype):
        return (Call(*call) for call in gate_cases_dense.CALLS[op](table, dtype))

    return calls


CALLS = {
    "glu": _glu,
    "modulate": _modulate,
    "rms_norm": _rms_norm,
    "rope": _rope,
    **{op: _dense(op) for op in gate_cases_dense.CALLS},
}
