"""torch.library.opcheck on every raw op, forward and backward, with the arguments of real calls."""

import pytest
import torch
from accuracy import cotangents, forward, gradients
from cases import CASES

import mmkern
from mmkern import library


def recorded(case, dtype, monkeypatch):
    """[(overload, args)] of the raw ops that one forward and backward of the case calls."""
    calls = []

    def spy(overload):
        def run(*args):
            calls.append((overload, tuple(detached(a) for a in args)))
            return overload(*args)

        return run

    op = library.OPS[case.op]
    module = __import__(op.reference.__module__, fromlist=["_"])
    for name in ("_forward", "_backward"):
        monkeypatch.setattr(module, name, spy(getattr(module, name)))
    kwargs = case.make(dtype)
    gradients(mmkern, case, kwargs, cotangents(forward(mmkern, case, kwargs)))
    return calls


def detached(value):
    return value.detach() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_opcheck(case, dtype, monkeypatch):
    calls = recorded(case, dtype, monkeypatch)
    assert [overload._schema.name for overload, _ in calls] == [
        f"mmkern::{case.op}",
        f"mmkern::{case.op}_backward",
    ]
    # AOT dispatch traces the op several times over; the smoke cases are enough for it
    utils = ["test_schema", "test_faketensor"]
    utils += ["test_autograd_registration", "test_aot_dispatch_dynamic"] * ("smoke" in case.tags)
    for overload, args in calls:
        torch.library.opcheck(overload, args, test_utils=utils)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_outputs_are_fresh_and_contiguous(case, monkeypatch):
    for overload, args in recorded(case, torch.float32, monkeypatch):
        outs = overload(*args)
        outs = outs if isinstance(outs, tuple) else (outs,)
        storages = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for out in outs:
            assert out.is_contiguous()
            if out.numel():
                assert out.untyped_storage().data_ptr() not in storages
                storages.add(out.untyped_storage().data_ptr())
