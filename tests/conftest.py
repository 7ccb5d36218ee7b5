"""Shared fixtures: uninitialised memory is NaN, so an element that no kernel writes shows."""

import importlib.util
import os

import pytest
import torch

import mmkern
from mmkern import library

# Triton reads the variable once, when it is imported: these tests have a process of their own
interpreting = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if interpreting else ["test_triton*.py"]
if importlib.util.find_spec("ascendnpuir") is None:
    collect_ignore_glob.append("test_ascend.py")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill every torch.empty, the kernels' outputs among them, with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["dispatched", "fallback"])
def backend(request, monkeypatch):
    """The kernel of this device, or the raw reference that serves where there is none."""
    if request.param == "fallback":
        for op in library.OPS.values():
            module = __import__(op.reference.__module__, fromlist=["_"])
            monkeypatch.setattr(module, "_forward", module.reference)
            monkeypatch.setattr(module, "_backward", module.backward_reference)
            monkeypatch.setattr(op, "forward", module.reference)
    return request.param


@pytest.fixture
def native():
    """Skip where the CPU kernels are not built."""
    if library.BACKENDS["cpu"].missing:
        pytest.skip(library.BACKENDS["cpu"].missing)
    return mmkern.info()
