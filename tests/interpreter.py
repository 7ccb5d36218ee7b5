"""Makes Triton's interpreter right for bfloat16.

The interpreter keeps bfloat16 as uint16 and computes on these integers: products, sums and
comparisons are wrong, and float32 is cut off, not rounded. ``correct_bfloat16`` widens operands to
float32 before and rounds results after each operation, as hardware does. Triton reads
TRITON_INTERPRET when it is imported, so these tests have a process of their own: make triton-test.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle


def _is_bf16(handle):
    kind = getattr(handle.dtype, "scalar", handle.dtype)
    return kind == tl.bfloat16 and handle.data.dtype == np.uint16


def _float32(handle):
    bits = handle.data.astype(np.uint32) << np.uint32(16)
    return Handle(bits.view(np.float32), tl.float32)


def _bfloat16(values):
    """float32 values rounded to nearest even."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return Handle(np.where(np.isnan(values), np.uint16(0x7FC0), rounded), tl.bfloat16)


def _wide(arg):
    return _float32(arg) if isinstance(arg, Handle) and _is_bf16(arg) else arg


def _through_float32(original):
    def run(self, *args, **kwargs):
        if not any(isinstance(a, Handle) and _is_bf16(a) for a in args):
            return original(self, *args, **kwargs)
        result = original(self, *map(_wide, args), **kwargs)
        return result if result.data.dtype == np.bool_ else _bfloat16(result.data)

    return run


def _dot(self, a, b, d, *args, **kwargs):
    # float64: in float32 the error of a long sum would be that of the BLAS at hand
    a, b = (_wide(t).data.astype(np.float64) for t in (a, b))
    return Handle((np.matmul(a, b) + d.data).astype(d.data.dtype), d.dtype.scalar)


def _cast(original):
    def run(self, source, target, *rounding):
        to = target.scalar
        if _is_bf16(source):
            source = _float32(source)
            if to == tl.float32:
                return source
        if to == tl.bfloat16:
            return _bfloat16(source.data.astype(np.float32))
        return original(self, source, target, *rounding)

    return run


_ARITHMETIC = ("binary_op", "unary_op", "create_fma", "create_erf", "create_rsqrt")
_CASTS = ("cast_impl", "create_fp_to_fp")
_STOCK = {name: getattr(Builder, name) for name in (*_ARITHMETIC, *_CASTS, "create_dot")}


def correct_bfloat16():
    """Patch the interpreter of this process; again, and nothing changes."""
    stock_bfloat16()
    for name in _ARITHMETIC:
        setattr(Builder, name, _through_float32(_STOCK[name]))
    for name in _CASTS:
        setattr(Builder, name, _cast(_STOCK[name]))
    Builder.create_dot = _dot


def stock_bfloat16():
    """The interpreter as Triton ships it."""
    for name, method in _STOCK.items():
        setattr(Builder, name, method)
