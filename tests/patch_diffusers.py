"""Tiny random models of diffusers, built from config: {name: (model, keyword inputs)}."""

import torch


def noise(*shape):
    return torch.randn(shape)


def dit():
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    labels = {"timestep": torch.tensor([3, 871]), "class_labels": torch.tensor([1, 4])}
    return model, {"hidden_states": noise(2, 4, 8, 8), **labels}


def _sd3(**options):
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=16,
        out_channels=4, pos_embed_max_size=8, **options,
    )  # fmt: skip
    return model, {
        "hidden_states": noise(2, 4, 8, 8),
        "encoder_hidden_states": noise(2, 5, 24),
        "pooled_projections": noise(2, 16),
        "timestep": torch.tensor([3.0, 871.0]),
    }


def sd3():
    return _sd3()


def sd35():
    return _sd3(dual_attention_layers=(0,), qk_norm="rms_norm")


def _packed(channels, text, axes):
    """What FLUX and its kin take: 6 image tokens of a 2 x 3 grid, 4 of text, and their ids."""
    image = torch.zeros(6, axes)
    image[:, 1] = torch.arange(6) // 3
    image[:, 2] = torch.arange(6) % 3
    return {
        "hidden_states": noise(2, 6, channels),
        "encoder_hidden_states": noise(2, 4, text),
        "timestep": torch.tensor([0.003, 0.871]),
        "img_ids": image,
        "txt_ids": torch.zeros(4, axes),
        "guidance": torch.tensor([3.5, 2.0]),
    }


def flux():
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=12,
        axes_dims_rope=(4, 6, 6), guidance_embeds=True,
    )  # fmt: skip
    return model, _packed(16, 24, 3) | {"pooled_projections": noise(2, 12)}


def flux2():
    from diffusers import Flux2Transformer2DModel

    model = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    return model, _packed(16, 24, 4)


def _wan(timestep, **options):
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=24,
        freq_dim=32, ffn_dim=48, num_layers=2, rope_max_seq_len=32, **options,
    )  # fmt: skip
    return model, {
        "hidden_states": noise(2, 4, 3, 4, 6),
        "timestep": timestep,
        "encoder_hidden_states": noise(2, 5, 24),
    }


def wan():
    return _wan(torch.tensor([3, 871]))


def wan22():
    """A timestep for each of the 3 x 2 x 3 tokens, and no cross-attention norm."""
    return _wan(torch.arange(36).reshape(2, 18) * 20, cross_attn_norm=False)


def wan_i2v():
    """Image to video: 3 tokens of an image stand before the text, which diffusers takes as 512."""
    model, inputs = _wan(torch.tensor([3, 871]), image_dim=20, added_kv_proj_dim=32)
    return model, inputs | {
        "encoder_hidden_states": noise(2, 512, 24),
        "encoder_hidden_states_image": noise(2, 3, 20),
    }


def pixart():
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=32, sample_size=8, caption_channels=24, use_additional_conditions=False,
    )  # fmt: skip
    return model, {
        "hidden_states": noise(2, 4, 8, 8),
        "encoder_hidden_states": noise(2, 5, 24),
        "timestep": torch.tensor([3, 871]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def hunyuan_video():
    from diffusers import HunyuanVideoTransformer3DModel

    model = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, text_embed_dim=24, pooled_projection_dim=12,
        rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    return model, {
        "hidden_states": noise(2, 4, 3, 4, 6),
        "timestep": torch.tensor([3, 871]),
        "encoder_hidden_states": noise(2, 5, 24),
        "encoder_attention_mask": mask,
        "pooled_projections": noise(2, 12),
        "guidance": torch.tensor([3500.0, 2000.0]),
    }


def lumina2():
    from diffusers import Lumina2Transformer2DModel

    model = Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=48, num_layers=2, num_refiner_layers=1,
        num_attention_heads=4, num_kv_heads=2, multiple_of=16, axes_dim_rope=(4, 4, 4),
        axes_lens=(32, 16, 16), cap_feat_dim=24,
    )  # fmt: skip
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    return model, {
        "hidden_states": noise(2, 4, 8, 8),
        "timestep": torch.tensor([0.003, 0.871]),
        "encoder_hidden_states": noise(2, 5, 24),
        "encoder_attention_mask": mask,
    }


def qwenimage():
    from diffusers import QwenImageTransformer2DModel

    model = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    return model, {
        "hidden_states": noise(2, 6, 16),
        "encoder_hidden_states": noise(2, 5, 24),
        "encoder_hidden_states_mask": mask,
        "timestep": torch.tensor([0.003, 0.871]),
        "img_shapes": [[(1, 2, 3)], [(1, 2, 3)]],
    }


def vae():
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return model, {"sample": noise(1, 3, 16, 16)}


DIFFUSERS = {
    "dit": dit,
    "sd3": sd3,
    "sd35": sd35,
    "flux": flux,
    "wan": wan,
    "wan22": wan22,
    "wan_i2v": wan_i2v,
    "vae": vae,
    "pixart": pixart,
    "qwenimage": qwenimage,
    "flux2": flux2,
    "hunyuan_video": hunyuan_video,
    "lumina2": lumina2,
}
