"""The Triton kernels as triton-ascend lowers them, run on the CPU, by the accuracy rule.

In .venv-ascend alone: make ascend-check. Tiles are those of Ascend 910B.
"""

import contextlib
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from accuracy import check_forward, check_gradients, forward
from cases import CASES, T
from on_triton import WIDEST, Guards, run_ops_on_triton
from one_by_one import OneByOne
from triton.runtime.jit import JITFunction

import mmkern
from mmkern.kernels import triton as kernels
from mmkern.kernels.triton import tuning

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import ascend_compiler
import ascend_cpu

MOST = 1 << 17
#: Cases with long float32 sums, which are held to eager's sums in the order of the loops here too:
#: of 1536 terms that order alone has four times the error (1.0e-5 and 2.5e-6).
LONG_SUMS = {
    "gated_modulate-wide_c1152", "mlp-long_k", "modulate-large_mean", "modulate-wide_c5120",
    "patch_embed-qwen_flat", "rms_norm-wide",
}  # fmt: skip
#: The widest head that Ascend's tile table has, and rows whose gradients are the reference's.
WIDEST_HEAD = 128
WIDEST_ROWS = {**WIDEST, ("modulate_backward", torch.bfloat16): 4096}
FULL = os.environ.get("MMKERN_ASCEND_FULL") == "1"


def _orders(case, dtype):
    long = case.id in LONG_SUMS and dtype == torch.float32
    return (contextlib.nullcontext, OneByOne) if long else (contextlib.nullcontext,)


def _head(case):
    return max(case.args[name].shape[-1] for name in "qv")


CHOSEN = [
    case
    for case in CASES
    if case.op in kernels.OPS
    and (FULL or "smoke" in case.tags)
    and not (case.op == "attention" and _head(case) > WIDEST_HEAD)
    and all(math.prod(v.shape) <= MOST for v in case.args.values() if isinstance(v, T))
]
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)
cases = pytest.mark.parametrize("case", CHOSEN, ids=lambda c: c.id)


@pytest.fixture(autouse=True)
def lowered(monkeypatch):
    if ascend_cpu.missing():
        pytest.fail(ascend_cpu.missing())
    ascend_compiler.install(to_hivm=False)
    monkeypatch.setattr(JITFunction, "run", ascend_cpu.launcher(JITFunction.run))
    run_ops_on_triton(monkeypatch, WIDEST_ROWS)
    with tuning.use_target("ascend910b"):
        yield


@dtypes
@cases
def test_forward(case, dtype):
    guards = Guards()
    kwargs = {n: guards(v) for n, v in case.make(dtype).items()}
    check_forward(case, kwargs, _orders(case, dtype))
    guards.check()


@dtypes
@cases
def test_gradients(case, dtype):
    guards = Guards()
    kwargs = {n: guards(v) for n, v in case.make(dtype).items()}
    check_gradients(case, kwargs, _orders(case, dtype))
    guards.check()


def test_wider_heads_are_the_references():
    q, k, v = torch.randn(3, 1, 4, 2, WIDEST_HEAD + 1)
    args = (q, k, v, None, None, None, 0, 0, False, -1, -1, 1.0)
    assert kernels.host("attention")(*args) is NotImplemented


def test_a_long_sum_has_the_bits_of_one_that_adds_term_by_term():
    """Why ORDERS has a second one."""
    (case,) = (case for case in CASES if case.id == "patch_embed-qwen_flat")
    kwargs = case.make(torch.float32)
    weight = kwargs["weight"].flatten(1).T
    total = torch.zeros(len(kwargs["x"]), weight.shape[1])
    for column, row in zip(kwargs["x"].T, weight, strict=True):
        total += column[:, None] * row
    assert torch.equal(forward(mmkern, case, kwargs)[0], total + kwargs["bias"])
