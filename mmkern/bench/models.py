"""The table of model workloads: the reference models at real widths, few layers, on photographs.

Each model runs three times on the same weights: on mmkern, on the eager formulations of
mmkern.bench.eager, and on those under torch.compile.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mmkern.bench import eager, photos
from mmkern.bench.contest import OUTPUT_FACTOR, Contest
from mmkern.models import LLM, VLM, AutoencoderKL, DiT, KVCache, ViT, ddim, dit, llm, vit, vlm
from mmkern.nn import OpsModule

IMAGE_TOKEN = 8191
VOCABULARY = 8192


@dataclass(frozen=True)
class ModelWorkload:
    """build() makes the model, in float32, and its inputs.

    compiles: whether torch.compile of it fits the time of the whole job.
    """

    name: str
    model: str
    shape: str
    scale: str
    inputs: str
    build: Callable
    quick: bool = False
    compiles: bool = True


def default_dtypes(dtypes):
    """What has no time for all of them runs in bfloat16, unless that was not asked for."""
    return ("bfloat16",) if "bfloat16" in dtypes else dtypes[:1]


def twin(model, functions):
    """A copy of a model that shares its weights and calls ``functions`` in place of mmkern's."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, shared)
    for module in other.modules():
        if isinstance(module, OpsModule):
            cls = type(module)
            module.__class__ = type(cls.__name__, (cls,), {"f": functions})
    return other


def model_contest(workload, dtype, device, seed):
    """The contest of a model workload."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, inputs = workload.build()
    model = model.eval().requires_grad_(False).to(device, dtype)
    inputs = [_to(value, device, dtype) for value in inputs]

    def bind(function):
        return lambda: function(*inputs)

    def oracle():
        wide = twin(copy.deepcopy(model).double(), eager)
        return wide(*(_to(value, device, torch.float64) for value in inputs))

    return Contest(
        identity={
            "kind": "model",
            "op": "model",
            "function": "model",
            "name": workload.name,
            "variant": "forward",
            "dtype": str(dtype).removeprefix("torch."),
            "shape": workload.shape,
            "model": workload.model,
            "scale": workload.scale,
            "inputs": workload.inputs,
        },
        functions={"eager": twin(model, eager), "mmkern": model},
        bind=bind,
        oracle=oracle,
        factors=(OUTPUT_FACTOR,),
    )


def _to(value, device, dtype):
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if value.dtype.is_floating_point else value.dtype)


def build_vit():
    config = vit.CONFIGS["vit_l16"] | {"depth": 2}
    return ViT(**config), [photos.pixels(2, 3, 224, 224)]


def build_dit():
    model = DiT(**dit.CONFIGS["DiT_XL_2"] | {"depth": 2})
    _open_gates(model)
    return model, [photos.pixels(2, 4, 32, 32), torch.tensor([3, 871]), torch.tensor([1, 207])]


def _open_gates(model):
    """Random adaLN weights: at their initial zeros every block would be the identity."""
    for name, parameter in model.named_parameters():
        if "adaLN" in name or "final" in name:
            nn.init.normal_(parameter, std=0.02)


def _text_config(depth):
    return llm.CONFIGS["qwen3_0_6b"] | {"depth": depth, "vocab_size": VOCABULARY}


class Prefill(nn.Module):
    """Logits of the last position."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids, last_only=True)


class Decode(nn.Module):
    """One token after a filled cache; the cache is wound back for the next call."""

    def __init__(self, model, batch, past):
        super().__init__()
        self.model = model
        self.past = past
        cache = KVCache(model, batch, past + 1)
        self.register_buffer("k", nn.init.normal_(cache.k))
        self.register_buffer("v", nn.init.normal_(cache.v))

    def forward(self, ids):
        cache = KVCache.__new__(KVCache)
        cache.k, cache.v, cache.length = self.k, self.v, self.past
        return self.model(ids, cache=cache, last_only=True)


def build_prefill():
    return Prefill(LLM(**_text_config(2))), [torch.randint(0, VOCABULARY, (1, 512))]


def build_decode():
    return Decode(LLM(**_text_config(2)), 4, 2047), [torch.randint(0, VOCABULARY, (4, 1))]


def build_vlm():
    vision = vlm.CONFIGS["kimi_vl_vision"] | {"depth": 2}
    model = VLM(vision, _text_config(2), image_token_id=IMAGE_TOKEN)
    images = [photos.resized(0, 224, 308), photos.resized(1, 280, 224), photos.resized(2, 112, 168)]
    patches, grid_hw = vlm.pack_images(images)
    visual = sum(h * w for h, w in grid_hw) // 4
    ids = torch.randint(0, IMAGE_TOKEN, (1, visual + 32))
    ids[0, 16 : 16 + visual] = IMAGE_TOKEN
    return model, [ids, patches, grid_hw]


class Repaint(nn.Module):
    """Photograph -> VAE latent -> one denoising step of the DiT -> image."""

    def __init__(self, vae, model):
        super().__init__()
        self.vae = vae
        self.model = model

    def forward(self, images, noise, labels):
        timestep = 400
        x = ddim.add_noise(self.vae.encode(images), noise, timestep)
        t = torch.full((len(images),), timestep, device=images.device)
        predicted = self.model(x, t, labels)[:, : self.model.in_channels]
        a = ddim.alphas_cumprod()[timestep].item()
        return self.vae.decode((x - (1 - a) ** 0.5 * predicted) / a**0.5)


def build_repaint():
    vae = AutoencoderKL(channels=(32, 64, 128, 256), layers_per_block=1, groups=32)
    model = DiT(**dit.CONFIGS["DiT_XL_2"] | {"depth": 2})
    _open_gates(model)
    images = photos.pixels(1, 3, 256, 256)
    return Repaint(vae, model), [images, torch.randn(1, 4, 32, 32), torch.tensor([207])]


PHOTOS = "photographs"
MODELS = (
    ModelWorkload(
        "vit", "ViT-L/16", "2x3x224x224", "2 of 24 layers", PHOTOS, build_vit, quick=True
    ),
    ModelWorkload("dit", "DiT-XL/2", "2x4x32x32", "2 of 28 layers", PHOTOS, build_dit),
    ModelWorkload(
        "llm-prefill",
        "Qwen3-0.6B",
        "1x512 tokens",
        "2 of 28 layers, vocabulary 8192",
        "random tokens",
        build_prefill,
    ),
    ModelWorkload(
        "llm-decode",
        "Qwen3-0.6B",
        "4x1 token after 2047",
        "2 of 28 layers, vocabulary 8192",
        "random tokens",
        build_decode,
    ),
    ModelWorkload(
        "vlm",
        "Kimi-VL vision, Qwen3-0.6B",
        "3 images, 768 patches, 32 words",
        "2 of 27 and 2 of 28 layers, vocabulary 8192",
        "photographs and random words",
        build_vlm,
        compiles=False,
    ),
    ModelWorkload(
        "repaint",
        "AutoencoderKL, DiT-XL/2",
        "1x3x256x256: encode, one step, decode",
        "VAE of 32-64-128-256 channels, 2 of 28 layers",
        PHOTOS,
        build_repaint,
        compiles=False,
    ),
)
