"""Kimi-VL's latent attention (MLA) as its repository's code writes it, in eager PyTorch alone.

Its heads have a part without positions and a rotary one, and values narrower than both together.
Formulas: the public modeling_kimi_vl.py and modeling_deepseek.py of moonshotai/Kimi-VL-A3B.
"""

import torch
from torch.nn import functional as F

import mmkern
from mmkern.patch.core import definer, original, qualified

NAMES = {"kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj", "rotary_emb"}
QUERY = ({"q_proj"}, {"q_a_proj", "q_a_layernorm", "q_b_proj"})


def match(path, module):
    names = set(module._modules)
    return (
        names - NAMES in QUERY
        and names >= NAMES
        and not qualified(definer(module)).startswith("transformers.models.")
    )


def refuse(module):
    if "Flash" in definer(module).__name__:
        return "its attention is flash-attention's already"


def is_causal(mask):
    """Whether an additive (B, 1, Sq, Sk) mask is the causal one, aligned at the lower right.

    Noted on the tensor, which all layers get: reading it waits for the device. Not on one made in
    inference mode, which has no version to say that it was written to since.
    """
    if torch.compiler.is_compiling():
        return False
    if mask.is_inference():
        return _read_causal(mask)
    noted, version = getattr(mask, "_mmkern_causal", (None, None))
    if version != mask._version:
        noted = _read_causal(mask)
        mask._mmkern_causal = noted, mask._version
    return noted


def _read_causal(mask):
    seen = torch.ones(mask.shape[2:], dtype=torch.bool, device=mask.device)
    seen = seen.tril(mask.shape[3] - mask.shape[2])
    # some write -1e4 instead of the lowest number; a penalty that leaves a weight is another mask
    return bool(torch.where(seen, mask == 0, mask < -9e3).all())


def _halves(x):
    """Adjacent pairs as two halves, the order that the published rope leaves behind."""
    return x.unflatten(-1, (-1, 2)).transpose(-2, -1).flatten(-2)


def _query(module, x):
    if hasattr(module, "q_proj"):
        return module.q_proj(x)
    return module.q_b_proj(module.q_a_layernorm(module.q_a_proj(x)))


def attention(
    module, hidden_states, attention_mask=None, position_ids=None, past_key_value=None,
    output_attentions=False, use_cache=False, **kwargs,
):  # fmt: skip
    """MLA; a mask other than the causal one goes to scaled_dot_product_attention."""
    mask, dropout = attention_mask, module.attention_dropout if module.training else 0.0
    batch, tokens = hidden_states.shape[:2]
    length = tokens
    if past_key_value is not None:
        length += past_key_value.get_usable_length(tokens, module.layer_idx)
    mask_fits = mask is not None and mask.shape == (batch, 1, tokens, length)
    if output_attentions or dropout or not mask_fits or position_ids is None:
        return original(
            module, hidden_states, attention_mask=mask, position_ids=position_ids,
            past_key_value=past_key_value, output_attentions=output_attentions,
            use_cache=use_cache, **kwargs,
        )  # fmt: skip
    heads, nope, rope = module.num_heads, module.qk_nope_head_dim, module.qk_rope_head_dim
    q, q_rope = _query(module, hidden_states).unflatten(-1, (heads, -1)).split([nope, rope], -1)
    latent, k_rope = module.kv_a_proj_with_mqa(hidden_states).split([module.kv_lora_rank, rope], -1)
    kv = module.kv_b_proj(module.kv_a_layernorm(latent)).unflatten(-1, (heads, -1))
    k, v = kv.split([nope, module.v_head_dim], -1)
    cos, sin = (t[position_ids] for t in module.rotary_emb(v, seq_len=length))
    q_rope, k_rope = mmkern.rope(_halves(q_rope), _halves(k_rope[:, :, None]), cos, sin)
    q = torch.cat((q, q_rope), -1)
    k = torch.cat((k, k_rope.expand(-1, -1, heads, -1)), -1)
    if past_key_value is not None:
        k, v = past_key_value.update(
            k.transpose(1, 2), v.transpose(1, 2), module.layer_idx, {"sin": sin, "cos": cos}
        )
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    if is_causal(mask):
        out = mmkern.attention(q, k, v, causal=True, scale=module.softmax_scale)
    else:
        heads_first = (t.transpose(1, 2) for t in (q, k, v))
        # float32's lowest number is -inf in half precision, and a row of that is NaN
        mask = mask.clamp(min=torch.finfo(q.dtype).min).to(q.dtype)
        out = F.scaled_dot_product_attention(
            *heads_first, attn_mask=mask, scale=module.softmax_scale
        ).transpose(1, 2)
    return module.o_proj(out.flatten(2)), None, past_key_value


def inputs(specimen, sample):
    length, width = 6, specimen.kv_a_proj_with_mqa.in_features
    x = sample(2, length, width)
    causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    mask = torch.zeros_like(causal, dtype=x.dtype).masked_fill(~causal, torch.finfo(x.dtype).min)
    positions = torch.arange(length, device=x.device)[None]
    return (x,), {"attention_mask": mask.expand(2, 1, -1, -1), "position_ids": positions}
