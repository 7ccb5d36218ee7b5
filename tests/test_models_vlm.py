"""Vision tower against transformers' Kimi; packing, placeholders, generation."""

import pytest
import torch
from accuracy import assert_accurate
from tiny_models import (
    IMAGE_TOKEN,
    assert_close64,
    build,
    one_thread,  # noqa: F401
    reference_of,
)

from mmkern.models import VisionTower, vlm


def kimi_weights(tower, projector):
    """Names and layout of transformers' Kimi_K25: split q, k, v, rotate-half order of q and k."""

    def half_split(rows, heads):
        rows = rows.unflatten(0, (heads, -1))
        return torch.cat((rows[:, 0::2], rows[:, 1::2]), dim=1).flatten(0, 1)

    vision = {}
    names = {
        "patch_embed.pos_emb.weight": "patch_embed.pos_emb.position_embeddings",
        "encoder.final_layernorm": "final_layernorm",
        "encoder.blocks": "layers",
        "norm1": "norm2",
        "norm0": "norm1",
        "mlp.fc1": "mlp.fc2",
        "mlp.fc0": "mlp.fc1",
        ".wo.": ".attn.proj.",
    }
    for key, value in tower.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        if "wqkv" not in key:
            vision[key] = value
            continue
        for name, part in zip("qkv", value.chunk(3), strict=True):
            rows = part if name == "v" else half_split(part, 3)
            vision[key.replace("wqkv", f"attn.{name}_proj")] = rows
    projection = {
        key.replace("linear_1", "in_proj").replace("linear_2", "out_proj"): value
        for key, value in projector.state_dict().items()
    }
    return vision, projection


def test_vision_tower_agrees_with_transformers_kimi():
    pytest.importorskip("transformers")
    from transformers.models.kimi_k25 import configuration_kimi_k25, modeling_kimi_k25

    model, (_, patches, grid_hw) = build("vlm")
    config = configuration_kimi_k25.Kimi_K25VisionConfig(
        patch_size=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=80,
        pos_emb_height=6,
        pos_emb_width=6,
    )
    whole = configuration_kimi_k25.Kimi_K25Config(
        vision_config=config,
        text_config={"model_type": "llama", "hidden_size": 48, "num_attention_heads": 4},
        projection_hidden_size=48,
    )
    theirs = modeling_kimi_k25.Kimi_K25VisionModel(config).eval()
    projector = modeling_kimi_k25.Kimi_K25MultimodalProjection(whole).eval()
    vision, projection = kimi_weights(model.vision_tower, model.multi_modal_projector)
    theirs.load_state_dict(vision)
    projector.load_state_dict(projection)
    grid_thw = torch.tensor([(1, h, w) for h, w in grid_hw])
    reference, oracle = reference_of(model), reference_of(model, torch.float64)
    with torch.no_grad():
        wanted = oracle.vision_tower(patches.double(), grid_hw)
        eager = theirs(patches, grid_thw)
        assert_accurate(
            "tokens", model.vision_tower(patches, grid_hw), eager.last_hidden_state, wanted, 2
        )
        own = reference.vision_tower(patches, grid_hw)
        assert_accurate("tokens", eager.last_hidden_state, own, wanted, 3)
        merged = oracle.encode_images(patches.double(), grid_hw)
        eager = projector(eager.pooler_output)[:, 0]
        assert_accurate("tokens", model.encode_images(patches, grid_hw), eager, merged, 2)
        assert_accurate("tokens", eager, reference.encode_images(patches, grid_hw), merged, 3)


def test_vision_tower_alone_takes_its_published_size():
    with torch.device("meta"):
        tower = VisionTower(**vlm.CONFIGS["kimi_vl_vision"])
    assert tower.patch_embed.pos_emb.weight.shape == (64, 64, 1152)
    assert tower.encoder.blocks[26].mlp.fc0.weight.shape == (4304, 1152)
    assert tower.head_dim == 72


def test_packed_images_equal_separate_ones():
    model, (_, patches, grid_hw) = build("vlm")
    oracle = reference_of(model, torch.float64)
    lengths = [h * w for h, w in grid_hw]
    with torch.no_grad():
        parts = list(zip(patches.split(lengths), grid_hw, strict=True))
        wanted = torch.cat([oracle.encode_images(p.double(), [g]) for p, g in parts])
        eager = torch.cat([reference_of(model).encode_images(p, [g]) for p, g in parts])
        assert_close64(oracle.encode_images(patches.double(), grid_hw), wanted)
        assert_accurate("tokens", model.encode_images(patches, grid_hw), eager, wanted, 2)


def test_visual_tokens_take_the_placeholders_in_order():
    model, (ids, patches, grid_hw) = build("vlm")
    with torch.no_grad():
        x = model.embed(ids, patches, grid_hw)
        visual = model.encode_images(patches, grid_hw)
        text = model.language_model.model.embed_tokens(ids)
        at = ids == IMAGE_TOKEN
        assert torch.equal(x[at], visual) and torch.equal(x[~at], text[~at])
        assert torch.equal(model.embed(ids), text)
    with pytest.raises(ValueError, match=r"input_ids has 16 image tokens \(id 63\); .* make 17"):
        model(ids.masked_fill(torch.arange(14) == 1, 0), patches, grid_hw)
    with pytest.raises(ValueError, match="has 68 patches; patches has 67"):
        model(ids, patches[:-1], grid_hw)


def test_vlm_generates_what_its_logits_say():
    model, (ids, patches, grid_hw) = build("vlm")
    tokens = model.generate(ids, patches, grid_hw, max_new_tokens=5)
    reference = reference_of(model)
    assert torch.equal(tokens, reference.generate(ids, patches, grid_hw, max_new_tokens=5))
    full = ids
    with torch.no_grad():
        for i in range(5):
            logits = model.language_model(
                inputs_embeds=torch.cat(
                    (model.embed(ids, patches, grid_hw), model.embed(full[:, 14:])), dim=1
                )
            )
            full = torch.cat((full, logits[:, -1:].argmax(-1)), dim=1)
            assert torch.equal(full[:, -1], tokens[:, i])


def test_pack_images_crops_and_orders_patches():
    image = torch.arange(3 * 9 * 20).reshape(3, 9, 20).float()
    patches, grid_hw = vlm.pack_images([image], patch_size=4)
    assert grid_hw == [(2, 4)] and patches.shape == (8, 3, 4, 4)
    assert torch.equal(patches[5], image[:, 4:8, 4:8])
