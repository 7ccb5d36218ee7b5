"""A table of bad inputs with the exact error that each must raise, before any kernel runs."""

import pytest
import torch

import mmkern


def t(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


H = torch.float16
B = torch.bfloat16
Q = t(2, 5, 4, 8)
P = t(6, 4, 8)
W = t(3, 4, 2, 2)
CU = torch.tensor([0, 2, 6], dtype=torch.int32)


def cu(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def attention(q=Q, k=Q, v=Q, **kw):
    return lambda: mmkern.attention(q, k, v, **kw)


def packed(q=P, k=P, v=P, **kw):
    return lambda: mmkern.attention(q, k, v, **{"cu_seqlens_q": CU, **kw})


def modulate(x, *args, **kw):
    return lambda: mmkern.modulate(x, *args, **kw)


def mlp(x=None, w1=None, b1=None, w2=None, b2=None, **kw):
    x, w1, w2 = (d if a is None else a for a, d in ((x, t(8, 4)), (w1, t(6, 4)), (w2, t(5, 6))))
    return lambda: mmkern.mlp(x, w1, b1, w2, b2, **kw)


def rope(q=Q, k=Q, cos=None, sin=None, **kw):
    cos, sin = (t(5, 8) if a is None else a for a in (cos, sin))
    return lambda: mmkern.rope(q, k, cos, sin, **kw)


X = t(2, 6, 8)
MODULATION = "wanted (8,) or (B, 8), (B, F, 8), (B, F, 1, 8) with F a divisor of 6, and B 1 or 2"

BAD = [
    # attention
    (attention(q=[1.0]), TypeError, "mmkern.attention: q is list; wanted a torch.Tensor"),
    (attention(q=Q.int()), TypeError, "mmkern.attention: q has dtype torch.int32; wanted a floating-point dtype"),
    (attention(k=Q.half()), TypeError, "mmkern.attention: k has dtype torch.float16; wanted torch.float32 (the dtype of q)"),
    (attention(v=None), TypeError, "mmkern.attention: v is NoneType; wanted a torch.Tensor"),
    (attention(v=Q.to("meta")), ValueError, "mmkern.attention: v is on meta; wanted cpu (where q is)"),
    (attention(q=P), ValueError, "mmkern.attention: q has shape (6, 4, 8); wanted (B, S, H, D) without cu_seqlens_q"),
    (packed(k=Q), ValueError, "mmkern.attention: k has shape (2, 5, 4, 8); wanted (T, H, D) with cu_seqlens_q"),
    (attention(k=t(2, 5, 4, 7)), ValueError, "mmkern.attention: k has head_dim 7; wanted that of q, 8, and not 0"),
    (attention(v=t(2, 4, 4, 8)), ValueError, "mmkern.attention: v has shape (2, 4, 4, 8); wanted (2, 5, 4) + (Dv,), as k"),
    (attention(q=t(3, 5, 4, 8)), ValueError, "mmkern.attention: k has batch 2; wanted that of q, 3"),
    (attention(k=t(2, 5, 3, 8), v=t(2, 5, 3, 8)), ValueError, "mmkern.attention: k has 3 heads; wanted a divisor of the 4 heads of q"),
    (attention(cu_seqlens_k=CU), ValueError, "mmkern.attention: cu_seqlens_k came without cu_seqlens_q; wanted both"),
    (packed(cu_seqlens_q=CU.long()), TypeError, "mmkern.attention: cu_seqlens_q is torch.int64; wanted a torch.int32 tensor"),
    (packed(cu_seqlens_q=[0, 6]), TypeError, "mmkern.attention: cu_seqlens_q is list; wanted a torch.int32 tensor"),
    (packed(cu_seqlens_k=cu(0, 6)), ValueError, "mmkern.attention: cu_seqlens_k has shape (2,); wanted (segments + 1,), the same for q and k"),
    (packed(cu_seqlens_q=cu(0, 7)), ValueError, "mmkern.attention: cu_seqlens_q is [0, 7]; wanted values that rise from 0 to the 6 packed tokens"),
    (packed(cu_seqlens_q=cu(0, 4, 2, 6)), ValueError, "mmkern.attention: cu_seqlens_q is [0, 4, 2, 6]; wanted values that rise from 0 to the 6 packed tokens"),
    (packed(cu_seqlens_q=cu(1, 6)), ValueError, "mmkern.attention: cu_seqlens_q is [1, 6]; wanted values that rise from 0 to the 6 packed tokens"),
    (packed(key_padding_mask=t(1, 6).bool()), ValueError, "mmkern.attention: key_padding_mask came with cu_seqlens_q; wanted one of them (packed segments need no padding)"),
    (attention(key_padding_mask=t(2, 5)), TypeError, "mmkern.attention: key_padding_mask is torch.float32; wanted a torch.bool tensor"),
    (attention(key_padding_mask=t(2, 4).bool()), ValueError, "mmkern.attention: key_padding_mask has shape (2, 4); wanted (2, 5) (B, Sk; True = takes part)"),
    (attention(window=(1, -2)), ValueError, "mmkern.attention: window is (1, -2); wanted an int or (left, right), each >= -1"),
    (attention(window=(1, 2, 3)), ValueError, "mmkern.attention: window is (1, 2, 3); wanted an int or (left, right), each >= -1"),
    (attention(window=2.5), ValueError, "mmkern.attention: window is 2.5; wanted an int or (left, right), each >= -1"),
    # modulate
    (modulate(3), TypeError, "mmkern.modulate: x is int; wanted a torch.Tensor"),
    (modulate(t(8)), ValueError, "mmkern.modulate: x has shape (8,); wanted (B, T, C) or (N, C)"),
    (modulate(X, norm="batch"), ValueError, "mmkern.modulate: norm is 'batch'; wanted one of 'layer', 'rms'"),
    (modulate(X, t(2, 7)), ValueError, f"mmkern.modulate: shift has shape (2, 7); {MODULATION}"),
    (modulate(X, None, t(3, 8)), ValueError, f"mmkern.modulate: scale has shape (3, 8); {MODULATION}"),
    (modulate(X, t(2, 4, 8)), ValueError, f"mmkern.modulate: shift has shape (2, 4, 8); {MODULATION}"),
    (modulate(X, t(2, 3, 2, 8)), ValueError, f"mmkern.modulate: shift has shape (2, 3, 2, 8); {MODULATION}"),
    (modulate(X, t(8, dtype=B)), TypeError, "mmkern.modulate: shift has dtype torch.bfloat16; wanted torch.float32 (the dtype of x)"),
    (modulate(X.bfloat16(), t(8, dtype=H)), TypeError, "mmkern.modulate: shift has dtype torch.float16; wanted torch.bfloat16 (the dtype of x) or torch.float32"),
    (modulate(t(6, 8), t(5, 8)), ValueError, "mmkern.modulate: shift has shape (5, 8); wanted (8,) or (B, 8), and B 1 or 6"),
    (modulate(X, weight=t(7)), ValueError, "mmkern.modulate: weight has shape (7,); wanted (8,) (the last dimension of x)"),
    (lambda: mmkern.gated_residual(X, t(2, 5, 8)), ValueError, "mmkern.gated_residual: branch has shape (2, 5, 8); wanted (2, 6, 8) (the shape of x)"),
    (lambda: mmkern.gated_modulate(X, None), TypeError, "mmkern.gated_modulate: branch is NoneType; wanted a torch.Tensor"),
    (lambda: mmkern.gated_modulate(X, X.half()), TypeError, "mmkern.gated_modulate: branch has dtype torch.float16; wanted torch.float32 (the dtype of x)"),
    (lambda: mmkern.gated_modulate(X, X, t(2, 1)), ValueError, f"mmkern.gated_modulate: gate has shape (2, 1); {MODULATION}"),
    # patch_embed
    (lambda: mmkern.patch_embed(t(1, 4, 4, 4).int(), W), TypeError, "mmkern.patch_embed: x has dtype torch.int32; wanted a floating-point dtype"),
    (lambda: mmkern.patch_embed(t(1, 4, 4, 4), W.half()), TypeError, "mmkern.patch_embed: weight has dtype torch.float16; wanted torch.float32 (the dtype of x)"),
    (lambda: mmkern.patch_embed(t(1, 4, 4, 4), t(3)), ValueError, "mmkern.patch_embed: weight has shape (3,); wanted (C, Cin, kh, kw), (C, Cin, kt, kh, kw) or (C, K), without a zero"),
    (lambda: mmkern.patch_embed(t(1, 3, 4, 4), W), ValueError, "mmkern.patch_embed: x has 3 channels; wanted 4, as weight (3, 4, 2, 2)"),
    (lambda: mmkern.patch_embed(t(1, 4, 1, 4), W), ValueError, "mmkern.patch_embed: x has shape (1, 4, 1, 4); wanted at least one patch of (2, 2)"),
    (lambda: mmkern.patch_embed(t(5, 15), W), ValueError, "mmkern.patch_embed: x has shape (5, 15); wanted 4 dimensions of pixels, or patches (N, 16) or (B, N, 16), to go with weight (3, 4, 2, 2)"),
    (lambda: mmkern.patch_embed(t(1, 4, 4, 4), W, t(4)), ValueError, "mmkern.patch_embed: bias has shape (4,); wanted (3,) (the output channels)"),
    (lambda: mmkern.patch_embed(t(2, 4, 4, 4), W, pos_embed=t(5, 3)), ValueError, "mmkern.patch_embed: pos_embed has shape (5, 3); wanted (4, 3), or with a batch in front of 1 or 2"),
    (lambda: mmkern.patch_embed(t(2, 4, 4, 4), W, pos_embed=t(4, 3, dtype=H)), TypeError, "mmkern.patch_embed: pos_embed has dtype torch.float16; wanted torch.float32 (the dtype of x)"),
    # mlp
    (mlp(x=t(8, 4).int()), TypeError, "mmkern.mlp: x has dtype torch.int32; wanted a floating-point dtype"),
    (mlp(w1=t(6, 5)), ValueError, "mmkern.mlp: w1 has shape (6, 5); wanted (6, 4) (hidden, merge^2 Cin)"),
    (mlp(w2=t(5, 7)), ValueError, "mmkern.mlp: w2 has shape (5, 7); wanted (5, 6) (Cout, hidden)"),
    (mlp(w1=t(6)), ValueError, "mmkern.mlp: w1 has shape (6,); wanted (out, in), as nn.Linear"),
    (mlp(w2=t(5, 6, dtype=B)), TypeError, "mmkern.mlp: w2 has dtype torch.bfloat16; wanted torch.float32 (the dtype of x)"),
    (mlp(b1=t(5)), ValueError, "mmkern.mlp: b1 has shape (5,); wanted (6,)"),
    (mlp(activation="tanh"), ValueError, "mmkern.mlp: activation is 'tanh'; wanted one of 'gelu', 'gelu_tanh', 'quick_gelu', 'silu', 'relu'"),
    (mlp(norm="group"), ValueError, "mmkern.mlp: norm is 'group'; wanted one of None, 'layer', 'rms'"),
    (mlp(norm_weight=t(4)), ValueError, "mmkern.mlp: norm_weight came with norm=None; wanted a norm to use it"),
    (mlp(merge=0), ValueError, "mmkern.mlp: merge is 0; wanted an int >= 1"),
    (mlp(x=t(6, 4), w1=t(6, 16), merge=2), ValueError, "mmkern.mlp: x has 6 rows; wanted a multiple of merge^2 = 4"),
    (mlp(w1=t(6, 16), merge=2, grid_hw=[(1, 8)]), ValueError, "mmkern.mlp: grid_hw holds (1, 8); wanted multiples of merge=2"),
    (mlp(w1=t(6, 16), merge=2, grid_hw=[(2, 2)]), ValueError, "mmkern.mlp: grid_hw covers 4 tokens; wanted the 8 rows of x"),
    # rms_norm
    (lambda: mmkern.rms_norm(t()), ValueError, "mmkern.rms_norm: x has shape (); wanted (..., C)"),
    (lambda: mmkern.rms_norm(X, cast="both"), ValueError, "mmkern.rms_norm: cast is 'both'; wanted one of 'after', 'before'"),
    (lambda: mmkern.rms_norm(X, t(7)), ValueError, "mmkern.rms_norm: weight has shape (7,); wanted (8,) (the last dimension of x)"),
    (lambda: mmkern.rms_norm(X, residual=t(2, 6, 7)), ValueError, "mmkern.rms_norm: residual has shape (2, 6, 7); wanted (2, 6, 8) (the shape of x)"),
    # rope
    (rope(q=t(5, 8)), ValueError, "mmkern.rope: q has shape (5, 8); wanted (B, S, H, D) or (T, H, D)"),
    (rope(k=t(2, 5, 4, 6)), ValueError, "mmkern.rope: k has shape (2, 5, 4, 6); wanted (2, 5) + (Hk, 8), as q"),
    (rope(k=t(2, 4, 4, 8)), ValueError, "mmkern.rope: k has shape (2, 4, 4, 8); wanted (2, 5) + (Hk, 8), as q"),
    (rope(cos=t(4, 8)), ValueError, "mmkern.rope: cos has shape (4, 8); wanted (5,) + (R,) or (2, 5) + (R,) with an even R from 2 to 8"),
    (rope(cos=t(5, 10)), ValueError, "mmkern.rope: cos has shape (5, 10); wanted (5,) + (R,) or (2, 5) + (R,) with an even R from 2 to 8"),
    (rope(cos=t(5, 3)), ValueError, "mmkern.rope: cos has shape (5, 3); wanted (5,) + (R,) or (2, 5) + (R,) with an even R from 2 to 8"),
    (rope(sin=t(5, 4)), ValueError, "mmkern.rope: sin is (5, 4) torch.float32; wanted (5, 8) torch.float32, as cos"),
    (rope(q_weight=t(4)), ValueError, "mmkern.rope: q_weight has shape (4,); wanted (8,) (head_dim)"),
    # glu
    (lambda: mmkern.glu(t(3, 5)), ValueError, "mmkern.glu: gate has shape (3, 5); wanted an even last dimension to split, or up"),
    (lambda: mmkern.glu(t(3, 4), t(3, 5)), ValueError, "mmkern.glu: up has shape (3, 5); wanted (3, 4) (the shape of gate)"),
    (lambda: mmkern.glu(t(3, 4), activation="swish"), ValueError, "mmkern.glu: activation is 'swish'; wanted one of 'gelu', 'gelu_tanh', 'quick_gelu', 'silu', 'relu', 'sigmoid'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_input(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message
    assert type(caught.value) is kind
