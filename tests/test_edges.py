"""Zero-size inputs, unwritten memory, non-finite values, gradients of a part of the inputs."""

import math

import pytest
import torch
from accuracy import DTYPES, cotangents, forward, gradients, leaves, outputs
from cases import CASES

import mmkern

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
R = torch.randn


def empty_calls(dtype):
    def r(*shape):
        return torch.randn(shape).to(dtype).requires_grad_()

    cu = torch.zeros(1, dtype=torch.int32)
    return {
        "patch_embed no images": lambda: mmkern.patch_embed(r(0, 3, 8, 8), r(5, 3, 4, 4), r(5)),
        "patch_embed no patches": lambda: mmkern.patch_embed(r(0, 48), r(5, 3, 4, 4), r(5)),
        "attention no batch": lambda: mmkern.attention(r(0, 3, 2, 8), r(0, 3, 2, 8), r(0, 3, 2, 8)),
        "attention no queries": lambda: mmkern.attention(
            r(2, 0, 2, 8), r(2, 3, 2, 8), r(2, 3, 2, 8)
        ),
        "attention no keys": lambda: mmkern.attention(r(2, 3, 2, 8), r(2, 0, 2, 8), r(2, 0, 2, 8)),
        "attention no segments": lambda: mmkern.attention(
            r(0, 2, 8), r(0, 2, 8), r(0, 2, 8), cu_seqlens_q=cu
        ),
        "attention no heads": lambda: mmkern.attention(r(2, 3, 0, 8), r(2, 3, 1, 8), r(2, 3, 1, 8)),
        "attention no value columns": lambda: mmkern.attention(
            r(2, 3, 2, 8), r(2, 3, 2, 8), r(2, 3, 2, 0)
        ),
        "modulate no batch": lambda: mmkern.modulate(r(0, 3, 8), r(0, 8), r(0, 8)),
        "modulate no tokens": lambda: mmkern.modulate(r(2, 0, 8), r(2, 8), r(2, 8)),
        "modulate no frames": lambda: mmkern.modulate(r(2, 0, 8), r(2, 0, 8), r(2, 0, 8)),
        "gated_modulate no tokens": lambda: mmkern.gated_modulate(r(2, 0, 8), r(2, 0, 8), r(2, 8)),
        "mlp no rows": lambda: mmkern.mlp(r(0, 4), r(6, 4), r(6), r(5, 6), r(5)),
        "mlp merge no rows": lambda: mmkern.mlp(
            r(0, 4), r(6, 16), r(6), r(5, 6), r(5), merge=2, norm="layer", norm_weight=r(4)
        ),
        "rms_norm no rows": lambda: mmkern.rms_norm(r(0, 8), r(8)),
        "rope no tokens": lambda: mmkern.rope(
            r(1, 0, 2, 8), r(1, 0, 1, 8), r(0, 8).detach(), r(0, 8).detach()
        ),
        "glu no rows": lambda: mmkern.glu(r(0, 8)),
        "glu no columns": lambda: mmkern.glu(r(3, 0)),
    }


@dtypes
@pytest.mark.parametrize("name", empty_calls(torch.float32))
def test_zero_size(name, dtype):
    outs = outputs(empty_calls(dtype)[name]())
    sum(o.sum() for o in outs).backward()
    for out in outs:
        assert not torch.isnan(out).any()


def test_attention_without_keys_is_zero():
    q, k = R(2, 3, 2, 8, requires_grad=True), R(2, 0, 2, 8, requires_grad=True)
    out, lse = mmkern.attention(q, k, k, return_lse=True)
    assert torch.equal(out, torch.zeros_like(out)) and (lse == -math.inf).all()
    out.sum().backward()
    assert torch.equal(q.grad, torch.zeros_like(q))


@dtypes
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_everything_is_written(case, dtype):
    """Uninitialised memory is NaN here (conftest), so NaN in a result is an element left out."""
    kwargs = case.make(dtype)
    outs = forward(mmkern, case, kwargs)
    grads = gradients(mmkern, case, kwargs, cotangents(outs))
    for tensor in (*outs, *grads.values()):
        assert not torch.isnan(tensor).any()


@pytest.mark.parametrize("case", [c for c in CASES if "smoke" in c.tags], ids=lambda c: c.id)
def test_each_gradient_alone(case):
    """A gradient is the same whichever others are asked for, and absent where not asked for."""
    kwargs = case.make(torch.float32)
    cotangent = cotangents(forward(mmkern, case, kwargs))
    together = gradients(mmkern, case, kwargs, cotangent)
    for name in case.differentiable():
        args = {n: v.detach() if isinstance(v, torch.Tensor) else v for n, v in kwargs.items()}
        args[name].requires_grad_()
        outs = outputs(getattr(mmkern, case.function)(**args))
        loss = sum((o * c).sum() for o, c in zip(outs, cotangent, strict=True) if o.requires_grad)
        (alone,) = torch.autograd.grad(loss, args[name])
        torch.testing.assert_close(alone, together[name], msg=lambda m, n=name: f"{n}: {m}")
        args[name].requires_grad_(False)


@pytest.mark.parametrize("case", [c for c in CASES if "smoke" in c.tags], ids=lambda c: c.id)
def test_inputs_are_left_alone(case):
    kwargs = leaves(case, case.make(torch.float32))
    before = {n: v.clone() for n, v in kwargs.items() if isinstance(v, torch.Tensor)}
    outs = outputs(getattr(mmkern, case.function)(**kwargs))
    sum(o.sum() for o in outs).backward()
    for name, value in before.items():
        assert torch.equal(kwargs[name], value)


@dtypes
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("case", [c for c in CASES if "smoke" in c.tags], ids=lambda c: c.id)
def test_non_finite_values_spread_as_in_eager(case, value, dtype):
    """One NaN or inf in the first input makes the same elements finite as it does in eager."""
    kwargs = case.make(dtype)
    first = next(iter(kwargs))
    kwargs[first] = kwargs[first].clone()
    kwargs[first].view(-1)[3] = value
    got = forward(mmkern, case, kwargs)
    want = forward(mmkern.reference, case, kwargs)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(torch.isfinite(g), torch.isfinite(w))
        assert torch.equal(torch.isnan(g), torch.isnan(w))


@dtypes
def test_large_scores_do_not_overflow(dtype):
    """Scores of +-2048 saturate the softmax; they must not make inf - inf."""
    q = torch.full((1, 4, 1, 16), 32.0, dtype=dtype)
    k = torch.cat((q, -q), 1)
    v = torch.cat((torch.ones_like(q), torch.zeros_like(q)), 1)
    out, lse = mmkern.attention(q, k, v, scale=0.125, return_lse=True)
    torch.testing.assert_close(out, torch.ones_like(out))
    torch.testing.assert_close(lse, torch.full_like(lse, 2048 + math.log(4)))


def test_double_backward_is_refused_or_right():
    """A second derivative is right on the reference, and an error on a kernel."""
    x = R(2, 3, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(mmkern.modulate(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentia"):
        torch.autograd.grad(grad.sum(), x)
    with mmkern.use("reference"):
        (grad,) = torch.autograd.grad(mmkern.modulate(x).square().sum(), x, create_graph=True)
        torch.autograd.grad(grad.sum(), x)
