"""Triton kernels: one file per op, one source for NVIDIA, AMD and Ascend.

A file holds an op's kernels and two host functions with the arguments of the raw ops that
mmkern/ops defines: ``glu.glu`` and ``glu.glu_backward``. A host function returns NotImplemented
for a case that its kernels do not take; the op's reference runs then. docs/triton.md says more.
"""

import importlib
import importlib.util
import sys

import torch

#: Ops with kernels here, each in the file of its name.
OPS = ("attention", "glu", "mlp", "modulate", "patch_embed", "rms_norm", "rope")
#: The raw ops, forward and backward.
RAW_OPS = tuple(raw for op in OPS for raw in (op, f"{op}_backward"))


def host(raw):
    """The host function of raw op ``raw``. Imports Triton, which takes a second or so."""
    module = importlib.import_module(f"{__name__}.{raw.removesuffix('_backward')}")
    return getattr(module, raw)


def missing(device):
    """Why no kernel here can run on this type of device, as a sentence; None if they can."""
    # device_count, not is_available: that one starts CUDA, and a process may want to fork first
    runtime = getattr(torch, device, None)
    if runtime is None or runtime.device_count() == 0:
        return f"torch sees no {device} device"
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed ({sys.executable} -m pip install triton)"
    if device == "npu" and importlib.util.find_spec("triton.backends.ascend") is None:
        return "the installed Triton has no Ascend backend (triton-ascend has)"
    return None


def attached(raw):
    """What the dispatcher calls for raw op ``raw``: its host function, on the tensors' device."""
    function = None

    def run(*args):
        nonlocal function
        if function is None:
            function = host(raw)
        index = next(a for a in args if isinstance(a, torch.Tensor)).device.index
        # Triton launches on the current device, which need not be the one of the tensors
        with torch.accelerator.device_index(index):
            return function(*args)

    return run
