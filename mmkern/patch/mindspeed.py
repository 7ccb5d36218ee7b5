"""Functions of torch_npu's names, layouts and meaning on mmkern's ops, for any device.

Model code written for Ascend in the manner of MindSpeed-MM assigns forwards that call torch_npu:

    def rms_norm_forward_npu(self, x):
        return torch_npu.npu_rms_norm(x, self.weight, epsilon=self.variance_epsilon)[0]

    Qwen3RMSNorm.forward = rms_norm_forward_npu

With ``from mmkern.patch import mindspeed as torch_npu`` the same code runs on CPU and GPU.
Signatures and meanings are those of the public documentation of torch_npu (Ascend/op-plugin).
"""

import itertools

import torch
from torch.nn import functional as F

import mmkern

LAYOUTS = ("BSH", "SBH", "BSND", "BNSD", "TND")
UNLIMITED = 2147483647


def npu_rms_norm(self, gamma, epsilon=1e-6):
    """RMSNorm: (y, rstd), rstd float32 of shape (..., 1); gamma in the dtype of self, or float32.

    y is rounded once, after the product with gamma. rstd gets no gradient and costs a pass of
    plain PyTorch.
    """
    y = mmkern.rms_norm(self, gamma, eps=epsilon, cast="before")
    return y, _rstd(self, epsilon)


def npu_add_rms_norm(x1, x2, gamma, epsilon=1e-6):
    """RMSNorm of x = x1 + x2: (y, rstd, x)."""
    x, y = mmkern.rms_norm(x1, gamma, residual=x2, eps=epsilon, cast="before")
    return y, _rstd(x, epsilon), x


def _rstd(x, epsilon):
    return torch.rsqrt(x.detach().float().square().mean(-1, keepdim=True) + epsilon)


def npu_swiglu(self, dim=-1):
    """silu(first half) * second half along ``dim``."""
    return _glu(self, dim, "silu", True)


def npu_geglu(self, dim=-1, approximate=1, activate_left=False):
    """(gated, gelu): gelu of the second half (of the first: activate_left) times the other.

    approximate: 1 for tanh, 0 for erf.
    """
    gate = self.chunk(2, dim)[0 if activate_left else 1]
    name = "gelu_tanh" if approximate else "gelu"
    activated = F.gelu(gate, approximate="tanh" if approximate else "none")
    return _glu(self, dim, name, activate_left), activated


def _glu(x, dim, activation, gate_first):
    if dim in (-1, x.dim() - 1):
        return mmkern.glu(x, activation=activation, gate_first=gate_first)
    first, second = (half.transpose(dim, -1) for half in x.chunk(2, dim))
    gate, up = (first, second) if gate_first else (second, first)
    return mmkern.glu(gate, up, activation=activation).transpose(dim, -1)


def npu_rotary_mul(input, r1, r2, rotary_mode="half"):
    """Rope: r1 * input + r2 * rotate(input), for BNSD, BSND and SBND.

    Args:
        input: four dimensions, heads in the second or third, as r1 tells.
        r1, r2: cos and sin, with size 1 where the heads are, and 1 or the batch where that is.
            Tables that differ by head run as plain PyTorch.
        rotary_mode: "half" or "interleave".

    Raises:
        ValueError: an argument has another shape or value.
    """
    interleaved = _interleaved(rotary_mode)
    if input.dim() != 4 or r1.dim() != 4 or r1.shape != r2.shape:
        raise ValueError(
            f"npu_rotary_mul: input {tuple(input.shape)}, r1 {tuple(r1.shape)} and r2 "
            f"{tuple(r2.shape)}; wanted four dimensions, and r1 and r2 alike"
        )
    heads = 2 if r1.shape[2] == 1 and r1.shape[1] in (1, input.shape[1]) else 1
    if r1.shape[heads] != 1:
        rotated = _rotated(input, interleaved)
        return (input * r1 + rotated * r2).to(input.dtype)
    x = input.transpose(1, 2) if heads == 1 else input
    tables = [t.squeeze(heads) for t in (r1, r2)]
    if tables[0].shape[1] == 1 != x.shape[1]:
        x, tables = x.transpose(0, 1), [t.transpose(0, 1) for t in tables]
        return _rope(x, tables, interleaved).transpose(0, 1)
    out = _rope(x, tables, interleaved)
    return out.transpose(1, 2) if heads == 1 else out


def _rope(x, tables, interleaved):
    """One tensor (B, S, H, D) by tables (B or 1, S, D)."""
    tables = [t if t.dtype in (x.dtype, torch.float32) else t.to(x.dtype) for t in tables]
    tables = [t[0] if t.shape[0] == 1 else t for t in tables]
    return mmkern.rope(x, x[:, :, :0], *tables, interleaved=interleaved)[0]


def _interleaved(rotary_mode):
    if rotary_mode not in ("half", "interleave"):
        raise ValueError(f"rotary_mode is {rotary_mode!r}; wanted 'half' or 'interleave'")
    return rotary_mode == "interleave"


def _rotated(x, interleaved):
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def npu_apply_rotary_pos_emb(query, key, cos, sin, layout="BSND", rotary_mode="half"):
    """Rope of query and key: (q, k). Layouts BSND, SBND, BNSD, TND; returns new tensors."""
    if layout == "TND":
        q, k = mmkern.rope(
            query, key, *(t.squeeze(1) for t in (cos, sin)), interleaved=_interleaved(rotary_mode)
        )
        return q, k
    if layout not in ("BSND", "SBND", "BNSD"):
        raise ValueError(f"layout is {layout!r}; wanted 'BSND', 'SBND', 'BNSD' or 'TND'")
    return tuple(npu_rotary_mul(t, cos, sin, rotary_mode) for t in (query, key))


def npu_fusion_attention(
    query, key, value, head_num, input_layout, pse=None, padding_mask=None, atten_mask=None,
    scale=1.0, keep_prob=1.0, pre_tockens=UNLIMITED, next_tockens=UNLIMITED, inner_precise=0,
    prefix=None, actual_seq_qlen=None, actual_seq_kvlen=None, sparse_mode=0,
    gen_mask_parallel=True, sync=False, softmax_layout="", sink=None,
):  # fmt: skip
    """Attention: (out, softmax_max, softmax_sum, reserved, seed, offset, numels).

    Args:
        query, key, value: BSH, SBH, BSND, BNSD, or TND with cumulative lengths.
        head_num: heads of query; those of key follow from its size.
        atten_mask: bool or uint8, 1 = takes no part; (Sq, Sk), (1 or B, 1 or N, Sq, Sk). Without
            one, sparse_mode and the tockens have no effect. In sparse_mode 0 and 1 it is the mask,
            and attention runs as plain PyTorch.
        sparse_mode: 2 and 3 causal from the first and from the last token, 4 the band of
            pre_tockens and next_tockens about the diagonal of the last token; there the values of
            atten_mask are not read.
        actual_seq_qlen, actual_seq_kvlen: TND: the ends of the segments, without a leading 0.

    Returns:
        out in the layout of query. softmax_max and softmax_sum, float32 (B, N, Sq, 8), or
        (T, N, 8) for TND, are any pair whose max + log(sum) is the log-sum-exp (the sum is 1, and
        0 in a row that sees no key). Then an empty tensor and three zeros.

    Raises:
        ValueError: an argument asks for what mmkern does not compute (dropout, pse, prefix, sink).
    """
    _refuse(locals())
    q, k, v = _unpacked(query, key, value, head_num, input_layout)
    mode = {} if atten_mask is None else _mode(sparse_mode, pre_tockens, next_tockens)
    packed = input_layout == "TND"
    borders = _borders(q, actual_seq_qlen, actual_seq_kvlen) if packed else None
    if mode is None:
        out, lse = _masked(q, k, v, atten_mask.bool(), scale, borders)
    elif mode.pop("first", False):
        out, lse = _causal_from_first(q, k, v, scale, borders)
    else:
        out, lse = mmkern.attention(q, k, v, scale=scale, return_lse=True, **mode, **_cu(borders))
    lse = lse.detach().movedim(0, 1) if packed else lse.detach()
    statistics = torch.where(lse == -torch.inf, 0.0, 1.0)
    eights = [t.unsqueeze(-1).expand(*t.shape, 8).contiguous() for t in (lse, statistics)]
    return _repacked(out, input_layout), *eights, query.new_empty(0), 0, 0, 0


def _refuse(arguments):
    for name, default in {
        "pse": None, "padding_mask": None, "prefix": None, "sink": None, "keep_prob": 1.0,
        "softmax_layout": "",
    }.items():  # fmt: skip
        if arguments[name] is not default and arguments[name] != default:
            raise ValueError(f"npu_fusion_attention: {name} is given; mmkern does not compute it")
    if arguments["input_layout"] not in LAYOUTS:
        raise ValueError(
            f"npu_fusion_attention: input_layout is {arguments['input_layout']!r}; wanted one of "
            f"{', '.join(LAYOUTS)}"
        )


def _mode(sparse_mode, pre_tockens, next_tockens):
    """Keywords of mmkern.attention for a sparse mode with a mask; None: the mask itself."""
    if sparse_mode in (0, 1):
        return None
    if sparse_mode == 2:
        return {"first": True}
    if sparse_mode == 3:
        return {"causal": True}
    if sparse_mode == 4 and min(pre_tockens, next_tockens) >= 0:
        return {"window": tuple(-1 if n >= UNLIMITED else n for n in (pre_tockens, next_tockens))}
    raise ValueError(
        f"npu_fusion_attention: sparse_mode is {sparse_mode} with tockens {pre_tockens} and "
        f"{next_tockens}; wanted 0 to 4, and no negative tockens"
    )


def _unpacked(query, key, value, head_num, layout):
    """q, k, v as (B, S, N, D), or (T, N, D)."""
    if layout in ("BSH", "SBH"):
        head_dim = query.shape[-1] // head_num
        kv_heads = key.shape[-1] // head_dim
        q = query.unflatten(-1, (head_num, head_dim))
        k, v = (t.unflatten(-1, (kv_heads, -1)) for t in (key, value))
        return tuple(t.transpose(0, 1) for t in (q, k, v)) if layout == "SBH" else (q, k, v)
    if layout == "BNSD":
        return tuple(t.transpose(1, 2) for t in (query, key, value))
    return query, key, value


def _repacked(out, layout):
    if layout == "BNSD":
        return out.transpose(1, 2).contiguous()
    if layout in ("BSH", "SBH"):
        out = out.flatten(-2)
    return out.transpose(0, 1).contiguous() if layout == "SBH" else out


def _borders(q, q_ends, k_ends):
    """The two lists of borders with their leading 0; trailing zeros are segments left out."""
    if q_ends is None or k_ends is None:
        raise ValueError(
            "npu_fusion_attention: TND came without actual_seq_qlen and actual_seq_kvlen"
        )
    lists = []
    for ends in (q_ends, k_ends):
        ends = [int(end) for end in ends]
        while ends and ends[-1] == 0:
            ends.pop()
        lists.append([0, *ends])
    return lists[0], lists[1], q.device


def _cu(borders):
    if borders is None:
        return {}
    q, k, device = borders
    longest = [max((b - a for a, b in itertools.pairwise(t)), default=0) for t in (q, k)]
    cu = [torch.tensor(t, dtype=torch.int32, device=device) for t in (q, k)]
    return {
        "cu_seqlens_q": cu[0], "cu_seqlens_k": cu[1],
        "max_seqlen_q": longest[0], "max_seqlen_k": longest[1],
    }  # fmt: skip


def _pieces(q, k, v, borders):
    """The packed segments as batches of one."""
    rows, keys, _ = borders
    for i in range(len(rows) - 1):
        a, b = slice(rows[i], rows[i + 1]), slice(keys[i], keys[i + 1])
        yield q[None, a], k[None, b], v[None, b]


def _by_segment(function, q, k, v, borders):
    parts = [function(*piece) for piece in _pieces(q, k, v, borders)]
    return torch.cat([p[0][0] for p in parts]), torch.cat([p[1][0] for p in parts], dim=-1)


def _causal_from_first(q, k, v, scale, borders):
    """Query i sees keys 0 to i: with as many queries as keys, mmkern's own alignment."""
    if borders is not None:
        if borders[0] == borders[1]:
            return mmkern.attention(
                q, k, v, causal=True, scale=scale, return_lse=True, **_cu(borders)
            )
        return _by_segment(lambda *qkv: _causal_from_first(*qkv, scale, None), q, k, v, borders)
    sq, sk = q.shape[1], k.shape[1]
    if sq > sk:
        mask = torch.ones(sq, sk, dtype=torch.bool, device=q.device).triu(1)
        return _masked(q, k, v, mask, scale, None)
    return mmkern.attention(q, k[:, :sq], v[:, :sq], causal=True, scale=scale, return_lse=True)


def _masked(q, k, v, mask, scale, borders):
    """Plain PyTorch with a mask of what takes no part; TND masks cover the longest segment."""
    if borders is not None:
        return _by_segment(
            lambda *qkv: _masked(
                *qkv, mask[..., : qkv[0].shape[1], : qkv[1].shape[1]], scale, None
            ),
            q, k, v, borders,
        )  # fmt: skip
    groups = q.shape[2] // k.shape[2]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).float().masked_fill(mask, -torch.inf)
    weights = torch.softmax(scores, -1).masked_fill(mask, 0.0)
    return (weights.to(v.dtype) @ v).transpose(1, 2).contiguous(), torch.logsumexp(scores, -1)
