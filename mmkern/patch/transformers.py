"""The rules for transformers' own classes; mmkern.patch.common has those by structure."""

import functools

from torch import nn
from torch.nn import functional as F

import mmkern
from mmkern.patch import doors, forwards
from mmkern.patch.core import Rule, definer, of_class, original, plain, qualified

M = "transformers.models."


# classes of a projector: its norm, first linear, activation and second linear, and whether its
# input keeps the k * k merged tokens as a dimension
PROJECTORS = [
    ("Qwen3VLVisionPatchMerger", ("norm", "linear_fc1", "act_fn", "linear_fc2"), False),
    ("Qwen3VLMoeVisionPatchMerger", ("norm", "linear_fc1", "act_fn", "linear_fc2"), False),
    ("Kimi_K25MultimodalProjection", ("pre_norm", "in_proj", "act", "out_proj"), True),
]


def _projector(cls, names, batched):
    def inputs(specimen, sample):
        norm, first = getattr(specimen, names[0]), getattr(specimen, names[1])
        width = norm.normalized_shape[0]
        merge = first.in_features // width
        if batched:
            return (sample(3, merge, width),), {}
        # after the merge norm, rows still come unmerged: the published models merge 2 x 2
        return (sample(12, width if merge > 1 else width // 4),), {}

    forward = forwards.batched_projector if batched else forwards.projector
    return Rule(
        "projector", "mlp", of_class(f"{M}*.{cls}"), functools.partial(forward, names), inputs
    )


def packed_vision_attention(
    module, hidden_states, cu_seqlens, position_embeddings=None, max_seqlen=None, **kwargs
):
    """Rope and one attention call for all images; the original loops over them in Python."""
    n, heads = hidden_states.shape[0], module.num_heads
    if hasattr(module, "qkv"):
        q, k, v = module.qkv(hidden_states).view(n, 3, heads, -1).unbind(1)
    else:
        projections = (module.q_proj, module.k_proj, module.v_proj)
        q, k, v = (p(hidden_states).view(n, heads, -1) for p in projections)
    q, k = mmkern.rope(q, k, *position_embeddings)
    longest = max_seqlen if isinstance(max_seqlen, int) else None
    out = mmkern.attention(
        q, k, v, scale=module.scaling, cu_seqlens_q=cu_seqlens.int(),
        max_seqlen_q=longest, max_seqlen_k=longest,
    )  # fmt: skip
    return module.proj(out.flatten(1))


def _vision_inputs(specimen, sample):
    import torch

    head_dim = specimen.dim // specimen.num_heads
    table = sample(9, head_dim).float().cos(), sample(9, head_dim).float().sin()
    borders = torch.tensor([0, 4, 9], dtype=torch.int32, device=table[0].device)
    return (sample(9, specimen.dim),), {"cu_seqlens": borders, "position_embeddings": table}


def text_attention(
    module,
    hidden_states,
    position_embeddings=None,
    attention_mask=None,
    past_key_values=None,
    **kwargs,
):
    """QK-norm and rope in one pass on (B, S, H, D); the attention is whatever the config says."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    implementation = module.config._attn_implementation
    norms = getattr(module, "q_norm", None), getattr(module, "k_norm", None)
    usable = all(norm is None or plain(norm, type(norm)) for norm in norms)
    if implementation not in ALL_ATTENTION_FUNCTIONS or not usable:
        return original(
            module, hidden_states, position_embeddings=position_embeddings,
            attention_mask=attention_mask, past_key_values=past_key_values, **kwargs,
        )  # fmt: skip
    shape = (*hidden_states.shape[:-1], -1, module.head_dim)
    q, k, v = (p(hidden_states).view(shape) for p in (module.q_proj, module.k_proj, module.v_proj))
    weights = {}
    if norms[0] is not None:
        weights = {"q_weight": norms[0].weight, "k_weight": norms[1].weight}
        weights["eps"] = forwards.norm_eps(norms[0])
    q, k = mmkern.rope(q, k, *position_embeddings, **weights)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if past_key_values is not None:
        k, v = past_key_values.update(k, v, module.layer_idx)
    if hasattr(module, "sliding_window"):
        kwargs["sliding_window"] = module.sliding_window
    dropout = module.attention_dropout if module.training else 0.0
    out, weights = ALL_ATTENTION_FUNCTIONS[implementation](
        module, q, k, v, attention_mask, dropout=dropout, scaling=module.scaling, **kwargs
    )
    return module.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), weights


def _text_inputs(specimen, sample):
    x, angle = sample(2, 6, specimen.q_proj.in_features), sample(2, 6, specimen.head_dim)
    return (x,), {"position_embeddings": (angle.cos(), angle.sin()), "attention_mask": None}


TEXT_ATTENTION = [
    "LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention", "Qwen3MoeAttention",
    "Qwen3VLTextAttention", "Qwen3VLMoeTextAttention",
]  # fmt: skip
VISION_ATTENTION = [
    "Qwen3VLVisionAttention", "Qwen3VLMoeVisionAttention", "Kimi_K25VisionAttention",
]  # fmt: skip


def pooling_head(module, hidden_state):
    """SigLIP's: one learned query over all tokens, then norm and MLP with a residual."""
    attn, norm = module.attention, module.layernorm
    if not (plain(attn, nn.MultiheadAttention) and plain(norm, nn.LayerNorm)) or (
        module.training and attn.dropout
    ):
        return original(module, hidden_state)
    width = attn.embed_dim
    (w_q, w_kv), (b_q, b_kv) = (
        t.split([width, 2 * width]) for t in (attn.in_proj_weight, attn.in_proj_bias)
    )
    q = F.linear(module.probe, w_q, b_q).expand(hidden_state.shape[0], -1, -1)
    k, v = F.linear(hidden_state, w_kv, b_kv).chunk(2, -1)
    q, k, v = (t.unflatten(-1, (attn.num_heads, -1)) for t in (q, k, v))
    x = attn.out_proj(mmkern.attention(q, k, v).flatten(2))
    y = mmkern.modulate(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    return (x + module.mlp(y))[:, 0]


def _refuse_head(module):
    attn = module.attention
    if attn.in_proj_bias is None or not attn.batch_first or attn.bias_k is not None:
        return "its nn.MultiheadAttention has other options than the published one"


def _head_inputs(specimen, sample):
    return (sample(2, 7, specimen.attention.embed_dim),), {}


def apply_gate(module, gate_up):
    """silu(gate) * up of all routed rows, in the middle of transformers' fast experts."""
    return mmkern.glu(gate_up, activation=forwards.activation_name(module.act_fn))


def _experts(path, module):
    return all(
        hasattr(module, name) for name in ("_apply_gate", "gate_up_proj", "has_gate", "act_fn")
    ) and qualified(type(module)).startswith(M)


def _refuse_experts(module):
    from transformers.integrations.moe import _default_apply_gate

    if type(module)._apply_gate is not _default_apply_gate or not module.has_gate:
        return "it has a gate of its own"
    if forwards.activation_name(module.act_fn) is None:
        return f"its activation {type(module.act_fn).__name__} is not one of mmkern.glu's"
    if module.config._experts_implementation == "eager":
        return "its experts_implementation is 'eager', which computes the gate by itself"


def _use_gate(module):
    return [(module, "_apply_gate", functools.partial(apply_gate, module))]


class Stub(nn.Module):
    """Stands for a block's attention in a probe: the block's own arithmetic is what is checked."""

    def __init__(self, returns):
        super().__init__()
        self.returns = returns

    def forward(self, hidden_states, *args, **kwargs):
        flipped = hidden_states.flip(-1)
        return flipped if self.returns == 1 else (flipped, *(None,) * (self.returns - 1))


# layers with one norm before each branch: norm1, attention, norm2, MLP; the positional parameters
# after the first; whether the attention returns a pair
_CLIP = ("layer_norm1", "self_attn", "layer_norm2", "mlp")
_VIT = ("layernorm_before", "attention", "layernorm_after", "mlp")
_VISION = ("norm1", "attn", "norm2", "mlp")
_TEXT = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
_SEGMENTS = ("cu_seqlens", "position_embeddings")
_STEP = (
    "attention_mask", "position_ids", "past_key_values", "use_cache", "position_embeddings",
)  # fmt: skip
BLOCKS = [
    ("SiglipEncoderLayer", _CLIP, ("attention_mask",), True),
    ("CLIPEncoderLayer", _CLIP, ("attention_mask",), True),
    ("ViTLayer", _VIT, ("attention_mask",), True),
    ("Qwen3VLVisionBlock", _VISION, _SEGMENTS, False),
    ("Qwen3VLMoeVisionBlock", _VISION, _SEGMENTS, False),
    ("Kimi_K25VisionEncoderLayer", _VISION, _SEGMENTS, False),
    ("LlamaDecoderLayer", _TEXT, _STEP, True),
    ("MistralDecoderLayer", _TEXT, _STEP, True),
    ("Qwen2DecoderLayer", _TEXT, _STEP, True),
    ("Qwen3DecoderLayer", _TEXT, _STEP, True),
    ("Qwen3MoeDecoderLayer", _TEXT, _STEP, True),
    ("Qwen3VLTextDecoderLayer", _TEXT, _STEP, True),
    ("Qwen3VLMoeTextDecoderLayer", _TEXT, _STEP, True),
    ("DeepseekV3DecoderLayer", _TEXT, _STEP, True),
]


def _block(cls, names, parameters, pair):
    def inputs(specimen, sample):
        x = sample(2, 7, getattr(specimen, names[0]).weight.shape[0])
        return (x,), dict.fromkeys(parameters)

    forward = functools.partial(
        forwards.checkpointed, functools.partial(forwards.pre_norm_block, names, parameters)
    )
    stubs = ((names[1], Stub(2 if pair else 1)), (names[3], nn.Identity()))
    ops = "rms_norm with residual" if names is _TEXT else "gated_modulate (LayerNorm)"
    return Rule("residual_norm", ops, of_class(f"{M}*.{cls}"), forward, inputs, stubs=stubs)


def _pretrained(path, module):
    return any(
        qualified(c) == "transformers.modeling_utils.PreTrainedModel" for c in type(module).__mro__
    )


def _refuse_implementation(module):
    if not _has_door(module):
        return "its attention does not go through transformers' interface"
    implementation = module.config._attn_implementation
    if implementation not in ("sdpa", doors.NAME):
        return f"its attn_implementation is {implementation!r}, chosen for what sdpa does not do"
    return doors.mismatch()


def _has_door(module):
    """Code from a model's repository may say that it supports sdpa, by functions of its own."""
    if qualified(definer(module)).startswith(M):
        return module._supports_sdpa or module._supports_attention_backend
    return module._supports_attention_backend


def _use_door(module):
    doors.register()
    return [(module.config, "_attn_implementation_internal", doors.NAME)]


RULES = [
    Rule("attention", "attention", _pretrained, refuse=_refuse_implementation,
         swaps=_use_door, reads=False),
    *(_projector(*row) for row in PROJECTORS),
    *(
        Rule("vision_attention", "rope + attention, packed", of_class(f"{M}*.{cls}"),
             packed_vision_attention, _vision_inputs)
        for cls in VISION_ATTENTION
    ),
    *(
        Rule("rope", "rope, with QK-norm", of_class(f"{M}*.{cls}"), text_attention, _text_inputs)
        for cls in TEXT_ATTENTION
    ),
    *(_block(*row) for row in BLOCKS),
    Rule(
        "pooling_head", "attention, modulate",
        of_class(f"{M}siglip.modeling_siglip.SiglipMultiheadAttentionPoolingHead"), pooling_head,
        _head_inputs, _refuse_head,
    ),
    Rule("experts", "glu", _experts, refuse=_refuse_experts, swaps=_use_gate),
]  # fmt: skip
