"""The same inputs give the same bits: ten runs, any thread count, any neighbour in the batch."""

import pytest
import torch
from accuracy import DTYPES, cotangents, forward, gradients
from cases import CASES

import mmkern


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def bits(case, kwargs):
    """Every output and gradient of the case."""
    outs = forward(mmkern, case, kwargs)
    grads = gradients(mmkern, case, kwargs, cotangents(outs))
    return [*outs, *grads.values()]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_ten_runs_and_one_thread(case, dtype, threads):
    kwargs = case.make(dtype)
    first = bits(case, kwargs)
    for _ in range(9):
        assert_same(first, bits(case, kwargs))
    threads(1)
    assert_same(first, bits(case, kwargs))


BATCHED = ("x", "branch", "residual", "q", "k", "v", "gate", "up")


@pytest.mark.parametrize("case", [c for c in CASES if "packed" not in c.tags], ids=lambda c: c.id)
def test_neighbours_in_the_batch(case):
    """What else is in the batch does not change the bits of its first entry."""
    kwargs = case.make(torch.bfloat16)
    lead = next(iter(kwargs.values())).shape
    if len(lead) < 2 or lead[0] < 2 or case.args.get("merge", 1) > 1:
        pytest.skip("the case has no two independent entries")
    others = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in kwargs.items()}
    for name in BATCHED:
        if isinstance(others.get(name), torch.Tensor) and others[name].shape[0] == lead[0]:
            others[name][1:] = 3 - 2 * others[name][1:]
    for a, b in zip(forward(mmkern, case, kwargs), forward(mmkern, case, others), strict=True):
        assert torch.equal(a[0], b[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_packed_segment_is_the_same_alone(dtype):
    lengths, heads, dim = (37, 130, 5, 64), 3, 72
    q, k, v = torch.randn(3, sum(lengths), heads, dim).to(dtype).unbind()
    cu = torch.tensor([0, 37, 167, 172, 236], dtype=torch.int32)
    packed = mmkern.attention(q, k, v, cu_seqlens_q=cu, causal=True)
    for begin, length in zip(cu.tolist(), lengths, strict=False):
        rows = slice(begin, begin + length)
        alone = mmkern.attention(q[None, rows], k[None, rows], v[None, rows], causal=True)
        assert torch.equal(packed[rows], alone[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("depth", [1030, 2060, 8200])
def test_rows_of_a_deep_product_are_the_same_in_any_company(dtype, depth):
    """However many rows there are, which decides how the product is cut."""
    x = torch.randn(801, depth).to(dtype)
    weight, bias = torch.randn(600, depth).to(dtype) / 8, torch.randn(600).to(dtype)
    whole = mmkern.patch_embed(x, weight, bias)
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    eager = (torch.nn.functional.linear(x, weight, bias) - exact).abs().max()
    rounding = torch.finfo(dtype).eps * exact.abs().max()
    assert (whole - exact).abs().max() < 2 * eager + rounding
    for rows in (1, 5, 16, 17, 31, 64, 65, 80, 112, 130, 336, 720, 769):
        assert torch.equal(mmkern.patch_embed(x[:rows], weight, bias), whole[:rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_pixels_in_deep_patches_are_the_flattened_patches(dtype):
    x = torch.randn(2, 3, 128, 128).to(dtype)
    weight, bias = torch.randn(107, 3, 32, 32).to(dtype) / 32, torch.randn(107).to(dtype)
    patches = x.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).reshape(32, -1)
    expected = mmkern.patch_embed(patches, weight, bias)
    assert torch.equal(mmkern.patch_embed(x, weight, bias).reshape(32, -1), expected)


def test_a_weight_that_is_not_aligned_or_of_odd_depth_gives_the_same_bits():
    x, weight = torch.randn(48, 2060).bfloat16(), torch.randn(50, 2060).bfloat16() / 8
    expected = mmkern.mlp(x, weight, None, torch.eye(50).bfloat16(), None)
    shifted = torch.empty(50 * 2060 + 1, dtype=torch.bfloat16)[1:].view(50, 2060)
    gap = torch.empty(50, 2061, dtype=torch.bfloat16)[:, :2060]
    for other in (shifted, gap):
        other.copy_(weight)
        assert torch.equal(mmkern.mlp(x, other, None, torch.eye(50).bfloat16(), None), expected)
    odd_x = torch.nn.functional.pad(x, (0, 1), value=2.0)
    odd = torch.nn.functional.pad(weight, (0, 1))
    assert torch.equal(mmkern.mlp(odd_x, odd, None, torch.eye(50).bfloat16(), None), expected)
