"""The AscendC kernels on the twin, by the accuracy rule, forward and backward.

Every case is run twice: pipes as early as they can be, and as late as their synchronisation allows
with the cores in another order. The twin must find nothing, and both results must be the same bits.
"""

import ascendc_twin
import pytest
import torch
from accuracy import check_forward, check_gradients, cotangents, forward, gradients, outputs
from cases import CASES
from on_triton import Guards

import mmkern

OPS = ("attention", "mlp", "modulate", "patch_embed")
#: cases that no kernel takes, and why: the op's reference runs on the NPU
REFERENCE = {
    "attention-vae_d512": "heads wider than 256",
}
CASES_HERE = [case for case in CASES if case.op in OPS and case.id not in REFERENCE]
dtypes = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d).removeprefix("torch.")
)
cases = pytest.mark.parametrize("case", CASES_HERE, ids=lambda c: c.id)


@pytest.fixture(autouse=True)
def on_twin(monkeypatch):
    ascendc_twin.run_ops_on_twin(monkeypatch)
    ascendc_twin.ops().configure(2, False, 0)
    ascendc_twin.ops().take_references()
    ascendc_twin.take_reports()


def reports():
    """The reports since the last call, which have no finding."""
    found = ascendc_twin.take_reports()
    lines = [line for report in found for line in report["lines"]]
    assert not lines, "\n".join(lines)
    return found


def check_kernels_ran(case):
    """Kernels ran, without a finding, and no reference in their stead."""
    references = ascendc_twin.ops().take_references()
    assert not references, f"{case.id}: the reference ran: {references}"
    assert reports()


def late(run):
    """What run() gives with late pipes and permuted cores."""
    ascendc_twin.ops().configure(2, True, 3)
    result = run()
    reports()
    ascendc_twin.ops().configure(2, False, 0)
    return result


@dtypes
@cases
def test_forward(case, dtype):
    guards = Guards()
    kwargs = {n: guards(v) for n, v in case.make(dtype).items()}
    early = check_forward(case, kwargs)
    check_kernels_ran(case)
    for a, b in zip(early, late(lambda: forward(mmkern, case, kwargs)), strict=True):
        assert torch.equal(a, b), f"{case.id}: depends on when its pipes run"
    guards.check()


@dtypes
@cases
def test_gradients(case, dtype):
    guards = Guards()
    kwargs = {n: guards(v) for n, v in case.make(dtype).items()}
    early = check_gradients(case, kwargs)
    check_kernels_ran(case)
    cotangent = cotangents(forward(mmkern.reference, case, kwargs))
    late_ones = late(lambda: gradients(mmkern, case, kwargs, cotangent))
    for name in case.differentiable():
        assert torch.equal(early[name], late_ones[name]), f"{case.id}: gradient of {name} differs"
    guards.check()


@pytest.mark.parametrize("name", ["mlp-qwen_merger", "patch_embed-vit"])
def test_one_gradient_at_a_time(name):
    """Alone, a gradient is the same bits as with all the others."""
    case = next(case for case in CASES_HERE if case.id == name)
    kwargs = case.make(torch.bfloat16)
    cotangent = cotangents(forward(mmkern.reference, case, kwargs))
    together = gradients(mmkern, case, kwargs, cotangent)
    for argument in case.differentiable():
        args = {**kwargs, argument: kwargs[argument].detach().requires_grad_()}
        out = outputs(getattr(mmkern, case.function)(**args))
        (alone,) = torch.autograd.grad(out, args[argument], cotangent)
        assert torch.equal(alone, together[argument]), f"{case.id}: gradient of {argument}"
    check_kernels_ran(case)


def test_reference_of_what_no_kernel_takes():
    """Every case of REFERENCE, and every op in float32, is the reference's; no kernel starts."""
    wide = [(case, torch.bfloat16) for case in CASES if case.id in REFERENCE]
    float32 = [(case, torch.float32) for case in CASES_HERE if "smoke" in case.tags]
    assert len(wide) == len(REFERENCE)
    for case, dtype in wide + float32:
        kwargs = case.make(dtype)
        got, wanted = (forward(functions, case, kwargs) for functions in (mmkern, mmkern.reference))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), case.id
        assert ascendc_twin.ops().take_references(), case.id
        assert not reports(), case.id
