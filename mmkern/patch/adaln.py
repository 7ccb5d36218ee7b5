"""diffusers' adaLN norms and transformer blocks on modulate, gated_modulate and gated_residual."""

import torch
from torch import nn

import mmkern
from mmkern.patch.core import original, plain
from mmkern.patch.forwards import activation_name, dropping, same_dtype


def layer_norms(*norms):
    """Whether all are LayerNorms (diffusers' float32 one among them) without hooks."""
    return all(
        plain(n, nn.LayerNorm) or (type(n).__name__ == "FP32LayerNorm" and plain(n, type(n)))
        for n in norms
    )


def _fit(m, x):
    """A modulation tensor in a dtype that the ops take beside x; autocast makes others."""
    return m if m is None or m.dtype in (x.dtype, torch.float32) else m.to(x.dtype)


def _affine(norm):
    return {"weight": norm.weight, "bias": norm.bias, "eps": norm.eps}


def modulate(x, norm, shift, scale):
    return mmkern.modulate(x, _fit(shift, x), _fit(scale, x), **_affine(norm))


def residual(x, branch, gate=None):
    return mmkern.gated_residual(x, branch.to(x.dtype), _fit(gate, x))


def step(x, branch, gate, norm, shift=None, scale=None):
    """(h, y): h = x + gate * branch; y = norm(h) * (1 + scale) + shift."""
    mods = (_fit(m, x) for m in (gate, shift, scale))
    return mmkern.gated_modulate(x, branch.to(x.dtype), *mods, **_affine(norm))


def feed_forward(x, branch, gate, norm, ff, shift, scale, gate2):
    """The second half of a block: the attention's residual, norm, MLP and its residual."""
    h, y = step(x, branch, gate, norm, shift, scale)
    return residual(h, ff(y), gate2)


def _modulated(layout, module, x, conditioning):
    """linear -> chunks; each (shift, scale) of ``layout`` modulates one norm of x.

    ``layout``: (number of chunks, what is returned: a chunk's index, or a (shift, scale) pair).
    """
    count, returned = layout
    chunks = module.linear(conditioning).chunk(count, dim=-1)
    out = tuple(
        chunks[i] if isinstance(i, int) else modulate(x, module.norm, *(chunks[j] for j in i))
        for i in returned
    )
    return out if len(out) > 1 else out[0]


def adaptive_norm(layout, module, x, *args, emb=None, **kwargs):
    """AdaLayerNormZero and its kin; DiT's holds the embedding of timestep and label too."""
    if not layer_norms(module.norm) or x.dim() != 3:
        return original(module, x, *args, emb=emb, **kwargs)
    if getattr(module, "emb", None) is not None:
        emb = module.emb(*args, **kwargs)
    return _modulated(layout, module, x, module.silu(emb))


def continuous_norm(layout, module, x, conditioning_embedding):
    """AdaLayerNormContinuous: scale before shift."""
    if not layer_norms(module.norm) or x.dim() != 3:
        return original(module, x, conditioning_embedding)
    return _modulated(layout, module, x, module.silu(conditioning_embedding).to(x.dtype))


def basic_block(
    module, hidden_states, attention_mask=None, encoder_hidden_states=None,
    encoder_attention_mask=None, timestep=None, cross_attention_kwargs=None, class_labels=None,
    added_cond_kwargs=None,
):  # fmt: skip
    """BasicTransformerBlock with "ada_norm_zero" (DiT) or "ada_norm_single" (PixArt)."""
    x, zero = hidden_states, module.norm_type == "ada_norm_zero"
    last = module.norm3 if zero else module.norm2
    if cross_attention_kwargs or module._chunk_size or not layer_norms(last) or x.dim() != 3:
        return original(
            module, x, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep,
            cross_attention_kwargs, class_labels, added_cond_kwargs,
        )  # fmt: skip
    if zero:
        y, gate, shift, scale, gate2 = module.norm1(x, timestep, class_labels, hidden_dtype=x.dtype)
    else:
        table = module.scale_shift_table[None] + timestep.reshape(x.shape[0], 6, -1)
        shift1, scale1, gate, shift, scale, gate2 = table.unbind(1)
        y = modulate(x, module.norm1, shift1, scale1)
    context = encoder_hidden_states if module.only_cross_attention else None
    branch = module.attn1(y, encoder_hidden_states=context, attention_mask=attention_mask)
    if module.attn2 is not None:
        x, gate = residual(x, branch, gate), None
        branch = module.attn2(
            x, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask
        )
    return feed_forward(x, branch, gate, last, module.ff, shift, scale, gate2)


def _joint(module, x, context, temb, **attention):
    """norm1 of both streams, joint attention, and the rest of each: (context, x)."""
    y, gate, shift, scale, gate2, *dual = module.norm1(x, emb=temb)
    if getattr(module, "context_pre_only", False):
        cy, rest = module.norm1_context(context, temb), None
    else:
        cy, *rest = module.norm1_context(context, emb=temb)
    branch, cbranch, *extra = module.attn(hidden_states=y, encoder_hidden_states=cy, **attention)
    if dual:
        x, gate = residual(x, branch, gate), dual[1]
        branch = module.attn2(hidden_states=dual[0], **attention)
    x = feed_forward(x, branch, gate, module.norm2, module.ff, shift, scale, gate2)
    if rest is None:
        return None, x
    cgate, cshift, cscale, cgate2 = rest
    context = feed_forward(
        context, cbranch, cgate, module.norm2_context, module.ff_context, cshift, cscale, cgate2
    )
    return context, x + extra[0] if extra else x


def _joint_norms(module):
    context = getattr(module, "norm2_context", None)
    return layer_norms(module.norm2, *([] if context is None else [context]))


def sd3_block(module, hidden_states, encoder_hidden_states, temb, joint_attention_kwargs=None):
    if module._chunk_size is not None or not _joint_norms(module):
        return original(module, hidden_states, encoder_hidden_states, temb, joint_attention_kwargs)
    return _joint(
        module, hidden_states, encoder_hidden_states, temb, **(joint_attention_kwargs or {})
    )


def _clipped(x):
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


def flux_block(
    module, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
    joint_attention_kwargs=None,
):  # fmt: skip
    arguments = (hidden_states, encoder_hidden_states, temb)
    if not _joint_norms(module):
        return original(module, *arguments, image_rotary_emb, joint_attention_kwargs)
    context, x = _joint(
        module, *arguments, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {})
    )
    return _clipped(context), x


def flux_single_block(
    module, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None,
    joint_attention_kwargs=None,
):  # fmt: skip
    text = encoder_hidden_states.shape[1]
    x = torch.cat([encoder_hidden_states, hidden_states], dim=1)
    y, gate = module.norm(x, emb=temb)
    hidden = module.act_mlp(module.proj_mlp(y))
    branch = module.attn(
        hidden_states=y, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {})
    )
    x = _clipped(residual(x, module.proj_out(torch.cat([branch, hidden], dim=2)), gate))
    return x[:, :text], x[:, text:]


def hunyuan_block(
    module, hidden_states, encoder_hidden_states, temb, attention_mask=None, freqs_cis=None,
    *args, **kwargs,
):  # fmt: skip
    arguments = (hidden_states, encoder_hidden_states, temb)
    if not _joint_norms(module):
        return original(module, *arguments, attention_mask, freqs_cis, *args, **kwargs)
    context, x = _joint(
        module, *arguments, attention_mask=attention_mask, image_rotary_emb=freqs_cis
    )
    return x, context


def hunyuan_single_block(
    module, hidden_states, encoder_hidden_states, temb, attention_mask=None,
    image_rotary_emb=None, *args, **kwargs,
):  # fmt: skip
    image = hidden_states.shape[1]
    x = torch.cat([hidden_states, encoder_hidden_states], dim=1)
    y, gate = module.norm(x, emb=temb)
    hidden = module.act_mlp(module.proj_mlp(y))
    branches = module.attn(
        hidden_states=y[:, :image], encoder_hidden_states=y[:, image:],
        attention_mask=attention_mask, image_rotary_emb=image_rotary_emb,
    )  # fmt: skip
    branch = torch.cat([torch.cat(branches, dim=1), hidden], dim=2)
    x = residual(x, module.proj_out(branch), gate)
    return x[:, :image], x[:, image:]


def hunyuan_refiner_block(module, hidden_states, temb, attention_mask=None):
    """A block of HunyuanVideo's text refiner: gates (B, 1, C) alone, affine norms."""
    if not layer_norms(module.norm2):
        return original(module, hidden_states, temb, attention_mask)
    x = hidden_states
    branch = module.attn(
        hidden_states=module.norm1(x), encoder_hidden_states=None, attention_mask=attention_mask
    )
    gate, gate2 = module.norm_out(temb)
    h, y = step(x, branch, gate, module.norm2)
    return residual(h, module.ff(y), gate2)


def wan_block(module, hidden_states, encoder_hidden_states, temb, rotary_emb):
    """Wan: float32 modulation, per sample (B, 6, C) or per token (B, S, 6, C)."""
    x, norm2 = hidden_states, module.norm2
    affine = not isinstance(norm2, nn.Identity)
    if not layer_norms(module.norm1, module.norm3, *([norm2] if affine else [])):
        return original(module, x, encoder_hidden_states, temb, rotary_emb)
    table = module.scale_shift_table if temb.dim() == 3 else module.scale_shift_table[None]
    shift, scale, gate, shift2, scale2, gate2 = (table + temb.float()).unbind(-2)
    branch = module.attn1(modulate(x, module.norm1, shift, scale), None, None, rotary_emb)
    if affine:
        x, y = step(x, branch, gate, norm2)
    else:
        y = x = residual(x, branch, gate)
    branch = module.attn2(y, encoder_hidden_states, None, None)
    return feed_forward(x, branch, None, module.norm3, module.ffn, shift2, scale2, gate2)


def qwen_block(
    module, hidden_states, encoder_hidden_states, encoder_hidden_states_mask, temb,
    image_rotary_emb=None, joint_attention_kwargs=None, modulate_index=None,
):  # fmt: skip
    """QwenImage: (shift, scale, gate) twice per stream."""
    x, context = hidden_states, encoder_hidden_states
    norms = (module.img_norm1, module.img_norm2, module.txt_norm1, module.txt_norm2)
    if module.zero_cond_t or modulate_index is not None or not layer_norms(*norms):
        return original(
            module, x, context, encoder_hidden_states_mask, temb, image_rotary_emb,
            joint_attention_kwargs, modulate_index,
        )  # fmt: skip
    shift, scale, gate, *mods = module.img_mod(temb).chunk(6, dim=-1)
    cshift, cscale, cgate, *cmods = module.txt_mod(temb).chunk(6, dim=-1)
    branch, cbranch = module.attn(
        hidden_states=modulate(x, module.img_norm1, shift, scale),
        encoder_hidden_states=modulate(context, module.txt_norm1, cshift, cscale),
        encoder_hidden_states_mask=encoder_hidden_states_mask,
        image_rotary_emb=image_rotary_emb,
        **(joint_attention_kwargs or {}),
    )
    x = feed_forward(x, branch, gate, module.img_norm2, module.img_mlp, *mods)
    context = feed_forward(context, cbranch, cgate, module.txt_norm2, module.txt_mlp, *cmods)
    return _clipped(context), _clipped(x)


def flux2_block(
    module, hidden_states, encoder_hidden_states, temb_mod_img, temb_mod_txt,
    image_rotary_emb=None, joint_attention_kwargs=None,
):  # fmt: skip
    """Flux2: modulation (B, 1, 6 C) or (B, S, 6 C) that all blocks share."""
    x, context = hidden_states, encoder_hidden_states
    norms = (module.norm1, module.norm2, module.norm1_context, module.norm2_context)
    if not layer_norms(*norms):
        return original(
            module, x, context, temb_mod_img, temb_mod_txt, image_rotary_emb,
            joint_attention_kwargs,
        )  # fmt: skip
    shift, scale, gate, *mods = _tokens(temb_mod_img).chunk(6, dim=-1)
    cshift, cscale, cgate, *cmods = _tokens(temb_mod_txt).chunk(6, dim=-1)
    branch, cbranch = module.attn(
        hidden_states=modulate(x, module.norm1, shift, scale),
        encoder_hidden_states=modulate(context, module.norm1_context, cshift, cscale),
        image_rotary_emb=image_rotary_emb,
        **(joint_attention_kwargs or {}),
    )
    x = feed_forward(x, branch, gate, module.norm2, module.ff, *mods)
    context = feed_forward(context, cbranch, cgate, module.norm2_context, module.ff_context, *cmods)
    return _clipped(context), x


def flux2_single_block(
    module, hidden_states, encoder_hidden_states, temb_mod, image_rotary_emb=None,
    joint_attention_kwargs=None, split_hidden_states=False, text_seq_len=None,
):  # fmt: skip
    if not layer_norms(module.norm):
        return original(
            module, hidden_states, encoder_hidden_states, temb_mod, image_rotary_emb,
            joint_attention_kwargs, split_hidden_states, text_seq_len,
        )  # fmt: skip
    x = hidden_states
    if encoder_hidden_states is not None:
        text_seq_len = encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, x], dim=1)
    shift, scale, gate = _tokens(temb_mod).chunk(3, dim=-1)
    branch = module.attn(
        hidden_states=modulate(x, module.norm, shift, scale), image_rotary_emb=image_rotary_emb,
        **(joint_attention_kwargs or {}),
    )  # fmt: skip
    x = _clipped(residual(x, branch, gate))
    return (x[:, :text_seq_len], x[:, text_seq_len:]) if split_hidden_states else x


def _rms(norm):
    return type(norm).__name__ == "RMSNorm" and plain(norm, type(norm)) and norm.weight is not None


def lumina_norm(module, x, emb=None):
    """LuminaRMSNormZero: scale, gate, scale, gate; no shift."""
    if not _rms(module.norm):
        return original(module, x, emb)
    scale, gate, scale2, gate2 = module.linear(module.silu(emb)).chunk(4, dim=1)
    y = mmkern.modulate(
        x, None, _fit(scale, x), norm="rms", weight=module.norm.weight, eps=module.norm.eps
    )
    return y, gate, scale2, gate2


def lumina_block(module, hidden_states, attention_mask, image_rotary_emb, temb=None):
    """Lumina2: a norm behind each branch, and gates through tanh."""
    x, norm = hidden_states, module.ffn_norm1
    if not _rms(norm):
        return original(module, x, attention_mask, image_rotary_emb, temb)
    gate = scale = gate2 = None
    if module.modulation:
        y, gate, scale, gate2 = module.norm1(x, temb)
        gate, gate2 = gate.tanh(), gate2.tanh()
    else:  # the refiner of the text
        y = module.norm1(x)
    branch = module.attn(
        hidden_states=y, encoder_hidden_states=y, attention_mask=attention_mask,
        image_rotary_emb=image_rotary_emb,
    )  # fmt: skip
    x, y = mmkern.gated_modulate(
        x, module.norm2(branch).to(x.dtype), _fit(gate, x), None, _fit(scale, x),
        norm="rms", weight=norm.weight, eps=norm.eps,
    )  # fmt: skip
    return residual(x, module.ffn_norm2(module.feed_forward(y)), gate2)


def _tokens(mod):
    """(B, 1, 6 C) or per token; (B, 6 C) gets its token dimension."""
    return mod[:, None] if mod.dim() == 2 else mod


#: activations of diffusers' FeedForward that mmkern.mlp takes, and gated ones for mmkern.glu
FF_GATED = {"GEGLU": "gelu", "SwiGLU": "silu"}


def ff_activation(first):
    """mmkern.mlp's name of the first layer's activation, or None."""
    if type(first).__name__ == "GELU":
        return "gelu_tanh" if first.approximate == "tanh" else "gelu"
    if type(first).__name__ == "ApproximateGELU":
        return "quick_gelu"
    return activation_name(getattr(first, "activation", None))


def ff(module, x, *args, **kwargs):
    """diffusers' FeedForward: an activation with its projection, dropout, linear."""
    first, out = module.net[0], module.net[2]
    if args or kwargs or dropping(module.net) or "forward" in vars(first):
        return original(module, x, *args, **kwargs)
    if type(first).__name__ in FF_GATED:
        activation = FF_GATED[type(first).__name__]
        return out(mmkern.glu(first.proj(x), activation=activation, gate_first=False))
    weights = first.proj, out
    if not all(plain(layer, nn.Linear) for layer in weights) or not same_dtype(x, out.weight):
        return original(module, x)
    (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in weights)
    return mmkern.mlp(x, w1, b1, w2, b2, activation=ff_activation(first))


def flux2_swiglu(module, x):
    return mmkern.glu(x)
