"""Vision-language model in the manner of Kimi-VL (arXiv:2504.07491).

A native-resolution vision tower packs images of any sizes into one sequence; a projector merges
2 x 2 tokens into one of the language model's; these replace the image placeholders of the text.
The tower and projector have the names and the maths of Kimi-VL's published weights; the language
model is :class:`mmkern.models.llm.LLM`.
"""

import itertools

import torch
from torch import nn

from mmkern.models.llm import LLM
from mmkern.nn import (
    LayerNorm,
    Linear,
    OpsModule,
    PatchEmbed,
    ProjectorMLP,
    packed_attention,
    resize_positions,
    run_block,
    segments,
)

CONFIGS = {
    "kimi_vl_vision": {"dim": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304},
}


class PositionTable(nn.Module):
    def __init__(self, side, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(side, side, dim))
        nn.init.normal_(self.weight)

    def forward(self, grid_hw):
        return torch.cat([resize_positions(self.weight, h, w) for h, w in grid_hw])


class TowerPatchEmbed(PatchEmbed):
    def __init__(self, patch_size, dim, side, ops):
        super().__init__(patch_size, 3, dim, ops=ops)
        self.pos_emb = PositionTable(side, dim)

    def forward(self, patches, grid_hw):
        pos = self.pos_emb(grid_hw)
        return super().forward(patches.flatten(1), pos).to(pos.dtype)


class TowerMlp(OpsModule):
    def __init__(self, dim, hidden, ops):
        super().__init__(ops)
        self.fc0 = nn.Linear(dim, hidden)
        self.fc1 = nn.Linear(hidden, dim)

    def forward(self, x):
        fc0, fc1 = self.fc0, self.fc1
        return self.f.mlp(x, fc0.weight, fc0.bias, fc1.weight, fc1.bias, activation="gelu_tanh")


class TowerBlock(OpsModule):
    def __init__(self, dim, num_heads, mlp_dim, ops):
        super().__init__(ops)
        self.num_heads = num_heads
        self.norm0 = LayerNorm(dim, eps=1e-5, ops=ops)
        self.norm1 = LayerNorm(dim, eps=1e-5, ops=ops)
        self.mlp = TowerMlp(dim, mlp_dim, ops)
        self.wqkv = Linear(dim, 3 * dim, ops=ops)
        self.wo = Linear(dim, dim, ops=ops)

    def forward(self, h, branch, rope, options):
        h, y = self.norm0.add(h, branch)
        y = packed_attention(self.f, self.wqkv(y), self.num_heads, rope, **options)
        h, y = self.norm1.add(h, self.wo(y))
        return h, self.mlp(y)


class TowerEncoder(nn.Module):
    def __init__(self, dim, depth, num_heads, mlp_dim, ops):
        super().__init__()
        self.blocks = nn.ModuleList(TowerBlock(dim, num_heads, mlp_dim, ops) for _ in range(depth))
        self.final_layernorm = LayerNorm(dim, eps=1e-5, ops=ops)


class VisionTower(OpsModule):
    """Vision transformer on packed patches of images of different sizes.

    Args:
        patch_size: side of a patch in pixels.
        dim, depth, num_heads, mlp_dim: of the encoder; dim / num_heads is a multiple of 4.
        position_side: side of the learned position table, resized to each image by bicubic
            interpolation.
        checkpointing: recompute blocks in the backward (also an attribute).
        ops: "mmkern" or "reference".
    """

    def __init__(
        self,
        *,
        patch_size=14,
        dim=1152,
        depth=27,
        num_heads=16,
        mlp_dim=4304,
        position_side=64,
        checkpointing=False,
        ops="mmkern",
    ):
        super().__init__(ops)
        self.head_dim = dim // num_heads
        self.checkpointing = checkpointing
        self.patch_embed = TowerPatchEmbed(patch_size, dim, position_side, ops)
        self.encoder = TowerEncoder(dim, depth, num_heads, mlp_dim, ops)

    def forward(self, patches, grid_hw):
        """Patches (N, 3, p, p) in raster order, image after image, with their grids [(h, w), ...].

        Returns:
            (N, dim): normalized tokens in the same order.
        """
        lengths = [h * w for h, w in grid_hw]
        if sum(lengths) != len(patches):
            raise ValueError(
                f"grid_hw {grid_hw} has {sum(lengths)} patches; patches has {len(patches)}"
            )
        borders = torch.tensor(
            list(itertools.accumulate(lengths, initial=0)), dtype=torch.int32, device=patches.device
        )
        options = segments(borders, max(lengths))
        rope = rope_table_2d(grid_hw, self.head_dim, patches.device)
        h, branch = self.patch_embed(patches, grid_hw), None
        for block in self.encoder.blocks:
            h, branch = run_block(block, h, branch, rope, options, checkpointing=self.checkpointing)
        return self.encoder.final_layernorm.add(h, branch)[1]


class VLM(nn.Module):
    """Vision tower, projector and language model.

    Args:
        vision: arguments of :class:`VisionTower`.
        text: arguments of :class:`mmkern.models.llm.LLM`.
        image_token_id: the placeholder in ``input_ids``, once per merged visual token.
        merge: side of the window of vision tokens joined into one.
        ops: "mmkern" or "reference".
    """

    def __init__(self, vision, text, *, image_token_id, merge=2, ops="mmkern"):
        super().__init__()
        self.image_token_id = image_token_id
        self.vision_tower = VisionTower(**vision, ops=ops)
        self.language_model = LLM(**text, ops=ops)
        self.multi_modal_projector = ProjectorMLP(
            self.vision_tower.encoder.final_layernorm.weight.numel(),
            self.language_model.lm_head.in_features,
            merge=merge,
            ops=ops,
        )

    def encode_images(self, patches, grid_hw):
        """Arguments of :class:`VisionTower`, sides divisible by merge -> (N / merge^2, dim)."""
        return self.multi_modal_projector(self.vision_tower(patches, grid_hw), grid_hw)

    def embed(self, input_ids, patches=None, grid_hw=None):
        """Token embeddings (B, S, dim) with the visual tokens, in order, at the placeholders.

        Raises:
            ValueError: the number of placeholders is not the number of visual tokens (not checked
                while torch.compile traces).
        """
        x = self.language_model.model.embed_tokens(input_ids)
        if patches is None:
            return x
        visual = self.encode_images(patches, grid_hw)
        at = input_ids == self.image_token_id
        if not torch.compiler.is_compiling() and at.sum() != len(visual):
            raise ValueError(
                f"input_ids has {at.sum()} image tokens (id {self.image_token_id}); "
                f"the images make {len(visual)}"
            )
        return x.masked_scatter(at[..., None], visual.to(x.dtype))

    def forward(self, input_ids, patches=None, grid_hw=None, *, attention_mask=None):
        """input_ids (B, S), images as in :meth:`encode_images` -> logits (B, S, vocab)."""
        return self.language_model(
            inputs_embeds=self.embed(input_ids, patches, grid_hw), attention_mask=attention_mask
        )

    @torch.no_grad()
    def generate(self, input_ids, patches=None, grid_hw=None, **options):
        """Greedy decoding after images and text; ``options`` are those of LLM.generate."""
        return self.language_model.generate(
            inputs_embeds=self.embed(input_ids, patches, grid_hw), **options
        )


def pack_images(images, *, patch_size=14, merge=2):
    """Images (3, H, W) of any sizes to (patches (N, 3, p, p), grid_hw) as VisionTower takes them.

    An image is cropped at the right and the bottom to a multiple of ``patch_size * merge``.
    """
    patches, grid_hw = [], []
    for image in images:
        h, w = (size // (patch_size * merge) * merge for size in image.shape[-2:])
        image = image[:, : h * patch_size, : w * patch_size]
        cells = image.unflatten(2, (w, patch_size)).unflatten(1, (h, patch_size))
        patches.append(cells.permute(1, 3, 0, 2, 4).flatten(0, 1))
        grid_hw.append((h, w))
    return torch.cat(patches), grid_hw


def rope_table_2d(grid_hw, head_dim, device=None, theta=10000.0):
    """cos and sin (N, head_dim), float32, for adjacent pairs: column, row, column, row, ...

    Pair 2i turns by x * theta**(-4i/D) and pair 2i + 1 by y * theta**(-4i/D).
    """
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 4, device=device).float() / head_dim)
    angles = []
    for height, width in grid_hw:
        y = torch.arange(height, device=device).repeat_interleave(width)
        x = torch.arange(width, device=device).repeat(height)
        angles.append(torch.stack((x, y), dim=-1)[:, None] * frequency[:, None])
    angle = torch.cat(angles).flatten(1).repeat_interleave(2, dim=-1)
    return angle.cos(), angle.sin()
