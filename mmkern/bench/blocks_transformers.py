"""Blocks of transformers' models: the model with one layer, for the tables that it makes."""

import torch

from mmkern.bench import photos
from mmkern.bench.blocks_workload import PHOTOS, BlockWorkload, normal

HF = "transformers"


def build_vit():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=1024, num_hidden_layers=1, num_attention_heads=16, intermediate_size=4096
    )
    model = ViTModel(config, add_pooling_layer=False)
    return model, {"pixel_values": photos.pixels(2, 3, 224, 224)}


def build_siglip():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=1, num_attention_heads=16,
        image_size=384, patch_size=14, vision_use_head=False,
    )  # fmt: skip
    return SiglipVisionModel(config), {"pixel_values": photos.pixels(1, 3, 384, 384)}


def _qwen_vision(config, model, width):
    config = config(depth=1, out_hidden_size=width, deepstack_visual_indexes=[0])
    grid = torch.tensor([[1, 24, 32], [1, 16, 16]])
    return model._from_config(config), {
        "hidden_states": photos.patches(1024, 1536),
        "grid_thw": grid,
    }


def build_qwen_vision():
    from transformers import Qwen3VLVisionConfig, Qwen3VLVisionModel

    return _qwen_vision(Qwen3VLVisionConfig, Qwen3VLVisionModel, 4096)


def build_qwen_moe_vision():
    from transformers import Qwen3VLMoeVisionConfig, Qwen3VLMoeVisionModel

    return _qwen_vision(Qwen3VLMoeVisionConfig, Qwen3VLMoeVisionModel, 2048)


def _text(config, model, tokens):
    embeds = normal(1, tokens, config.hidden_size)
    return model._from_config(config), {"inputs_embeds": embeds, "use_cache": False}


_MROPE = {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5e6}


_QWEN3 = {
    "vocab_size": 256, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 1,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
_QWEN3_MOE = {
    "vocab_size": 256, "hidden_size": 2048, "num_hidden_layers": 1, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}  # fmt: skip


def build_qwen_text():
    from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

    return _text(Qwen3VLTextConfig(**_QWEN3, rope_parameters=_MROPE), Qwen3VLTextModel, 512)


def build_qwen_moe():
    from transformers import Qwen3VLMoeTextConfig, Qwen3VLMoeTextModel

    config = Qwen3VLMoeTextConfig(**_QWEN3_MOE, rope_parameters=_MROPE)
    return _text(config, Qwen3VLMoeTextModel, 256)


def build_qwen3():
    from transformers import Qwen3Config, Qwen3Model

    return _text(Qwen3Config(**_QWEN3), Qwen3Model, 512)


def build_qwen3_moe():
    from transformers import Qwen3MoeConfig, Qwen3MoeModel

    return _text(Qwen3MoeConfig(**_QWEN3_MOE), Qwen3MoeModel, 256)


def build_mistral():
    from transformers import MistralConfig, MistralModel

    config = MistralConfig(**_QWEN3 | {"intermediate_size": 14336}, sliding_window=None)
    return _text(config, MistralModel, 512)


IMAGE = 255


def _around(count, text):
    """Ids of one row: ``count`` tokens of images in the midst of ``text`` others."""
    ids = torch.randint(0, IMAGE - 1, (1, text + count))
    ids[:, text // 2 : text // 2 + count] = IMAGE
    return {"input_ids": ids, "use_cache": False}


def build_llava():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaModel

    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=1, num_attention_heads=16,
        image_size=336, patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=256, hidden_size=4096, intermediate_size=11008, num_hidden_layers=1,
        num_attention_heads=32,
    )  # fmt: skip
    # the model takes its features from the last layer but one; here that is the only one
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1
    )
    return LlavaModel(config), _around(576, 64) | {"pixel_values": photos.pixels(1, 3, 336, 336)}


def build_llava_onevision():
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionModel,
        Qwen2Config,
        SiglipVisionConfig,
    )

    vision = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=1, num_attention_heads=16,
        image_size=384, patch_size=14, vision_use_head=False,
    )  # fmt: skip
    text = Qwen2Config(
        vocab_size=256, hidden_size=3584, intermediate_size=18944, num_hidden_layers=1,
        num_attention_heads=28, num_key_value_heads=4,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE - 1,
        video_token_index=IMAGE,
    )  # fmt: skip
    # a frame is 14 x 14 tokens after pooling, and one token ends the video
    frames = photos.pixels(2, 3, 384, 384)[None]
    return LlavaOnevisionModel(config), _around(393, 64) | {"pixel_values_videos": frames}


def _kimi_config():
    from transformers import DeepseekV3Config, Kimi_K25Config

    text = DeepseekV3Config(
        vocab_size=256, hidden_size=2048, intermediate_size=11264, num_hidden_layers=1,
        num_attention_heads=16, num_key_value_heads=16, q_lora_rank=None, kv_lora_rank=512,
        qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128, first_k_dense_replace=1,
        rope_parameters={"rope_type": "default", "rope_theta": 8e5}, rms_norm_eps=1e-5,
    )  # fmt: skip
    return Kimi_K25Config(text_config=text, vision_config={"num_hidden_layers": 1})


def build_kimi_vision():
    from transformers import Kimi_K25VisionModel

    model = Kimi_K25VisionModel._from_config(_kimi_config().vision_config)
    patches = photos.patches(1024, 588).unflatten(1, (3, 14, 14))
    return model, {"pixel_values": patches, "grid_thw": torch.tensor([[1, 24, 32], [1, 16, 16]])}


def build_kimi_projector():
    from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25MultimodalProjection

    return Kimi_K25MultimodalProjection(_kimi_config()), {"hidden_states": normal(256, 4, 1152)}


def build_kimi_text():
    from transformers import DeepseekV3Model

    return _text(_kimi_config().text_config, DeepseekV3Model, 512)


BLOCKS = (
    BlockWorkload(
        "vit-l-block", HF, "ViT-L/16", "2x3x224x224", "1 of 24 layers, patch embed and norm",
        build_vit, PHOTOS,
    ),
    BlockWorkload(
        "siglip-block", HF, "SigLIP so400m", "1x3x384x384",
        "1 of 27 layers, patch embed and norm", build_siglip, PHOTOS,
    ),
    BlockWorkload(
        "qwen3-vl-vision", HF, "Qwen3-VL-8B vision", "768+256 patches",
        "1 of 27 layers, patch embed and two mergers", build_qwen_vision, PHOTOS,
    ),
    BlockWorkload(
        "qwen3-vl-text", HF, "Qwen3-VL-8B text", "1x512 tokens", "1 of 36 layers and norm",
        build_qwen_text,
    ),
    BlockWorkload(
        "qwen3-vl-moe-vision", HF, "Qwen3-VL-30B-A3B vision", "768+256 patches",
        "1 of 27 layers, patch embed and two mergers", build_qwen_moe_vision, PHOTOS,
    ),
    BlockWorkload(
        "qwen3-vl-moe-text", HF, "Qwen3-VL-30B-A3B text", "1x256 tokens, 8 of 128 experts",
        "1 of 48 layers and norm", build_qwen_moe,
    ),
    BlockWorkload(
        "kimi-vl-vision", HF, "Kimi-VL vision (Kimi_K25 classes)", "768+256 patches",
        "1 of 27 layers, patch embed and norm", build_kimi_vision, PHOTOS,
    ),
    BlockWorkload(
        "kimi-vl-projector", HF, "Kimi-VL projector (Kimi_K25 classes)", "256 tokens",
        "whole", build_kimi_projector,
    ),
    BlockWorkload(
        "kimi-vl-text", HF, "Kimi-VL-A3B text (MLA)", "1x512 tokens",
        "1 of 27 layers, the dense one, and norm", build_kimi_text,
    ),
    BlockWorkload(
        "llava-block", HF, "LLaVA-1.5-7B (CLIP-L + Llama)", "576 image, 64 text tokens",
        "1 of 24 vision and 1 of 32 text layers, patch embed and projector", build_llava, PHOTOS,
    ),
    BlockWorkload(
        "llava-ov-block", HF, "LLaVA-OneVision-7B (SigLIP + Qwen2)",
        "2 frames: 393 video, 64 text tokens",
        "1 of 26 vision and 1 of 28 text layers, patch embed and projector",
        build_llava_onevision, PHOTOS,
    ),
    BlockWorkload(
        "qwen3-text", HF, "Qwen3-8B", "1x512 tokens", "1 of 36 layers and norm", build_qwen3
    ),
    BlockWorkload(
        "qwen3-moe-text", HF, "Qwen3-30B-A3B", "1x256 tokens, 8 of 128 experts",
        "1 of 48 layers and norm", build_qwen3_moe,
    ),
    BlockWorkload(
        "mistral-text", HF, "Mistral-7B v0.3", "1x512 tokens", "1 of 32 layers and norm",
        build_mistral,
    ),
)  # fmt: skip
