"""ViT and SigLIP encoders against transformers."""

import re

import pytest
import torch
from accuracy import assert_accurate
from tiny_models import (
    SIZES,
    assert_close64,
    build,
    one_thread,  # noqa: F401
)

from mmkern.models import ViT, vit


def hf_vit(**options):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=80,
        image_size=32,
        patch_size=8,
        num_labels=7,
        initializer_range=0.2,
        **options,
    )
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config).eval()


def test_vit_agrees_with_transformers():
    theirs = hf_vit()
    images = torch.randn(2, 3, 32, 32)
    model, _ = build("vit")
    model.load_state_dict(vit.from_transformers(theirs.state_dict()))
    with torch.no_grad():
        eager, got = theirs(images).logits, model(images)
        oracle = theirs.double()(images.double()).logits
        ours64 = model.double()(images.double())
        resized = torch.randn(2, 3, 40, 24).double()
        theirs_resized = theirs(resized, interpolate_pos_encoding=True).logits
        ours_resized = model(resized)
    assert_close64(ours64, oracle)
    assert_close64(ours_resized, theirs_resized)
    assert_accurate("logits", got, eager, oracle, 2)


def test_vit_loads_the_names_of_older_checkpoints():
    theirs = hf_vit()
    old = {
        r"\.layers\.": ".encoder.layer.",
        r"attention\.q_proj": "attention.attention.query",
        r"attention\.k_proj": "attention.attention.key",
        r"attention\.v_proj": "attention.attention.value",
        r"attention\.o_proj": "attention.output.dense",
        r"mlp\.fc1": "intermediate.dense",
        r"mlp\.fc2": "output.dense",
    }
    renamed = {}
    for key, value in theirs.state_dict().items():
        for pattern, replacement in old.items():
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    assert "vit.encoder.layer.1.attention.attention.query.weight" in renamed
    new_names = vit.from_transformers(theirs.state_dict())
    old_names = vit.from_transformers(renamed)
    assert old_names.keys() == new_names.keys() == build("vit")[0].state_dict().keys()
    assert all(torch.equal(old_names[key], new_names[key]) for key in new_names)


def test_siglip_agrees_with_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.SiglipVisionConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=80,
        image_size=30,
        patch_size=7,
    )
    torch.manual_seed(0)
    theirs = transformers.SiglipVisionModel(config).double().eval()
    tiny = {**SIZES, "image_size": 30, "patch_size": 7, "mlp_dim": 80}
    model = ViT(**{**vit.CONFIGS["so400m"], **tiny}).double()
    model.load_state_dict(vit.from_transformers(theirs.state_dict()))
    images = torch.randn(2, 3, 30, 30).double()
    with torch.no_grad():
        wanted = theirs(images).last_hidden_state
        assert_close64(model.forward_features(images), wanted)
        assert torch.equal(model(images), model.forward_features(images).mean(1))
