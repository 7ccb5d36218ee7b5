"""Replacement forwards that serve any ecosystem; each reads the module's own parameters."""

import functools

import torch
from torch import nn

import mmkern
from mmkern.patch.core import original, plain

LINEAR = (nn.Linear,)


def same_dtype(x, *weights):
    """Whether an op may take x with these weights: one dtype, or autocast makes it so."""
    return torch.is_autocast_enabled(x.device.type) or all(
        w is None or w.dtype == x.dtype for w in weights
    )


def norm_eps(norm):
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def rms_norm(cast, module, x):
    weight = module.weight
    if weight is not None and weight.dtype not in (x.dtype, torch.float32):
        return original(module, x)
    return mmkern.rms_norm(x, weight, eps=norm_eps(module), cast=cast)


def torch_rms_norm(module, x):
    """torch.nn.RMSNorm; where its weight has another dtype, what torch makes of that."""
    if module.weight.dtype != x.dtype:
        return original(module, x)
    return rms_norm("before", module, x)


ACTIVATIONS = {
    "SiLU": "silu", "SiLUActivation": "silu", "FP32SiLU": "silu", "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh", "PytorchGELUTanh": "gelu_tanh",
    "QuickGELUActivation": "quick_gelu", "ReLU": "relu",
}  # fmt: skip


def activation_name(module):
    """mmkern's name of an activation module, or None."""
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return ACTIVATIONS.get(type(module).__name__)


def gated_mlp(names, module, x):
    """down(act(gate(x)) * up(x)); the projections run as modules, so LoRA and hooks on them do.

    ``names``: the attributes of gate, up, down and the activation.
    """
    gate, up, down, act = (getattr(module, name) for name in names)
    return down(mmkern.glu(gate(x), up(x), activation=activation_name(act)))


ACTIVATION_MODULES = ("torch.nn.modules.activation", "transformers.activations")


def _is_activation(module):
    if isinstance(module, nn.MultiheadAttention):  # which torch keeps among the activations
        return False
    return bool(activation_name(module)) or type(module).__module__ in ACTIVATION_MODULES


def two_layers(module):
    """(first, activation, second) of a module whose children are these, or None."""
    linears, activations = [], []
    for child in module.children():
        if hasattr(child, "in_features") and hasattr(child, "out_features"):
            linears.append(child)
        elif _is_activation(child):
            activations.append(child)
        elif not isinstance(child, nn.Dropout):
            return None
    if len(linears) != 2 or len(activations) != 1:
        return None
    return linears[0], activations[0], linears[1]


def dropping(module):
    return module.training and any(
        isinstance(child, nn.Dropout) and child.p > 0 for child in module.children()
    )


def mlp(module, x, *args, **kwargs):
    """Two linear layers with an activation between."""
    if args or kwargs:
        return original(module, x, *args, **kwargs)
    first, act, second = two_layers(module)
    usable = plain(first, *LINEAR) and plain(second, *LINEAR) and not dropping(module)
    if not usable or not same_dtype(x, first.weight):
        return original(module, x)
    return mmkern.mlp(
        x, first.weight, first.bias, second.weight, second.bias, activation=activation_name(act)
    )


def projector(names, module, x):
    """LayerNorm, merge as a view, linear, activation, linear: ``names`` of norm, fc1, act, fc2."""
    norm, first, act, second = (getattr(module, name) for name in names)
    width = first.in_features
    if not (
        plain(norm, nn.LayerNorm) and plain(first, *LINEAR) and plain(second, *LINEAR)
    ) or not same_dtype(x, first.weight, norm.weight):
        return original(module, x)
    merged = norm.normalized_shape[0] == width
    rows = x.reshape(-1, width) if merged else x.reshape(-1, x.shape[-1])
    return mmkern.mlp(
        rows, first.weight, first.bias, second.weight, second.bias,
        activation=activation_name(act), norm="layer", norm_weight=norm.weight,
        norm_bias=norm.bias, eps=norm.eps,
        merge=1 if merged else round((width / x.shape[-1]) ** 0.5),
    )  # fmt: skip


def batched_projector(names, module, x):
    """:func:`projector` on (N, k * k, C), which keeps N: (N, 1, out)."""
    y = projector(names, module, x)
    return y if y.dim() == 3 else y.unflatten(0, (x.shape[0], -1))


def patch_conv(module, x):
    """A convolution whose stride is its kernel, as tokens seen again as a (B, C, *grid) map.

    The flatten(2).transpose(1, 2) that follows it in the models gives the tokens back, as views.
    """
    kernel = module.kernel_size
    if x.dim() != module.weight.dim() or not same_dtype(x, module.weight):
        return original(module, x)
    if x.shape[2:] == kernel:
        tokens = mmkern.patch_embed(x.flatten(1), module.weight, module.bias)
        return tokens[(...,) + (None,) * len(kernel)]
    tokens = mmkern.patch_embed(x, module.weight, module.bias)
    grid = [size // k for size, k in zip(x.shape[2:], kernel, strict=True)]
    return tokens.transpose(1, 2).unflatten(2, grid)


def add_norm(norm, x, branch):
    """h = x + branch and y = norm(h), for an nn.LayerNorm or a transformers RMSNorm."""
    branch = branch.to(x.dtype)
    if isinstance(norm, nn.LayerNorm):
        return mmkern.gated_modulate(x, branch, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    return mmkern.rms_norm(branch, norm.weight, residual=x, eps=norm_eps(norm), cast="after")


def checkpointed(forward, module, *args, **kwargs):
    """transformers checkpoints in the forward of a layer's class, which an instance's overrides.

    So the replacement asks for the recomputation itself, and as the class does drops the cache.
    """
    if getattr(module, "gradient_checkpointing", False) and module.training:
        kwargs = {
            n: False if n == "use_cache" else None if n in ("past_key_values", "layer_past") else a
            for n, a in kwargs.items()
        }
        run = functools.partial(forward, module, **kwargs)
        return module._gradient_checkpointing_func(run, *args)
    return forward(module, *args, **kwargs)


def pre_norm_block(names, parameters, module, x, *args, **kwargs):
    """x + attn(norm1(x)), then + mlp(norm2(.)), with the first add fused into the second norm.

    ``names``: the attributes norm1, attention, norm2, mlp; ``parameters``: the names of the
    layer's positional parameters after the first.
    """
    norm1, attention, norm2, feed_forward = (getattr(module, name) for name in names)
    kinds = {nn.LayerNorm, *(c for c in [type(norm2)] if c.__name__.endswith("RMSNorm"))}
    narrow = norm2.weight.dtype not in (x.dtype, torch.float32)
    if not plain(norm2, *kinds) or narrow or dropping(module) or len(args) > len(parameters):
        return original_body(module, x, *args, **kwargs)
    kwargs |= dict(zip(parameters, args, strict=False))
    branch = attention(norm1(x), **kwargs)
    h, y = add_norm(norm2, x, branch[0] if isinstance(branch, tuple) else branch)
    return h + feed_forward(y)


def original_body(module, *args, **kwargs):
    """The class's forward; without transformers' checkpointing wrapper, already applied here."""
    forward = type(module).forward
    return getattr(forward, "__wrapped__", forward)(module, *args, **kwargs)
