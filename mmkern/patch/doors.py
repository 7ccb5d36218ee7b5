"""attn_implementation="mmkern": the attention and mask functions that transformers calls.

What the mask function returns is what the attention function understands: None (causal as the
module says), (B, Sk) bool (causal, and keys that take part), (n + 1,) int32 (causal within packed
sequences: their cu_seqlens), (B, 1, 1, Sk) bool (keys that take part), or the 4-D mask of any other
pattern, which goes to scaled_dot_product_attention.
"""

import functools
from types import SimpleNamespace

import torch

import mmkern
from mmkern.patch import probe

NAME = "mmkern"
# what only scaled_dot_product_attention, or not even it, computes
FOREIGN = ("softcap", "position_bias", "s_aux", "cache")


def register():
    """Make "mmkern" an attention implementation of transformers; a second call does nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


@functools.cache
def mismatch():
    """Why :func:`attention` is not transformers' sdpa on a small random input, or None."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    generator = torch.Generator().manual_seed(0)
    module = SimpleNamespace(is_causal=True, num_key_value_groups=2)
    tensors = [torch.randn(2, h, 7, 16, generator=generator) for h in (4, 2, 2)]
    with torch.no_grad():
        got, eager = (f(module, *tensors, None)[0] for f in (attention, sdpa_attention_forward))
        oracle = sdpa_attention_forward(module, *(t.double() for t in tensors), None)[0]
    return probe.difference(got, eager, oracle)


def attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, is_causal=None, **kwargs
):
    """transformers' contract: q, k, v (B, H, S, D) -> (out (B, S, H, Dv), None)."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    cu_seqlens = kwargs.get("cu_seq_lens_q"), kwargs.get("cu_seq_lens_k")
    mask = attention_mask
    if mask is not None and mask.dim() == 1:
        cu_seqlens, mask, causal = (mask, mask), None, True
    packed = cu_seqlens[0] is not None and query.shape[0] == 1 and mask is None
    padding = None
    if mask is not None and mask.dim() == 4 and mask.dtype == torch.bool:
        if mask.shape[1:3] == (1, 1) and query.shape[2] > 1:
            padding, causal = mask[:, 0, 0], False
    elif mask is not None and mask.dim() == 2 and mask.dtype == torch.bool:
        padding = mask
    foreign = dropout or any(kwargs.get(name) is not None for name in FOREIGN)
    if foreign or (mask is not None and padding is None):
        return _sdpa(module, query, key, value, mask, scaling, dropout, causal, cu_seqlens, kwargs)
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    if packed:
        lengths = (kwargs.get("max_length_q"), kwargs.get("max_length_k"))
        q_len, k_len = (n if isinstance(n, int) else None for n in lengths)
        out = mmkern.attention(
            q[0], k[0], v[0], causal=causal, scale=scaling,
            cu_seqlens_q=cu_seqlens[0].int(), cu_seqlens_k=cu_seqlens[1].int(),
            max_seqlen_q=q_len, max_seqlen_k=k_len,
        )[None]  # fmt: skip
        return out, None
    if padding is not None:
        padding = padding.expand(k.shape[0], -1)
    return mmkern.attention(
        q, k, v, causal=bool(causal), scale=scaling, key_padding_mask=padding
    ), None


def _sdpa(module, query, key, value, mask, scaling, dropout, causal, cu_seqlens, kwargs):
    """transformers' own sdpa, with the mask it would have been given."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    sq, sk = query.shape[2], key.shape[2]
    if mask is None or mask.dim() == 2:
        rows = torch.arange(sq, device=query.device)[:, None] + (sk - sq)
        columns = torch.arange(sk, device=query.device)
        dense = (columns <= rows)[None, None] if causal else None
        if cu_seqlens[0] is not None:
            segment = torch.bucketize(columns, cu_seqlens[1][1:], right=True)
            same = (segment[None, :] == segment[rows])[None, None]
            dense = same if dense is None else dense & same
        if mask is not None:
            dense = mask[:, None, None] if dense is None else dense & mask[:, None, None]
        mask = dense
    return sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=False, **kwargs
    )


def mask(
    batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=None,
    attention_mask=None, **kwargs,
):  # fmt: skip
    """transformers' contract of a mask function; what it returns is said in this file's head."""
    from transformers import masking_utils

    causal = mask_function is masking_utils.causal_mask_function
    both_ways = mask_function is masking_utils.bidirectional_mask_function
    aligned = (
        not isinstance(q_offset, torch.Tensor) and q_offset + q_length == kv_offset + kv_length
    )
    padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        padding = padding[:, kv_offset : kv_offset + kv_length]
    if causal and aligned and kwargs.get("local_size") is None:
        return None if padding is None or _all(padding) else padding
    if both_ways and padding is not None and q_length > 1:
        return padding[:, None, None]
    skip = {"allow_is_causal_skip": False}
    dense = masking_utils.sdpa_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask,
        **(kwargs | skip),
    )  # fmt: skip
    return dense if both_ways or not aligned else _packed(dense)


def _all(padding):
    """Whether nothing is padded; reading that would break a graph, so there it is not known."""
    return not torch.compiler.is_compiling() and bool(padding.all())


def _packed(mask):
    """cu_seqlens, int32, if the mask of a batch of one is causal within blocks; else the mask."""
    if mask is None or torch.compiler.is_compiling() or mask.shape[0] != 1:
        return mask
    rows = mask[0, 0]
    n = rows.shape[0]
    if rows.shape[1] != n or mask.shape[1] != 1:
        return mask
    position = torch.arange(n, device=mask.device)
    first = rows.to(torch.uint8).argmax(1)
    within = (position >= first[:, None]) & (position <= position[:, None])
    starts = torch.nonzero(first == position).flatten()
    blocks = torch.repeat_interleave(starts, torch.diff(starts, append=starts.new_tensor([n])))
    if not (torch.equal(rows, within) and torch.equal(blocks, first)):
        return mask
    # one block is plain causal, which needs no mask
    return torch.cat((starts, starts.new_tensor([n]))).int() if len(starts) > 1 else None
