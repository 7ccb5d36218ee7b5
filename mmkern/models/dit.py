"""Diffusion Transformer with adaLN-Zero (Peebles and Xie, arXiv:2212.09748).

Names, shapes and initialization are those of the published checkpoints, which load with
``strict=True``. A block hands on its last branch and that branch's gate, so that each
gate * branch + residual + norm + modulation is one pass, across block borders too.
"""

import math

import torch
from torch import nn

from mmkern.nn import Attention, LayerNorm, Mlp, OpsModule, PatchEmbed, run_block

_SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
CONFIGS = {
    f"DiT_{name}_{patch}": {"patch_size": patch, "dim": dim, "depth": depth, "num_heads": heads}
    for name, (depth, dim, heads) in _SIZES.items()
    for patch in (2, 4, 8)
}


class TimestepEmbedder(nn.Module):
    """Sinusoids of the timestep through a two-layer MLP."""

    def __init__(self, dim, frequencies=256):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        """t (B,), fractions allowed -> (B, dim)."""
        half = self.frequencies // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angle = t[:, None].float() * torch.exp(-math.log(10000) * steps / half)
        sinusoids = torch.cat((angle.cos(), angle.sin()), dim=-1)
        return self.mlp(sinusoids.to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """Class labels; row ``num_classes`` is the null class of classifier-free guidance."""

    def __init__(self, num_classes, dim, dropout):
        super().__init__()
        self.num_classes = num_classes
        self.dropout = dropout
        self.embedding_table = nn.Embedding(num_classes + (dropout > 0), dim)

    def forward(self, labels):
        if self.training and self.dropout > 0:
            drop = torch.rand(len(labels), device=labels.device) < self.dropout
            labels = torch.where(drop, self.num_classes, labels)
        return self.embedding_table(labels)


class DiTBlock(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio, ops):
        super().__init__()
        self.norm1 = LayerNorm(dim, affine=False, ops=ops)
        self.attn = Attention(dim, num_heads, ops=ops)
        self.norm2 = LayerNorm(dim, affine=False, ops=ops)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), activation="gelu_tanh", ops=ops)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, h, branch, gate, c):
        modulation = self.adaLN_modulation(c).to(h.dtype).chunk(6, dim=1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation
        h, y = self.norm1.add(h, branch, gate, shift_msa, scale_msa)
        h, y = self.norm2.add(h, self.attn(y), gate_msa, shift_mlp, scale_mlp)
        return h, self.mlp(y), gate_mlp


class FinalLayer(nn.Module):
    def __init__(self, dim, out_features, ops):
        super().__init__()
        self.norm_final = LayerNorm(dim, affine=False, ops=ops)
        self.linear = nn.Linear(dim, out_features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, h, branch, gate, c):
        shift, scale = self.adaLN_modulation(c).to(h.dtype).chunk(2, dim=1)
        return self.linear(self.norm_final.add(h, branch, gate, shift, scale)[1])


class DiT(OpsModule):
    """Class-conditional DiT on latents.

    Args:
        input_size: side of the square latent; patch_size divides it.
        in_channels: of the latent; the output has twice as many with ``learn_sigma``.
        dim, depth, num_heads, mlp_ratio: of the transformer.
        num_classes, class_dropout: labels, and how often training replaces one by the null class.
        checkpointing: recompute blocks in the backward (also an attribute).
        ops: "mmkern" or "reference".

    ``CONFIGS`` has the published sizes: ``DiT(**CONFIGS["DiT_XL_2"])``.
    """

    def __init__(
        self,
        *,
        input_size=32,
        patch_size=2,
        in_channels=4,
        dim=1152,
        depth=28,
        num_heads=16,
        mlp_ratio=4.0,
        num_classes=1000,
        class_dropout=0.1,
        learn_sigma=True,
        checkpointing=False,
        ops="mmkern",
    ):
        super().__init__(ops)
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.checkpointing = checkpointing
        out_channels = in_channels * (2 if learn_sigma else 1)
        side = input_size // patch_size
        self.x_embedder = PatchEmbed(patch_size, in_channels, dim, ops=ops)
        self.t_embedder = TimestepEmbedder(dim)
        self.y_embedder = LabelEmbedder(num_classes, dim, class_dropout)
        self.pos_embed = nn.Parameter(sincos_positions(dim, side)[None], requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(dim, num_heads, mlp_ratio, ops) for _ in range(depth))
        self.final_layer = FinalLayer(dim, patch_size**2 * out_channels, ops)
        self.reset_parameters()

    def reset_parameters(self):
        """adaLN-Zero: every block starts as the identity and the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for layer in (self.y_embedder.embedding_table, *self.t_embedder.mlp[::2]):
            nn.init.normal_(layer.weight, std=0.02)
        zero = [block.adaLN_modulation[1] for block in self.blocks]
        for layer in (*zero, self.final_layer.adaLN_modulation[1], self.final_layer.linear):
            nn.init.zeros_(layer.weight)

    def forward(self, x, t, y):
        """x (B, C, H, W) noisy latents, t (B,) timesteps, y (B,) labels -> (B, C or 2C, H, W)."""
        height, width = (size // self.patch_size for size in x.shape[-2:])
        c = self.t_embedder(t) + self.y_embedder(y)
        h = self.x_embedder(x, self.pos_embed).to(self.pos_embed.dtype)
        branch, gate = None, None
        for block in self.blocks:
            h, branch, gate = run_block(block, h, branch, gate, c, checkpointing=self.checkpointing)
        tokens = self.final_layer(h, branch, gate, c)
        return unpatchify(tokens, height, width, self.patch_size)

    def forward_with_cfg(self, x, t, y, cfg_scale, *, guided_channels=None):
        """Classifier-free guidance: x, t and y hold the conditional half, then the null-class half.

        The first half of ``x`` serves both halves. ``guided_channels`` defaults to all channels of
        the latent; 3 reproduces the images published with the paper.
        """
        half = x[: len(x) // 2]
        out = self(torch.cat((half, half)), t, y)
        guided = self.in_channels if guided_channels is None else guided_channels
        eps, rest = out[:, :guided], out[:, guided:]
        conditional, unconditional = eps.chunk(2)
        eps = unconditional + cfg_scale * (conditional - unconditional)
        return torch.cat((torch.cat((eps, eps)), rest), dim=1)


def unpatchify(tokens, height, width, patch_size):
    """(B, height * width, p * p * C) -> (B, C, height * p, width * p); C is fastest in a token."""
    x = tokens.unflatten(-1, (patch_size, patch_size, -1)).unflatten(1, (height, width))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def sincos_positions(dim, side):
    """Fixed 2-D sine-cosine table (side * side, dim); the first half of dim encodes the column."""
    omega = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * omega
    axis = torch.cat((angle.sin(), angle.cos()), dim=1)
    column = axis[None].expand(side, -1, -1)
    row = axis[:, None].expand(-1, side, -1)
    return torch.cat((column, row), dim=-1).flatten(0, 1).float()
