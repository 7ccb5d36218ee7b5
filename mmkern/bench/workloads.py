"""The table of workloads: ops at the shapes of real models, cut down to a small machine.

Widths, heads and head dims are the models' own; what is cut (tokens, batch) says so in ``scale``.
mmkern.bench.shapes has the words that they are written in; workloads_full.py the models that only
``mmkern bench --full`` runs.
"""

import torch

from mmkern.bench.shapes import (
    attention,
    glu,
    mlp,
    modulation,
    packed,
    patch,
    rms,
    rope,
    square,
)
from mmkern.bench.workloads_full import FULL

F32 = torch.float32
PATCH_EMBED = [
    patch(
        "vit_l16", (4, 3, 224, 224), (1024, 3, 16, 16), (196, 1024), "ViT-L/16, 224 px",
        "4x3x224x224, 16 px -> 1024", quick=True,
    ),
    patch(
        "so400m", (2, 3, 384, 384), (1152, 3, 14, 14), (729, 1152), "SigLIP so400m, 384 px",
        "2x3x384x384, 14 px -> 1152", "batch 16 -> 2",
    ),
    patch(
        "qwen3_vl", (1024, 1536), (1152, 3, 2, 16, 16), None, "Qwen3-VL vision",
        "1024 patches, 1536 -> 1152", "4096 -> 1024 patches",
    ),
    patch(
        "dit_xl2", (8, 4, 32, 32), (1152, 4, 2, 2), (256, 1152), "DiT-XL/2, 256 px",
        "8x4x32x32, 2 px -> 1152", "batch 32 -> 8",
    ),
    patch(
        "wan_1_3b", (1, 16, 5, 60, 104), (1536, 16, 1, 2, 2), None, "Wan2.1-1.3B, 480p",
        "1x16x5x60x104, 1x2x2 -> 1536", "21 -> 5 frames",
    ),
]  # fmt: skip


ATTENTION = [
    square(
        "vit_l16", 4, 197, 16, 64, "ViT-L/16, 224 px", "4x197 tokens, 16x64", layout="qkv",
        extra=True,
    ),
    square(
        "so400m", 1, 729, 16, 72, "SigLIP so400m, 384 px", "1x729 tokens, 16x72",
        "batch 16 -> 1", layout="qkv", quick=True,
    ),
    packed(
        "kimi_vl_packed", (352, 96, 320, 24, 224), 16, 72, "Kimi-VL vision, packed images",
        "352+96+320+24+224 tokens, 16x72", "4096 -> 1016 tokens", quick=True,
    ),
    square(
        "dit_xl2", 1, 1024, 16, 72, "DiT-XL/2, 512 px", "1x1024 tokens, 16x72",
        "batch 8 -> 1", layout="qkv",
    ),
    square(
        "flux", 1, 768, 24, 128, "FLUX.1, 1024 px", "1x768 tokens, 24x128",
        "4608 -> 768 tokens", extra=True,
    ),
    square(
        "vae_mid", 1, 1024, 1, 512, "AutoencoderKL, 256 px", "1x1024 tokens, 1x512",
        "4096 -> 1024 tokens",
    ),
    square(
        "qwen3_8b_prefill", 1, 768, 32, 128, "Qwen3-8B, prefill",
        "1x768 tokens, causal, 32/8x128", "4096 -> 768 tokens", heads_k=8, causal=True,
        quick=True,
    ),
    attention(
        "deepseek_mla", (1, 512, 16, 192), (1, 512, 16, 192), "Kimi-VL language (MLA), prefill",
        "1x512 tokens, causal, 16x192/128", "4096 -> 512 tokens", v=(1, 512, 16, 128), causal=True,
    ),
    attention(
        "qwen3_8b_decode", (1, 1, 32, 128), (1, 4096, 8, 128), "Qwen3-8B, decode",
        "1 token to 4096, 32/8x128", causal=True, rivals=("grouped matmul",), quick=True,
    ),
    square(
        "dit_xl2_256", 2, 256, 16, 72, "DiT-XL/2, 256 px", "2x256 tokens, 16x72",
        "batch 32 -> 2", layout="qkv", backward=True,
    ),
    square(
        "qwen3_8b", 1, 384, 32, 128, "Qwen3-8B", "1x384 tokens, causal, 32/8x128",
        "4096 -> 384 tokens", heads_k=8, causal=True, backward=True,
    ),
]  # fmt: skip


MODULATE = [
    modulation(
        "modulate", "dit_xl2", (4, 1024, 1152), (4, 1152), "DiT-XL/2, 512 px", "4x1024x1152",
        "batch 8 -> 4",
    ),
    modulation(
        "gated_modulate", "dit_xl2_256", (8, 256, 1152), (8, 1152), "DiT-XL/2, 256 px",
        "8x256x1152", "batch 32 -> 8", quick=True,
    ),
    modulation(
        "gated_modulate", "wan_frames", (1, 4680, 1536), (1, 3, 1536),
        "Wan2.1-1.3B, fp32 modulation per frame", "1x4680x1536, 3 frames", "21 -> 3 frames",
        mdtype=F32,
    ),
    modulation(
        "gated_modulate", "wan_tokens", (1, 1560, 1536), (1, 1560, 1536),
        "Wan2.2, fp32 modulation per token", "1x1560x1536", "21 -> 1 frames", mdtype=F32,
    ),
    modulation(
        "gated_modulate", "dit_xl2", (2, 1024, 1152), (2, 1152), "DiT-XL/2, 512 px",
        "2x1024x1152", "batch 8 -> 2", backward=True,
    ),
]  # fmt: skip


MLP = [
    mlp(
        "llava", (288, 1024), 4096, 4096, "LLaVA-1.5 projector", "288 tokens, 1024-4096-4096",
        "576 -> 288 tokens",
        quick=True,
    ),
    mlp(
        "kimi_vl_projector", (376, 1152), 4608, 2048, "Kimi-VL projector, raster order",
        "94 of 2x2 tokens, LN, 4608-4608-2048", "1024 -> 94 tokens", merge=2, norm="layer",
        grid=[(16, 16), (12, 10)],
    ),
    mlp(
        "dit_xl2", (1, 256, 1152), 4608, 1152, "DiT-XL/2 MLP, 256 px",
        "1x256 tokens, 1152-4608-1152", "batch 32 -> 1", activation="gelu_tanh", backward=True,
    ),
]  # fmt: skip


RMS_NORM = [
    rms(
        "qwen3_8b_residual", (1024, 4096), "Qwen3-8B, residual + norm", "1024x4096",
        "4096 -> 1024 tokens", residual=True, quick=True,
    ),
    rms(
        "sd35_qk", (4429, 24, 64), "SD3.5-large, QK-norm", "4429x24x64", "batch 2 -> 1",
        cast="before", extra=True,
    ),
    rms(
        "qwen3_8b", (1024, 4096), "Qwen3-8B", "1024x4096", "4096 -> 1024 tokens", backward=True,
    ),
]  # fmt: skip


ROPE = [
    rope(
        "qwen3_vl_vision", (4096, 16, 72), 16, "Qwen3-VL vision, fp32 tables",
        "4096 tokens, 16x72", tables=F32, quick=True,
    ),
    rope(
        "qwen3_8b_qk_norm", (1, 1024, 32, 128), 8, "Qwen3-8B, QK-norm + rope",
        "1024 tokens, 32/8x128", "4096 -> 1024 tokens", norm=True, tables=F32,
    ),
    rope(
        "flux_qk_norm", (1, 1152, 24, 128), 24, "FLUX.1, QK-norm + rope, adjacent pairs",
        "1152 tokens, 24x128", "4608 -> 1152 tokens", norm=True, tables=F32, interleaved=True,
        extra=True,
    ),
    rope(
        "qwen3_vl_vision_1k", (1024, 16, 72), 16, "Qwen3-VL vision, fp32 tables",
        "1024 tokens, 16x72", "4096 -> 1024 tokens", tables=F32, backward=True,
    ),
]  # fmt: skip


GLU = [
    glu(
        "qwen3_8b", (512, 12288), "Qwen3-8B SwiGLU", "512x12288", "4096 -> 512 tokens",
        quick=True,
    ),
    glu(
        "sd_geglu", (1024, 5120), "Stable Diffusion GEGLU, 1280 channels", "1024x(2x5120)",
        packed=True, activation="gelu", gate_first=False, extra=True,
    ),
    glu(
        "flux2_decode", (16, 18432), "FLUX.2 SwiGLU, short text", "16x(2x18432)",
        "512 -> 16 tokens", packed=True, extra=True,
    ),
    glu(
        "qwen3_0_6b", (1024, 3072), "Qwen3-0.6B SwiGLU", "1024x3072", backward=True,
    ),
]  # fmt: skip

WORKLOADS = sorted(
    [*PATCH_EMBED, *ATTENTION, *MODULATE, *MLP, *RMS_NORM, *ROPE, *GLU, *FULL],
    key=lambda w: (w.case.op, w.case.function, w.backward),
)
OPS = tuple(dict.fromkeys(w.case.op for w in WORKLOADS))
