"""Runs mmkern's ops on the Triton kernels with CPU tensors, and guards the tensors with NaN."""

import importlib

import torch

from mmkern import library
from mmkern.kernels import triton as kernels

#: gradients that are the reference's: no tile for wider rows (of args[2]) is without spills
WIDEST = {("attention_backward", torch.float32): 128, ("modulate_backward", torch.float32): 4096}


def _too_wide(raw, args, widest):
    limits = {dtype: most for (name, dtype), most in widest.items() if name == raw}
    return bool(limits) and args[2].shape[-1] > limits.get(args[2].dtype, args[2].shape[-1])


def run_ops_on_triton(monkeypatch, widest=WIDEST):
    """Until the test ends, mmkern's ops run the host functions of kernels/triton on CPU tensors.

    A case that the kernels do not take is an error, but for rows longer than those of ``widest``.
    """

    def demanding(raw):
        function = kernels.host(raw)
        op = importlib.import_module(f"mmkern.ops.{raw.removesuffix('_backward')}")
        reference = op.backward_reference if raw.endswith("_backward") else op.reference

        def run(*args):
            result = function(*args)
            if result is NotImplemented and _too_wide(raw, args, widest):
                return reference(*args)
            assert result is not NotImplemented, f"{raw}: no kernel for this case"
            return result

        return run

    for name in kernels.OPS:
        op = library.OPS[name]
        module = importlib.import_module(op.reference.__module__)
        monkeypatch.setattr(module, "_forward", demanding(name))
        monkeypatch.setattr(module, "_backward", demanding(f"{name}_backward"))
        monkeypatch.setattr(op, "forward", demanding(name))


class Guards:
    """Copies of tensors that lie, strides and all, in storage that is NaN wherever they are not.

    A kernel that reads outside a tensor gets NaN; one that writes there is found by ``check``.
    """

    margin = 64

    def __init__(self):
        self.guarded = []

    def __call__(self, t):
        if not isinstance(t, torch.Tensor) or not t.dtype.is_floating_point:
            return t
        extent = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1
        storage = t.new_full((max(extent, 0) + 2 * self.margin,), torch.nan)
        view = storage.as_strided(t.shape, t.stride(), self.margin)
        distinct = view
        for dim, stride in enumerate(t.stride()):
            if stride == 0:
                distinct, t = distinct.narrow(dim, 0, 1), t.narrow(dim, 0, 1)
        distinct.copy_(t)
        self.guarded.append((storage, storage.clone()))
        return view

    def check(self):
        """Assert that every storage is as it was, NaN by NaN."""
        for now, before in self.guarded:
            assert torch.equal(torch.nan_to_num(now, 7.0), torch.nan_to_num(before, 7.0))
            assert torch.equal(now.isnan(), before.isnan())
