"""The table of block workloads: blocks of published models at their true width, random weights.

Each is built from its config by transformers or diffusers and runs three times on the same weights:
as it is, under torch.compile, and after :func:`mmkern.patch`. A block of transformers takes tables
and masks that its model makes, so there it is the model with one layer; of diffusers, the block
alone. The number of tokens is what a CPU does in a fraction of a second.
"""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_leaves, tree_map

import mmkern
from mmkern.bench import photos
from mmkern.bench.contest import OUTPUT_FACTOR, Contest
from mmkern.patch import probe


@dataclass(frozen=True)
class BlockWorkload:
    """build() makes the module, in float32, and its keyword inputs.

    library: what build() imports. wide: names of inputs, and parts of names of weights, that stay
    float32 in every dtype, as the model keeps them.
    """

    name: str
    library: str
    model: str
    shape: str
    scale: str
    build: Callable
    inputs: str = "random"
    wide: tuple = ()
    quick: bool = False
    compiles: bool = True

    def missing(self):
        """The library that the block needs and that is not installed, or None."""
        return None if importlib.util.find_spec(self.library) else self.library


def block_contest(workload, dtype, device, seed):
    """The contest of a block workload."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, inputs = workload.build()
    module = module.eval().requires_grad_(False).to(device, dtype)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if any(part in name for part in workload.wide):
            tensor.data = tensor.data.float()
    inputs = {k: _to(v, device, None if k in workload.wide else dtype) for k, v in inputs.items()}
    with torch.no_grad():
        count = len(_tensors(module(**inputs)))

    def bind(function):
        return lambda: _tensors(function(**inputs))

    def oracle():
        wide = _float64_experts(probe.exact_copy(module))
        with probe.Exact():
            return _tensors(wide(**probe.widened(inputs)))

    return Contest(
        identity={
            "kind": "model",
            "op": "model",
            "function": "block",
            "name": workload.name,
            "variant": "forward",
            "dtype": str(dtype).removeprefix("torch."),
            "shape": workload.shape,
            "model": workload.model,
            "scale": workload.scale,
            "inputs": workload.inputs,
        },
        functions={"eager": module, "mmkern": patched(module)},
        bind=bind,
        oracle=oracle,
        factors=(OUTPUT_FACTOR,) * count,
    )


def patched(module):
    """A patched copy that shares the weights; the contest checks it, so patch need not."""
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    other = copy.deepcopy(module, shared)
    report = mmkern.patch(other, check=False)
    if report.left or not report.swapped:
        raise RuntimeError(f"mmkern.patch did not swap all of a block:\n{report}")
    return other


def _tensors(result):
    return tuple(t for t in tree_leaves(result) if isinstance(t, torch.Tensor))


def _to(value, device, dtype):
    def move(leaf):
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.to(device, dtype if leaf.is_floating_point() else None)

    return tree_map(move, value)


def _float64_experts(model):
    """transformers' fast experts have no float64."""
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_experts_implementation"):
            module.config._experts_implementation = "eager"
    return model


def _normal(*shape):
    return torch.randn(shape)


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


def build_qwen_vision():
    from transformers import Qwen3VLVisionConfig, Qwen3VLVisionModel

    config = Qwen3VLVisionConfig(depth=1, out_hidden_size=4096, deepstack_visual_indexes=[0])
    model = Qwen3VLVisionModel._from_config(config)
    grid = torch.tensor([[1, 24, 32], [1, 16, 16]])
    return model, {"hidden_states": photos.patches(1024, 1536), "grid_thw": grid}


def _qwen_text(config, model, tokens):
    embeds = _normal(1, tokens, config.hidden_size)
    return model._from_config(config), {"inputs_embeds": embeds, "use_cache": False}


_MROPE = {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5e6}


def build_qwen_text():
    from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

    config = Qwen3VLTextConfig(
        vocab_size=256, hidden_size=4096, intermediate_size=12288, num_hidden_layers=1,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, rope_parameters=_MROPE,
    )  # fmt: skip
    return _qwen_text(config, Qwen3VLTextModel, 512)


def build_qwen_moe():
    from transformers import Qwen3VLMoeTextConfig, Qwen3VLMoeTextModel

    config = Qwen3VLMoeTextConfig(
        vocab_size=256, hidden_size=2048, num_hidden_layers=1, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
        moe_intermediate_size=768, rope_parameters=_MROPE,
    )  # fmt: skip
    return _qwen_text(config, Qwen3VLMoeTextModel, 256)


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

    return Kimi_K25MultimodalProjection(_kimi_config()), {"hidden_states": _normal(256, 4, 1152)}


def build_kimi_text():
    from transformers import DeepseekV3Model

    return _qwen_text(_kimi_config().text_config, DeepseekV3Model, 512)


def build_dit():
    from diffusers.models.attention import BasicTransformerBlock

    block = BasicTransformerBlock(
        1152, 16, 72, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        attention_bias=True, norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    labels = {"timestep": torch.tensor([3, 871]), "class_labels": torch.tensor([1, 207])}
    return block, {"hidden_states": _normal(2, 256, 1152), **labels}


def _streams(width, image, text):
    return {
        "hidden_states": _normal(1, image, width),
        "encoder_hidden_states": _normal(1, text, width),
        "temb": _normal(1, width),
    }


def build_sd3():
    from diffusers.models.attention import JointTransformerBlock

    return JointTransformerBlock(1536, 24, 64), _streams(1536, 1024, 333)


def _flux_tables(tokens):
    angle = torch.rand(tokens, 64).mul_(6.3).repeat_interleave(2, -1)
    return {"image_rotary_emb": (angle.cos(), angle.sin())}


def build_flux_double():
    from diffusers.models.transformers.transformer_flux import FluxTransformerBlock

    return FluxTransformerBlock(3072, 24, 128), _streams(3072, 256, 128) | _flux_tables(384)


def build_flux_single():
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

    return FluxSingleTransformerBlock(3072, 24, 128), _streams(3072, 256, 128) | _flux_tables(384)


def _wan(width, ffn, heads, tokens):
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    angle = torch.rand(1, tokens, 1, 64).mul_(6.3).repeat_interleave(2, -1)
    return WanTransformerBlock(width, ffn, heads, cross_attn_norm=True), {
        "hidden_states": _normal(1, tokens, width),
        "encoder_hidden_states": _normal(1, 512, width),
        "temb": _normal(1, 6, width),
        "rotary_emb": (angle.cos(), angle.sin()),
    }


def build_wan_1b():
    return _wan(1536, 8960, 12, 1024)


def build_wan_14b():
    return _wan(5120, 13824, 40, 256)


PHOTOS = "photographs"
#: diffusers' WanTransformer3DModel._keep_in_fp32_modules, and what the model passes in float32
WAN_WIDE = ("scale_shift_table", "norm1", "norm2", "norm3", "temb", "rotary_emb")
FLUX_WIDE = ("image_rotary_emb",)
HF, DIFFUSERS = "transformers", "diffusers"
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
        "dit-block", DIFFUSERS, "DiT-XL/2", "2x256 tokens", "1 of 28 blocks", build_dit
    ),
    BlockWorkload(
        "sd3-block", DIFFUSERS, "SD3-medium", "1024 image, 333 text tokens", "1 of 24 blocks",
        build_sd3,
    ),
    BlockWorkload(
        "flux-double", DIFFUSERS, "FLUX.1-dev double", "256 image, 128 text tokens",
        "1 of 19 blocks", build_flux_double, wide=FLUX_WIDE,
    ),
    BlockWorkload(
        "flux-single", DIFFUSERS, "FLUX.1-dev single", "256 image, 128 text tokens",
        "1 of 38 blocks", build_flux_single, wide=FLUX_WIDE,
    ),
    BlockWorkload(
        "wan-1b-block", DIFFUSERS, "Wan2.1-1.3B", "1024 video, 512 text tokens",
        "1 of 30 blocks", build_wan_1b, wide=WAN_WIDE,
    ),
    BlockWorkload(
        "wan-14b-block", DIFFUSERS, "Wan2.1-14B", "256 video, 512 text tokens",
        "1 of 40 blocks", build_wan_14b, wide=WAN_WIDE,
    ),
)  # fmt: skip
