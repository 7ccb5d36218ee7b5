"""Defines an op once, attaches its kernels, and says which one runs and why.

The torch dispatcher is the only registry. An op's plain-PyTorch reference is registered at
CompositeExplicitAutograd, so it serves every device and case that has no kernel of its own, and the
meta device. Kernels attach to a dispatch key (the CPU ones from C++, TORCH_LIBRARY_IMPL).
"""

import functools
import importlib
import logging
import os
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger("mmkern")
if os.environ.get("MMKERN_LOG"):
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)

_lib = torch.library.Library("mmkern", "DEF")
_functorch_active = torch._C._are_functorch_transforms_active


class Backend(NamedTuple):
    """The device that kernels of one kind run on, and why there are none if there are none."""

    device: str
    missing: str | None
    raw_ops: frozenset | None = None  # where two backends share a device; None: all of it


class _State(threading.local):
    forced: str | None = None


OPS: dict[str, "Op"] = {}
BACKENDS: dict[str, Backend] = {}
_state = _State()
_reported: set[tuple] = set()
_fallbacks: dict[str, object] = {}


def define(schema, reference):
    """Define raw op ``mmkern::<schema>`` with its reference; returns its callable overload."""
    name = schema.partition("(")[0]
    _lib.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    def fallback(*args):
        _report(name, args)
        return reference(*args)

    _lib.impl(name, fallback, "CompositeExplicitAutograd")
    _fallbacks[name] = fallback
    return getattr(torch.ops.mmkern, name).default


def attach(name, kernel, key):
    """Register a kernel of raw op ``name`` at a dispatch key.

    Where ``kernel`` returns NotImplemented, the case is one for the reference.
    """

    def run(*args):
        result = kernel(*args)
        return _fallbacks[name](*args) if result is NotImplemented else result

    _lib.impl(name, run, key)


class Op:
    """A public op: raw forward, plain reference, and the autograd.Function between them.

    The Function stands outside the dispatcher: that halves the cost of a call against
    ``torch.library.register_autograd``. ``light``: where a device has no kernel for the op,
    torch.compile traces its reference, so that Inductor fuses it with its neighbours.
    """

    def __init__(self, forward, reference, function, *, light=False):
        self.name = forward._schema.name.removeprefix("mmkern::")
        self.forward = forward
        self.reference = reference
        self.function = function
        self.light = light
        self.kernels = set()  # device types with a kernel: dynamo can read this, not the dispatcher
        OPS[self.name] = self

    def __call__(self, *args):
        if _state.forced == "reference" or _functorch_active() or self._composed(args[0]):
            return self.reference(*args)
        if torch.is_grad_enabled():
            for arg in args:
                if isinstance(arg, Tensor) and arg.requires_grad:
                    if torch.compiler.is_compiling():
                        args = _distinct(args)
                    return self.function.apply(*args)
        return self.forward(*args)

    def _composed(self, tensor):
        """Whether other machinery is to see the reference's own operations: dynamo, or DTensor."""
        if type(tensor) is not Tensor and hasattr(tensor, "device_mesh"):
            return True
        return (
            self.light and torch.compiler.is_compiling() and tensor.device.type not in self.kernels
        )


def _distinct(args):
    """args with a repeated tensor as a view: dynamo traces no Function that gets one twice."""
    seen, out = [], []
    for arg in args:
        if isinstance(arg, Tensor):
            arg = arg.view_as(arg) if any(arg is s for s in seen) else arg
            seen.append(arg)
        out.append(arg)
    return out


def add_backend(name, device, missing=None, raw_ops=None):
    """Announce a backend whose kernels run on ``device``; missing: why it has none."""
    BACKENDS[name] = Backend(device, missing, raw_ops)
    for op in OPS.values():
        if has_kernel(op.name, name):
            op.kernels.add(device)


class use:
    """Context manager: run every mmkern op of this thread on one backend.

    ``use("reference")`` is plain eager PyTorch with its own autograd. ``use("cpu")`` (or any other
    backend of :func:`info`) lets the dispatcher choose as ever, but raises RuntimeError where the
    reference would have run instead of that backend's kernel. DTensors are the reference's always.

    Raises:
        ValueError: the backend does not exist, or has no kernels here (the reason is given).
    """

    def __init__(self, backend):
        if backend != "reference":
            if backend not in BACKENDS:
                raise ValueError(
                    f"mmkern.use: backend is {backend!r}; wanted one of "
                    f"{', '.join(map(repr, ['reference', *BACKENDS]))}"
                )
            if BACKENDS[backend].missing:
                raise ValueError(
                    f"mmkern.use: backend {backend!r} is not available: {BACKENDS[backend].missing}"
                )
        self.backend = backend

    def __enter__(self):
        self.previous = _state.forced
        _state.forced = self.backend

    def __exit__(self, *exc):
        _state.forced = self.previous


def plain(function):
    """The public function with every op in it run as plain PyTorch."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        with use("reference"):
            return function(*args, **kwargs)

    return run


def load_native():
    """Attach the C++ kernels of the CPU, or note why there are none."""
    try:
        importlib.import_module("mmkern._C")
    except ImportError as error:
        add_backend("cpu", "cpu", f"the C++ extension is not built ({error})")
    else:
        add_backend("cpu", "cpu")


def empty_cache():
    """Free the memory that the CPU kernels keep of large outputs, to be lent to the next ones.

    At most 256 MiB are kept, or as many as the environment variable ``MMKERN_CACHE_MB`` said when
    the first large output (from 4 MiB on) was made; with 0, none. An accelerator's memory is
    torch's to free: ``torch.accelerator.empty_cache()``.
    """
    native = sys.modules.get("mmkern._C")
    if native is not None:
        native.empty_cache()


#: the raw ops with an AscendC kernel: csrc/ascendc/device_npu.cpp
ASCENDC_OPS = frozenset(
    {
        "attention",
        "attention_backward",
        "mlp",
        "mlp_backward",
        "modulate",
        "modulate_backward",
        "patch_embed",
        "patch_embed_backward",
    }
)


def load_ascendc():
    """Attach the AscendC kernels to NPUs, or note why there are none."""
    path = Path(__file__).parent / "_ascendc.so"
    missing = None
    if not path.exists():
        missing = "the AscendC kernels are not built (setup.py builds them where CANN is set up)"
    elif getattr(torch, "npu", None) is None or torch.npu.device_count() == 0:
        missing = "torch sees no npu device"
    else:
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            missing = f"{path.name} does not load ({error})"
    add_backend("ascendc", "npu", missing, ASCENDC_OPS)


def load_triton():
    """Attach the Triton kernels to GPUs and to NPUs, or note why there are none."""
    backends = (("triton", "cuda", "CUDA"), ("triton_npu", "npu", "PrivateUse1"))
    try:
        triton = importlib.import_module("mmkern.kernels.triton")
    except ImportError as error:
        for backend, device, _ in backends:
            add_backend(backend, device, f"the Triton kernels are not installed ({error})")
        return
    for backend, device, key in backends:
        missing = triton.missing(device)
        # a kernel in AscendC goes before one in Triton
        free = frozenset(name for name in triton.RAW_OPS if not _has_kernel_at(name, key))
        if missing is None:
            for name in free:
                attach(name, triton.attached(name), key)
        add_backend(backend, device, missing, free)


def info():
    """Which kernels there are: {op: {backend: (available, reason)}}.

    ``reason`` is a sentence for an unavailable backend, and the dispatch key of an available one.
    """
    return {
        name: {
            "reference": (True, "CompositeExplicitAutograd"),
            **{b: _availability(name, backend) for b, backend in BACKENDS.items()},
        }
        for name in OPS
    }


def has_kernel(op, backend):
    """True if ``backend`` has a kernel for the op and for its backward here."""
    return _availability(op, BACKENDS[backend])[0]


def _availability(op, backend):
    if backend.missing:
        return False, backend.missing
    key = torch._C._dispatch_key_for_device(backend.device)
    for raw in (op, f"{op}_backward"):
        others = backend.raw_ops is not None and raw not in backend.raw_ops
        if others and _has_kernel_at(raw, key):
            return False, f"another backend's kernel of mmkern::{raw} runs"
        if others or not _has_kernel_at(raw, key):
            return False, f"no {key} kernel for mmkern::{raw}; the reference runs"
    return True, key


def _has_kernel_at(raw, key):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"mmkern::{raw}", key)


def _report(name, args):
    """Log, once per kind of call, that the reference ran, and why; raise if it must not."""
    if _state.forced is None and not logger.isEnabledFor(logging.INFO):
        return
    tensor = next(arg for arg in args if isinstance(arg, Tensor))
    if tensor.device.type == "meta":
        return
    key = torch._C._dispatch_key_for_device(tensor.device.type)
    has = _has_kernel_at(name, key)
    reason = "the kernel does not take this case" if has else f"there is no {key} kernel"
    text = f"mmkern::{name} on {tensor.device.type} {tensor.dtype}: the reference ran, {reason}"
    if _state.forced is not None:
        raise RuntimeError(f"{text}, while mmkern.use({_state.forced!r}) demands a kernel")
    if (name, tensor.device.type, tensor.dtype) not in _reported:
        _reported.add((name, tensor.device.type, tensor.dtype))
        logger.info(text)
