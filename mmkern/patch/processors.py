"""Attention processors of diffusers on mmkern's ops: QK-norm and rope in one pass, attention.

Each holds the processor that it replaced, and calls it for what it does not take itself.
"""

import functools

import torch
from torch.nn import functional as F

import mmkern
from mmkern.patch.core import plain

NAME = "mmkern"


class Processor:
    """Base: what diffusers reads and writes on a processor is the replaced one's."""

    def __init__(self, original):
        self.original = original

    @property
    def _attention_backend(self):
        return self.original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend):
        self.original._attention_backend = backend

    @property
    def _parallel_config(self):
        return self.original._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config):
        self.original._parallel_config = config

    def foreign(self, attn):
        """Whether the user has asked for something that only the original does."""
        backend = getattr(self, "_attention_backend", None)
        return (
            backend not in (None, NAME)
            or getattr(self, "_parallel_config", None) is not None
            or getattr(attn, "fused_projections", False)
        )


def heads(projection, x, head_dim):
    return projection(x).unflatten(-1, (-1, head_dim))


def rotated(norm_q, norm_k, q, k, tables):
    """QK-norm (or none) and rope on adjacent pairs (or none), in one pass where both exist."""
    if tables is not None:  # Lumina2's are float64
        tables = [t if t.dtype in (q.dtype, torch.float32) else t.float() for t in tables]
    norms = [n for n in (norm_q, norm_k) if n is not None]
    fusable = len(norms) == 2 and all(
        plain(n, type(n)) and type(n).__name__ == "RMSNorm" and n.weight is not None
        and getattr(n, "bias", None) is None and n.weight.shape == q.shape[-1:]
        and n.weight.dtype in (q.dtype, torch.float32) and n.eps == norm_q.eps
        for n in norms
    )  # fmt: skip
    if tables is not None and fusable and norm_q.eps is not None:
        return mmkern.rope(
            q, k, *tables, interleaved=True, q_weight=norm_q.weight, k_weight=norm_k.weight,
            eps=norm_q.eps,
        )  # fmt: skip
    q = q if norm_q is None else norm_q(q)
    k = k if norm_k is None else norm_k(k)
    return (q, k) if tables is None else mmkern.rope(q, k, *tables, interleaved=True)


def attend(q, k, v, mask=None, scale=None):
    """(B, S, H, D) -> (B, S, H * D); a mask of keys alone, or one that goes to sdpa."""
    if mask is not None and mask.dim() == 4 and mask.shape[1:3] == (1, 1):
        mask = mask[:, 0, 0]
    if mask is None or (mask.dim() == 2 and mask.dtype == torch.bool):
        mask = mask if mask is None else mask.expand(k.shape[0], -1)
        out = mmkern.attention(q, k, v, key_padding_mask=mask, scale=scale)
    else:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        gqa = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=gqa)
        out = out.transpose(1, 2)
    return out.flatten(2)


def output(attn, x):
    for layer in attn.to_out:
        x = layer(x)
    return x


def complex_tables(freqs):
    """cos and sin with an entry for each member of a pair, from complex exponentials."""
    return freqs.real.repeat_interleave(2, -1), freqs.imag.repeat_interleave(2, -1)


class SelfOrCross(Processor):
    """AttnProcessor2_0: DiT, PixArt, autoencoders, refiners."""

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None,
        *args, **kwargs,
    ):  # fmt: skip
        if self.foreign(attn) or attention_mask is not None or attn.spatial_norm is not None:
            return self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
        x, shape = hidden_states, hidden_states.shape
        if x.dim() == 4:
            x = x.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        context = x if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        k, v = attn.to_k(context), attn.to_v(context)
        head_dim = k.shape[-1] // attn.heads
        k, v = (t.unflatten(-1, (-1, head_dim)) for t in (k, v))
        # these norms see (B, H, S, D), which a norm over the last dimension does not notice
        q, k = rotated(attn.norm_q, attn.norm_k, heads(attn.to_q, x, head_dim), k, None)
        x = output(attn, attend(q, k, v))
        if len(shape) == 4:
            x = x.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            x = x + hidden_states
        return x if attn.rescale_output_factor == 1 else x / attn.rescale_output_factor


def _joined(first, second):
    return tuple(torch.cat(pair, dim=1) for pair in zip(first, second, strict=True))


def _stream(attn, x, head_dim, tables=None, added=False):
    """(q, k, v) of one stream, normed and rotated; ``added``: by the context's projections."""
    if added:
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        norms = (attn.norm_added_q, attn.norm_added_k)
    else:
        projections = (attn.to_q, attn.to_k, attn.to_v)
        norms = (attn.norm_q, attn.norm_k)
    q, k, v = (heads(p, x, head_dim) for p in projections)
    return *rotated(*norms, q, k, tables), v


def _head_dim(attn):
    return attn.inner_dim // attn.heads


class Joint(Processor):
    """JointAttnProcessor2_0 (SD3): [image, text], no rope."""

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, *args, **kwargs
    ):
        if self.foreign(attn):
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask)
        x, context = hidden_states, encoder_hidden_states
        qkv = _stream(attn, x, _head_dim(attn))
        if context is None:
            return output(attn, attend(*qkv))
        out = attend(*_joined(qkv, _stream(attn, context, _head_dim(attn), added=True)))
        x, context = out[:, : x.shape[1]], out[:, x.shape[1] :]
        return output(attn, x), context if attn.context_pre_only else attn.to_add_out(context)


class Flux(Processor):
    """FluxAttnProcessor and Flux2AttnProcessor: [text, image], one rope table over both."""

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None,
        image_rotary_emb=None,
    ):  # fmt: skip
        x, context, tables = hidden_states, encoder_hidden_states, image_rotary_emb
        if self.foreign(attn) or (attn.added_kv_proj_dim is None) != (context is None):
            return self.original(attn, x, context, attention_mask, tables)
        if context is None:
            out = attend(*_stream(attn, x, attn.head_dim, tables), mask=attention_mask)
            # FLUX.1 leaves the projection to its block
            projects = type(self.original).__name__ == "Flux2AttnProcessor"
            return output(attn, out) if projects else out
        text = context.shape[1]
        halves = (None, None)
        if tables is not None:
            halves = [t[:text] for t in tables], [t[text:] for t in tables]
        first = _stream(attn, context, attn.head_dim, halves[0], added=True)
        second = _stream(attn, x, attn.head_dim, halves[1])
        out = attend(*_joined(first, second), mask=attention_mask)
        return output(attn, out[:, text:]), attn.to_add_out(out[:, :text])


class Flux2Parallel(Processor):
    """Flux2ParallelSelfAttnProcessor: attention and MLP from one projection, and into one."""

    def __call__(self, attn, hidden_states, attention_mask=None, image_rotary_emb=None):
        if self.foreign(attn):
            return self.original(attn, hidden_states, attention_mask, image_rotary_emb)
        projected = attn.to_qkv_mlp_proj(hidden_states)
        sizes = [attn.inner_dim] * 3 + [attn.mlp_hidden_dim * attn.mlp_mult_factor]
        ranks = sum(sizes) // projected.shape[-1]  # of tensor parallelism
        *qkv, hidden = projected.split([size // ranks for size in sizes], dim=-1)
        q, k, v = (t.unflatten(-1, (-1, attn.head_dim)) for t in qkv)
        q, k = rotated(attn.norm_q, attn.norm_k, q, k, image_rotary_emb)
        out = attend(q, k, v, attention_mask)
        return attn.to_out(torch.cat([out, attn.mlp_act_fn(hidden)], dim=-1))


class Wan(Processor):
    """WanAttnProcessor: QK-norm across heads, tables (1, S, 1, D)."""

    TEXT = 512

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None
    ):
        x, context = hidden_states, encoder_hidden_states
        if self.foreign(attn):
            return self.original(attn, x, context, attention_mask, rotary_emb)
        context, image = x if context is None else context, None
        if attn.add_k_proj is not None:
            # image to video: the image's tokens stand before the text, whose length diffusers fixes
            image, context = context.tensor_split([context.shape[1] - self.TEXT], dim=1)
        q, k, v = attn.to_q(x), attn.to_k(context), attn.to_v(context)
        q, k = attn.norm_q(q), attn.norm_k(k)
        q, k, v = (t.unflatten(-1, (attn.heads, -1)) for t in (q, k, v))
        if rotary_emb is not None:
            q, k = mmkern.rope(q, k, *(t.squeeze(2) for t in rotary_emb), interleaved=True)
        out = attend(q, k, v, attention_mask)
        if image is not None:
            k, v = attn.norm_added_k(attn.add_k_proj(image)), attn.add_v_proj(image)
            out = out + attend(q, *(t.unflatten(-1, (attn.heads, -1)) for t in (k, v)))
        return output(attn, out)


class Qwen(Processor):
    """QwenDoubleStreamAttnProcessor2_0: [text, image], complex tables of each."""

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, encoder_hidden_states_mask=None,
        attention_mask=None, image_rotary_emb=None,
    ):  # fmt: skip
        x, context = hidden_states, encoder_hidden_states
        if self.foreign(attn) or context is None or attention_mask is not None:
            return self.original(
                attn, x, context, encoder_hidden_states_mask, attention_mask, image_rotary_emb
            )
        mask = encoder_hidden_states_mask
        if mask is not None:
            mask = torch.cat([mask.bool(), mask.new_ones(x.shape[:2], dtype=torch.bool)], dim=1)
        image, text = (None, None) if image_rotary_emb is None else image_rotary_emb
        image, text = (None if t is None else complex_tables(t) for t in (image, text))
        first = _stream(attn, context, _head_dim(attn), text, added=True)
        second = _stream(attn, x, _head_dim(attn), image)
        out = attend(*_joined(first, second), mask=mask)
        length = context.shape[1]
        return output(attn, out[:, length:]), attn.to_add_out(out[:, :length])


class Hunyuan(Processor):
    """HunyuanVideoAttnProcessor2_0: [image, text], rope on the image alone."""

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None,
        image_rotary_emb=None,
    ):  # fmt: skip
        x, context = hidden_states, encoder_hidden_states
        if self.foreign(attn) or context is None:
            return self.original(attn, x, context, attention_mask, image_rotary_emb)
        added = attn.add_q_proj is not None
        first = _stream(attn, x, _head_dim(attn), image_rotary_emb)
        second = _stream(attn, context, _head_dim(attn), added=added)
        out = attend(*_joined(first, second), mask=attention_mask)
        x, context = out[:, : x.shape[1]], out[:, x.shape[1] :]
        if getattr(attn, "to_out", None) is not None:
            x = output(attn, x)
        if getattr(attn, "to_add_out", None) is not None:
            context = attn.to_add_out(context)
        return x, context


class Lumina2(Processor):
    """Lumina2AttnProcessor2_0: grouped heads, complex tables (B, S, D / 2), proportional scale."""

    def __call__(
        self, attn, hidden_states, encoder_hidden_states, attention_mask=None,
        image_rotary_emb=None, base_sequence_length=None,
    ):  # fmt: skip
        x, context = hidden_states, encoder_hidden_states
        if self.foreign(attn) or base_sequence_length is not None:
            return self.original(
                attn, x, context, attention_mask, image_rotary_emb, base_sequence_length
            )
        q, k, v = attn.to_q(x), attn.to_k(context), attn.to_v(context)
        head_dim = q.shape[-1] // attn.heads
        q, k, v = (t.unflatten(-1, (-1, head_dim)) for t in (q, k, v))
        tables = None if image_rotary_emb is None else complex_tables(image_rotary_emb)
        q, k = rotated(attn.norm_q, attn.norm_k, q, k, tables)
        mask = None if attention_mask is None else attention_mask.bool().flatten(1)
        return output(attn, attend(q.to(v.dtype), k.to(v.dtype), v, mask, attn.scale))


@functools.cache
def register_backend():
    """Make "mmkern" a backend of diffusers' dispatcher; returns its AttentionBackendName.

    The enum of names is closed, so the member is added by hand. Nothing else of diffusers' state
    changes: whoever calls ``model.set_attention_backend("mmkern")`` sets its process-wide default,
    as for any backend, and ``mmkern.patch`` does not call it.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    member = str.__new__(AttentionBackendName, NAME)
    member._name_, member._value_ = NAME.upper(), NAME
    AttentionBackendName._member_map_[member._name_] = member
    AttentionBackendName._value2member_map_[NAME] = member
    AttentionBackendName._member_names_.append(member._name_)

    @_AttentionBackendRegistry.register(member, constraints=[])
    def backend(
        query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
        enable_gqa=False, return_lse=False, _parallel_config=None,
    ):  # fmt: skip
        if dropout_p or return_lse or _parallel_config is not None:
            raise ValueError(
                "the mmkern attention backend of diffusers takes no dropout_p, return_lse or "
                "_parallel_config; wanted another backend for these"
            )
        if is_causal:
            return mmkern.attention(query, key, value, causal=True, scale=scale)
        out = attend(query, key, value, attn_mask, scale)
        return out.unflatten(-1, (query.shape[2], -1))

    return member
