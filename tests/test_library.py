"""The dispatcher as the registry: what runs, why, and who may force it."""

import logging
import threading

import pytest
import torch

import mmkern
from mmkern import library

X = torch.randn(2, 4, 8)
OTHERS = {"empty_cache", "info", "patch", "reference", "unpatch", "use"}
FUNCTIONS = [name for name in mmkern.__all__ if name not in OTHERS]


def test_info_lists_every_op_and_backend():
    table = mmkern.info()
    assert set(table) == {"attention", "glu", "mlp", "modulate", "patch_embed", "rms_norm", "rope"}
    for backends in table.values():
        assert backends["reference"] == (True, "CompositeExplicitAutograd")
        available, reason = backends["cpu"]
        assert available or "the reference runs" in reason or "not built" in reason


def test_info_agrees_with_what_runs(native):
    for op, backends in native.items():
        available, _ = backends["cpu"]
        assert available == library.has_kernel(op, "cpu")


def test_missing_backend_says_why(monkeypatch):
    monkeypatch.setitem(library.BACKENDS, "npu", library.Backend("npu", "CANN is absent"))
    assert mmkern.info()["modulate"]["npu"] == (False, "CANN is absent")
    with pytest.raises(ValueError, match="'npu' is not available: CANN is absent"):
        mmkern.use("npu")


def test_missing_triton_says_why(monkeypatch):
    def fail(name):
        raise ImportError("no such file")

    monkeypatch.setattr(library.importlib, "import_module", fail)
    monkeypatch.setattr(library, "BACKENDS", {})
    library.load_triton()
    wanted = "the Triton kernels are not installed (no such file)"
    assert {b.missing for b in library.BACKENDS.values()} == {wanted}


def test_an_attached_kernel_leaves_cases_to_the_reference(caplog):
    name = "attach_probe"
    library.define(f"{name}(Tensor x) -> Tensor", lambda x: x + 1)
    kernel = lambda x: x * 2 if x.dtype == torch.float32 else NotImplemented  # noqa: E731
    library.attach(name, kernel, "CPU")
    probe = torch.ops.mmkern.attach_probe
    assert torch.equal(probe(X), X * 2)
    with caplog.at_level(logging.INFO, logger="mmkern"):
        assert torch.equal(probe(X.double()), X.double() + 1)
    assert "the kernel does not take this case" in caplog.messages[0]
    with mmkern.use("cpu"), pytest.raises(RuntimeError, match="demands a kernel"):
        probe(X.double())


def test_missing_extension_says_why(monkeypatch):
    def fail(name):
        raise ImportError("no such file")

    monkeypatch.setattr(library.importlib, "import_module", fail)
    monkeypatch.setattr(library, "BACKENDS", {})
    library.load_native()
    assert library.BACKENDS["cpu"].missing == "the C++ extension is not built (no such file)"


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend is 'gpu'; wanted one of 'reference', 'cpu'"):
        mmkern.use("gpu")


def test_use_reference_is_plain_autograd():
    x = X.clone().requires_grad_()
    assert mmkern.modulate(x).grad_fn.name() == "_ModulateBackward"
    with mmkern.use("reference"):
        assert mmkern.modulate(x).grad_fn.name() == "NativeLayerNormBackward0"
    assert mmkern.reference.modulate(x).grad_fn.name() == "NativeLayerNormBackward0"
    assert mmkern.modulate(x).grad_fn.name() == "_ModulateBackward"


def test_use_is_restored_after_an_error_and_nests():
    with pytest.raises(KeyError), mmkern.use("reference"):
        raise KeyError
    assert library._state.forced is None
    with mmkern.use("reference"):
        with mmkern.use("reference"):
            pass
        assert library._state.forced == "reference"


def test_use_is_of_this_thread_alone():
    seen = []
    with mmkern.use("reference"):
        thread = threading.Thread(target=lambda: seen.append(library._state.forced))
        thread.start()
        thread.join()
    assert seen == [None]


def test_demanding_a_kernel_refuses_the_reference(native):
    with (
        mmkern.use("cpu"),
        pytest.raises(RuntimeError, match=r"mmkern::modulate on cpu torch\.float64: the reference"),
    ):
        mmkern.modulate(X.double())


def test_log_says_once_when_the_reference_ran(caplog, monkeypatch):
    monkeypatch.setattr(library, "_reported", set())
    with caplog.at_level(logging.INFO, logger="mmkern"):
        mmkern.modulate(X.double())
        mmkern.modulate(X.double())
    assert len(caplog.messages) == 1
    assert "mmkern::modulate on cpu torch.float64: the reference ran" in caplog.messages[0]


def test_no_log_unless_asked(caplog):
    mmkern.modulate(X.double())
    assert not caplog.messages


def test_reference_has_the_same_functions():
    for name in FUNCTIONS:
        assert getattr(mmkern.reference, name).__doc__ == getattr(mmkern, name).__doc__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_give_shapes_and_errors(name):
    doc = getattr(mmkern, name).__doc__
    assert "Args:" in doc and "Returns:" in doc and "Raises:" in doc


def test_ops_run_on_the_meta_device():
    out = mmkern.attention(*(torch.empty(2, 5, 4, 8, device="meta") for _ in range(3)))
    assert out.shape == (2, 5, 4, 8) and out.device.type == "meta"


def test_compile_fuses_a_light_op_without_a_kernel(monkeypatch):
    op = library.OPS["glu"]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph

    for kernels in (set(), {"cpu"}):
        torch._dynamo.reset()
        monkeypatch.setattr(op, "kernels", kernels)
        torch.compile(mmkern.glu, backend=backend)(X)
    assert "silu" in graphs[0] and "mmkern" not in graphs[0]
    assert "mmkern.glu" in graphs[1]
