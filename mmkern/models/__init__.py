"""Reference models: plain PyTorch on the ops, under the published checkpoints' names."""

from mmkern.models.ddim import img2img, sample
from mmkern.models.dit import DiT
from mmkern.models.llm import LLM, KVCache
from mmkern.models.vae import AutoencoderKL
from mmkern.models.vit import ViT
from mmkern.models.vlm import VLM, VisionTower

__all__ = [
    "LLM",
    "VLM",
    "AutoencoderKL",
    "DiT",
    "KVCache",
    "ViT",
    "VisionTower",
    "img2img",
    "sample",
]
