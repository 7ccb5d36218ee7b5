"""The accuracy rule: against float64, at most twice eager PyTorch's error in the same dtype.

Three times for gradients, plus one rounding of the largest value. Never a fixed tolerance.
"""

import contextlib

import torch

import mmkern

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def outputs(result):
    """A public function's result as a tuple of tensors."""
    return result if isinstance(result, tuple) else (result,)


def leaves(case, kwargs):
    """The arguments again, those with a gradient as leaves that ask for it."""
    names = case.differentiable()
    return {n: v.detach().requires_grad_() if n in names else v for n, v in kwargs.items()}


def widened(kwargs):
    """The arguments with every floating tensor in float64, layout kept."""
    return {
        n: v.double() if isinstance(v, torch.Tensor) and v.dtype.is_floating_point else v
        for n, v in kwargs.items()
    }


def forward(functions, case, kwargs):
    """The outputs of the case, without gradients, on mmkern or mmkern.reference."""
    with torch.no_grad():
        return outputs(getattr(functions, case.function)(**kwargs))


def cotangents(outs, seed=1):
    """One fixed gradient for each output, like it; none where the output is all infinite."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outs]


def gradients(functions, case, kwargs, cotangent):
    """{argument: gradient} of the case for the given gradients of its outputs."""
    args = leaves(case, kwargs)
    outs = outputs(getattr(functions, case.function)(**args))
    # log-sum-exp is -inf for a row without keys, where it has no gradient
    weighted = [
        (o * c.to(o.dtype)).masked_fill(~torch.isfinite(o), 0).sum()
        for o, c in zip(outs, cotangent, strict=True)
    ]
    names = case.differentiable()
    grads = torch.autograd.grad(sum(weighted), [args[n] for n in names], allow_unused=True)
    return dict(zip(names, grads, strict=True))


def error(got, oracle):
    """Largest absolute difference; infinities must be the same infinities."""
    got, oracle = got.double(), oracle.double()
    finite = torch.isfinite(oracle)
    if not torch.equal(got[~finite], oracle[~finite]):
        return float("inf")
    difference = (got - oracle)[finite].abs()
    return float(difference.max()) if difference.numel() else 0.0


def magnitude(tensor):
    """Largest finite absolute value."""
    finite = tensor[torch.isfinite(tensor)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def assert_accurate(name, got, eager, oracle, factor, scale=0.0):
    """Assert the rule for one tensor.

    An oracle that is 0 throughout (the gradient of q where there is one key) is a difference of
    equal terms: its error is a few roundings of ``scale``, the size of the other gradients.
    """
    assert got.shape == oracle.shape, f"{name}: shape {got.shape}, wanted {oracle.shape}"
    assert got.dtype == eager.dtype, f"{name}: dtype {got.dtype}, wanted {eager.dtype}"
    rounding = torch.finfo(got.dtype).eps / 2 * (magnitude(oracle) or 8 * scale)
    allowed = factor * error(eager, oracle) + rounding
    found = error(got, oracle)
    assert found <= allowed, (
        f"{name}: error {found:.3e} over {allowed:.3e} = {factor} x eager's "
        f"{error(eager, oracle):.3e} + {rounding:.3e}"
    )


def worst(results, oracle):
    """The one of several results that is furthest from the oracle."""
    return max(results, key=lambda t: error(t, oracle))


def check_forward(case, kwargs, orders=(contextlib.nullcontext,)):
    """The rule for every output of mmkern's function; returns the outputs.

    orders: contexts that eager PyTorch runs in, each with its order of sums; the worst one counts.
    """
    got = forward(mmkern, case, kwargs)
    eagers = []
    for order in orders:
        with order():
            eagers.append(forward(mmkern.reference, case, kwargs))
    oracle = forward(mmkern.reference, case, widened(kwargs))
    for i, (a, o) in enumerate(zip(got, oracle, strict=True)):
        eager = worst([e[i] for e in eagers], o)
        assert_accurate(f"{case.id} output {i}", a, eager, o, factor=2)
        assert a.is_contiguous(), f"{case.id} output {i} is not contiguous"
    return got


def check_gradients(case, kwargs, orders=(contextlib.nullcontext,)):
    """The rule for every gradient of mmkern's function, which it returns; orders: as above."""
    cotangent = cotangents(forward(mmkern.reference, case, kwargs))
    got = gradients(mmkern, case, kwargs, cotangent)
    eagers = []
    for order in orders:
        with order():
            eagers.append(gradients(mmkern.reference, case, kwargs, cotangent))
    oracle = gradients(mmkern.reference, case, widened(kwargs), cotangent)
    scale = max(magnitude(g) for g in oracle.values())
    for name in case.differentiable():
        eager = worst([e[name] for e in eagers], oracle[name])
        triple = got[name], eager, oracle[name]
        assert_accurate(f"{case.id} gradient of {name}", *triple, factor=3, scale=scale)
    return got
