"""More of attention, mlp and patch_embed in Triton's interpreter: what cases.py has in large sizes.

Sizes follow from the kernels: more keys than a block, several blocks of queries, more than one part
of a split. Heads are few and the batch is small, a program taking some 5 ms.
"""

import pytest
import torch
from accuracy import check_forward, check_gradients
from cases import T
from interpreter import correct_bfloat16
from on_triton import Guards, run_ops_on_triton

import mmkern
from mmkern.cases import Case, Ints
from mmkern.kernels.triton import tuning

F32, BF16 = torch.float32, torch.bfloat16


def _case(name, q, k, v=None, layout="contiguous", **kwargs):
    args = {"q": T(q, layout), "k": T(k, layout), "v": T(v or k, layout), **kwargs}
    return Case("attention", name, args)


def _packed(name, lengths, heads, dim, **kwargs):
    cu = Ints(tuple(sum(lengths[:i]) for i in range(len(lengths) + 1)))
    shape = (sum(lengths), heads, dim)
    packed = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, **kwargs}
    return _case(name, shape, shape, layout="qkv", **packed)


# every head dimension with a tail, and each mask across several blocks of queries and of keys
ATTENTION = [
    _case("d72", (1, 200, 1, 72), (1, 200, 1, 72), layout="qkv"),
    _case("d80_causal", (1, 200, 1, 80), (1, 200, 1, 80), layout="heads_first", causal=True),
    _case("d96_cross", (1, 70, 1, 96), (1, 200, 1, 96), causal=True),
    _case("d128_gqa", (1, 140, 2, 128), (1, 140, 1, 128), causal=True),
    _case("mla", (1, 140, 1, 192), (1, 140, 1, 192), (1, 140, 1, 128), causal=True),
    _case("d256", (1, 70, 1, 256), (1, 70, 1, 256)),
    _case("window", (1, 256, 1, 64), (1, 256, 1, 64), window=(70, 40)),
    _case("padding", (2, 140, 1, 64), (2, 200, 1, 64), key_padding_mask=T((2, 200), kind="mask")),
    _packed("packed", (130, 1, 0, 64, 65), 1, 72),
    _packed("packed_causal_window", (150, 90), 1, 40, causal=True, window=(50, -1)),
    _case("split", (1, 2, 2, 72), (1, 700, 1, 72), causal=True, return_lse=True),
    _case("split_window", (1, 1, 2, 64), (1, 600, 1, 64), window=(100, 0), return_lse=True),
]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    correct_bfloat16()
    run_ops_on_triton(monkeypatch)


def _guarded(case, dtype, check):
    guards = Guards()
    check(case, {n: guards(v) for n, v in case.make(dtype).items()})
    guards.check()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", ATTENTION, ids=lambda c: c.name)
def test_attention(case, dtype):
    _guarded(case, dtype, check_forward)
    _guarded(case, dtype, check_gradients)


def test_head_dim_512_forward():
    case = _case("d512", (1, 36, 1, 512), (1, 36, 1, 512))
    _guarded(case, BF16, check_forward)


@pytest.mark.parametrize("target", ["sm_80", "gfx942", "ascend910b"])
def test_attention_with_the_tiles_of(target):
    """Other tiles are other block boundaries."""
    with tuning.use_target(target):
        for case in ATTENTION[:1] + ATTENTION[8:9]:
            _guarded(case, BF16, check_forward)
            _guarded(case, BF16, check_gradients)


def _run(q, k, v, grad, **kwargs):
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out = mmkern.attention(*leaves, **kwargs)
    return out, *torch.autograd.grad(out, leaves, grad)


def test_attention_does_not_see_its_neighbours():
    """The bits of a sequence, in a batch and packed, are those it gets alone."""
    q, k, v, grad = torch.randn(4, 2, 70, 1, 24, generator=torch.Generator().manual_seed(0))
    both = _run(q, k, v, grad, causal=True)
    alone = _run(*(t[1:] for t in (q, k, v, grad)), causal=True)
    for got, wanted in zip(both, alone, strict=True):
        assert torch.equal(got[1:], wanted)
    cu = torch.tensor([0, 30, 70], dtype=torch.int32)
    packed = _run(*(t[0] for t in (q, k, v, grad)), cu_seqlens_q=cu)
    one = torch.tensor([0, 40], dtype=torch.int32)
    alone = _run(*(t[0, 30:] for t in (q, k, v, grad)), cu_seqlens_q=one)
    for got, wanted in zip(packed, alone, strict=True):
        assert torch.equal(got[30:], wanted)


def test_attention_of_an_expanded_gradient():
    """y.sum() hands out a gradient with strides of 0."""
    q, k, v = torch.randn(3, 1, 20, 2, 16, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(1, 20, 2, 16)
    expanded = torch.ones(()).expand(1, 20, 2, 16)
    for got, wanted in zip(_run(q, k, v, expanded), _run(q, k, v, ones), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("name, size, kernel", [
    ("split_weight", (1, 3, 200, 224), (24, 3, 8, 8)),
    ("video", (1, 4, 3, 18, 34), (136, 4, 1, 2, 2)),
    ("flat", (300, 147), (140, 3, 7, 7)),
])  # fmt: skip
def test_patch_embed(name, size, kernel):
    """More tokens than a block, more than one part of the weight's gradient, every mask."""
    args = {"x": T(size), "weight": T(kernel, scale=0.1), "bias": T(kernel[:1])}
    case = Case("patch_embed", name, args)
    _guarded(case, BF16, check_forward)
    _guarded(case, BF16, check_gradients)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"])
def test_mlp(activation):
    """Several blocks in every direction, depths that no block divides."""
    args = {
        "x": T((270, 150)), "w1": T((300, 150), scale=0.1), "b1": T((300,)),
        "w2": T((136, 300), scale=0.1), "b2": T((136,)), "activation": activation,
    }  # fmt: skip
    case = Case("mlp", activation, args)
    _guarded(case, BF16, check_forward)
    _guarded(case, BF16, check_gradients)


def test_mlp_sums_rows_that_are_gathered_twice():
    generator = torch.Generator().manual_seed(0)
    x, w1, w2, grad, z = (
        torch.randn(*shape, generator=generator)
        for shape in ((6, 8), (16, 32), (8, 16), (2, 8), (2, 16))
    )
    rows = torch.tensor([0, 1, 1, 5, 4, 3, 1, 0])
    mask = [True] + [False] * 6
    args = (grad, x, rows, w1, w2, None, None, z, "gelu", "none", 1e-6, 2, mask)
    from mmkern.kernels.triton.mlp import mlp_backward
    from mmkern.ops.mlp import backward_reference

    torch.testing.assert_close(mlp_backward(*args)[0], backward_reference(*args)[0])
