"""Input checks shared by the public functions: each error names argument, finding, and wish."""

import torch
from torch import Tensor


def floating(op, name, value):
    """Raise TypeError unless ``value`` is a real floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"mmkern.{op}: {name} is {type(value).__name__}; wanted a torch.Tensor")
    if not value.dtype.is_floating_point:
        raise TypeError(
            f"mmkern.{op}: {name} has dtype {value.dtype}; wanted a floating-point dtype"
        )


def like(op, name, value, ref_name, ref, *, or_float32=False):
    """Raise unless ``value`` is a tensor on the device of ``ref`` with its dtype (or float32)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"mmkern.{op}: {name} is {type(value).__name__}; wanted a torch.Tensor")
    if value.dtype != ref.dtype and not (or_float32 and value.dtype == torch.float32):
        wanted = f"{ref.dtype} (the dtype of {ref_name})" + (
            " or torch.float32" if or_float32 and ref.dtype != torch.float32 else ""
        )
        raise TypeError(f"mmkern.{op}: {name} has dtype {value.dtype}; wanted {wanted}")
    if value.device != ref.device:
        raise ValueError(
            f"mmkern.{op}: {name} is on {value.device}; wanted {ref.device} (where {ref_name} is)"
        )


def shape(op, name, value, wanted, why=""):
    """Raise ValueError unless ``value`` has exactly the shape ``wanted``."""
    if value.shape != wanted:
        because = f" ({why})" if why else ""
        raise ValueError(
            f"mmkern.{op}: {name} has shape {tuple(value.shape)}; wanted {tuple(wanted)}{because}"
        )


def choice(op, name, value, allowed):
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(
            f"mmkern.{op}: {name} is {value!r}; wanted one of {', '.join(map(repr, allowed))}"
        )


def autocast(*tensors):
    """The rule of scaled_dot_product_attention: under autocast, all but float64 in its dtype."""
    if not torch._C._is_any_autocast_enabled():
        return tensors
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype)
        if isinstance(t, Tensor) and t.dtype.is_floating_point and t.dtype != torch.float64
        else t
        for t in tensors
    )
