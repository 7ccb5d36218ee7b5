"""The rules for diffusers."""

import functools

import torch
from torch import nn

from mmkern.patch import adaln, processors
from mmkern.patch.core import Rule, of_class

M = "diffusers.models."
T = f"{M}transformers.transformer_"


class PairStub(nn.Module):
    """Stands for joint attention in the probe of a block."""

    def forward(self, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        if encoder_hidden_states is None:
            return hidden_states.flip(-1)
        return hidden_states.flip(-1), encoder_hidden_states.flip(-1)


class SingleStub(nn.Module):
    """Stands for self- or cross-attention in the probe of a block."""

    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states.flip(-1)


def _ff_inputs(m, sample):
    return (sample(2, 7, m.net[0].proj.in_features),), {}


def _refuse_ff(m):
    kind = type(m.net[0]).__name__
    if kind not in adaln.FF_GATED and adaln.ff_activation(m.net[0]) is None:
        return f"its activation {kind} is not one of mmkern.glu's or mmkern.mlp's"


# adaLN norms: class, chunks, and what is returned of them (see adaln._modulated)
NORMS = [
    ("AdaLayerNormZero", adaln.adaptive_norm, (6, ((0, 1), 2, 3, 4, 5))),
    ("AdaLayerNormZeroSingle", adaln.adaptive_norm, (3, ((0, 1), 2))),
    ("SD35AdaLayerNormZeroX", adaln.adaptive_norm, (9, ((0, 1), 2, 3, 4, 5, (6, 7), 8))),
    ("AdaLayerNormContinuous", adaln.continuous_norm, (2, ((1, 0),))),
]


def _timestep(m, batch):
    device = next(m.parameters()).device
    return torch.arange(batch, device=device) * 7, torch.arange(batch, device=device) % 2


def _adaln(cls, forward, layout):
    def inputs(m, sample):
        width = m.linear.in_features
        x = sample(2, 7, m.linear.out_features // layout[0])
        if getattr(m, "emb", None) is not None:
            return (x, *_timestep(m, 2)), {"hidden_dtype": x.dtype}
        emb = sample(2, width)
        return ((x, emb), {}) if forward is adaln.continuous_norm else ((x,), {"emb": emb})

    def refuse(m):
        if not adaln.layer_norms(m.norm):
            return f"its norm {type(m.norm).__name__} is not a LayerNorm"

    match, swapped = of_class(f"{M}normalization.{cls}"), functools.partial(forward, layout)
    return Rule("adaln", "modulate", match, swapped, inputs, refuse)


def _basic_inputs(m, sample):
    x = sample(2, 7, m.dim)
    if m.norm_type == "ada_norm_zero":
        timestep, labels = _timestep(m, 2)
        return (x,), {"timestep": timestep, "class_labels": labels}
    return (x,), {"timestep": sample(2, 6 * m.dim), "encoder_hidden_states": sample(2, 3, m.dim)}


def _refuse_basic(m):
    if m.norm_type not in ("ada_norm_zero", "ada_norm_single"):
        return f"its norm_type is {m.norm_type!r}"
    if m.pos_embed is not None or hasattr(m, "fuser"):
        return "it has a position embedding or a fuser of its own"
    if m.norm_type == "ada_norm_zero" and m.attn2 is not None:
        return "it has cross-attention beside ada_norm_zero"


def _streams(m, sample):
    width = m.norm1.linear.in_features if hasattr(m, "norm1") else m.norm.linear.in_features
    return (sample(2, 7, width), sample(2, 3, width), sample(2, width)), {}


def _wan_inputs(m, sample):
    width = m.scale_shift_table.shape[-1]
    return (sample(2, 8, width), sample(2, 3, width), sample(2, 6, width), None), {}


def _refiner_inputs(m, sample):
    width = m.norm1.normalized_shape[0]
    return (sample(2, 7, width), sample(2, width)), {}


def _qwen_inputs(m, sample):
    return (sample(2, 7, m.dim), sample(2, 3, m.dim), None, sample(2, m.dim)), {}


def _flux2_inputs(m, sample):
    width = m.norm1.normalized_shape[0]
    mods = sample(1, 6 * width), sample(1, 1, 6 * width)
    return (sample(2, 7, width), sample(2, 3, width), *mods), {}


def _flux2_single_inputs(m, sample):
    width = m.norm.normalized_shape[0]
    return (sample(2, 7, width), sample(2, 3, width), sample(1, 1, 3 * width)), {}


def _lumina_norm_inputs(m, sample):
    return (sample(2, 7, m.norm.dim[0]), sample(2, m.linear.in_features)), {}


def _lumina_block_inputs(m, sample):
    width = m.ffn_norm1.dim[0]
    temb = sample(2, m.norm1.linear.in_features) if m.modulation else None
    return (sample(2, 7, width), None, None, temb), {}


# blocks: class, replacement, probe inputs, the children that stubs stand for in the probe
_FF = tuple(
    (name, SingleStub())
    for name in ("ff", "ff_context", "ffn", "feed_forward", "img_mlp", "txt_mlp")
)
_PAIR = (("attn", PairStub()), *_FF)
_TWO = (("attn1", SingleStub()), ("attn2", SingleStub()), *_FF)
BLOCKS = [
    (f"{M}attention.JointTransformerBlock", adaln.sd3_block, _streams,
     (*_PAIR, ("attn2", SingleStub()))),
    (f"{T}flux.FluxTransformerBlock", adaln.flux_block, _streams, _PAIR),
    (f"{T}flux.FluxSingleTransformerBlock", adaln.flux_single_block, _streams, _PAIR),
    (f"{T}flux2.Flux2TransformerBlock", adaln.flux2_block, _flux2_inputs, _PAIR),
    (f"{T}flux2.Flux2SingleTransformerBlock", adaln.flux2_single_block, _flux2_single_inputs,
     _PAIR),
    (f"{T}hunyuan_video.HunyuanVideoTransformerBlock", adaln.hunyuan_block, _streams, _PAIR),
    (f"{T}hunyuan_video.HunyuanVideoSingleTransformerBlock", adaln.hunyuan_single_block, _streams,
     _PAIR),
    (f"{T}hunyuan_video.HunyuanVideoIndividualTokenRefinerBlock", adaln.hunyuan_refiner_block,
     _refiner_inputs, (("attn", SingleStub()), *_FF)),
    (f"{T}lumina2.Lumina2TransformerBlock", adaln.lumina_block, _lumina_block_inputs,
     (("attn", SingleStub()), *_FF)),
    (f"{T}qwenimage.QwenImageTransformerBlock", adaln.qwen_block, _qwen_inputs, _PAIR),
    (f"{T}wan.WanTransformerBlock", adaln.wan_block, _wan_inputs, _TWO),
]  # fmt: skip


def _block(cls, forward, inputs, stubs):
    ops = "gated_modulate + gated_residual"
    return Rule("adaln_block", ops, of_class(cls), forward, inputs, stubs=stubs)


def _self_inputs(m, sample):
    x = sample(2, 5, m.to_q.in_features)
    if m.group_norm is not None:
        x = sample(2, m.to_q.in_features, 2, 3)
    context = m.to_k.in_features != m.to_q.in_features or m.is_cross_attention
    return (x,), {"encoder_hidden_states": sample(2, 3, m.to_k.in_features) if context else None}


def _tables(sample, length, head_dim):
    angle = sample(length, head_dim // 2).float().repeat_interleave(2, -1)
    return angle.cos(), angle.sin()


def _joint_inputs(tables):
    def inputs(m, sample):
        head_dim = getattr(m, "head_dim", m.inner_dim // m.heads)
        added = getattr(m, "add_q_proj", None) is not None
        x, context = sample(2, 5, m.to_q.in_features), None
        if added or tables == "image":
            context = sample(2, 3, m.add_q_proj.in_features if added else m.to_q.in_features)
        length = {"joint": 5 if context is None else 8, "image": 5}.get(tables)
        extra = {"encoder_hidden_states": context}
        if length:
            extra["image_rotary_emb"] = _tables(sample, length, head_dim)
        elif tables == "complex":
            polar = [torch.view_as_complex(sample(n, head_dim // 2, 2).float()) for n in (5, 3)]
            extra["image_rotary_emb"] = tuple(p / p.abs() for p in polar)
        return (x,), extra

    return inputs


def _parallel_inputs(m, sample):
    tables = _tables(sample, 5, m.head_dim)
    return (sample(2, 5, m.to_qkv_mlp_proj.in_features),), {"image_rotary_emb": tables}


def _wan_attention_inputs(m, sample):
    x = sample(2, 5, m.to_q.in_features)
    if m.is_cross_attention:
        length = 3 if m.add_k_proj is None else processors.Wan.TEXT + 3
        return (x, sample(2, length, m.to_k.in_features)), {}
    tables = _tables(sample, 5, m.inner_dim // m.heads)
    return (x,), {"rotary_emb": tuple(t[None, :, None] for t in tables)}


def _lumina_inputs(m, sample):
    x, head_dim = sample(2, 5, m.to_q.in_features), m.to_q.out_features // m.heads
    polar = torch.view_as_complex(sample(2, 5, head_dim // 2, 2).float())
    return (x, x), {"image_rotary_emb": polar / polar.abs()}


# processors: the original's class, the replacement, what runs, probe inputs
_ROPE = "rope, with QK-norm + attention"
PROCESSORS = [
    ("AttnProcessor2_0", processors.SelfOrCross, "attention", _self_inputs),
    ("JointAttnProcessor2_0", processors.Joint, "attention", _joint_inputs(None)),
    ("FluxAttnProcessor", processors.Flux, _ROPE, _joint_inputs("joint")),
    ("Flux2AttnProcessor", processors.Flux, _ROPE, _joint_inputs("joint")),
    ("Flux2ParallelSelfAttnProcessor", processors.Flux2Parallel, _ROPE, _parallel_inputs),
    ("WanAttnProcessor", processors.Wan, "rope + attention", _wan_attention_inputs),
    ("QwenDoubleStreamAttnProcessor2_0", processors.Qwen, _ROPE, _joint_inputs("complex")),
    ("HunyuanVideoAttnProcessor2_0", processors.Hunyuan, _ROPE, _joint_inputs("image")),
    ("Lumina2AttnProcessor2_0", processors.Lumina2, _ROPE, _lumina_inputs),
]


def _processor(cls, replacement, ops, inputs):
    def match(path, module):
        processor = vars(module).get("processor")
        kind = type(processor)
        return kind.__name__ == cls and kind.__module__.startswith("diffusers.")

    def refuse(module):
        backend = getattr(module.processor, "_attention_backend", None)
        if backend not in (None, processors.NAME):
            return f"its attention backend is {str(backend)!r}, set by its user"

    def swaps(module):
        return [(module, "processor", replacement(module.processor))]

    return Rule("attention", ops, match, None, inputs, refuse, swaps)


def _backend_match(path, module):
    """Processors that dispatch their attention by name, of models without rules of their own."""
    processor = vars(module).get("processor")
    known = type(processor).__name__ in {row[0] for row in PROCESSORS}
    return (
        type(processor).__module__.startswith("diffusers.")
        and hasattr(processor, "_attention_backend")
        and not known
    )


def _backend_refuse(module):
    if module.processor._attention_backend not in (None, processors.NAME):
        return f"its attention backend is {str(module.processor._attention_backend)!r}"


def _backend_swaps(module):
    return [(module.processor, "_attention_backend", processors.register_backend())]


def _same_dtype_rms(m):
    if m.weight is None or getattr(m, "bias", None) is not None or len(m.dim) > 1:
        return "it has no weight, or a bias, or normalises more than the last dimension"


def _diffusers_rms(module, x):
    """diffusers' RMSNorm; a float32 weight on narrower input is multiplied without a cast."""
    from mmkern.patch import forwards
    from mmkern.patch.core import original

    if module.weight.dtype != x.dtype:
        return original(module, x)
    return forwards.rms_norm("after", module, x)


RULES = [
    *(_adaln(*row) for row in NORMS),
    Rule(
        "adaln", "modulate", of_class(f"{M}normalization.LuminaRMSNormZero"), adaln.lumina_norm,
        _lumina_norm_inputs,
    ),
    *(_block(*row) for row in BLOCKS),
    Rule(
        "adaln_block", "gated_modulate + gated_residual",
        of_class(f"{M}attention.BasicTransformerBlock"), adaln.basic_block, _basic_inputs,
        _refuse_basic, stubs=_TWO,
    ),
    *(_processor(*row) for row in PROCESSORS),
    Rule(
        "attention", "attention", _backend_match, refuse=_backend_refuse, swaps=_backend_swaps
    ),
    Rule(
        "feed_forward", "mlp, or glu", of_class(f"{M}attention.FeedForward"), adaln.ff, _ff_inputs,
        _refuse_ff,
    ),
    Rule(
        "swiglu", "glu", of_class(f"{T}flux2.Flux2SwiGLU"), adaln.flux2_swiglu,
        lambda m, sample: ((sample(2, 7, 16),), {}),
    ),
    Rule(
        "rms_norm", "rms_norm", of_class(f"{M}normalization.RMSNorm"), _diffusers_rms,
        lambda m, sample: ((sample(2, 7, m.dim[0]),), {}), _same_dtype_rms,
    ),
]  # fmt: skip
