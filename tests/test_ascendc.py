"""The AscendC kernels on the twin, by the accuracy rule, forward and backward.

Every case is run twice: pipes as early as they can be, and as late as their synchronisation allows
with the cores in another order. The twin must find nothing, and both results must be the same bits.
"""

import ascendc_twin
import pytest
import torch
from accuracy import check_forward, check_gradients, cotangents, forward, gradients, outputs
from cases import CASES, Case, T
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


def _qkv(name, tokens, heads, heads_k, dim, **options):
    kv = T((1, tokens, heads_k, dim))
    return Case("attention", name, {"q": T((1, tokens, heads, dim)), "k": kv, "v": kv, **options})


def _layers(rows, width):
    weights = {n: T((width, width), scale=width**-0.5) for n in ("w1", "w2")}
    return {"x": T((rows, width)), **weights, "b1": T((width,)), "b2": T((width,))}


def _normed(name, rows, width, outputs, merge=1, *, norm="layer", offset=0.0, affine=True):
    """Both linear layers behind a norm of rows whose mean may be far from 0."""
    wide = merge * merge * width
    return Case(
        "mlp", name,
        {
            "x": T((rows, width), offset=offset), "w1": T((outputs, wide), scale=wide**-0.5),
            "b1": T((outputs,)), "w2": T((16, outputs), scale=outputs**-0.5), "b2": None,
            "norm": norm, "merge": merge,
            **{n: T((width,)) if affine else None for n in ("norm_weight", "norm_bias")},
        },
    )  # fmt: skip


#: several rows of tiles for a core, in both kinds of parts; rows that take the memory of one buffer
NORMED = [
    _normed("rows_of_tiles", 900, 40, 40, offset=30.0),
    _normed("parts", 1200, 40, 300, 2, offset=30.0),
    _normed("one_part", 900, 24, 20, 3, norm="rms"),
    _normed("wide_rows", 20, 4096, 24),
    _normed("tail_of_a_row", 33 * 9, 24, 20, 3, norm="rms", affine=False),
    _normed("a_row", 1, 40, 40),
]
#: what takes several blocks of a head, several depths of a turned operand, several groups of rows
LARGE = [
    _qkv("several_blocks_causal", 300, 4, 2, 128, causal=True),
    _qkv("several_blocks_window", 300, 2, 2, 64, window=(150, 20)),
    _qkv("heads_of_256", 150, 1, 1, 256),
    Case("mlp", "several_depths", _layers(300, 300)),
    Case(
        "patch_embed", "several_depths",
        {"x": T((300, 48)), "weight": T((272, 48), scale=48**-0.5), "bias": T((272,))},
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.id)
def test_gradients_of_several_blocks(case):
    kwargs = case.make(torch.bfloat16)
    early = check_gradients(case, kwargs)
    check_kernels_ran(case)
    cotangent = cotangents(forward(mmkern.reference, case, kwargs))
    late_ones = late(lambda: gradients(mmkern, case, kwargs, cotangent))
    assert all(torch.equal(early[name], late_ones[name]) for name in case.differentiable())


@pytest.mark.parametrize("case", NORMED, ids=lambda c: c.id)
def test_norm_inside_the_linear_layer(case):
    """One kernel normalises and multiplies, with pipes early and late."""
    kwargs = case.make(torch.bfloat16)
    early = check_forward(case, kwargs)
    assert [report["kernel"] for report in reports()] == ["linear_normed", "linear"]
    (got,) = late(lambda: forward(mmkern, case, kwargs))
    assert torch.equal(early[0], got)


@pytest.mark.parametrize("case", NORMED, ids=lambda c: c.id)
def test_norm_inside_gives_the_bits_of_one_before(case):
    kwargs = case.make(torch.bfloat16)
    inside = mmkern.mlp(**kwargs)
    norm = [kwargs.pop(name) for name in ("norm_weight", "norm_bias", "norm")]
    x = kwargs.pop("x")
    y = ascendc_twin.ops().modulate(x, None, None, None, None, *norm, kwargs.get("eps", 1e-6))[1]
    before = mmkern.mlp(y, **kwargs)
    kernels = [report["kernel"] for report in reports()]
    assert kernels == ["linear_normed", "linear", "modulate", "linear", "linear"]
    assert torch.equal(inside, before)


def test_tiles_that_leave_room_for_a_row():
    """Beside the widest tiles, with what backward saves, a vector core has no room for it."""
    case = _normed("", 3, 6400, 256)
    check_gradients(case, case.make(torch.bfloat16))
    assert [report["kernel"] for report in reports()][:2] == ["linear_normed", "linear"]


APART = {
    "no_room": (2, _normed("", 3, 9600, 256), ["linear", "linear"]),
    "slower": (24, _normed("", 256, 2400, 24, 4), ["modulate", "linear", "linear"]),
}


@pytest.mark.parametrize("name", APART)
def test_norm_before_the_linear_layer(name):
    """Of rows for which a vector core has no room, modulate's reference; of few wide rows, which
    would be waited for, modulate.
    """
    cores, case, kernels = APART[name]
    ascendc_twin.ops().configure(cores, False, 0)
    check_gradients(case, case.make(torch.bfloat16))
    assert [report["kernel"] for report in reports()][: len(kernels)] == kernels
    references = ascendc_twin.ops().take_references()
    assert ("mmkern::modulate" in references) == (kernels[0] == "linear")


@pytest.mark.parametrize("shape", [(40, 24), (1, 40, 2, 24)], ids=["mlp", "attention"])
def test_rows_of_a_gradient_may_overlap(shape):
    leaf = torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)
    if len(shape) == 2:
        weights = torch.randn(2, 24, 24, dtype=torch.bfloat16).requires_grad_()
        inputs, call = (leaf, weights), lambda f: f.mlp(leaf, weights[0], None, weights[1], None)
    else:
        inputs, call = (leaf,), lambda f: f.attention(leaf, leaf, leaf)
    strides = [1 if size > 1 else 0 for size in shape[:-1]] + [1]
    grad = torch.randn(200, dtype=torch.bfloat16).as_strided(shape, strides)
    got = torch.autograd.grad(call(mmkern), inputs, grad)
    same = torch.autograd.grad(call(mmkern), inputs, grad.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(got, same, strict=True))
    reports()


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
