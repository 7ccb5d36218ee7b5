"""Rules by structure: modules that transformers, diffusers and remote code write alike."""

import functools

from torch import nn

from mmkern.ops.mlp import MLP_ACTIVATIONS
from mmkern.patch import forwards
from mmkern.patch.core import Rule, definer, qualified


def _children(*names):
    return lambda path, module: set(dict(module.named_children())) == set(names)


def _rms(path, module):
    """transformers' order of casts; torch's and diffusers' have rules of their own."""
    return (
        type(module).__name__.removeprefix("FSDP").endswith("RMSNorm")
        and set(dict(module.named_parameters())) == {"weight"}
        and module.weight.dim() == 1
        and (hasattr(module, "variance_epsilon") or hasattr(module, "eps"))
        and not qualified(definer(module)).startswith(("torch.", "diffusers."))
    )


def _rows(specimen, sample):
    width = next(p.shape[-1] for p in specimen.parameters())
    return (sample(2, 7, width),), {}


def _refuse_rms(module):
    if module.weight is None or len(module.normalized_shape) > 1:
        return "it has no weight, or normalises more than the last dimension"
    if module.eps is None:
        return "its eps is None, which torch takes from the dtype"


def _wants_activation(name):
    def refuse(module):
        act = getattr(module, name)
        if forwards.activation_name(act) is None:
            return f"its activation {type(act).__name__} is not one of mmkern.glu's"

    return refuse


def _gated_mlp(*names):
    def inputs(m, sample):
        return (sample(2, 7, getattr(m, names[0]).in_features),), {}

    forward = functools.partial(forwards.gated_mlp, names)
    return Rule("gated_mlp", "glu", _children(*names), forward, inputs, _wants_activation(names[3]))


PATCH_NAMES = ("proj", "projection", "patch_embedding", "patch_embed")


def _patch_conv(path, module):
    """A convolution under one of the names that models give to their patch embedding."""
    return (
        definer(module) in (nn.Conv2d, nn.Conv3d)
        and path.rpartition(".")[2] in PATCH_NAMES
        and module.kernel_size == module.stride
        and max(module.kernel_size) > 1
    )


def _refuse_conv(module):
    if set(module.dilation) != {1} or module.groups != 1 or module.padding_mode != "zeros":
        return "its convolution is dilated, grouped, or padded by reflection"
    if module.padding not in ("valid", (0,) * len(module.kernel_size)):
        return f"its convolution has padding {module.padding}"


def _conv_inputs(specimen, sample):
    sizes = [2 * k + k // 2 for k in specimen.kernel_size]
    return (sample(2, specimen.in_channels, *sizes),), {}


def _two_layers(path, module):
    return forwards.two_layers(module) is not None and not list(module.parameters(recurse=False))


def _refuse_mlp(module):
    act = forwards.two_layers(module)[1]
    if forwards.activation_name(act) not in MLP_ACTIVATIONS:
        return f"its activation {type(act).__name__} is not one of mmkern.mlp's"


def _mlp_inputs(specimen, sample):
    return (sample(2, 7, forwards.two_layers(specimen)[0].in_features),), {}


RULES = [
    Rule("rms_norm", "rms_norm", _rms, functools.partial(forwards.rms_norm, "after"), _rows),
    Rule(
        "rms_norm", "rms_norm", lambda path, module: definer(module) is nn.RMSNorm,
        forwards.torch_rms_norm, _rows, _refuse_rms,
    ),
    _gated_mlp("gate_proj", "up_proj", "down_proj", "act_fn"),
    _gated_mlp("linear_1", "linear_3", "linear_2", "silu"),
    Rule("mlp", "mlp", _two_layers, forwards.mlp, _mlp_inputs, _refuse_mlp),
    Rule(
        "patch_embed", "patch_embed", _patch_conv, forwards.patch_conv, _conv_inputs, _refuse_conv
    ),
]  # fmt: skip
