"""The table of block workloads: blocks of published models at their true width, random weights.

Each is built from its config by transformers or diffusers and runs three times on the same weights:
as it is, under torch.compile, and after :func:`mmkern.patch`. A block of transformers takes tables
and masks that its model makes, so there it is the model with one layer; of diffusers, the block
alone. The number of tokens is what a CPU does in a fraction of a second.
"""

import copy

import torch
from torch.utils._pytree import tree_leaves, tree_map

import mmkern
from mmkern.bench import blocks_diffusers, blocks_transformers
from mmkern.bench.contest import OUTPUT_FACTOR, Contest
from mmkern.patch import probe

BLOCKS = (*blocks_transformers.BLOCKS, *blocks_diffusers.BLOCKS)


def block_contest(workload, dtype, device, seed):
    """The contest of a block workload."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, inputs = workload.build()
    module = module.eval().requires_grad_(False).to(device, dtype)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if any(part in name for part in workload.wide):
            tensor.data = tensor.data.float()
    inputs = {k: _to(v, device, None if k in workload.wide else dtype) for k, v in inputs.items()}
    with torch.no_grad():
        count = len(_tensors(module(**inputs)))

    def bind(function):
        return lambda: _tensors(function(**inputs))

    def oracle():
        wide = _float64_experts(probe.exact_copy(module))
        with probe.Exact():
            return _tensors(wide(**probe.widened(inputs)))

    return Contest(
        identity={
            "kind": "model",
            "op": "model",
            "function": "block",
            "name": workload.name,
            "variant": "forward",
            "dtype": str(dtype).removeprefix("torch."),
            "shape": workload.shape,
            "model": workload.model,
            "scale": workload.scale,
            "inputs": workload.inputs,
        },
        functions={"eager": module, "mmkern": patched(module)},
        bind=bind,
        oracle=oracle,
        factors=(OUTPUT_FACTOR,) * count,
    )


def patched(module):
    """A patched copy that shares the weights; the contest checks it, so patch need not."""
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    other = copy.deepcopy(module, shared)
    report = mmkern.patch(other, check=False)
    if report.left or not report.swapped:
        raise RuntimeError(f"mmkern.patch did not swap all of a block:\n{report}")
    return other


def _tensors(result):
    return tuple(t for t in tree_leaves(result) if isinstance(t, torch.Tensor))


def _to(value, device, dtype):
    def move(leaf):
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.to(device, dtype if leaf.is_floating_point() else None)

    return tree_map(move, value)


def _float64_experts(model):
    """transformers' fast experts have no float64."""
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_experts_implementation"):
            module.config._experts_implementation = "eager"
    return model
