"""Blocks of diffusers' models, each by itself."""

import torch

from mmkern.bench.blocks_workload import BlockWorkload, normal

DIFFUSERS = "diffusers"
#: tables that the models pass in float32
ROPE = ("image_rotary_emb", "freqs_cis")
#: diffusers' WanTransformer3DModel._keep_in_fp32_modules, and what the model passes in float32
WAN_WIDE = ("scale_shift_table", "norm1", "norm2", "norm3", "temb", "rotary_emb")


def build_dit():
    from diffusers.models.attention import BasicTransformerBlock

    block = BasicTransformerBlock(
        1152, 16, 72, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        attention_bias=True, norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    labels = {"timestep": torch.tensor([3, 871]), "class_labels": torch.tensor([1, 207])}
    return block, {"hidden_states": normal(2, 256, 1152), **labels}


def _streams(width, image, text):
    return {
        "hidden_states": normal(1, image, width),
        "encoder_hidden_states": normal(1, text, width),
        "temb": normal(1, width),
    }


def build_pixart():
    from diffusers.models.attention import BasicTransformerBlock

    block = BasicTransformerBlock(
        1152, 16, 72, cross_attention_dim=1152, activation_fn="gelu-approximate",
        attention_bias=True, norm_type="ada_norm_single", norm_elementwise_affine=False,
        norm_eps=1e-6,
    )  # fmt: skip
    return block, {
        "hidden_states": normal(1, 1024, 1152),
        "encoder_hidden_states": normal(1, 120, 1152),
        "timestep": normal(1, 6 * 1152),
    }


def build_sd3():
    from diffusers.models.attention import JointTransformerBlock

    return JointTransformerBlock(1536, 24, 64), _streams(1536, 1024, 333)


def build_sd35():
    from diffusers.models.attention import JointTransformerBlock

    block = JointTransformerBlock(1536, 24, 64, qk_norm="rms_norm", use_dual_attention=True)
    return block, _streams(1536, 1024, 333)


def _tables(tokens, name="image_rotary_emb"):
    angle = torch.rand(tokens, 64).mul_(6.3).repeat_interleave(2, -1)
    return {name: (angle.cos(), angle.sin())}


def _complex_table(*shape):
    angle = torch.rand(shape).mul_(6.3)
    return torch.polar(torch.ones_like(angle), angle)


def build_flux_double():
    from diffusers.models.transformers.transformer_flux import FluxTransformerBlock

    return FluxTransformerBlock(3072, 24, 128), _streams(3072, 256, 128) | _tables(384)


def build_flux_single():
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

    return FluxSingleTransformerBlock(3072, 24, 128), _streams(3072, 256, 128) | _tables(384)


def _flux2_streams(image, text):
    streams = _streams(6144, image, text)
    return {name: streams[name] for name in ("hidden_states", "encoder_hidden_states")}


def build_flux2_double():
    from diffusers.models.transformers.transformer_flux2 import Flux2TransformerBlock

    modulation = {name: normal(1, 6 * 6144) for name in ("temb_mod_img", "temb_mod_txt")}
    inputs = _flux2_streams(64, 32) | modulation | _tables(96)
    return Flux2TransformerBlock(6144, 48, 128), inputs


def build_flux2_single():
    from diffusers.models.transformers.transformer_flux2 import Flux2SingleTransformerBlock

    inputs = _flux2_streams(128, 64) | {"temb_mod": normal(1, 3 * 6144)} | _tables(192)
    return Flux2SingleTransformerBlock(6144, 48, 128), inputs


def build_qwenimage():
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock

    tables = {"image_rotary_emb": (_complex_table(256, 64), _complex_table(128, 64))}
    inputs = _streams(3072, 256, 128) | tables | {"encoder_hidden_states_mask": None}
    return QwenImageTransformerBlock(3072, 24, 128), inputs


def _hunyuan(tables):
    """Of the 128 tokens of text, 100 take part."""
    mask = torch.ones(1, 1, 1, 384, dtype=torch.bool)
    mask[..., 356:] = False
    return _streams(3072, 256, 128) | {"attention_mask": mask} | _tables(256, tables)


def build_hunyuan_double():
    from diffusers.models.transformers import transformer_hunyuan_video as hunyuan

    block = hunyuan.HunyuanVideoTransformerBlock(24, 128, 4.0, qk_norm="rms_norm")
    return block, _hunyuan("freqs_cis")


def build_hunyuan_single():
    from diffusers.models.transformers import transformer_hunyuan_video as hunyuan

    block = hunyuan.HunyuanVideoSingleTransformerBlock(24, 128, 4.0, qk_norm="rms_norm")
    return block, _hunyuan("image_rotary_emb")


def build_hunyuan_refiner():
    from diffusers.models.transformers import transformer_hunyuan_video as hunyuan

    keep = torch.arange(256) < 200
    mask = keep & keep[:, None]
    mask[:, 0] = True  # as the model has it: no row is without a key
    return hunyuan.HunyuanVideoIndividualTokenRefinerBlock(24, 128), {
        "hidden_states": normal(1, 256, 3072),
        "temb": normal(1, 3072),
        "attention_mask": mask[None, None],
    }


def build_lumina2():
    from diffusers.models.transformers.transformer_lumina2 import Lumina2TransformerBlock

    return Lumina2TransformerBlock(2304, 24, 8, 256, None, 1e-5), {
        "hidden_states": normal(1, 512, 2304),
        "attention_mask": None,
        "image_rotary_emb": _complex_table(1, 512, 48),
        "temb": normal(1, 1024),
    }


def build_vae():
    from diffusers.models.attention_processor import Attention

    attention = Attention(
        512, heads=1, dim_head=512, norm_num_groups=32, eps=1e-6, bias=True,
        residual_connection=True, _from_deprecated_attn_block=True,
    )  # fmt: skip
    return attention, {"hidden_states": normal(1, 512, 64, 64)}


def _wan(width, ffn, heads, tokens):
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    angle = torch.rand(1, tokens, 1, 64).mul_(6.3).repeat_interleave(2, -1)
    return WanTransformerBlock(width, ffn, heads, cross_attn_norm=True), {
        "hidden_states": normal(1, tokens, width),
        "encoder_hidden_states": normal(1, 512, width),
        "temb": normal(1, 6, width),
        "rotary_emb": (angle.cos(), angle.sin()),
    }


def build_wan_1b():
    return _wan(1536, 8960, 12, 1024)


def build_wan_14b():
    return _wan(5120, 13824, 40, 256)


BLOCKS = (
    BlockWorkload(
        "dit-block", DIFFUSERS, "DiT-XL/2", "2x256 tokens", "1 of 28 blocks", build_dit
    ),
    BlockWorkload(
        "pixart-block", DIFFUSERS, "PixArt-alpha XL/2", "1024 image, 120 text tokens",
        "1 of 28 blocks", build_pixart,
    ),
    BlockWorkload(
        "sd3-block", DIFFUSERS, "SD3-medium", "1024 image, 333 text tokens", "1 of 24 blocks",
        build_sd3,
    ),
    BlockWorkload(
        "sd35-block", DIFFUSERS, "SD3.5-medium", "1024 image, 333 text tokens",
        "1 of 24 blocks, with a second attention", build_sd35,
    ),
    BlockWorkload(
        "flux-double", DIFFUSERS, "FLUX.1-dev double", "256 image, 128 text tokens",
        "1 of 19 blocks", build_flux_double, wide=ROPE,
    ),
    BlockWorkload(
        "flux-single", DIFFUSERS, "FLUX.1-dev single", "256 image, 128 text tokens",
        "1 of 38 blocks", build_flux_single, wide=ROPE,
    ),
    BlockWorkload(
        "wan-1b-block", DIFFUSERS, "Wan2.1-1.3B", "1024 video, 512 text tokens",
        "1 of 30 blocks", build_wan_1b, wide=WAN_WIDE,
    ),
    BlockWorkload(
        "wan-14b-block", DIFFUSERS, "Wan2.1-14B", "256 video, 512 text tokens",
        "1 of 40 blocks", build_wan_14b, wide=WAN_WIDE,
    ),
    BlockWorkload(
        "flux2-double", DIFFUSERS, "FLUX.2-dev double", "64 image, 32 text tokens",
        "1 of 8 blocks", build_flux2_double, wide=ROPE,
    ),
    BlockWorkload(
        "flux2-single", DIFFUSERS, "FLUX.2-dev single", "128 image, 64 text tokens",
        "1 of 48 blocks", build_flux2_single, wide=ROPE,
    ),
    BlockWorkload(
        "qwenimage-block", DIFFUSERS, "QwenImage", "256 image, 128 text tokens",
        "1 of 60 blocks", build_qwenimage,
    ),
    BlockWorkload(
        "hunyuan-double", DIFFUSERS, "HunyuanVideo double", "256 video, 128 text tokens",
        "1 of 20 blocks", build_hunyuan_double, wide=ROPE,
    ),
    BlockWorkload(
        "hunyuan-single", DIFFUSERS, "HunyuanVideo single", "256 video, 128 text tokens",
        "1 of 40 blocks", build_hunyuan_single, wide=ROPE,
    ),
    BlockWorkload(
        "hunyuan-refiner", DIFFUSERS, "HunyuanVideo text refiner", "256 text tokens",
        "1 of 2 blocks", build_hunyuan_refiner,
    ),
    BlockWorkload(
        "lumina2-block", DIFFUSERS, "Lumina 2", "512 tokens", "1 of 26 blocks", build_lumina2
    ),
    BlockWorkload(
        "vae-attention", DIFFUSERS, "AutoencoderKL attention", "1x512x64x64",
        "the one of the decoder", build_vae,
    ),
)  # fmt: skip
