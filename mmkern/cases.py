"""THE list of shapes: tests, benchmarks and the support matrix all read CASES.

A case names a public function and describes its arguments; ``make`` builds them. Add a case here
and it is checked for accuracy, gradients, determinism, opcheck, compilation and layouts.
"""

import math
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class T:
    """A tensor to make.

    layout: "contiguous"; "chunk": the middle third of a last dimension three times as wide;
        "qkv": one slot of a (..., 3, H, D) tensor; "heads_first": dimensions -3 and -2 swapped in
        memory; "offset": begins one element into its storage; "rows": every second row of a
        larger tensor; "expanded": one batch entry, repeated with stride 0; "channels_last".
    kind: "normal"; "angle_cos" and "angle_sin": rotary tables; "mask": random True and False;
        "mask_with_empty_row": likewise, and the first batch entry sees nothing.
    dtype: None is the dtype of the case.
    """

    shape: tuple
    layout: str = "contiguous"
    kind: str = "normal"
    dtype: torch.dtype | None = None
    scale: float = 1.0
    offset: float = 0.0

    @property
    def differentiable(self):
        return self.kind == "normal"

    def make(self, dtype, device, generator):
        shape = tuple(self.shape)
        base, view = LAYOUTS[self.layout](shape)
        dtype = self.dtype or dtype
        values = torch.randn(base, generator=generator, dtype=torch.float64)
        if self.kind.startswith("mask"):
            mask = values > -0.5
            if self.kind == "mask_with_empty_row":
                mask[:1] = False
            return view(mask.to(device))
        if self.kind == "angle_cos":
            values = torch.cos(values * math.pi)
        elif self.kind == "angle_sin":
            values = torch.sin(values * math.pi)
        else:
            values = values * self.scale + self.offset
        return view(values.to(device, dtype))


def _chunk(shape):
    last = shape[-1]
    return (*shape[:-1], 3 * last), lambda t: t[..., last : 2 * last]


def _qkv(shape):
    return (*shape[:-2], 3, *shape[-2:]), lambda t: t.select(-3, 1)


def _heads_first(shape):
    return (*shape[:-3], shape[-2], shape[-3], shape[-1]), lambda t: t.transpose(-3, -2)


def _offset(shape):
    n = math.prod(shape)
    return (n + 1,), lambda t: t[1:].view(shape)


def _rows(shape):
    return (*shape[:-2], 2 * shape[-2], shape[-1]), lambda t: t[..., ::2, :]


def _expanded(shape):
    return (1, *shape[1:]), lambda t: t.expand(shape)


def _channels_last(shape):
    order = (0, *range(2, len(shape)), 1)
    back = (0, len(shape) - 1, *range(1, len(shape) - 1))
    return tuple(shape[i] for i in order), lambda t: t.permute(back)


LAYOUTS = {
    "contiguous": lambda shape: (shape, lambda t: t),
    "chunk": _chunk,
    "qkv": _qkv,
    "heads_first": _heads_first,
    "offset": _offset,
    "rows": _rows,
    "expanded": _expanded,
    "channels_last": _channels_last,
}


@dataclass(frozen=True)
class Ints:
    """Integers as an int32 tensor: cu_seqlens."""

    values: tuple

    def make(self, dtype, device, generator):
        return torch.tensor(self.values, dtype=torch.int32, device=device)


@dataclass(frozen=True)
class Case:
    """One call of a public function. ``op`` is the raw op under it."""

    function: str
    name: str
    args: dict = field(hash=False)
    tags: frozenset = frozenset()

    @property
    def op(self):
        return "modulate" if self.function.startswith("gated") else self.function

    @property
    def id(self):
        return f"{self.function}-{self.name}"

    def make(self, dtype, device="cpu", seed=0):
        """The keyword arguments, from a seeded generator, so that they are the same every time."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: spec.make(dtype, device, generator) if hasattr(spec, "make") else spec
            for name, spec in self.args.items()
        }

    def differentiable(self):
        """Names of the arguments that have gradients."""
        return [n for n, spec in self.args.items() if isinstance(spec, T) and spec.differentiable]


F32 = torch.float32


def _attention(name, q, k, v=None, *, layout="contiguous", tags=(), **kwargs):
    v = v or k
    args = {"q": T(q, layout), "k": T(k, layout), "v": T(v, layout), **kwargs}
    return Case("attention", name, args, frozenset(tags))


def _packed(name, lengths_q, lengths_k, heads, dim, dim_v=None, *, layout="contiguous", **kwargs):
    def cu(lengths):
        return tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))

    hq, hk = heads
    args = {
        "q": T((sum(lengths_q), hq, dim), layout),
        "k": T((sum(lengths_k), hk, dim), layout),
        "v": T((sum(lengths_k), hk, dim_v or dim), layout),
        "cu_seqlens_q": Ints(cu(lengths_q)),
        "cu_seqlens_k": Ints(cu(lengths_k)),
        "max_seqlen_q": max(lengths_q, default=0),
        "max_seqlen_k": max(lengths_k, default=0),
        **kwargs,
    }
    return Case("attention", name, args, frozenset({"packed"}))


ATTENTION = [
    _attention("vit197_d64", (2, 197, 3, 64), (2, 197, 3, 64), tags=("smoke",)),
    _attention("d72", (1, 150, 2, 72), (1, 150, 2, 72), layout="qkv"),
    _attention("d80_causal", (1, 130, 2, 80), (1, 130, 2, 80), causal=True, tags=("smoke",)),
    _attention("d128_gqa_causal", (1, 70, 4, 128), (1, 70, 2, 128), causal=True),
    _attention("mqa_return_lse", (2, 33, 6, 16), (2, 41, 1, 16), return_lse=True),
    _attention("d96_heads_first", (2, 65, 3, 96), (2, 65, 3, 96), layout="heads_first"),
    _attention("mla_192_128", (1, 40, 2, 192), (1, 40, 2, 192), (1, 40, 2, 128), causal=True),
    _attention("vae_d512", (1, 36, 1, 512), (1, 36, 1, 512)),
    _attention("d1_dv1", (1, 9, 2, 1), (1, 9, 2, 1)),
    _attention("odd_d59_dv7", (2, 19, 2, 59), (2, 23, 2, 59), (2, 23, 2, 7), layout="chunk"),
    _attention("decode", (2, 1, 8, 64), (2, 300, 2, 64), causal=True, tags=("smoke",)),
    _attention("decode_offset", (1, 1, 4, 72), (1, 1025, 4, 72), layout="offset"),
    _attention("chunked_prefill", (1, 37, 4, 32), (1, 100, 2, 32), causal=True, return_lse=True),
    _attention("causal_more_queries", (1, 50, 2, 32), (1, 20, 2, 32), causal=True),
    _attention("window", (1, 140, 2, 32), (1, 140, 2, 32), window=(17, 5)),
    _attention("window_causal", (1, 200, 2, 32), (1, 200, 2, 32), window=64, causal=True),
    _attention("window_left_more_queries", (1, 60, 2, 24), (1, 20, 2, 24), window=(5, -1)),
    _attention("window_cross", (1, 30, 2, 24), (1, 90, 2, 24), window=(3, -1)),
    _attention("padding", (3, 40, 2, 32), (3, 70, 2, 32), key_padding_mask=T((3, 70), kind="mask")),
    _attention(
        "padding_empty_row",
        (2, 20, 4, 16),
        (2, 35, 2, 16),
        key_padding_mask=T((2, 35), kind="mask_with_empty_row"),
        causal=True,
        return_lse=True,
    ),
    _attention("scale", (1, 20, 2, 32), (1, 20, 2, 32), scale=0.7),
    _attention("peaked", (1, 70, 2, 64), (1, 300, 2, 64), scale=1.0, return_lse=True),
    _attention(
        "few_rows_window",
        (2, 3, 8, 72),
        (2, 1100, 2, 72),
        (2, 1100, 2, 40),
        window=(700, 1),
        key_padding_mask=T((2, 1100), kind="mask"),
        return_lse=True,
    ),
    _attention("expanded_batch", (3, 17, 2, 32), (3, 17, 2, 32), layout="expanded"),
    _attention("one_token", (1, 1, 1, 8), (1, 1, 1, 8)),
    _packed("packed", (5, 64, 1, 33), (5, 64, 1, 33), (3, 3), 72),
    _packed("packed_cross_causal", (3, 0, 17, 8), (9, 4, 17, 0), (4, 2), 40, causal=True),
    _packed("packed_window", (40, 90), (40, 90), (2, 1), 32, window=(10, 0), return_lse=True),
    _packed("packed_qkv_view", (12, 20, 7), (12, 20, 7), (2, 2), 80, layout="qkv"),
    _packed("packed_dv", (12, 20), (30, 7), (4, 4), 48, 24),
    _packed("packed_few_rows", (1, 20, 3), (600, 20, 70), (4, 2), 64, causal=True),
    _packed("packed_long", (300, 70), (300, 70), (2, 2), 16),
]


def _modulation(name, x, m=None, function="modulate", *, layout="contiguous", mdtype=None, **kw):
    parts = {"modulate": ("shift", "scale"), "gated_residual": ("gate",)}
    m_layout = "chunk" if layout == "mchunk" else "contiguous"
    x_layout = "contiguous" if layout == "mchunk" else layout
    args = {"x": T(x, x_layout, offset=kw.pop("offset", 0.0))}
    if function != "modulate":
        args["branch"] = T(x, x_layout)
    if m is not None:
        for part in parts.get(function, ("gate", "shift", "scale")):
            args[part] = T(m, m_layout, dtype=mdtype)
    tags = frozenset(kw.pop("tags", ()))
    return Case(function, name, {**args, **kw}, tags)


def _affine(c, dtype=None):
    return {"weight": T((c,), dtype=dtype), "bias": T((c,), dtype=dtype)}


MODULATE = [
    _modulation("dit", (2, 20, 72), (2, 72), tags=("smoke",)),
    _modulation("no_modulation", (2, 9, 33)),
    _modulation("affine", (3, 7, 40), None, **_affine(40)),
    _modulation("affine_f32_and_scale", (2, 7, 40), (2, 40), mdtype=F32, **_affine(40, F32)),
    _modulation("weight_only_rms", (2, 7, 40), (2, 1, 40), norm="rms", weight=T((40,))),
    _modulation("rms_affine", (2, 7, 40), (2, 1, 40), norm="rms", **_affine(40)),
    _modulation("wan_f32", (2, 12, 48), (2, 48), mdtype=F32),
    _modulation("per_frame", (2, 12, 48), (2, 3, 48)),
    _modulation("per_frame_4d", (2, 12, 48), (2, 3, 1, 48), mdtype=F32),
    _modulation("per_token", (2, 10, 33), (2, 10, 33), tags=("smoke",)),
    _modulation("broadcast_batch", (3, 10, 16), (1, 16)),
    _modulation("one_vector", (3, 10, 16), (16,)),
    _modulation("rows_2d", (11, 24), (11, 24)),
    _modulation("rows_2d_shared", (11, 24), (1, 24)),
    _modulation("chunked", (2, 9, 64), (2, 64), layout="mchunk"),
    _modulation("strided_x", (2, 9, 64), (2, 64), layout="chunk"),
    _modulation("offset_x", (2, 9, 65), (2, 65), layout="offset"),
    _modulation("rows_x", (2, 9, 64), (2, 64), layout="rows"),
    _modulation("expanded_x", (3, 9, 64), (3, 64), layout="expanded"),
    _modulation("c1", (2, 5, 1), (2, 1)),
    _modulation("c1_rms", (2, 5, 1), (2, 1), norm="rms"),
    _modulation("wide_c1152", (1, 6, 1152), (1, 1152)),
    _modulation("wide_c5120", (1, 3, 5120), (1, 5120), norm="rms"),
    _modulation("large_mean", (1, 4, 256), (1, 256), offset=30.0),
    _modulation("eps", (2, 5, 32), (2, 32), eps=1e-2),
    _modulation("many_rows", (1, 700, 24), (1, 24)),
    _modulation("residual", (2, 9, 40), None, "gated_residual"),
    _modulation("gate", (2, 9, 40), (2, 40), "gated_residual", tags=("smoke",)),
    _modulation("gate_f32_per_token", (2, 9, 40), (2, 9, 40), "gated_residual", mdtype=F32),
    _modulation("dit", (2, 20, 72), (2, 72), "gated_modulate", tags=("smoke",)),
    _modulation("affine_only", (2, 20, 72), None, "gated_modulate", **_affine(72)),
    _modulation("rms_f32", (2, 21, 50), (2, 50), "gated_modulate", norm="rms", mdtype=F32),
    _modulation("per_frame_chunk", (2, 12, 32), (2, 4, 32), "gated_modulate", layout="mchunk"),
    _modulation("per_token", (2, 7, 33), (2, 7, 33), "gated_modulate"),
    _modulation("strided", (2, 7, 64), (2, 64), "gated_modulate", layout="chunk"),
    _modulation("wide_c1152", (1, 5, 1152), (1, 1152), "gated_modulate"),
    _modulation("many_rows", (2, 350, 24), (2, 24), "gated_modulate"),
]


def _patch(name, x, weight, pos=None, *, bias=True, layout="contiguous", pos_dtype=None, tags=()):
    args = {"x": T(x, layout), "weight": T(weight, scale=weight[-1] ** -1.0)}
    if bias:
        args["bias"] = T(weight[:1])
    if pos is not None:
        args["pos_embed"] = T(pos, dtype=pos_dtype)
    return Case("patch_embed", name, args, frozenset(tags))


PATCH_EMBED = [
    _patch("vit", (2, 3, 32, 48), (40, 3, 16, 16), (6, 40), tags=("smoke",)),
    _patch("siglip_cropped", (1, 3, 34, 47), (24, 3, 14, 14)),
    _patch("dit_p2", (2, 4, 8, 8), (72, 4, 2, 2), (1, 16, 72), pos_dtype=F32, tags=("smoke",)),
    _patch("sd3_p2_batch_pos", (2, 16, 6, 10), (48, 16, 2, 2), (2, 15, 48)),
    _patch("wan_3d", (1, 16, 3, 6, 10), (64, 16, 1, 2, 2)),
    _patch("qwen_3d", (2, 3, 4, 32, 32), (40, 3, 2, 16, 16)),
    _patch("qwen_flat", (30, 1536), (56, 3, 2, 16, 16), tags=("smoke",)),
    _patch("flat_batch_pos", (2, 9, 48), (33, 3, 4, 4), (9, 33)),
    _patch("flat_linear_weight", (2, 9, 64), (128, 64), (1, 9, 128), pos_dtype=F32),
    _patch("kimi_one_patch_each", (9, 3, 14, 14), (32, 3, 14, 14)),
    _patch("no_bias", (1, 3, 8, 8), (16, 3, 4, 4), bias=False),
    _patch("channels_last", (2, 3, 16, 16), (32, 3, 8, 8), layout="channels_last"),
    _patch("rows", (1, 3, 16, 24), (17, 3, 8, 8), layout="rows"),
    _patch("expanded", (3, 3, 16, 16), (17, 3, 8, 8), layout="expanded"),
    _patch("odd", (1, 1, 7, 11), (5, 1, 3, 5), (4, 5)),
    _patch("one_pixel", (1, 1, 1, 1), (1, 1, 1, 1)),
    _patch("rect_kernel", (1, 2, 12, 20), (19, 2, 3, 5)),
]


def _mlp(name, x, hidden, out, merge=1, *, bias=True, norm=None, layout="contiguous", **kw):
    cin = x[-1] * merge * merge
    args = {
        "x": T(x, layout),
        "w1": T((hidden, cin), scale=cin**-0.5),
        "b1": T((hidden,)) if bias else None,
        "w2": T((out, hidden), scale=hidden**-0.5),
        "b2": T((out,)) if bias else None,
    }
    if norm:
        args["norm"] = norm
        args["norm_weight"] = T((x[-1],))
        if norm == "layer":
            args["norm_bias"] = T((x[-1],))
    tags = frozenset(kw.pop("tags", ()))
    return Case("mlp", name, {**args, "merge": merge, **kw}, tags)


MLP = [
    _mlp("llava", (20, 48), 96, 64, tags=("smoke",)),
    _mlp("vit_tanh", (2, 9, 40), 104, 40, activation="gelu_tanh"),
    _mlp("silu_no_bias", (2, 9, 40), 72, 24, activation="silu", bias=False),
    _mlp("quick_gelu", (2, 9, 40), 72, 24, activation="quick_gelu"),
    _mlp("relu", (7, 33), 17, 5, activation="relu"),
    _mlp("qwen_merger", (24, 36), 144, 56, 2, norm="layer", tags=("smoke",)),
    _mlp("qwen_deepstack", (6, 144), 144, 56, norm="layer"),
    _mlp("kimi", (32, 36), 144, 40, 2, norm="layer", eps=1e-5, grid_hw=[(4, 6), (2, 4)]),
    _mlp("merge3_rms", (18, 10), 40, 12, 3, norm="rms", grid_hw=[(3, 6)]),
    _mlp("rms", (2, 5, 30), 64, 30, norm="rms"),
    _mlp("norm_without_affine", (6, 31), 20, 9, norm=None, activation="gelu_tanh"),
    _mlp("strided", (2, 9, 32), 64, 32, layout="chunk"),
    _mlp("one_row", (1, 64), 128, 64),
    _mlp("tiny", (3, 1), 1, 1),
    _mlp("long_k", (9, 1536), 64, 32),
]


def _table(shape, dtype=None):
    return {name: T(shape, kind=f"angle_{name}", dtype=dtype) for name in ("cos", "sin")}


def _rope(name, q, heads_k, table, *, layout="contiguous", dtype=None, norm=None, **kw):
    k = (*q[:-2], heads_k, q[-1])
    args = {"q": T(q, layout), "k": T(k, layout), **_table(table, dtype)}
    if norm:
        args["q_weight"] = T(q[-1:], dtype=norm if norm is F32 else None)
        args["k_weight"] = T(q[-1:], dtype=norm if norm is F32 else None)
    tags = frozenset(kw.pop("tags", ()))
    return Case("rope", name, {**args, **kw}, tags)


ROPE = [
    _rope("llama", (2, 9, 4, 64), 2, (9, 64), tags=("smoke",)),
    _rope("vision_f32_packed", (30, 4, 72), 4, (30, 72), dtype=F32),
    _rope("vision_qkv_view", (30, 4, 72), 4, (30, 72), dtype=F32, layout="qkv"),
    _rope("batched_table", (2, 9, 4, 32), 4, (2, 9, 32)),
    _rope("flux", (1, 12, 3, 128), 3, (12, 128), dtype=F32, interleaved=True, tags=("smoke",)),
    _rope("partial", (2, 7, 3, 40), 1, (7, 16)),
    _rope("partial_interleaved", (2, 7, 3, 40), 1, (7, 16), interleaved=True),
    _rope("qk_norm", (2, 7, 4, 32), 2, (7, 32), norm=True, tags=("smoke",)),
    _rope("qk_norm_f32", (1, 7, 4, 30), 2, (7, 30), norm=F32, dtype=F32, interleaved=True),
    _rope("heads_first", (2, 8, 4, 64), 2, (8, 64), layout="heads_first"),
    _rope("decode", (3, 1, 8, 64), 2, (3, 1, 64)),
    _rope("d2", (1, 3, 2, 2), 1, (3, 2)),
    _rope("shared_batch_table", (2, 5, 2, 16), 2, (1, 5, 16)),
]

RMS_NORM = [
    Case("rms_norm", "llama", {"x": T((3, 7, 64)), "weight": T((64,))}, frozenset({"smoke"})),
    Case("rms_norm", "torch", {"x": T((3, 7, 64)), "weight": T((64,)), "cast": "before"}),
    Case("rms_norm", "no_weight", {"x": T((5, 33))}),
    Case(
        "rms_norm", "residual", {"x": T((2, 9, 40)), "weight": T((40,)), "residual": T((2, 9, 40))}
    ),
    Case(
        "rms_norm",
        "residual_before",
        {"x": T((2, 9, 40)), "weight": T((40,)), "residual": T((2, 9, 40)), "cast": "before"},
    ),
    Case("rms_norm", "f32_weight", {"x": T((4, 24)), "weight": T((24,), dtype=F32)}),
    Case(
        "rms_norm",
        "f32_weight_before",
        {"x": T((4, 24)), "weight": T((24,), dtype=F32), "cast": "before"},
    ),
    Case("rms_norm", "strided", {"x": T((2, 9, 64), "chunk"), "weight": T((64,))}),
    Case("rms_norm", "heads", {"x": T((2, 5, 3, 72), "heads_first"), "weight": T((72,))}),
    Case("rms_norm", "c1", {"x": T((4, 1)), "weight": T((1,))}),
    Case("rms_norm", "wide", {"x": T((3, 4096)), "weight": T((4096,)), "eps": 1e-5}),
    Case("rms_norm", "one_dim", {"x": T((50,)), "weight": T((50,))}),
    Case("rms_norm", "many_rows", {"x": T((900, 16)), "weight": T((16,))}),
]

GLU = [
    Case("glu", "packed", {"gate": T((3, 7, 64))}, frozenset({"smoke"})),
    Case("glu", "packed_second", {"gate": T((3, 7, 66)), "gate_first": False}),
    Case("glu", "two", {"gate": T((3, 7, 33)), "up": T((3, 7, 33))}),
    Case("glu", "two_chunks", {"gate": T((9, 40), "chunk"), "up": T((9, 40), "chunk")}),
    Case("glu", "gelu", {"gate": T((5, 24)), "activation": "gelu"}),
    Case("glu", "gelu_tanh", {"gate": T((5, 24)), "activation": "gelu_tanh"}),
    Case("glu", "quick_gelu", {"gate": T((5, 24)), "activation": "quick_gelu"}),
    Case("glu", "relu", {"gate": T((5, 24)), "activation": "relu"}),
    Case("glu", "sigmoid", {"gate": T((5, 24)), "activation": "sigmoid"}),
    Case("glu", "large_values", {"gate": T((5, 64), scale=20.0)}),
    Case("glu", "one", {"gate": T((1, 2))}),
    Case("glu", "wide", {"gate": T((3, 8608))}),
]

CASES = [*PATCH_EMBED, *ATTENTION, *MODULATE, *MLP, *RMS_NORM, *ROPE, *GLU]
