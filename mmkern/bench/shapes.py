"""How the workloads are described: inputs, and one builder for each op.

The inputs are photographs or activations of photographs (mmkern.bench.photos).
"""

from dataclasses import dataclass

import torch

from mmkern.bench import photos
from mmkern.cases import LAYOUTS, Case, Ints, T

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


def weights(shape, **options):
    return Real(shape, kind="weights", **options)


@dataclass(frozen=True)
class Workload:
    """One case of the benchmark.

    model: where the shape comes from. shape: for people. scale: what was cut, "" for the true size.
    backward: time forward and backward together. rivals: names in mmkern.bench.eager.RIVALS that
    are timed beside the eager baseline. quick: part of ``--quick``. extra: only of ``--full``, and
    of a job that asks for its op.
    """

    case: Case
    model: str
    shape: str
    scale: str = ""
    backward: bool = False
    rivals: tuple = ()
    quick: bool = False
    extra: bool = False

    @property
    def passes(self):
        """What one call of the workload does."""
        return "forward+backward" if self.backward else "forward"

    @property
    def id(self):
        return f"{self.case.id}-{'training' if self.backward else 'forward'}"

    @property
    def compiles(self):
        """Whether torch.compile can change the eager baseline: it is no single ATen call."""
        return self.case.op not in ("attention", "patch_embed")

    @property
    def inputs(self):
        """Where the inputs come from."""
        return "photographs" if self.case.op == "patch_embed" else "activations of photographs"


def workload(function, name, args, *where, **options):
    return Workload(Case(function, name, args, BENCH), *where, **options)


def patch(name, x, weight, pos, *where, **options):
    fan = torch.Size(weight[1:]).numel()
    args = {"x": Real(x, kind="pixels"), "weight": weights(weight, scale=fan**-0.5)}
    args["bias"] = weights(weight[:1])
    if pos is not None:
        args["pos_embed"] = weights(pos)
    return workload("patch_embed", name, args, *where, rivals=("unfold + linear",), **options)


def attention(name, q, k, *where, v=None, layout="contiguous", causal=False, **options):
    q, k, v = (Real(shape, layout, channel_dims=2) for shape in (q, k, v or k))
    args = {"q": q, "k": k, "v": v, "causal": causal}
    return workload("attention", name, args, *where, **options)


def packed(name, lengths, heads, dim, *where, **options):
    borders = tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))
    token = Real((borders[-1], heads, dim), "qkv", channel_dims=2)
    args = {"q": token, "k": token, "v": token}
    args |= {"cu_seqlens_q": Ints(borders), "cu_seqlens_k": Ints(borders)}
    args |= {"max_seqlen_q": max(lengths), "max_seqlen_k": max(lengths)}
    return workload("attention", name, args, *where, **options)


def square(name, batch, tokens, heads, dim, *where, heads_k=None, **options):
    shape = (batch, tokens, heads, dim)
    return attention(name, shape, (batch, tokens, heads_k or heads, dim), *where, **options)


def modulation(function, name, x, m, *where, mdtype=None, chunked=True, **options):
    parts = ("shift", "scale") if function == "modulate" else ("gate", "shift", "scale")
    layout = "chunk" if chunked else "contiguous"
    args = {"x": Real(x)} | ({} if function == "modulate" else {"branch": Real(x)})
    args |= {part: weights(m, layout=layout, dtype=mdtype, scale=0.1) for part in parts}
    return workload(function, name, args, *where, **options)


def layer_norm(name, x, *where, **options):
    """The residual add and the LayerNorm after it, as in a ViT: no gate, shift or scale."""
    args = {"x": Real(x), "branch": Real(x), "weight": weights(x[-1:], offset=1.0, scale=0.1)}
    args["bias"] = weights(x[-1:], scale=0.1)
    return workload("gated_modulate", name, args, *where, **options)


def mlp(name, x, hidden, out, *where, merge=1, activation="gelu", norm=None, grid=None, **options):
    width = x[-1] * merge * merge
    args = {
        "x": Real(x), "w1": weights((hidden, width), scale=width**-0.5),
        "b1": weights((hidden,), scale=0.1), "b2": weights((out,), scale=0.1),
        "w2": weights((out, hidden), scale=hidden**-0.5),
        "activation": activation, "merge": merge,
    }  # fmt: skip
    if norm:
        args |= {"norm": norm, "norm_weight": weights(x[-1:], offset=1.0, scale=0.1)}
        args |= {"norm_bias": weights(x[-1:], scale=0.1), "grid_hw": grid}
    return workload("mlp", name, args, *where, **options)


def rms(name, x, *where, residual=False, cast="after", **options):
    x = Real(x, channel_dims=len(x) - 1)
    args = {"x": x, "weight": weights(x.shape[-1:], offset=1.0, scale=0.1), "cast": cast}
    if residual:
        args["residual"] = x
    rivals = ("F.rms_norm",) if cast == "after" else ()
    return workload("rms_norm", name, args, *where, rivals=rivals, **options)


def rope(name, q, heads_k, *where, tables=None, norm=False, **options):
    tokens, dim = q[-3], q[-1]
    args = {"q": Real(q, "qkv", channel_dims=2)}
    args["k"] = Real((*q[:-2], heads_k, dim), "qkv", channel_dims=2)
    args |= {n: T((tokens, dim), kind=f"angle_{n}", dtype=tables) for n in ("cos", "sin")}
    args["interleaved"] = options.pop("interleaved", False)
    if norm:
        args |= {n: weights((dim,), offset=1.0, scale=0.1) for n in ("q_weight", "k_weight")}
    return workload("rope", name, args, *where, **options)


def glu(name, gate, *where, packed=False, activation="silu", gate_first=True, **options):
    args = {"gate": Real((*gate[:-1], 2 * gate[-1]) if packed else gate)}
    args |= {} if packed else {"up": Real(gate)}
    args |= {"activation": activation, "gate_first": gate_first}
    return workload("glu", name, args, *where, **options)
