"""Vision Transformer (Dosovitskiy et al., arXiv:2010.11929) under the names of timm.

Blocks are pre-norm. A block hands on the residual stream and its last branch unadded, so that every
residual add happens inside the next norm, in one pass.
"""

import re

import torch
from torch import nn

from mmkern.nn import (
    Attention,
    LayerNorm,
    Mlp,
    OpsModule,
    PatchEmbed,
    resize_positions,
    run_block,
)

CONFIGS = {
    "vit_b16": {"dim": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "vit_l16": {"dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "so400m": {
        "image_size": 384,
        "patch_size": 14,
        "dim": 1152,
        "depth": 27,
        "num_heads": 16,
        "mlp_dim": 4304,
        "activation": "gelu_tanh",
        "eps": 1e-6,
        "class_token": False,
        "num_classes": 0,
    },
}


class Block(nn.Module):
    def __init__(self, dim, num_heads, mlp_dim, activation, eps, ops):
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=eps, ops=ops)
        self.attn = Attention(dim, num_heads, ops=ops)
        self.norm2 = LayerNorm(dim, eps=eps, ops=ops)
        self.mlp = Mlp(dim, mlp_dim, activation=activation, ops=ops)

    def forward(self, h, branch):
        h, y = self.norm1.add(h, branch)
        h, y = self.norm2.add(h, self.attn(y))
        return h, self.mlp(y)


class ViT(OpsModule):
    """ViT encoder with a linear classifier.

    Args:
        image_size, patch_size: pixels; an image whose size the patch does not divide is cropped.
        dim, depth, num_heads, mlp_dim: of the encoder.
        activation, eps: "gelu" and 1e-12 in transformers' ViT, "gelu_tanh" and 1e-6 in SigLIP.
        class_token: with one, it is what the classifier sees; without, the mean of the tokens.
        num_classes: 0 leaves out the classifier.
        checkpointing: recompute blocks in the backward (also an attribute).
        ops: "mmkern" or "reference".

    ``CONFIGS`` has the published sizes: ``ViT(**CONFIGS["vit_b16"])``.
    """

    def __init__(
        self,
        *,
        image_size=224,
        patch_size=16,
        in_channels=3,
        dim=768,
        depth=12,
        num_heads=12,
        mlp_dim=3072,
        activation="gelu",
        eps=1e-12,
        class_token=True,
        num_classes=1000,
        checkpointing=False,
        ops="mmkern",
    ):
        super().__init__(ops)
        self.patch_size = patch_size
        self.side = image_size // patch_size
        self.checkpointing = checkpointing
        self.patch_embed = PatchEmbed(patch_size, in_channels, dim, ops=ops)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.side**2 + class_token, dim))
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_dim, activation, eps, ops) for _ in range(depth)
        )
        self.norm = LayerNorm(dim, eps=eps, ops=ops)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        for parameter in (self.pos_embed, self.cls_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def embed(self, images):
        """images (B, C, H, W) -> (B, [1 +] N, dim), positions resized to the image's grid."""
        height, width = (size // self.patch_size for size in images.shape[-2:])
        extra = self.pos_embed.shape[1] - self.side**2
        pos = self.pos_embed[0, extra:].unflatten(0, (self.side, self.side))
        x = self.patch_embed(images, resize_positions(pos, height, width)).to(pos.dtype)
        if self.cls_token is None:
            return x
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        return torch.cat((first, x), dim=1)

    def forward_features(self, images):
        """images (B, C, H, W) -> normalized tokens (B, [1 +] N, dim)."""
        h, branch = self.embed(images), None
        for block in self.blocks:
            h, branch = run_block(block, h, branch, checkpointing=self.checkpointing)
        return self.norm.add(h, branch)[1]

    def forward(self, images):
        """images (B, C, H, W) -> logits (B, num_classes), or pooled features (B, dim)."""
        x = self.forward_features(images)
        return self.head(x.mean(1) if self.cls_token is None else x[:, 0])


# transformers renamed ViT's inner modules in version 5; checkpoints carry either set of names.
_RENAMES = (
    (r"^(vit|vision_model)\.", ""),
    (r"^classifier\.", "head."),
    (r"^(post_)?layernorm\.", "norm."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
    (r"^(encoder\.)?layers?\.", "blocks."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.(self_attn|attention)\.(o|out)_proj\.", ".attn.proj."),
    (r"\.attention\.attention\.(q|k|v)[a-z]*\.", r".attn.\1."),
    (r"\.(self_attn|attention)\.(q|k|v)_proj\.", r".attn.\2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(?<!attn)\.output\.dense\.", ".mlp.fc2."),
)
_UNUSED = re.compile(r"(^|\.)(pooler|head|position_ids|mask_token)(\.|$)")


def from_transformers(state_dict):
    """The state_dict of transformers' ViTModel, ViTForImageClassification or SiglipVisionModel
    under this model's names, with q, k and v joined; poolers and mask tokens are left out.
    """
    renamed = {}
    for key, value in state_dict.items():
        if _UNUSED.search(key):
            continue
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    if renamed["pos_embed"].ndim == 2:
        renamed["pos_embed"] = renamed["pos_embed"][None]
    for key in [key for key in renamed if ".attn.q." in key]:
        parts = [renamed.pop(key.replace(".attn.q.", f".attn.{name}.")) for name in "qkv"]
        renamed[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return renamed
