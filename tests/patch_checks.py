"""A patched model against the same model unpatched, by the accuracy rule."""

import copy

import torch
from test_models import assert_all_accurate
from tiny_models import cast

import mmkern
from mmkern.patch.probe import Exact


def output(result):
    """The first tensor of what a model returns."""
    return result if torch.is_tensor(result) else result[0]


def run(model, inputs, exact=False, seed=1):
    """The output, and the gradients of floating inputs and weights for one cotangent, by name."""
    inputs = {
        key: x.clone().requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x
        for key, x in inputs.items()
    }
    model.zero_grad()
    if exact:
        with Exact():
            out = output(model(**inputs))
    else:
        out = output(model(**inputs))
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    out.backward(cotangent.to(out.dtype))
    grads = {f"input {key}": x.grad for key, x in inputs.items() if torch.is_tensor(x)}
    grads |= {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"out": out.detach(), **{k: g for k, g in grads.items() if g is not None}}


def oracle_of(model, inputs, seed=1):
    """The unpatched model and its inputs in float64, where it takes no step in float32."""
    wide = {key: cast(x, torch.float64) for key, x in inputs.items()}
    return run(copy.deepcopy(model).double(), wide, exact=True, seed=seed)


def check_accuracy(model, inputs):
    """Patch the model; output and every gradient by the rule. Returns (what eager gave, report)."""
    eager, oracle = run(model, inputs), oracle_of(model, inputs)
    report = mmkern.patch(model)
    got = run(model, inputs)
    try:
        assert_all_accurate(got, eager, oracle)
    except AssertionError:
        assert_all_accurate(*_over_cotangents(model, inputs, lambda results: results))
    return eager, report


def _over_cotangents(model, inputs, rounded):
    """(got, eager, oracle), and then such tuples, of four cotangents; the model stays patched."""
    seeds = range(1, 5)
    got = [rounded(run(model, inputs, seed=seed)) for seed in seeds]
    mmkern.unpatch(model)
    eager = [rounded(run(model, inputs, seed=seed)) for seed in seeds]
    with torch.autocast("cpu", enabled=False):
        oracle = [oracle_of(model, inputs, seed) for seed in seeds]
    mmkern.patch(model)
    first, *more = zip(got, eager, oracle, strict=True)
    return *first, *more


def exact_forward(model, inputs):
    """The output of the unpatched model in float64."""
    with Exact():
        wide = {key: cast(x, torch.float64) for key, x in inputs.items()}
        return output(copy.deepcopy(model).double()(**wide))


def check_autocast(model, inputs):
    """Under autocast: the dtypes of the unpatched model, and its accuracy."""
    oracle = oracle_of(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        eager = run(model, inputs)
        mmkern.patch(model)
        got = run(model, inputs)
    assert {k: g.dtype for k, g in got.items()} == {k: g.dtype for k, g in eager.items()}
    # products were rounded to bfloat16, so that is the rounding the rule allows
    try:
        assert_all_accurate(_halves(got), _halves(eager), oracle)
    except AssertionError:
        with torch.autocast("cpu", torch.bfloat16):
            draws = _over_cotangents(model, inputs, _halves)
        assert_all_accurate(*draws)


def _halves(results):
    return {key: value.bfloat16() for key, value in results.items()}


def counts(report):
    """{rule: modules that it swapped}."""
    names = [entry.rule for entry in report.swapped]
    return {name: names.count(name) for name in names}
