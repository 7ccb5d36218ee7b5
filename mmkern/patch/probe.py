"""One numerical check of a swap: both forwards on a small random input against float64."""

import copy

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


class Exact(TorchFunctionMode):
    """Runs code that was written for float32 in float64: no cast to float32 inside is obeyed.

    Published models upcast norms, softmax and rope to float32 whatever their dtype; without this a
    "float64" run of them is a float32 one.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {n: torch.float64 if a is torch.float32 else a for n, a in (kwargs or {}).items()}
        return func(*args, **kwargs)


def widened(tree):
    """Every floating tensor of a tree, and every floating dtype, in float64."""

    def wide(leaf):
        if isinstance(leaf, torch.dtype) and leaf.is_floating_point:
            return torch.float64
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(wide, tree)


def exact_copy(module):
    """A float64 copy for running under :class:`Exact`."""
    return copy.deepcopy(module).double()


def _error(got, oracle):
    return float((got.double() - oracle).abs().max()) if got.numel() else 0.0


def difference(got, eager, oracle):
    """What is wrong with a tensor by the accuracy rule, or None."""
    if got.shape != eager.shape or got.dtype != eager.dtype:
        return (
            f"the probe gave {tuple(got.shape)} {got.dtype}; wanted {tuple(eager.shape)} "
            f"{eager.dtype}"
        )
    allowed = 2 * _error(eager, oracle) + torch.finfo(eager.dtype).eps * float(oracle.abs().max())
    if not _error(got, oracle) <= allowed:
        return f"the probe differs: error {_error(got, oracle):.1e}, allowed {allowed:.1e}"
    return None


def _specimen(rule, module, generator):
    """The module unpatched, with random weights: zeros, as adaLN starts with, would hide faults."""
    from mmkern.patch import unpatch

    module = copy.copy(module)
    stubs = {name: stub for name, stub in rule.stubs if name in module._modules}
    module._modules = module._modules | stubs
    module = unpatch(copy.deepcopy(module)).eval().requires_grad_(False)
    if any(t.device.type == "meta" for t in module.parameters()):
        module = module.to_empty(device="cpu")
        for buffer in module.buffers():
            buffer.zero_()
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, device=generator.device)
        scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.2
        mean = 0.0 if parameter.dim() > 1 else 1.0
        parameter.copy_(mean + scale * noise)
    return module


@torch.no_grad()
def mismatch(rule, module):
    """Why the rule's forward is not that of the module, or None: the accuracy rule of the ops."""
    first = next(module.parameters(), torch.empty(0))
    device = "cpu" if first.device.type == "meta" else first.device
    dtype = first.dtype if first.is_floating_point() else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    eager = _specimen(rule, module, generator)

    def sample(*shape):
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    args, kwargs = rule.inputs(eager, sample)
    with Exact():
        oracle = tree_leaves(exact_copy(eager)(*widened(args), **widened(kwargs)))
    wanted = tree_leaves(eager(*args, **kwargs))
    for owner, attribute, new in rule.changes(eager):
        setattr(owner, attribute, new)
    got = tree_leaves(eager(*args, **kwargs))
    for found, want, exact in zip(got, wanted, oracle, strict=True):
        if not isinstance(want, Tensor):
            continue
        if reason := difference(found, want, exact):
            return reason
    return None
