"""The gradients that every kernel is compared with are themselves checked by finite differences."""

import pytest
import torch
from accuracy import leaves, outputs, widened
from cases import CASES

import mmkern

# ReLU has no derivative at its kink, which finite differences may straddle.
SMOOTH = [case for case in CASES if case.args.get("activation") != "relu"]


def check(function, case):
    # finite differences need every element to have its own memory, which an expanded tensor lacks
    made = widened(case.make(torch.float64)).items()
    kwargs = leaves(
        case,
        {n: v.clone() if isinstance(v, torch.Tensor) and 0 in v.stride() else v for n, v in made},
    )
    names = case.differentiable()

    def call(*values):
        outs = outputs(function(**{**kwargs, **dict(zip(names, values, strict=True))}))
        return tuple(o.masked_fill(~torch.isfinite(o), 0) for o in outs)

    torch.autograd.gradcheck(call, [kwargs[n] for n in names], fast_mode=True)


@pytest.mark.parametrize("case", SMOOTH, ids=lambda c: c.id)
def test_backward_reference(case):
    check(getattr(mmkern, case.function), case)


@pytest.mark.parametrize("case", [c for c in SMOOTH if "smoke" in c.tags], ids=lambda c: c.id)
def test_plain_autograd(case):
    check(getattr(mmkern.reference, case.function), case)
