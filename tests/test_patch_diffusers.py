"""What diffusers alone has: attention processors, the dispatcher's backend, copies of a model."""

import copy

import pytest
import torch
from patch_checks import counts, output
from patch_models import build
from tiny_models import cast, one_thread  # noqa: F401

import mmkern
from mmkern.patch import processors

pytest.importorskip("diffusers")


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
