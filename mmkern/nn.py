"""Thin modules on the ops that keep the state_dict names of the modules they replace.

Every module takes ``ops="mmkern"`` or ``"reference"`` and stores it as a string, so that models
stay copyable and picklable and two instances with the same weights can be compared;
:func:`set_ops` switches a whole model. Projections are held by nn.Linear and nn.Conv2d for their
names and their initialization; where an op takes the weights directly, the holder's own forward
does not run.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import mmkern


def ops_namespace(ops):
    """The object whose attributes are the public functions: mmkern itself, or mmkern.reference.

    Raises:
        ValueError: ``ops`` is neither "mmkern" nor "reference".
    """
    if ops == "mmkern":
        return mmkern
    if ops == "reference":
        return mmkern.reference
    raise ValueError(f"ops is {ops!r}; wanted 'mmkern' or 'reference'")


def set_ops(module, ops):
    """Make every mmkern module inside ``module`` run on ``ops``; returns ``module``."""
    ops_namespace(ops)
    for child in module.modules():
        if isinstance(child, OpsModule):
            child.ops = ops
    return module


class OpsModule(nn.Module):
    """Base of the modules here: stores which functions to call."""

    def __init__(self, ops, *args, **kwargs):
        super().__init__(*args, **kwargs)
        ops_namespace(ops)
        self.ops = ops

    @property
    def f(self):
        return ops_namespace(self.ops)


class Linear(OpsModule, nn.Linear):
    """nn.Linear, through mmkern's matrix product on a CPU in float32 and float16.

    ``mmkern.patch_embed`` of flattened patches is that product; docs/benchmarks.md has what models
    gain by it. In bfloat16 PyTorch's is as fast, and so it is for fewer than 16 rows: a row's bits
    may differ on the two sides of that number. Compiled and exported graphs, autocast and
    subclasses of Tensor have nn.Linear's own forward. A second derivative does not exist where
    mmkern's product ran; with ``ops="reference"`` it does.
    """

    FEWEST_ROWS = 16

    def __init__(self, in_features, out_features, bias=True, *, ops="mmkern"):
        super().__init__(ops, in_features, out_features, bias=bias)

    def forward(self, x):
        """x (..., in_features) -> (..., out_features)."""
        if self.f is mmkern and self._suits(x):
            return mmkern.patch_embed(x, self.weight, self.bias)
        return super().forward(x)

    def _suits(self, x):
        if torch.compiler.is_compiling() or type(x) is not torch.Tensor or x.is_nested:
            return False
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or x.dim() not in (2, 3):
            return False
        wide = x.dtype == self.weight.dtype and x.dtype in (torch.float32, torch.float16)
        whole = x.shape[-1] == self.weight.shape[1] and self.weight.numel() > 0
        return wide and whole and x.shape[:-1].numel() >= self.FEWEST_ROWS


class LayerNorm(OpsModule):
    """LayerNorm with optional modulation, and its fusion with the residual add before it.

    Parameters are those of nn.LayerNorm; ``affine=False`` has none, as in adaLN.
    """

    def __init__(self, dim, *, eps=1e-6, affine=True, ops="mmkern"):
        super().__init__(ops)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def forward(self, x, shift=None, scale=None):
        """LN(x) * (1 + scale) + shift; x (B, T, C) or (N, C), modulation as in mmkern.modulate."""
        return self.f.modulate(x, shift, scale, weight=self.weight, bias=self.bias, eps=self.eps)

    def add(self, x, branch, gate=None, shift=None, scale=None):
        """h = x + gate * branch and y = LN(h) * (1 + scale) + shift in one pass; returns (h, y).

        ``branch=None`` is the start of a chain: h is x. Under torch.autocast the stream h keeps
        x's dtype, whatever the branch's.
        """
        if branch is None:
            return x, self(x, shift, scale)
        branch = branch.to(x.dtype)
        return self.f.gated_modulate(
            x, branch, gate, shift, scale, weight=self.weight, bias=self.bias, eps=self.eps
        )


class RMSNorm(OpsModule):
    """RMSNorm in the casting order of transformers ("after") or of torch ("before")."""

    def __init__(self, dim, *, eps=1e-6, cast="after", ops="mmkern"):
        super().__init__(ops)
        self.eps = eps
        self.cast = cast
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.f.rms_norm(x, self.weight, eps=self.eps, cast=self.cast)

    def add(self, x, branch):
        """h = x + branch, y = RMSNorm(h) in one pass; returns (h, y). ``branch=None``: h is x."""
        if branch is None:
            return x, self(x)
        branch = branch.to(x.dtype)
        return self.f.rms_norm(branch, self.weight, residual=x, eps=self.eps, cast=self.cast)


class PatchEmbed(OpsModule):
    """Non-overlapping patches to tokens; ``proj`` holds the weights in Conv2d's shape."""

    def __init__(self, patch_size, in_channels, dim, *, bias=True, ops="mmkern"):
        super().__init__(ops)
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size, bias=bias)

    def forward(self, x, pos_embed=None):
        """x (B, C, H, W), or flattened patches (N, C * p * p); returns (B, N, dim) or (N, dim)."""
        return self.f.patch_embed(x, self.proj.weight, self.proj.bias, pos_embed=pos_embed)


class Mlp(OpsModule):
    """Linear, activation, linear, under the names ``fc1`` and ``fc2`` of timm."""

    def __init__(self, dim, hidden, *, activation="gelu", ops="mmkern"):
        super().__init__(ops)
        self.activation = activation
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.f.mlp(
            x,
            self.fc1.weight,
            self.fc1.bias,
            self.fc2.weight,
            self.fc2.bias,
            activation=self.activation,
        )


class GatedMlp(OpsModule):
    """SwiGLU feed-forward ``down(silu(gate(x)) * up(x))`` under the names of Llama and Qwen."""

    def __init__(self, dim, hidden, *, ops="mmkern"):
        super().__init__(ops)
        self.gate_proj = Linear(dim, hidden, bias=False, ops=ops)
        self.up_proj = Linear(dim, hidden, bias=False, ops=ops)
        self.down_proj = Linear(hidden, dim, bias=False, ops=ops)

    def forward(self, x):
        return self.down_proj(self.f.glu(self.gate_proj(x), self.up_proj(x)))


class ProjectorMLP(OpsModule):
    """Vision tokens to language tokens: LayerNorm, k x k merge, linear, GELU (erf), linear.

    Names (``pre_norm``, ``linear_1``, ``linear_2``) and maths of Kimi-VL: the norm is over each
    token before the merge, and the k * k tokens of a window are joined in raster order.
    """

    def __init__(self, dim, out_dim, *, merge=2, eps=1e-5, ops="mmkern"):
        super().__init__(ops)
        self.merge = merge
        self.eps = eps
        hidden = dim * merge**2
        self.pre_norm = nn.LayerNorm(dim, eps=eps)
        self.linear_1 = nn.Linear(hidden, hidden)
        self.linear_2 = nn.Linear(hidden, out_dim)

    def forward(self, x, grid_hw):
        """x (N, dim), the images' tokens in raster order; grid_hw [(h, w), ...] -> (N/k/k, out)."""
        return self.f.mlp(
            x,
            self.linear_1.weight,
            self.linear_1.bias,
            self.linear_2.weight,
            self.linear_2.bias,
            activation="gelu",
            norm="layer",
            norm_weight=self.pre_norm.weight,
            norm_bias=self.pre_norm.bias,
            eps=self.eps,
            merge=self.merge,
            grid_hw=grid_hw,
        )


class Attention(OpsModule):
    """Self-attention from one packed projection, under the names ``qkv`` and ``proj`` of timm."""

    def __init__(self, dim, num_heads, *, bias=True, ops="mmkern"):
        super().__init__(ops)
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=bias, ops=ops)
        self.proj = Linear(dim, dim, ops=ops)

    def forward(self, x):
        return self.proj(packed_attention(self.f, self.qkv(x), self.num_heads))


def packed_attention(f, qkv, num_heads, rope=None, **options):
    """Attention on a packed projection (..., 3 * H * D) -> (..., H * D); q, k, v are views of it.

    ``rope``: (cos, sin) for adjacent pairs; ``options`` go to mmkern.attention.
    """
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(-3)
    if rope is not None:
        q, k = f.rope(q, k, *rope, interleaved=True)
    return f.attention(q, k, v, **options).flatten(-2)


def segments(cu_seqlens, max_seqlen):
    """Arguments of mmkern.attention for self-attention within packed sequences."""
    return {
        "cu_seqlens_q": cu_seqlens,
        "cu_seqlens_k": cu_seqlens,
        "max_seqlen_q": max_seqlen,
        "max_seqlen_k": max_seqlen,
    }


def rope_table(positions, dim, theta):
    """cos and sin (..., dim) for rotate-half rope at integer ``positions`` (...), in float32.

    Angles are rounded to float32 as in the published models, in every model dtype.
    """
    exponent = torch.arange(0, dim, 2, device=positions.device).float() / dim
    angle = positions[..., None].float() * (1.0 / theta**exponent)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def resize_positions(table, height, width):
    """Learned positions (h, w, C) to (height * width, C), bicubic if the sizes differ."""
    if table.shape[:2] != (height, width):
        image = table.permute(2, 0, 1)[None]
        image = F.interpolate(image, size=(height, width), mode="bicubic", align_corners=False)
        table = image[0].permute(1, 2, 0)
    return table.flatten(0, 1)


def run_block(block, *args, checkpointing):
    """``block(*args)``, recomputed in the backward if ``checkpointing`` and gradients are on."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False)
    return block(*args)
