"""Tiny random models of transformers, built from config: {name: (model, inputs)}."""

import torch
from patch_diffusers import DIFFUSERS
from tiny_models import cast

IMAGE = 63
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 22,
    "patch_size": 5,
}


def ids(length=9, tokens=60):
    return torch.randint(3, tokens, (2, length))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TEXT)), {"input_ids": ids()}


def qwen3():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**TEXT)), {"input_ids": ids()}


def siglip():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**VISION)), {
        "pixel_values": torch.randn(2, 3, 22, 22)
    }


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**VISION | {"image_size": 20}, num_labels=7)
    return ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 20, 20)}


def _with_images(length, counts, token=IMAGE):
    """Ids of two rows with ``counts[i]`` image tokens in row i."""
    tokens = ids(length)
    for row, count in zip(tokens, counts, strict=True):
        row[2 : 2 + count] = token
    return tokens


def _qwen_vision():
    return {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip


def _qwen_inputs():
    # two images, of 4 x 6 and 2 x 4 patches: 6 and 2 tokens
    grid = torch.tensor([[1, 4, 6], [1, 2, 4]])
    return {
        "input_ids": _with_images(11, (6, 2)),
        "mm_token_type_ids": (_with_images(11, (6, 2)) == IMAGE).int(),
        "pixel_values": torch.randn(32, 3 * 2 * 4 * 4),
        "image_grid_thw": grid,
    }


_MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}


def qwen3_vl():
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(
        text_config=TEXT | {"rope_parameters": _MROPE}, vision_config=_qwen_vision(),
        image_token_id=IMAGE, video_token_id=62, vision_start_token_id=61, vision_end_token_id=60,
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config), _qwen_inputs()


def qwen3_vl_moe():
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    # every expert takes part: which ones do must not hang on a rounding
    experts = {"num_experts": 3, "num_experts_per_tok": 3, "moe_intermediate_size": 16}
    config = Qwen3VLMoeConfig(
        text_config=TEXT | {"rope_parameters": _MROPE, **experts}, vision_config=_qwen_vision(),
        image_token_id=IMAGE, video_token_id=62, vision_start_token_id=61, vision_end_token_id=60,
    )  # fmt: skip
    config.text_config._experts_implementation = "eager"  # the fast one has no float64
    return Qwen3VLMoeForConditionalGeneration(config), _qwen_inputs()


def kimi():
    from transformers import DeepseekV3Config, Kimi_K25Config, Kimi_K25ForConditionalGeneration

    mla = {
        "q_lora_rank": 12, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 6, "n_routed_experts": 4, "num_experts_per_tok": 4, "n_group": 1,
        "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16,
        "num_key_value_heads": 4, "num_mtp_layers": 0,
    }  # fmt: skip
    text = {k: v for k, v in (TEXT | mla).items() if k != "head_dim"}
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "patch_size": 4, "pos_emb_height": 4, "pos_emb_width": 4,
    }  # fmt: skip
    config = Kimi_K25Config(
        text_config=DeepseekV3Config(**text), vision_config=vision, projection_hidden_size=32,
        image_token_id=IMAGE, video_token_id=62,
    )  # fmt: skip
    config.text_config._experts_implementation = "eager"  # the fast one has no float64
    return Kimi_K25ForConditionalGeneration(config), {
        "input_ids": _with_images(11, (6, 2)),
        "pixel_values": torch.randn(32, 3, 4, 4),
        "image_grid_thw": torch.tensor([[1, 4, 6], [1, 2, 4]]),
    }


def _clip():
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**VISION | {"image_size": 20}, hidden_act="quick_gelu")


def llava():
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=_clip(), text_config=LlamaConfig(**TEXT), image_token_index=IMAGE
    )
    return LlavaForConditionalGeneration(config), {
        "input_ids": _with_images(20, (16, 16)),
        "pixel_values": torch.randn(2, 3, 20, 20),
    }


def llava_onevision():
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    vision = SiglipVisionConfig(**VISION | {"image_size": 20}, vision_use_head=False)
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_index=IMAGE,
        video_token_index=62,
        image_grid_pinpoints=[[20, 20]], vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    # 16 tokens of the whole image, and its one crop with a newline token after each of 4 rows
    return LlavaOnevisionForConditionalGeneration(config), {
        "input_ids": _with_images(40, (36, 36)),
        "pixel_values": torch.randn(2, 2, 3, 20, 20),
        "image_sizes": torch.tensor([[20, 20], [20, 20]]),
    }


TRANSFORMERS = {
    "llama": llama,
    "qwen3": qwen3,
    "siglip": siglip,
    "vit": vit,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "kimi": kimi,
    "llava": llava,
    "llava_onevision": llava_onevision,
}


def kimi_vl():
    from patch_kimi import kimi_vl

    return kimi_vl()


BUILDERS = TRANSFORMERS | DIFFUSERS | {"kimi_vl": kimi_vl}


def spread(model):
    """Weights that show: norms away from 1, biases and gates away from 0."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            torch.nn.init.normal_(parameter, offset, 0.2)
        else:
            torch.nn.init.normal_(parameter, 0.0, parameter[0].numel() ** -0.5)


def build(name, dtype=torch.float32):
    """A model in eval mode and its keyword inputs; the same weights at every call."""
    torch.manual_seed(0)
    model, inputs = BUILDERS[name]()
    with torch.no_grad():
        spread(model)
    return model.to(dtype).eval(), {key: cast(value, dtype) for key, value in inputs.items()}
