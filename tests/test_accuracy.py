"""Every op x backend x dtype x case against float64 by the accuracy rule, forward and backward."""

import contextlib

import pytest
from accuracy import DTYPES, check_forward, check_gradients
from cases import CASES

import mmkern
from mmkern import library

IDS = [case.id for case in CASES]


def demand_kernel(case, backend):
    """Where the op has a kernel, the reference running in its place is a failure."""
    if backend == "dispatched" and library.has_kernel(case.op, "cpu"):
        return mmkern.use("cpu")
    return contextlib.nullcontext()


def test_ids_are_unique():
    assert len(set(IDS)) == len(IDS)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_forward(case, dtype, backend):
    kwargs = case.make(dtype)
    with demand_kernel(case, backend):
        check_forward(case, kwargs)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_gradients(case, dtype, backend):
    kwargs = case.make(dtype)
    with demand_kernel(case, backend):
        check_gradients(case, kwargs)
