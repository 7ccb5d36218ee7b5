"""Tensor parallelism on two gloo ranks, for test_patch_parallel.py: python two_ranks.py CHECK.

Both ranks build the same model; without tensor parallelism and unpatched it says what is right.
"""

import copy
import gc
import sys

import torch
import torch.distributed as dist
from patch_checks import counts
from patch_models import build
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import mmkern


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def run(model, *args, **inputs):
    """The output and every gradient, whole on each rank."""
    out = model(*args, **inputs)
    out = whole(out if torch.is_tensor(out) else out[0])
    out.square().sum().backward()
    return {"out": out, **{n: whole(p.grad) for n, p in model.named_parameters()}}


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(
            got[key], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()),
            msg=lambda text, key=key: f"{key}: {text}",
        )  # fmt: skip


class Layer(nn.Module):
    """A norm, and an MLP of two layers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(8, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        return self.mlp(self.norm(x))


PLAN = {
    "norm": SequenceParallel(),
    "mlp.0": ColwiseParallel(input_layouts=Shard(1)),
    "mlp.2": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
}


def torch_plan(mesh):
    """parallelize_module before patching and after it."""
    torch.manual_seed(0)
    plain, x = Layer(), torch.randn(2, 6, 8)
    wanted = run(plain, x)
    plain.zero_grad()
    shard = distribute_tensor(x, mesh, [Shard(1)]).to_local()
    for patch_first in (True, False):
        model = copy.deepcopy(plain)
        report = mmkern.patch(model) if patch_first else None
        parallelize_module(model, mesh, PLAN)
        report = report or mmkern.patch(model)
        if patch_first:
            assert counts(report) == {"rms_norm": 1, "mlp": 1}
        else:
            assert not report.swapped
            assert {e.rule for e in report.left} == {"rms_norm", "mlp"}
            assert all("its parameters are DTensors" in e.reason for e in report.left)
        assert_same(run(model, shard), wanted)


def dtensors(mesh):
    """mmkern's functions on DTensors are plain PyTorch's, which DTensor knows how to shard."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 6, 8), torch.randn(8)
    wanted = mmkern.rms_norm(x, weight), mmkern.glu(x, x)
    shard = distribute_tensor(x, mesh, [Shard(0)])
    got = (
        mmkern.rms_norm(shard, distribute_tensor(weight, mesh, [Replicate()])),
        mmkern.glu(shard, shard),
    )
    for found, want in zip(got, wanted, strict=True):
        assert isinstance(found, DTensor) and found.to_local().shape == (2, *want.shape[1:])
        torch.testing.assert_close(found.full_tensor(), want)


def transformers_plan(mesh):
    """The plan that a config of transformers has, as from_pretrained applies it."""
    from transformers.distributed import DistributedConfig

    for name in ("llama", "qwen3"):
        plain, inputs = build(name)
        wanted = run(plain, **inputs)
        plain.zero_grad()
        for patch_first in (True, False):
            model = copy.deepcopy(plain)
            config, _, manager = model.prepare_distribute_model(DistributedConfig(tp_size=2))
            report = mmkern.patch(model) if patch_first else None
            model = model.maybe_distribute_model(model, config, manager)
            report = report or mmkern.patch(model)
            rules = counts(report)
            if patch_first:
                assert not report.left and rules["gated_mlp"] == rules["rope"] == 2
            else:
                assert rules == {"attention": 2, "rms_norm": 5}
                assert {"rope", "gated_mlp", "residual_norm"} <= {e.rule for e in report.left}
            assert_same(run(model, **inputs), wanted)
            with torch.no_grad():  # has a way of its own through transformers' layers
                torch.testing.assert_close(model(**inputs)[0], wanted["out"])


def diffusers_plan(mesh):
    """The plan of a class of diffusers, which is for inference; enable_parallelism takes no CPU."""
    from diffusers.hooks.tensor_parallel import _resolve_tp_plan, _styles

    for name in ("flux", "flux2", "qwenimage"):
        plain, inputs = build(name)
        for patch_first in (True, False):
            model = copy.deepcopy(plain)
            report = mmkern.patch(model) if patch_first else None
            for module, plan in _resolve_tp_plan(model, model._tp_plan):
                parallelize_module(module, mesh, _styles(plan))
            report = report or mmkern.patch(model)
            assert report.swapped and bool(report.left) != patch_first
            with torch.no_grad():
                torch.testing.assert_close(model(**inputs)[0], plain(**inputs)[0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        globals()[sys.argv[1]](init_device_mesh("cpu", (2,)))
    finally:
        # a process group that the sharded model keeps alive until the interpreter ends can abort
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()
