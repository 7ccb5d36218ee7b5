"""The Triton kernels in Triton's interpreter, by the accuracy rule, forward and backward.

Cases: all of mmkern/cases.py whose tensors have at most MOST elements, a launch taking 3 ms and a
program about as long.
"""

import math

import pytest
import torch
import triton
import triton.language as tl
from accuracy import DTYPES, check_forward, check_gradients
from cases import CASES, T
from interpreter import correct_bfloat16, stock_bfloat16
from on_triton import Guards, run_ops_on_triton

from mmkern.kernels import triton as kernels

MOST = 16384
SMALL = [
    case
    for case in CASES
    if case.op in kernels.OPS
    and all(math.prod(v.shape) <= MOST for v in case.args.values() if isinstance(v, T))
]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
cases = pytest.mark.parametrize("case", SMALL, ids=lambda c: c.id)


@triton.jit
def _bf16_kernel(A, B, SUM, PRODUCT):
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    a, b = tl.load(A + at), tl.load(B + at)
    tl.store(SUM + at, a + b)
    tl.store(PRODUCT + at, tl.dot(a, b, input_precision="ieee").to(tl.bfloat16))


def _bf16_errors():
    a, b = torch.randn(2, 16, 16).to(torch.bfloat16)
    total, product = torch.empty_like(a), torch.empty_like(a)
    _bf16_kernel[(1,)](a, b, total, product)
    wanted = (a.double() + b.double(), a.double() @ b.double())
    return [
        float((x.double() - w).abs().max()) for x, w in zip((total, product), wanted, strict=True)
    ]


@pytest.fixture(scope="module")
def stock_errors():
    """What the interpreter as shipped makes of bfloat16; corrected from here on."""
    stock_bfloat16()
    errors = _bf16_errors()
    correct_bfloat16()
    return errors


@pytest.fixture(autouse=True)
def interpreted(stock_errors, monkeypatch):
    run_ops_on_triton(monkeypatch)


def test_bfloat16_is_right_here_and_not_in_the_stock_interpreter(stock_errors):
    assert not all(error < 1 for error in stock_errors)
    assert all(error < 0.05 for error in _bf16_errors())


@dtypes
@cases
def test_forward(case, dtype):
    guards = Guards()
    check_forward(case, {n: guards(v) for n, v in case.make(dtype).items()})
    guards.check()


@dtypes
@cases
def test_gradients(case, dtype):
    guards = Guards()
    check_gradients(case, {n: guards(v) for n, v in case.make(dtype).items()})
    guards.check()
