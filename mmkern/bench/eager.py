"""What a PyTorch user writes instead of mmkern: the baselines, with the public signatures.

Each function is the best plain formulation known here: scaled_dot_product_attention for attention,
the convolution for patch embedding, the fused norms of torch where they compute the same. RIVALS
are further formulations that a careful user might choose; they are timed and shown as well.
"""

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
}


def patch_embed(x, weight, bias=None, *, pos_embed=None):
    """The convolution; for flattened patches too, as transformers' Qwen-VL models do it."""
    if x.dim() == weight.dim() and weight.dim() > 2:
        conv = F.conv2d if x.dim() == 4 else F.conv3d
        out = conv(x, weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)
    else:
        out = _conv_of_patches(x, weight, bias)
    return out if pos_embed is None else (out + pos_embed).to(x.dtype)


def _conv_of_patches(x, weight, bias):
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    conv = F.conv2d if weight.dim() == 4 else F.conv3d
    cells = x.reshape(-1, *weight.shape[1:])
    return conv(cells, weight, bias, stride=weight.shape[2:]).reshape(*x.shape[:-1], -1)


def patch_embed_linear(x, weight, bias=None, *, pos_embed=None):
    """Cut the patches out, then one linear layer."""
    if x.dim() == weight.dim() and weight.dim() > 2:
        for dim, k in enumerate(weight.shape[2:], 2):
            x = x.narrow(dim, 0, x.shape[dim] // k * k).unfold(dim, k, k)
        space = weight.dim() - 2
        x = x.movedim(1, 1 + space).flatten(1, space).flatten(2)
    out = F.linear(x, weight.flatten(1), bias)
    return out if pos_embed is None else (out + pos_embed).to(x.dtype)


def attention(
    q, k, v, *, causal=False, scale=None, window=None, key_padding_mask=None,
    cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
):  # fmt: skip
    """F.scaled_dot_product_attention; packed segments one by one, as transformers does."""
    if cu_seqlens_q is None:
        mask, flag = _mask(q, k, causal, window, key_padding_mask)
        return _sdpa(q, k, v, mask, flag, scale)
    lengths_q, lengths_k = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    parts = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
    out = [
        attention(*(t[None] for t in part), causal=causal, scale=scale, window=window)[0]
        for part in parts
    ]
    return torch.cat(out)


def _sdpa(q, k, v, mask, causal, scale):
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2)


def _mask(q, k, causal, window, key_padding_mask):
    """(attn_mask, is_causal) for scaled_dot_product_attention, whose causal is top-left."""
    sq, sk = q.shape[1], k.shape[1]
    bare = window is None and key_padding_mask is None
    if bare and (not causal or sq == 1 or sq == sk):
        return None, causal and sq > 1
    left, right = (window, window) if isinstance(window, int) else window or (-1, -1)
    offset = torch.arange(sk, device=q.device) - torch.arange(sq, device=q.device)[:, None]
    offset = offset - (sk - sq)
    keep = torch.ones_like(offset, dtype=torch.bool)
    if causal or right >= 0:
        keep = keep & (offset <= (0 if causal else right))
    if left >= 0:
        keep = keep & (offset >= -left)
    if key_padding_mask is not None:
        keep = keep & key_padding_mask[:, None, None, :]
    return keep, False


def attention_grouped(q, k, v, *, causal=False, scale=None):
    """Decoding one token as two matrix products over each group of query heads."""
    batch, _, heads, dim = q.shape
    queries = q.reshape(batch, k.shape[2], heads // k.shape[2], dim)
    scale = dim**-0.5 if scale is None else scale
    p = torch.softmax((queries @ k.permute(0, 2, 3, 1) * scale).float(), -1).to(q.dtype)
    return (p @ v.transpose(1, 2)).reshape(batch, 1, heads, v.shape[-1])


def _rows(m, x):
    """A modulation tensor in a shape that broadcasts against x (B, T, C)."""
    if m.dim() < 2 or x.dim() < 3:
        return m
    if m.dim() == 2:
        return m[:, None]
    frames = m.flatten(2).shape[1]
    return m.reshape(m.shape[0], frames, -1).repeat_interleave(x.shape[1] // frames, 1)


def modulate(x, shift=None, scale=None, *, norm="layer", weight=None, bias=None, eps=1e-6):
    """norm(x) * (1 + scale) + shift; in float32 where the modulation is, as Wan does it."""
    y = x
    for m in (shift, scale):
        y = y if m is None else y.to(torch.promote_types(y.dtype, m.dtype))
    if norm == "layer":
        y = F.layer_norm(y, y.shape[-1:], weight, bias, eps)
    else:
        y = F.rms_norm(y, y.shape[-1:], weight, eps)
        y = y if bias is None else y + bias
    y = y if scale is None else y * (1 + _rows(scale, x))
    return (y if shift is None else y + _rows(shift, x)).to(x.dtype)


def gated_residual(x, branch, gate=None):
    """x + gate * branch."""
    return x + branch if gate is None else (x + _rows(gate, x) * branch).to(x.dtype)


def gated_modulate(x, branch, gate=None, shift=None, scale=None, **options):
    """The residual add, then the modulated norm."""
    h = gated_residual(x, branch, gate)
    return h, modulate(h, shift, scale, **options)


def mlp(
    x, w1, b1, w2, b2, *, activation="gelu", norm=None, norm_weight=None, norm_bias=None, eps=1e-6,
    merge=1, grid_hw=None,
):  # fmt: skip
    """Norm, merge, linear, activation, linear."""
    if norm == "layer":
        x = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    elif norm == "rms":
        x = F.rms_norm(x, x.shape[-1:], norm_weight, eps)
    if merge > 1:
        x = _merged(x.flatten(0, -2), merge, grid_hw)
    return F.linear(ACTIVATIONS[activation](F.linear(x, w1, b1)), w2, b2)


def _merged(x, merge, grid_hw):
    if grid_hw is None:
        return x.view(-1, merge * merge * x.shape[-1])
    parts = []
    for part, (h, w) in zip(x.split([h * w for h, w in grid_hw]), grid_hw, strict=True):
        cells = part.view(h // merge, merge, w // merge, merge, -1).transpose(1, 2)
        parts.append(cells.reshape(-1, merge * merge * x.shape[-1]))
    return torch.cat(parts)


def rms_norm(x, weight=None, *, eps=1e-6, residual=None, cast="after"):
    """transformers' Llama formula for cast="after", torch's F.rms_norm for "before"."""
    h = x if residual is None else x + residual
    if cast == "before":
        y = F.rms_norm(h, h.shape[-1:], weight, eps)
    else:
        wide = h.float() if h.element_size() < 4 else h
        y = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(h.dtype)
        y = y if weight is None else weight * y
    return y if residual is None else (h, y)


def rms_norm_torch(x, weight=None, *, eps=1e-6, residual=None, cast="after"):
    """F.rms_norm, whatever the order of the cast."""
    return rms_norm(x, weight, eps=eps, residual=residual, cast="before")


def rope(q, k, cos, sin, *, interleaved=False, q_weight=None, k_weight=None, eps=1e-6):
    """transformers' rotate_half, or diffusers' adjacent pairs; F.rms_norm in front for QK-norm."""
    if q_weight is not None:
        q = F.rms_norm(q, q.shape[-1:], q_weight, eps)
        k = F.rms_norm(k, k.shape[-1:], k_weight, eps)
    return tuple(_rotated(t, cos[..., None, :], sin[..., None, :], interleaved) for t in (q, k))


def _rotated(x, cos, sin, interleaved):
    width = cos.shape[-1]
    head = x[..., :width]
    wide = head.to(torch.promote_types(x.dtype, cos.dtype))
    if interleaved:
        even, odd = wide.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((-odd, even), -1).flatten(-2)
    else:
        first, second = wide.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
    out = (wide * cos + turned * sin).to(x.dtype)
    return out if width == x.shape[-1] else torch.cat((out, x[..., width:]), -1)


def glu(gate, up=None, *, activation="silu", gate_first=True):
    """activation(gate) * up."""
    if up is None:
        first, second = gate.chunk(2, -1)
        gate, up = (first, second) if gate_first else (second, first)
    return ACTIVATIONS[activation](gate) * up


RIVALS = {
    "unfold + linear": patch_embed_linear,
    "grouped matmul": attention_grouped,
    "F.rms_norm": rms_norm_torch,
}
