"""The table of workloads: ops at the shapes of real models, cut down to a small machine.

Widths, heads and head dims are the models' own; what is cut (tokens, batch) says so in ``scale``.
The inputs behind them are photographs or activations of photographs (mmkern.bench.photos).
"""

from dataclasses import dataclass

import torch

from mmkern.bench import photos
from mmkern.cases import LAYOUTS, Case, Ints, T

F32 = torch.float32
BENCH = frozenset({"bench"})


@dataclass(frozen=True)
class Real(T):
    """A tensor of photographs, or of weights for them.

    kind: "pixels" of the photographs, as images or as flattened patches; "activations" of their
        patches, whose tokens are rows of the last ``channel_dims`` dimensions; "weights", normal
        (in float32, where T takes twice the time for float64).
    """

    kind: str = "activations"
    channel_dims: int = 1

    @property
    def differentiable(self):
        return True

    def make(self, dtype, device, generator):
        if self.kind == "weights":
            values = torch.randn(self.shape, generator=generator) * self.scale + self.offset
        elif self.kind == "pixels":
            values = _pixels(*self.shape)
        else:
            width = torch.Size(self.shape[-self.channel_dims :]).numel()
            rows = torch.Size(self.shape).numel() // width
            values = photos.activations(rows, width, generator).view(self.shape)
        base, view = LAYOUTS[self.layout](tuple(self.shape))
        return view(torch.empty(base, dtype=self.dtype or dtype, device=device)).copy_(values)


def _pixels(*shape):
    if len(shape) == 2:
        return photos.patches(*shape)
    if len(shape) == 4:
        return photos.pixels(*shape)
    batch, channels, frames, height, width = shape
    images = photos.pixels(batch * frames, channels, height, width)
    return images.unflatten(0, (batch, frames)).transpose(1, 2)


def _weights(shape, **options):
    return Real(shape, kind="weights", **options)


#: run only by --full, or where their op is asked for
EXTRA = {
    "attention-vit_l16",
    "attention-flux",
    "glu-sd_geglu",
    "glu-flux2_decode",
    "rms_norm-sd35_qk",
    "rope-flux_qk_norm",
}


@dataclass(frozen=True)
class Workload:
    """One case of the benchmark.

    model: where the shape comes from. shape: for people. scale: what was cut, "" for the true size.
    backward: time forward and backward together. rivals: names in mmkern.bench.eager.RIVALS that
    are timed beside the eager baseline. quick: part of ``--quick``.
    """

    case: Case
    model: str
    shape: str
    scale: str = ""
    backward: bool = False
    rivals: tuple = ()
    quick: bool = False

    @property
    def passes(self):
        """What one call of the workload does."""
        return "forward+backward" if self.backward else "forward"

    @property
    def id(self):
        return f"{self.case.id}-{'training' if self.backward else 'forward'}"

    @property
    def extra(self):
        """Whether the whole job leaves it out without --full."""
        return self.case.id in EXTRA

    @property
    def compiles(self):
        """Whether torch.compile can change the eager baseline: it is no single ATen call."""
        return self.case.op not in ("attention", "patch_embed")

    @property
    def inputs(self):
        """Where the inputs come from."""
        return "photographs" if self.case.op == "patch_embed" else "activations of photographs"


def _workload(function, name, args, *where, **options):
    return Workload(Case(function, name, args, BENCH), *where, **options)


def _patch(name, x, weight, pos, *where, **options):
    fan = torch.Size(weight[1:]).numel()
    args = {"x": Real(x, kind="pixels"), "weight": _weights(weight, scale=fan**-0.5)}
    args["bias"] = _weights(weight[:1])
    if pos is not None:
        args["pos_embed"] = _weights(pos)
    return _workload("patch_embed", name, args, *where, rivals=("unfold + linear",), **options)


PATCH_EMBED = [
    _patch(
        "vit_l16", (4, 3, 224, 224), (1024, 3, 16, 16), (196, 1024), "ViT-L/16, 224 px",
        "4x3x224x224, 16 px -> 1024", quick=True,
    ),
    _patch(
        "so400m", (2, 3, 384, 384), (1152, 3, 14, 14), (729, 1152), "SigLIP so400m, 384 px",
        "2x3x384x384, 14 px -> 1152", "batch 16 -> 2",
    ),
    _patch(
        "qwen3_vl", (1024, 1536), (1152, 3, 2, 16, 16), None, "Qwen3-VL vision",
        "1024 patches, 1536 -> 1152", "4096 -> 1024 patches",
    ),
    _patch(
        "dit_xl2", (8, 4, 32, 32), (1152, 4, 2, 2), (256, 1152), "DiT-XL/2, 256 px",
        "8x4x32x32, 2 px -> 1152", "batch 32 -> 8",
    ),
    _patch(
        "wan_1_3b", (1, 16, 5, 60, 104), (1536, 16, 1, 2, 2), None, "Wan2.1-1.3B, 480p",
        "1x16x5x60x104, 1x2x2 -> 1536", "21 -> 5 frames",
    ),
]  # fmt: skip


def _attention(name, q, k, *where, v=None, layout="contiguous", causal=False, **options):
    q, k, v = (Real(shape, layout, channel_dims=2) for shape in (q, k, v or k))
    args = {"q": q, "k": k, "v": v, "causal": causal}
    return _workload("attention", name, args, *where, **options)


def _packed(name, lengths, heads, dim, *where, **options):
    borders = tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))
    token = Real((borders[-1], heads, dim), "qkv", channel_dims=2)
    args = {"q": token, "k": token, "v": token}
    args |= {"cu_seqlens_q": Ints(borders), "cu_seqlens_k": Ints(borders)}
    args |= {"max_seqlen_q": max(lengths), "max_seqlen_k": max(lengths)}
    return _workload("attention", name, args, *where, **options)


def _square(name, batch, tokens, heads, dim, *where, heads_k=None, **options):
    shape = (batch, tokens, heads, dim)
    return _attention(name, shape, (batch, tokens, heads_k or heads, dim), *where, **options)


ATTENTION = [
    _square(
        "vit_l16", 4, 197, 16, 64, "ViT-L/16, 224 px", "4x197 tokens, 16x64", layout="qkv",
    ),
    _square(
        "so400m", 1, 729, 16, 72, "SigLIP so400m, 384 px", "1x729 tokens, 16x72",
        "batch 16 -> 1", layout="qkv", quick=True,
    ),
    _packed(
        "kimi_vl_packed", (352, 96, 320, 24, 224), 16, 72, "Kimi-VL vision, packed images",
        "352+96+320+24+224 tokens, 16x72", "4096 -> 1016 tokens", quick=True,
    ),
    _square(
        "dit_xl2", 1, 1024, 16, 72, "DiT-XL/2, 512 px", "1x1024 tokens, 16x72",
        "batch 8 -> 1", layout="qkv",
    ),
    _square(
        "flux", 1, 768, 24, 128, "FLUX.1, 1024 px", "1x768 tokens, 24x128",
        "4608 -> 768 tokens",
    ),
    _square(
        "vae_mid", 1, 1024, 1, 512, "AutoencoderKL, 256 px", "1x1024 tokens, 1x512",
        "4096 -> 1024 tokens",
    ),
    _square(
        "qwen3_8b_prefill", 1, 768, 32, 128, "Qwen3-8B, prefill",
        "1x768 tokens, causal, 32/8x128", "4096 -> 768 tokens", heads_k=8, causal=True,
        quick=True,
    ),
    _attention(
        "deepseek_mla", (1, 512, 16, 192), (1, 512, 16, 192), "Kimi-VL language (MLA), prefill",
        "1x512 tokens, causal, 16x192/128", "4096 -> 512 tokens", v=(1, 512, 16, 128), causal=True,
    ),
    _attention(
        "qwen3_8b_decode", (1, 1, 32, 128), (1, 4096, 8, 128), "Qwen3-8B, decode",
        "1 token to 4096, 32/8x128", causal=True, rivals=("grouped matmul",), quick=True,
    ),
    _square(
        "dit_xl2_256", 2, 256, 16, 72, "DiT-XL/2, 256 px", "2x256 tokens, 16x72",
        "batch 32 -> 2", layout="qkv", backward=True,
    ),
    _square(
        "qwen3_8b", 1, 384, 32, 128, "Qwen3-8B", "1x384 tokens, causal, 32/8x128",
        "4096 -> 384 tokens", heads_k=8, causal=True, backward=True,
    ),
]  # fmt: skip


def _modulation(function, name, x, m, *where, mdtype=None, chunked=True, **options):
    parts = ("shift", "scale") if function == "modulate" else ("gate", "shift", "scale")
    layout = "chunk" if chunked else "contiguous"
    args = {"x": Real(x)} | ({} if function == "modulate" else {"branch": Real(x)})
    args |= {part: _weights(m, layout=layout, dtype=mdtype, scale=0.1) for part in parts}
    return _workload(function, name, args, *where, **options)


MODULATE = [
    _modulation(
        "modulate", "dit_xl2", (4, 1024, 1152), (4, 1152), "DiT-XL/2, 512 px", "4x1024x1152",
        "batch 8 -> 4",
    ),
    _modulation(
        "gated_modulate", "dit_xl2_256", (8, 256, 1152), (8, 1152), "DiT-XL/2, 256 px",
        "8x256x1152", "batch 32 -> 8", quick=True,
    ),
    _modulation(
        "gated_modulate", "wan_frames", (1, 4680, 1536), (1, 3, 1536),
        "Wan2.1-1.3B, fp32 modulation per frame", "1x4680x1536, 3 frames", "21 -> 3 frames",
        mdtype=F32,
    ),
    _modulation(
        "gated_modulate", "wan_tokens", (1, 1560, 1536), (1, 1560, 1536),
        "Wan2.2, fp32 modulation per token", "1x1560x1536", "21 -> 1 frames", mdtype=F32,
    ),
    _modulation(
        "gated_modulate", "dit_xl2", (2, 1024, 1152), (2, 1152), "DiT-XL/2, 512 px",
        "2x1024x1152", "batch 8 -> 2", backward=True,
    ),
]  # fmt: skip


def _mlp(name, x, hidden, out, *where, merge=1, activation="gelu", norm=None, grid=None, **options):
    width = x[-1] * merge * merge
    args = {
        "x": Real(x), "w1": _weights((hidden, width), scale=width**-0.5),
        "b1": _weights((hidden,), scale=0.1), "b2": _weights((out,), scale=0.1),
        "w2": _weights((out, hidden), scale=hidden**-0.5),
        "activation": activation, "merge": merge,
    }  # fmt: skip
    if norm:
        args |= {"norm": norm, "norm_weight": _weights(x[-1:], offset=1.0, scale=0.1)}
        args |= {"norm_bias": _weights(x[-1:], scale=0.1), "grid_hw": grid}
    return _workload("mlp", name, args, *where, **options)


MLP = [
    _mlp(
        "llava", (288, 1024), 4096, 4096, "LLaVA-1.5 projector", "288 tokens, 1024-4096-4096",
        "576 -> 288 tokens",
        quick=True,
    ),
    _mlp(
        "kimi_vl_projector", (376, 1152), 4608, 2048, "Kimi-VL projector, raster order",
        "94 of 2x2 tokens, LN, 4608-4608-2048", "1024 -> 94 tokens", merge=2, norm="layer",
        grid=[(16, 16), (12, 10)],
    ),
    _mlp(
        "dit_xl2", (1, 256, 1152), 4608, 1152, "DiT-XL/2 MLP, 256 px",
        "1x256 tokens, 1152-4608-1152", "batch 32 -> 1", activation="gelu_tanh", backward=True,
    ),
]  # fmt: skip


def _rms(name, x, *where, residual=False, cast="after", **options):
    x = Real(x, channel_dims=len(x) - 1)
    args = {"x": x, "weight": _weights(x.shape[-1:], offset=1.0, scale=0.1), "cast": cast}
    if residual:
        args["residual"] = x
    rivals = ("F.rms_norm",) if cast == "after" else ()
    return _workload("rms_norm", name, args, *where, rivals=rivals, **options)


RMS_NORM = [
    _rms(
        "qwen3_8b_residual", (1024, 4096), "Qwen3-8B, residual + norm", "1024x4096",
        "4096 -> 1024 tokens", residual=True, quick=True,
    ),
    _rms(
        "sd35_qk", (4429, 24, 64), "SD3.5-large, QK-norm", "4429x24x64", "batch 2 -> 1",
        cast="before",
    ),
    _rms(
        "qwen3_8b", (1024, 4096), "Qwen3-8B", "1024x4096", "4096 -> 1024 tokens", backward=True,
    ),
]  # fmt: skip


def _rope(name, q, heads_k, *where, tables=None, norm=False, **options):
    tokens, dim = q[-3], q[-1]
    args = {"q": Real(q, "qkv", channel_dims=2)}
    args["k"] = Real((*q[:-2], heads_k, dim), "qkv", channel_dims=2)
    args |= {n: T((tokens, dim), kind=f"angle_{n}", dtype=tables) for n in ("cos", "sin")}
    args["interleaved"] = options.pop("interleaved", False)
    if norm:
        args |= {n: _weights((dim,), offset=1.0, scale=0.1) for n in ("q_weight", "k_weight")}
    return _workload("rope", name, args, *where, **options)


ROPE = [
    _rope(
        "qwen3_vl_vision", (4096, 16, 72), 16, "Qwen3-VL vision, fp32 tables",
        "4096 tokens, 16x72", tables=F32, quick=True,
    ),
    _rope(
        "qwen3_8b_qk_norm", (1, 1024, 32, 128), 8, "Qwen3-8B, QK-norm + rope",
        "1024 tokens, 32/8x128", "4096 -> 1024 tokens", norm=True, tables=F32,
    ),
    _rope(
        "flux_qk_norm", (1, 1152, 24, 128), 24, "FLUX.1, QK-norm + rope, adjacent pairs",
        "1152 tokens, 24x128", "4608 -> 1152 tokens", norm=True, tables=F32, interleaved=True,
    ),
    _rope(
        "qwen3_vl_vision_1k", (1024, 16, 72), 16, "Qwen3-VL vision, fp32 tables",
        "1024 tokens, 16x72", "4096 -> 1024 tokens", tables=F32, backward=True,
    ),
]  # fmt: skip


def _glu(name, gate, *where, packed=False, activation="silu", gate_first=True, **options):
    args = {"gate": Real((*gate[:-1], 2 * gate[-1]) if packed else gate)}
    args |= {} if packed else {"up": Real(gate)}
    args |= {"activation": activation, "gate_first": gate_first}
    return _workload("glu", name, args, *where, **options)


GLU = [
    _glu(
        "qwen3_8b", (512, 12288), "Qwen3-8B SwiGLU", "512x12288", "4096 -> 512 tokens",
        quick=True,
    ),
    _glu(
        "sd_geglu", (1024, 5120), "Stable Diffusion GEGLU, 1280 channels", "1024x(2x5120)",
        packed=True, activation="gelu", gate_first=False,
    ),
    _glu(
        "flux2_decode", (16, 18432), "FLUX.2 SwiGLU, short text", "16x(2x18432)",
        "512 -> 16 tokens", packed=True,
    ),
    _glu(
        "qwen3_0_6b", (1024, 3072), "Qwen3-0.6B SwiGLU", "1024x3072", backward=True,
    ),
]  # fmt: skip

WORKLOADS = sorted(
    [*PATCH_EMBED, *ATTENTION, *MODULATE, *MLP, *RMS_NORM, *ROPE, *GLU],
    key=lambda w: (w.case.op, w.case.function, w.backward),
)
OPS = tuple(dict.fromkeys(w.case.op for w in WORKLOADS))
