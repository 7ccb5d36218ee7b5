"""torch_npu's functions on mmkern's ops, against their documented formulas in float64."""

import pytest
import torch
from accuracy import assert_accurate
from patch_models import build
from tiny_models import one_thread  # noqa: F401
from torch.nn import functional as F

import mmkern
from mmkern.patch import mindspeed as torch_npu

DTYPES = [torch.float32, torch.bfloat16]


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(name, function, formula, *tensors):
    """The documented formula in float64 is the oracle; in the dtype, it is eager."""
    got = function(*tensors)
    eager = formula(*tensors)
    oracle = formula(*(t.double() for t in tensors))
    assert_accurate(name, got, eager, oracle, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(dtype):
    x, residual, gamma = (normal(*s, dtype=dtype) for s in ((2, 5, 24), (2, 5, 24), (24,)))

    def formula(x, gamma):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
        return (y * gamma).to(x.dtype)

    check("y", lambda x, g: torch_npu.npu_rms_norm(x, g, epsilon=1e-5)[0], formula, x, gamma)
    rstd = torch_npu.npu_rms_norm(x, gamma)[1]
    wanted = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    assert rstd.dtype == torch.float32 and torch.equal(rstd, wanted)
    y, rstd, total = torch_npu.npu_add_rms_norm(x, residual, gamma)
    assert torch.equal(total, x + residual)
    assert torch.equal(y, torch_npu.npu_rms_norm(total, gamma)[0])
    assert torch.equal(rstd, torch_npu.npu_rms_norm(total, gamma)[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [-1, 1])
def test_gated_units(dim, dtype):
    x = normal(2, 6, 8, dtype=dtype)

    def swiglu(x):
        first, second = x.chunk(2, dim)
        return F.silu(first) * second

    check("swiglu", lambda x: torch_npu.npu_swiglu(x, dim), swiglu, x)
    for approximate, name in ((0, "none"), (1, "tanh")):
        for left in (False, True):

            def geglu(x, left=left, name=name):
                gate, other = x.chunk(2, dim) if left else reversed(x.chunk(2, dim))
                return F.gelu(gate, approximate=name) * other

            arguments = {"dim": dim, "approximate": approximate, "activate_left": left}
            check("geglu", lambda x, a=arguments: torch_npu.npu_geglu(x, **a)[0], geglu, x)
            gate = x.chunk(2, dim)[0 if left else 1]
            activated = torch_npu.npu_geglu(x, **arguments)[1]
            assert torch.equal(activated, F.gelu(gate, approximate=name))


@pytest.mark.parametrize("mode", ["half", "interleave"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("layout", ["BNSD", "BSND", "SBND"])
def test_rotary(layout, batched, mode):
    sizes = {"B": 2, "N": 3, "S": 5, "D": 8}
    x = normal(*(sizes[d] for d in layout), seed=1)
    fixed = {"N": 1} if batched else {"N": 1, "B": 1}
    tables = [normal(*((sizes | fixed)[d] for d in layout), seed=s) for s in (2, 3)]

    def formula(x, r1, r2):
        if mode == "half":
            first, second = x.chunk(2, -1)
            turned = torch.cat((-second, first), -1)
        else:
            turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return r1 * x + r2 * turned

    def function(*tensors):
        return torch_npu.npu_rotary_mul(*tensors, rotary_mode=mode)

    check(layout, function, formula, x, *tables)
    q, k = torch_npu.npu_apply_rotary_pos_emb(x, x[:], *tables, layout, mode)
    assert torch.equal(q, function(x, *tables)) and torch.equal(k, q)
    full = [t.expand_as(x).contiguous() for t in tables]
    check("tables by head", function, formula, x, *full)
    x.requires_grad_()
    function(x, *tables).sum().backward()
    got, x.grad = x.grad, None
    formula(x, *tables).sum().backward()
    torch.testing.assert_close(got, x.grad)


def test_rotary_of_packed_tokens():
    q, k = normal(7, 3, 8), normal(7, 2, 8, seed=1)
    tables = normal(7, 1, 8, seed=2), normal(7, 1, 8, seed=3)
    got = torch_npu.npu_apply_rotary_pos_emb(q, k, *tables, layout="TND")
    wanted = torch_npu.npu_apply_rotary_pos_emb(
        q[None], k[None], *(t[None] for t in tables), layout="BSND"
    )
    assert all(torch.equal(g, w[0]) for g, w in zip(got, wanted, strict=True))


def allowed(sq, sk, mode, mask, pre, nxt):
    """The documented masks, True = takes part."""
    i, j = torch.arange(sq)[:, None], torch.arange(sk)[None]
    if mask is None:
        return torch.ones(sq, sk, dtype=torch.bool)
    if mode in (0, 1):
        return ~mask.bool()
    if mode == 2:
        return j <= i
    end = i + sk - sq
    return j <= end if mode == 3 else (j >= end - pre) & (j <= end + nxt)


def attention(q, k, v, keep, scale):
    """(B, S, N, D) by the documented formula: (out, log-sum-exp)."""
    groups = q.shape[2] // k.shape[2]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~keep, -torch.inf)
    wide = scores.to(torch.promote_types(q.dtype, torch.float32))
    weights = torch.softmax(wide, -1).to(v.dtype).nan_to_num(0.0)
    return (weights @ v).transpose(1, 2), torch.logsumexp(wide, -1)


COMPRESSED = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
MASK = torch.rand(7, 9, generator=torch.Generator().manual_seed(4)) < 0.4
MASK[:, 0] = False
MODES = [
    (7, 9, 0, None, {}), (7, 9, 2, None, {}), (7, 9, 0, MASK, {}), (7, 9, 1, MASK.byte(), {}),
    (7, 9, 2, COMPRESSED, {}), (7, 7, 2, COMPRESSED, {}), (9, 7, 2, COMPRESSED, {}),
    (7, 9, 3, COMPRESSED, {}), (7, 9, 4, COMPRESSED, {"pre_tockens": 3, "next_tockens": 1}),
]  # fmt: skip


def to_layout(x, layout):
    x = x.transpose(1, 2) if layout == "BNSD" else x
    x = x.flatten(2) if layout in ("BSH", "SBH") else x
    return (x.transpose(0, 1) if layout == "SBH" else x).contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["BSH", "SBH", "BSND", "BNSD"])
@pytest.mark.parametrize(("sq", "sk", "mode", "mask", "tockens"), MODES)
def test_attention(sq, sk, mode, mask, tockens, layout, dtype):
    q = normal(2, sq, 4, 8, dtype=dtype)
    k, v = (normal(2, sk, 2, 8, dtype=dtype, seed=s) for s in (1, 2))
    keep = allowed(sq, sk, mode, mask, tockens.get("pre_tockens"), tockens.get("next_tockens"))
    eager = attention(q, k, v, keep, 0.3)
    oracle = attention(q.double(), k.double(), v.double(), keep, 0.3)
    out, top, total, reserved, *rest = torch_npu.npu_fusion_attention(
        *(to_layout(t, layout) for t in (q, k, v)), 4, layout, atten_mask=mask, scale=0.3,
        sparse_mode=mode, **tockens,
    )  # fmt: skip
    wanted = [to_layout(t, layout) for t in (eager[0], oracle[0])]
    assert out.is_contiguous()
    assert_accurate("out", out, *wanted, 2)
    assert top.shape == total.shape == (2, 4, sq, 8) and top.dtype == total.dtype == torch.float32
    lse = (top + total.log())[..., 0]
    assert_accurate("lse", lse, eager[1].float(), oracle[1], 2)
    assert reserved.numel() == 0 and rest == [0, 0, 0]


@pytest.mark.parametrize(("mode", "mask"), [(0, None), (2, COMPRESSED), (3, COMPRESSED), (0, MASK)])
def test_packed_attention(mode, mask):
    q = normal(10, 4, 8)
    k, v = normal(13, 2, 8, seed=1), normal(13, 2, 8, seed=2)
    ends = [4, 4, 10, 0], [5, 5, 13, 0]
    out, top, total, *_ = torch_npu.npu_fusion_attention(
        q,
        k,
        v,
        4,
        "TND",
        atten_mask=mask,
        scale=0.3,
        sparse_mode=mode,
        actual_seq_qlen=ends[0],
        actual_seq_kvlen=ends[1],
    )
    wanted = []
    for (a, b), (c, d) in (((0, 4), (0, 5)), ((4, 10), (5, 13))):
        cut = mask if mask is None or mode else mask[: b - a, : d - c]
        keep = allowed(b - a, d - c, mode, cut, None, None)
        wanted.append(attention(q[None, a:b], k[None, c:d], v[None, c:d], keep, 0.3))
    torch.testing.assert_close(out, torch.cat([w[0][0] for w in wanted]))
    lse = torch.cat([w[1][0] for w in wanted], dim=-1)
    torch.testing.assert_close((top + total.log())[..., 0], lse.T)
    assert top.shape == (10, 4, 8)


def test_a_row_that_sees_no_key():
    q = k = normal(1, 3, 2, 8)
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[1] = True
    out, top, total, *_ = torch_npu.npu_fusion_attention(q, k, k, 2, "BSND", atten_mask=mask)
    assert torch.equal(out[:, 1], torch.zeros_like(out[:, 1]))
    assert (top[:, :, 1] == -torch.inf).all() and (total[:, :, 1] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_prob": 0.9}, "keep_prob is given"),
        ({"pse": torch.zeros(1)}, "pse is given"),
        ({"prefix": [1]}, "prefix is given"),
        ({"sparse_mode": 6, "atten_mask": MASK}, "sparse_mode is 6"),
        ({"input_layout": "NBSD"}, "input_layout is 'NBSD'; wanted one of BSH"),
        ({"input_layout": "TND"}, "without actual_seq_qlen"),
    ],
)
def test_what_mmkern_does_not_compute_raises(options, message):
    q = normal(1, 3, 2, 8)
    q = q[0] if options.get("input_layout") == "TND" else q
    with pytest.raises(ValueError, match=message):
        torch_npu.npu_fusion_attention(q, q, q, 2, **({"input_layout": "BSND"} | options))
    with pytest.raises(ValueError, match="rotary_mode is 'quarter'"):
        torch_npu.npu_rotary_mul(
            normal(1, 3, 2, 8), normal(1, 3, 1, 8), normal(1, 3, 1, 8), "quarter"
        )


def test_gradients_of_attention():
    tensors = [normal(2, 5, 32, seed=s).requires_grad_() for s in range(3)]
    out = torch_npu.npu_fusion_attention(
        *tensors, 4, "BSH", atten_mask=COMPRESSED, sparse_mode=2, scale=0.3
    )[0]
    got = torch.autograd.grad(out.square().sum(), tensors)
    q, k, v = (t.unflatten(-1, (4, 8)) for t in tensors)
    keep = torch.ones(5, 5, dtype=torch.bool).tril()
    wanted = attention(q, k, v, keep, 0.3)[0].square().sum()
    for g, w in zip(got, torch.autograd.grad(wanted, tensors), strict=True):
        torch.testing.assert_close(g, w)


def test_forwards_assigned_to_classes(monkeypatch):
    """The style of MindSpeed-MM's FSDP2 path, on a transformers model."""
    pytest.importorskip("transformers")
    from transformers.models.qwen3 import modeling_qwen3 as modeling

    def rms_norm_forward_npu(self, x):
        return torch_npu.npu_rms_norm(x, self.weight, epsilon=self.variance_epsilon)[0]

    def mlp_forward_npu(self, x):
        packed = torch.cat((self.gate_proj(x), self.up_proj(x)), dim=-1)
        return self.down_proj(torch_npu.npu_swiglu(packed, dim=-1))

    def rotary_npu(q, k, cos, sin, unsqueeze_dim=1):
        tables = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return tuple(torch_npu.npu_rotary_mul(t, *tables) for t in (q, k))

    model, inputs = build("qwen3")
    wanted = model(**inputs)[0]
    monkeypatch.setattr(modeling.Qwen3RMSNorm, "forward", rms_norm_forward_npu)
    monkeypatch.setattr(modeling.Qwen3MLP, "forward", mlp_forward_npu)
    monkeypatch.setattr(modeling, "apply_rotary_pos_emb", rotary_npu)
    calls = []
    for name in ("rms_norm", "glu", "rope"):
        function = getattr(mmkern, name)
        monkeypatch.setattr(
            mmkern, name, lambda *a, f=function, n=name, **o: calls.append(n) or f(*a, **o)
        )
    torch.testing.assert_close(model(**inputs)[0], wanted)
    assert [calls.count(n) for n in ("rms_norm", "glu", "rope")] == [9, 2, 4]
