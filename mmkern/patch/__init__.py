"""Swap mmkern's ops into a model of transformers or diffusers, and take them out again."""

from mmkern.patch import core
from mmkern.patch.core import Entry, Report

__all__ = ["Entry", "Report", "patch", "unpatch"]


def rules():
    """Every rule, in the order of trial."""
    from mmkern.patch import common, diffusers, kimi, transformers

    return [*transformers.RULES, *diffusers.RULES, *kimi.RULES, *common.RULES]


def patch(model, *, include=None, exclude=None, check=True):
    """Let a model's modules compute with mmkern's ops, in place.

    Parameters, buffers, state_dict keys, class names and hooks stay as they are; what changes is a
    ``forward`` on some module instances, attention processors (diffusers) and the config's
    attention implementation (transformers). Patch before ``torch.compile``, accelerate's
    ``dispatch_model`` and ``fully_shard``; modules that these already hold are left, and the report
    says so.

    Args:
        model: any nn.Module; models of transformers and diffusers, and modules of the same
            structure, are what the rules know.
        include, exclude: iterables of fnmatch patterns, each held against the path of a module, the
            name of its class and the name of the rule. include=None is everything.
        check: compare each kind of swap once with the original on a small random input, by the
            accuracy rule against float64, and leave what differs. Costs a few copies of one
            module of each kind.

    Returns:
        Report: what was swapped, and what was left and why. str() of it is a table. Patching a
        second time swaps nothing again.

    Raises:
        TypeError: model is no nn.Module, or a pattern list is a string.
        ValueError: model is the result of torch.compile.
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"mmkern.patch: model is {type(model).__name__}; wanted a torch.nn.Module")
    for name, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise TypeError(f"mmkern.patch: {name} is {patterns!r}; wanted a list of patterns")
    if hasattr(model, "_orig_mod"):
        raise ValueError("mmkern.patch: model is compiled already; wanted it before torch.compile")
    return core.apply(rules(), model, include, exclude, check)


def unpatch(model):
    """Give every module of the model back the very attributes that :func:`patch` replaced.

    Returns:
        model. A module that was never patched stays as it is.
    """
    for module in model.modules():
        core.undo(module)
    return model
