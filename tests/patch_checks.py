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


def run(model, inputs, exact=False):
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
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(cotangent.to(out.dtype))
    grads = {f"input {key}": x.grad for key, x in inputs.items() if torch.is_tensor(x)}
    grads |= {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"out": out.detach(), **{k: g for k, g in grads.items() if g is not None}}


def oracle_of(model, inputs):
    """The unpatched model and its inputs in float64, where it takes no step in float32."""
    wide = {key: cast(x, torch.float64) for key, x in inputs.items()}
    return run(copy.deepcopy(model).double(), wide, exact=True)


def check_accuracy(model, inputs):
    """Patch the model; output and every gradient by the rule. Returns (what eager gave, report)."""
    eager, oracle = run(model, inputs), oracle_of(model, inputs)
    report = mmkern.patch(model)
    got = run(model, inputs)
    assert_all_accurate(got, eager, oracle)
    return eager, report


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
    got, eager = ({k: v.bfloat16() for k, v in run.items()} for run in (got, eager))
    assert_all_accurate(got, eager, oracle)


def counts(report):
    """{rule: modules that it swapped}."""
    names = [entry.rule for entry in report.swapped]
    return {name: names.count(name) for name in names}
