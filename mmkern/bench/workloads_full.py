"""Workloads that only ``mmkern bench --full`` runs: the other models' shapes, op by op.

The scale that fits a CPU of few cores is declared with each: widths, heads and head dims are whole,
tokens and batch are cut.
"""

import functools

import torch

from mmkern.bench import shapes

F32 = torch.float32
patch, attention, packed, square, modulation, layer_norm, mlp, rms, rope, glu = (
    functools.partial(builder, extra=True)
    for builder in (
        shapes.patch, shapes.attention, shapes.packed, shapes.square, shapes.modulation,
        shapes.layer_norm, shapes.mlp, shapes.rms, shapes.rope, shapes.glu,
    )
)  # fmt: skip

PATCH_EMBED = [
    patch(
        "kimi_vl", (1024, 588), (1152, 3, 14, 14), None, "Kimi-VL vision",
        "1024 patches, 588 -> 1152", "4096 -> 1024 patches",
    ),
    patch(
        "dit_xl2_512", (2, 4, 64, 64), (1152, 4, 2, 2), (1024, 1152), "DiT-XL/2, 512 px",
        "2x4x64x64, 2 px -> 1152", "batch 8 -> 2",
    ),
    patch(
        "sd3", (2, 16, 64, 64), (1536, 16, 2, 2), (1024, 1536), "SD3, 1024 px",
        "2x16x64x64, 2 px -> 1536", "4096 -> 1024 tokens",
    ),
    patch(
        "flux", (1152, 64), (3072, 64), None, "FLUX.1, packed latents", "1152 patches, 64 -> 3072",
        "4096 -> 1152 patches",
    ),
    patch(
        "wan_14b", (1, 16, 1, 90, 160), (5120, 16, 1, 2, 2), None, "Wan2.1-14B, 720p",
        "1x16x1x90x160, 1x2x2 -> 5120", "21 -> 1 frames",
    ),
]  # fmt: skip

ATTENTION = [
    packed(
        "qwen3_vl_frames", (256,) * 4, 16, 72, "Qwen3-VL vision, a segment per frame",
        "4 of 256 tokens, 16x72", "16 of 1024 -> 4 of 256 tokens",
    ),
    square(
        "qwen3_30b_prefill", 1, 512, 32, 128, "Qwen3-VL-30B-A3B, prefill",
        "1x512 tokens, causal, 32/4x128", "4096 -> 512 tokens", heads_k=4, causal=True,
    ),
    attention(
        "qwen3_30b_decode", (1, 1, 32, 128), (1, 4096, 4, 128), "Qwen3-VL-30B-A3B, decode",
        "1 token to 4096, 32/4x128", causal=True, rivals=("grouped matmul",),
    ),
    square(
        "sd3", 1, 1107, 24, 64, "SD3, 1024 px", "1x1107 tokens, 24x64",
        "batch 2 -> 1, 4429 -> 1107 tokens",
    ),
    square(
        "wan_1_3b", 1, 1560, 12, 128, "Wan2.1-1.3B, 480p", "1x1560 tokens, 12x128",
        "21 -> 1 frames",
    ),
    attention(
        "wan_1_3b_cross", (1, 1560, 12, 128), (1, 512, 12, 128), "Wan2.1-1.3B, to the text",
        "1560 tokens to 512, 12x128", "21 -> 1 frames",
    ),
    square(
        "wan_14b", 1, 720, 40, 128, "Wan2.1-14B, 720p", "1x720 tokens, 40x128",
        "75600 -> 720 tokens",
    ),
    attention(
        "wan_14b_cross", (1, 720, 40, 128), (1, 512, 40, 128), "Wan2.1-14B, to the text",
        "720 tokens to 512, 40x128", "75600 -> 720 tokens",
    ),
    square(
        "so400m", 1, 729, 16, 72, "SigLIP so400m, 384 px", "1x729 tokens, 16x72", "batch 16 -> 1",
        layout="qkv", backward=True,
    ),
    square(
        "sd3_training", 1, 554, 24, 64, "SD3, 1024 px", "1x554 tokens, 24x64",
        "batch 2 -> 1, 4429 -> 554 tokens", backward=True,
    ),
    square(
        "flux_training", 1, 512, 24, 128, "FLUX.1, 1024 px", "1x512 tokens, 24x128",
        "4608 -> 512 tokens", backward=True,
    ),
]  # fmt: skip

MODULATE = [
    modulation(
        "modulate", "sd3_out", (2, 1024, 1536), (2, 1536), "SD3, 1024 px", "2x1024x1536",
        "4096 -> 1024 tokens",
    ),
    modulation(
        "gated_modulate", "sd3", (2, 1024, 1536), (2, 1536), "SD3, 1024 px", "2x1024x1536",
        "4096 -> 1024 tokens",
    ),
    modulation(
        "gated_modulate", "flux", (1, 1152, 3072), (1, 3072), "FLUX.1, 1024 px", "1x1152x3072",
        "4608 -> 1152 tokens",
    ),
    layer_norm("vit_l16", (4, 197, 1024), "ViT-L/16, residual + LayerNorm", "4x197x1024"),
    layer_norm(
        "so400m", (4, 729, 1152), "SigLIP so400m, residual + LayerNorm", "4x729x1152",
        "batch 16 -> 4",
    ),
    layer_norm(
        "moonvit", (1024, 1152), "Qwen3-VL and Kimi-VL vision, residual + LayerNorm", "1024x1152",
        "4096 -> 1024 tokens",
    ),
    modulation(
        "gated_modulate", "wan_1_3b", (1, 4680, 1536), (1, 1536), "Wan2.1-1.3B, fp32 modulation",
        "1x4680x1536", "21 -> 3 frames", mdtype=F32,
    ),
    modulation(
        "gated_modulate", "wan_14b", (1, 900, 5120), (1, 5120), "Wan2.1-14B, fp32 modulation",
        "1x900x5120", "75600 -> 900 tokens", mdtype=F32,
    ),
    modulation(
        "gated_modulate", "flux_training", (1, 768, 3072), (1, 3072), "FLUX.1, 1024 px",
        "1x768x3072", "4608 -> 768 tokens", backward=True,
    ),
]  # fmt: skip

MLP = [
    mlp(
        "vit_l16", (197, 1024), 4096, 1024, "ViT-L/16, 224 px", "197 tokens, 1024-4096-1024",
        "batch 4 -> 1",
    ),
    mlp(
        "so400m", (243, 1152), 4304, 1152, "SigLIP, Kimi-VL and Qwen3-VL vision",
        "243 tokens, 1152-4304-1152", "729 -> 243 tokens", activation="gelu_tanh",
    ),
    mlp(
        "qwen3_vl_8b_merger", (256, 1152), 4608, 4096, "Qwen3-VL-8B merger",
        "64 of 2x2 tokens, LN, 4608-4608-4096", "1024 -> 64 tokens", merge=2, norm="layer",
    ),
    mlp(
        "qwen3_vl_30b_merger", (256, 1152), 4608, 2048, "Qwen3-VL-30B-A3B merger",
        "64 of 2x2 tokens, LN, 4608-4608-2048", "1024 -> 64 tokens", merge=2, norm="layer",
    ),
    mlp(
        "dit_xl2_512", (256, 1152), 4608, 1152, "DiT-XL/2 MLP, 512 px",
        "256 tokens, 1152-4608-1152", "8x1024 -> 256 tokens", activation="gelu_tanh",
    ),
    mlp(
        "sd3", (256, 1536), 6144, 1536, "SD3 MLP", "256 tokens, 1536-6144-1536",
        "2x4096 -> 256 tokens", activation="gelu_tanh",
    ),
    mlp(
        "flux", (96, 3072), 12288, 3072, "FLUX.1 MLP", "96 tokens, 3072-12288-3072",
        "4608 -> 96 tokens", activation="gelu_tanh",
    ),
    mlp(
        "wan_1_3b", (260, 1536), 8960, 1536, "Wan2.1-1.3B MLP", "260 tokens, 1536-8960-1536",
        "32760 -> 260 tokens", activation="gelu_tanh",
    ),
    mlp(
        "wan_14b", (48, 5120), 13824, 5120, "Wan2.1-14B MLP", "48 tokens, 5120-13824-5120",
        "75600 -> 48 tokens", activation="gelu_tanh",
    ),
]  # fmt: skip

RMS_NORM = [
    rms(
        "qwen3_30b_residual", (1024, 2048), "Qwen3-VL-30B-A3B and Kimi-VL, residual + norm",
        "1024x2048", "4096 -> 1024 tokens", residual=True,
    ),
    rms(
        "wan_1_3b_qk", (1560, 1536), "Wan2.1-1.3B, QK-norm across heads", "1560x1536",
        "21 -> 1 frames", cast="before",
    ),
    rms(
        "wan_14b_qk", (720, 5120), "Wan2.1-14B, QK-norm across heads", "720x5120",
        "75600 -> 720 tokens", cast="before",
    ),
]  # fmt: skip

ROPE = [
    rope(
        "kimi_vl_vision", (1024, 16, 72), 16, "Kimi-VL vision, adjacent pairs",
        "1024 tokens, 16x72", "4096 -> 1024 tokens", tables=F32, interleaved=True,
    ),
    rope(
        "kimi_vl_mla", (1, 1024, 16, 64), 1, "Kimi-VL language (MLA), adjacent pairs",
        "1024 tokens, 16/1x64", "4096 -> 1024 tokens", tables=F32, interleaved=True,
    ),
    rope(
        "qwen3_30b_qk_norm", (1, 1024, 32, 128), 4, "Qwen3-VL-30B-A3B, QK-norm + rope",
        "1024 tokens, 32/4x128", "4096 -> 1024 tokens", norm=True, tables=F32,
    ),
    rope(
        "wan_1_3b", (1, 1560, 12, 128), 12, "Wan2.1-1.3B, adjacent pairs", "1560 tokens, 12x128",
        "21 -> 1 frames", tables=F32, interleaved=True,
    ),
    rope(
        "wan_14b", (1, 720, 40, 128), 40, "Wan2.1-14B, adjacent pairs", "720 tokens, 40x128",
        "75600 -> 720 tokens", tables=F32, interleaved=True,
    ),
]  # fmt: skip

GLU = [
    glu(
        "qwen3_30b_expert", (512, 768), "Qwen3-VL-30B-A3B, one expert", "512x768",
    ),
    glu(
        "kimi_vl_expert", (512, 1408), "Kimi-VL, one expert", "512x1408",
    ),
]  # fmt: skip

FULL = [*PATCH_EMBED, *ATTENTION, *MODULATE, *MLP, *RMS_NORM, *ROPE, *GLU]
