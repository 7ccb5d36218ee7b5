"""torch.compile(fullgraph=True), torch.export, vmap and autocast on every op."""

import pytest
import torch
from accuracy import check_forward, check_gradients, cotangents, forward, gradients, outputs
from cases import CASES

import mmkern
from mmkern import library

SMOKE = [case for case in CASES if "smoke" in case.tags or "packed" in case.tags]
ids = {"ids": lambda c: c.id}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    # Inductor's own buffers need no poison, and compile faster without
    torch.use_deterministic_algorithms(False)


class Compiled:
    """mmkern's functions, each compiled as one graph."""

    def __init__(self, backend):
        self.backend = backend

    def __getattr__(self, name):
        return torch.compile(getattr(mmkern, name), fullgraph=True, backend=self.backend)


@pytest.mark.parametrize("case", SMOKE, **ids)
def test_one_graph_with_the_same_gradients(case):
    kwargs = case.make(torch.float32)
    cotangent = cotangents(forward(mmkern, case, kwargs))
    eager = gradients(mmkern, case, kwargs, cotangent)
    compiled = gradients(Compiled("aot_eager"), case, kwargs, cotangent)
    for name, grad in eager.items():
        torch.testing.assert_close(compiled[name], grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", [c for c in SMOKE if c.name in ("dit", "packed")], **ids)
def test_inductor_keeps_the_accuracy_rule(case, monkeypatch):
    compiled = Compiled("inductor")
    monkeypatch.setattr(mmkern, case.function, getattr(compiled, case.function))
    kwargs = case.make(torch.bfloat16)
    check_forward(case, kwargs)
    check_gradients(case, kwargs)


def test_same_tensor_as_several_arguments():
    def f(x):
        return mmkern.attention(x, x, x, causal=True)

    x = torch.randn(1, 5, 2, 8, requires_grad=True)
    out = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
    (got,) = torch.autograd.grad(out.sum(), x)
    (want,) = torch.autograd.grad(f(x).sum(), x)
    torch.testing.assert_close(got, want)


def test_dynamic_shapes():
    compiled = torch.compile(mmkern.modulate, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (5, 9, 13):
        x, shift = torch.randn(2, tokens, 16), torch.randn(2, 16)
        torch.testing.assert_close(compiled(x, shift), mmkern.modulate(x, shift))


@pytest.mark.parametrize("case", [c for c in SMOKE if "packed" not in c.tags], **ids)
def test_export(case):
    kwargs = case.make(torch.float32)

    class Module(torch.nn.Module):
        def forward(self, **kw):
            return getattr(mmkern, case.function)(**kw)

    exported = torch.export.export(Module(), (), kwargs)
    op = library.OPS[case.op]
    inlined = op.light and "cpu" not in op.kernels
    assert inlined != (f"torch.ops.mmkern.{case.op}" in exported.graph_module.code)
    for got, want in zip(
        outputs(exported.module()(**kwargs)), forward(mmkern, case, kwargs), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("case", [c for c in SMOKE if "packed" not in c.tags], **ids)
def test_vmap(case):
    """Under functorch the plain PyTorch runs, which it can see through."""
    kwargs = {n: v for n, v in case.make(torch.float32).items() if v is not None}
    batched = {n: v for n, v in kwargs.items() if isinstance(v, torch.Tensor)}
    rest = {n: v for n, v in kwargs.items() if n not in batched}
    stacked = {n: torch.stack((v, 2 * v)) for n, v in batched.items()}
    function = getattr(mmkern, case.function)
    got = torch.func.vmap(lambda kw: function(**kw, **rest))(stacked)
    for i in range(2):
        want = outputs(function(**{n: v[i] for n, v in stacked.items()}, **rest))
        for g, w in zip(outputs(got), want, strict=True):
            torch.testing.assert_close(g[i], w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "case", [c for c in SMOKE if c.op in ("attention", "mlp", "patch_embed")], **ids
)
def test_autocast_casts_as_sdpa_does(case):
    kwargs = case.make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outs = forward(mmkern, case, kwargs)
    want = forward(
        mmkern,
        case,
        {
            n: v.bfloat16()
            if isinstance(v, torch.Tensor) and v.is_floating_point() and n != "pos_embed"
            else v
            for n, v in kwargs.items()
        },
    )
    assert outs[0].dtype == torch.bfloat16
    assert torch.equal(outs[0], want[0])


def test_autocast_mixed_dtypes():
    """fp32 q and k with bf16 v, as fp32 QK-norm weights make them under autocast."""
    q, k = torch.randn(2, 1, 6, 2, 8).unbind()
    v = torch.randn(1, 6, 2, 8, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"v has dtype torch\.bfloat16; wanted torch\.float32"):
        mmkern.attention(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        assert mmkern.attention(q, k, v).dtype == torch.bfloat16
