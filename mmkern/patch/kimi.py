"""Kimi-VL as its repository's own code (trust_remote_code) writes it: rules by structure.

The names of that code are in no installed package, so a rule goes by a module's children, and the
probe settles whether it computes what they suggest. Formulas: the public modeling_kimi_vl.py and
modeling_deepseek.py of moonshotai/Kimi-VL-A3B.
"""

import inspect

import torch
from torch import nn

import mmkern
from mmkern.patch import forwards, kimi_mla
from mmkern.patch.core import Rule, definer, original, plain, qualified
from mmkern.patch.processors import complex_tables
from mmkern.patch.transformers import Stub

PROJECTOR = ("pre_norm", "linear_1", "act", "linear_2")
TEXT_LAYER = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


def _children(*names):
    def match(path, module):
        return set(module._modules) == set(names) and not qualified(definer(module)).startswith(
            "transformers.models."
        )

    return match


def vision_block(module, hidden_states, cu_seqlens, *args, rope_freqs_cis=None, **kwargs):
    """MoonViT's layer on packed patches (L, C): complex rope on adjacent pairs, one packed call.

    Kimi-K2.5's passes the longest segment before the rope table; the kernels find it themselves.
    """
    x, freqs = hidden_states, rope_freqs_cis
    for argument in args:
        if torch.is_tensor(argument) and argument.is_complex():
            freqs = argument
    if freqs is None or x.dim() != 2 or not plain(module.norm1, nn.LayerNorm):
        return original(module, x, cu_seqlens, *args, rope_freqs_cis=freqs, **kwargs)
    q, k, v = module.wqkv(module.norm0(x)).unflatten(-1, (3, module.num_heads, -1)).unbind(-3)
    q, k = mmkern.rope(q, k, *complex_tables(freqs), interleaved=True)
    cu_seqlens = cu_seqlens.int()
    branch = mmkern.attention(q, k, v, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens)
    h, y = forwards.add_norm(module.norm1, x, module.wo(branch.flatten(1)))
    return h + module.mlp(y)


def _vision_inputs(specimen, sample):
    if getattr(specimen, "attn_implementation", None) == "flash_attention_2":
        specimen.attn_implementation = "sdpa"  # the same formula; flash has no float64
    width, heads = specimen.norm0.normalized_shape[0], specimen.num_heads
    x, angle = sample(9, width), sample(9, width // heads // 2).float()
    borders = torch.tensor([0, 4, 9], dtype=torch.int32, device=x.device)
    args = (x, borders)
    if "max_seqlen" in inspect.signature(definer(specimen).forward).parameters:
        args += (5,)
    return args, {"rope_freqs_cis": torch.polar(torch.ones_like(angle), angle)}


def projector(module, image_features):
    """LayerNorm and two linear layers on the merged patches of a list of images."""
    if isinstance(image_features, (list, tuple)):
        image_features = torch.cat(image_features)
    return forwards.projector(PROJECTOR, module, image_features)


def _projector_inputs(specimen, sample):
    width = specimen.pre_norm.normalized_shape[0]
    merge = specimen.linear_1.in_features // width
    return ([sample(2, merge, width), sample(1, merge, width)],), {}


def text_block(
    module, hidden_states, attention_mask=None, position_ids=None, past_key_value=None,
    output_attentions=False, use_cache=False, **kwargs,
):  # fmt: skip
    """A layer that returns a tuple: its output, and attention weights and cache where asked for."""
    x, norm = hidden_states, module.post_attention_layernorm
    options = {
        "attention_mask": attention_mask, "position_ids": position_ids,
        "past_key_value": past_key_value, "output_attentions": output_attentions,
        "use_cache": use_cache, **kwargs,
    }  # fmt: skip
    if not plain(norm, type(norm)) or norm.weight.dtype not in (x.dtype, torch.float32):
        return original(module, x, **options)
    branch, *rest = module.self_attn(hidden_states=module.input_layernorm(x), **options)
    h, y = forwards.add_norm(norm, x, branch)
    asked = (output_attentions, use_cache)
    return (h + module.mlp(y), *(r for r, wanted in zip(rest, asked, strict=True) if wanted))


def _refuse_text(module):
    norm = module.post_attention_layernorm
    if not type(norm).__name__.endswith("RMSNorm"):
        return f"its norm {type(norm).__name__} is not an RMSNorm"


def _text_inputs(specimen, sample):
    return (sample(2, 7, specimen.input_layernorm.weight.shape[0]),), {}


RULES = [
    Rule(
        "vision_block", "rope + attention, packed; gated_modulate (LayerNorm)",
        _children("norm0", "norm1", "mlp", "wqkv", "wo"), vision_block, _vision_inputs,
        stubs=(("mlp", nn.Identity()),),
    ),
    Rule("projector", "mlp", _children(*PROJECTOR), projector, _projector_inputs),
    Rule("mla", "rope, attention", kimi_mla.match, kimi_mla.attention, kimi_mla.inputs,
         kimi_mla.refuse),
    Rule(
        "residual_norm", "rms_norm with residual", _children(*TEXT_LAYER), text_block,
        _text_inputs, _refuse_text, stubs=(("self_attn", Stub(3)), ("mlp", nn.Identity())),
    ),
]  # fmt: skip
