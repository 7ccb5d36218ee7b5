"""Models of diffusers, patched and unpatched: numbers, names, modes, backends, denoising."""

import copy

import pytest
import torch
from accuracy import assert_accurate
from patch_checks import check_accuracy, check_autocast, counts, oracle_of, output, run
from patch_diffusers import DIFFUSERS
from patch_models import build
from test_models import assert_all_accurate
from tiny_models import cast, one_thread  # noqa: F401

import mmkern
from mmkern.patch import processors
from mmkern.patch.probe import Exact

pytest.importorskip("diffusers")

# rules that must have swapped something, and the number of modules that each swapped
EXPECTED = {
    "dit": {
        "patch_embed": 1, "adaln_block": 2, "adaln": 2, "mlp": 2, "attention": 2,
        "feed_forward": 2,
    },
    "sd3": {
        "patch_embed": 1, "adaln_block": 2, "adaln": 5, "mlp": 2, "attention": 2,
        "feed_forward": 3,
    },
    "sd35": {
        "patch_embed": 1, "adaln_block": 2, "adaln": 5, "mlp": 2, "attention": 3,
        "feed_forward": 3, "rms_norm": 10,
    },
    "flux": {
        "adaln_block": 2, "adaln": 4, "mlp": 3, "attention": 2, "feed_forward": 2, "rms_norm": 6,
    },
    "wan": {
        "patch_embed": 1, "adaln_block": 2, "mlp": 2, "attention": 4, "feed_forward": 2,
        "rms_norm": 8,
    },
    "wan22": {
        "patch_embed": 1, "adaln_block": 2, "mlp": 2, "attention": 4, "feed_forward": 2,
        "rms_norm": 8,
    },
    "wan_i2v": {
        "patch_embed": 1, "adaln_block": 2, "mlp": 2, "attention": 4, "feed_forward": 3,
        "rms_norm": 10,
    },
    "vae": {"attention": 2},
    "pixart": {
        "patch_embed": 1, "adaln_block": 2, "mlp": 2, "attention": 4, "feed_forward": 2,
    },
    "qwenimage": {
        "adaln_block": 2, "adaln": 1, "mlp": 1, "attention": 2, "feed_forward": 4, "rms_norm": 9,
    },
    "flux2": {
        "adaln_block": 2, "adaln": 1, "mlp": 2, "attention": 2, "swiglu": 3, "rms_norm": 6,
    },
    "hunyuan_video": {
        "patch_embed": 1, "adaln_block": 3, "adaln": 4, "mlp": 5, "attention": 3,
        "feed_forward": 3, "rms_norm": 6,
    },
    "lumina2": {
        "adaln_block": 4, "adaln": 3, "mlp": 1, "attention": 4, "gated_mlp": 4, "rms_norm": 25,
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DIFFUSERS)
def test_accuracy_and_names(name, dtype):
    model, inputs = build(name, dtype)
    keys, classes = list(model.state_dict()), [type(m) for m in model.modules()]
    attributes = [set(vars(m)) for m in model.modules()]
    held = [vars(m).get("processor") for m in model.modules()]
    report = check_accuracy(model, inputs)
    assert counts(report) == EXPECTED[name] and not report.left
    assert list(model.state_dict()) == keys and [type(m) for m in model.modules()] == classes
    assert counts(mmkern.patch(model)) == EXPECTED[name]
    mmkern.unpatch(model)
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert all(vars(m).get("processor") is p for m, p in zip(model.modules(), held, strict=True))


@pytest.mark.parametrize("name", DIFFUSERS)
def test_unpatched_is_bitwise_what_it_was(name):
    model, inputs = build(name)
    with torch.no_grad():
        before = output(model(**inputs))
        mmkern.patch(model)
        mmkern.unpatch(model)
        assert torch.equal(output(model(**inputs)), before)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_autocast(name):
    check_autocast(*build(name))


@pytest.mark.parametrize("name", ["dit", "sd35", "flux", "wan"])
def test_gradient_checkpointing_recomputes(name):
    model, inputs = build(name)
    mmkern.patch(model)
    model.train()
    torch.manual_seed(1)  # DiT drops labels at random
    plain = run(model, inputs)
    model.enable_gradient_checkpointing()
    calls = []
    for module in model.modules():
        if type(module).__name__.endswith("TransformerBlock"):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(1)
    checkpointed = run(model, inputs)
    assert len(calls) == 4
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[key], checkpointed[key]) for key in plain)


@pytest.mark.parametrize("name", ["dit", "flux", "wan"])
def test_compiles_as_one_graph(name):
    model, inputs = build(name)
    eager, oracle = run(model, inputs), oracle_of(model, inputs)
    mmkern.patch(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = {key.removeprefix("_orig_mod."): v for key, v in run(compiled, inputs).items()}
    assert_all_accurate(got, eager, oracle)


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_a_denoising_loop_stays_within_the_rule(name):
    model, inputs = build(name)

    @torch.no_grad()
    def sample(model, inputs):
        x = inputs["hidden_states"]
        channels = x.shape[1 if name == "dit" else 2]
        for _ in range(4):
            noise = output(model(**inputs | {"hidden_states": x}))
            x = x - 0.1 * (noise[:, :channels] if name == "dit" else noise)
        return x

    eager = sample(model, inputs)
    with Exact():
        wide = {key: cast(x, torch.float64) for key, x in inputs.items()}
        oracle = sample(copy.deepcopy(model).double(), wide)
    mmkern.patch(model)
    assert_accurate(name, sample(model, inputs), eager, oracle, 2)


def test_copies_are_patched_and_can_be_unpatched_alone():
    model, inputs = build("flux")
    with torch.no_grad():
        wanted = output(model(**inputs))
        mmkern.patch(model)
        patched = output(model(**inputs))
        twin = copy.deepcopy(model)
        assert torch.equal(output(twin(**inputs)), patched)
        mmkern.unpatch(twin)
        assert torch.equal(output(twin(**inputs)), wanted)
        assert torch.equal(output(model(**inputs)), patched)


def test_the_dispatcher_backend():
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    model, inputs = build("flux")
    with torch.no_grad():
        wanted = output(model(**inputs))
    default = _AttentionBackendRegistry._active_backend
    mmkern.patch(model)
    assert _AttentionBackendRegistry._active_backend == default
    mmkern.unpatch(model)
    member = processors.register_backend()
    assert processors.register_backend() is member == "mmkern"
    calls = []
    attention = mmkern.attention
    try:
        mmkern.attention = lambda *a, **o: calls.append(1) or attention(*a, **o)
        model.set_attention_backend("mmkern")
        torch.testing.assert_close(output(model(**inputs)), wanted)
    finally:
        mmkern.attention = attention
        model.reset_attention_backend()
        _AttentionBackendRegistry._active_backend = default
    assert len(calls) == 2


def test_models_without_rules_of_their_own_get_the_dispatcher_backend():
    from diffusers import LTXVideoTransformer3DModel

    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16,
        cross_attention_dim=32, num_layers=1, caption_channels=24,
    ).eval()  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(1, 12, 8), "encoder_hidden_states": torch.randn(1, 5, 24),
        "timestep": torch.tensor([871]), "encoder_attention_mask": torch.ones(1, 5),
        "num_frames": 2, "height": 2, "width": 3,
    }  # fmt: skip
    with torch.no_grad():
        wanted = output(model(**inputs))
        report = mmkern.patch(model)
        assert counts(report)["attention"] == 2
        torch.testing.assert_close(output(model(**inputs)), wanted)
        mmkern.unpatch(model)
        assert torch.equal(output(model(**inputs)), wanted)


def test_a_backend_that_the_user_chose_is_left():
    model, _ = build("flux")
    for module in model.modules():
        if "processor" in vars(module):
            module.processor._attention_backend = "native"
    left = mmkern.patch(model, include=["attention"]).left
    assert [e.reason for e in left if e.rule == "attention"] == [
        "its attention backend is 'native', set by its user"
    ] * 2


def test_a_backend_set_after_patching_runs(monkeypatch):
    model, inputs = build("flux")
    mmkern.patch(model)
    monkeypatch.setattr(mmkern, "attention", None)
    for module in model.modules():
        if "processor" in vars(module):
            module.processor._attention_backend = "native"
    assert torch.isfinite(output(model(**inputs))).all()
