"""Every reference model at a size that runs in milliseconds, its inputs, its float64 oracle."""

import copy

import pytest
import torch
from torch import nn

from mmkern.models import LLM, VLM, AutoencoderKL, DiT, ViT, vlm
from mmkern.nn import set_ops

IMAGE_TOKEN = 63
SIZES = {"dim": 48, "depth": 2, "num_heads": 3}
TEXT = {
    "vocab_size": 64,
    "dim": 48,
    "mlp_dim": 80,
    "depth": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
}
VISION = {**SIZES, "patch_size": 4, "mlp_dim": 80, "position_side": 6}


@pytest.fixture(autouse=True)
def one_thread():
    """At these sizes a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_vit():
    model = ViT(**SIZES, image_size=32, patch_size=8, mlp_dim=80, num_classes=7)
    return model, [torch.randn(2, 3, 32, 32)]


def tiny_llm():
    return LLM(**TEXT, qk_norm=True), [torch.randint(0, 64, (2, 11))]


def tiny_dit():
    model = DiT(**SIZES, input_size=8, num_classes=10).eval()
    for name, parameter in model.named_parameters():  # zeros would hide every block
        if "adaLN" in name or "final" in name:
            nn.init.normal_(parameter, std=0.1)
    return model, [torch.randn(2, 4, 8, 8), torch.tensor([3, 871]), torch.tensor([1, 10])]


def tiny_vlm():
    model = VLM(VISION, {**TEXT, "qk_norm": True}, image_token_id=IMAGE_TOKEN)
    patches, grid_hw = vlm.pack_images(
        [torch.randn(3, 24, 32), torch.randn(3, 19, 16), torch.randn(3, 8, 8)], patch_size=4
    )
    ids = torch.randint(0, IMAGE_TOKEN, (2, 14))
    ids[0, 1:13] = IMAGE_TOKEN
    ids[1, 2:6] = IMAGE_TOKEN
    ids[1, 9] = IMAGE_TOKEN
    return model, [ids, patches, grid_hw]


def tiny_vae():
    return AutoencoderKL(), [torch.randn(1, 3, 32, 32)]


BUILDERS = {
    "vit": tiny_vit,
    "llm": tiny_llm,
    "dit": tiny_dit,
    "vlm": tiny_vlm,
    "vae": tiny_vae,
}


def build(name, dtype=torch.float32):
    """A model in ``dtype`` on mmkern, and its inputs; the same weights at every call."""
    torch.manual_seed(0)
    model, inputs = BUILDERS[name]()
    return cast(model, dtype), cast(inputs, dtype)


def cast(thing, dtype):
    if isinstance(thing, list):
        return [cast(item, dtype) for item in thing]
    if isinstance(thing, nn.Module) or (torch.is_tensor(thing) and thing.is_floating_point()):
        return thing.to(dtype)
    return thing


def reference_of(model, dtype=None):
    """The same weights on plain PyTorch, in ``dtype`` if given."""
    return set_ops(copy.deepcopy(model), "reference").to(dtype)


def forward_and_grads(model, inputs):
    """The output, and the gradients of inputs and weights for one fixed cotangent, by name."""
    inputs = [
        x.clone().requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x
        for x in inputs
    ]
    model.zero_grad()
    out = model(*inputs)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(cotangent.to(out.dtype))
    grads = {f"input {i}": x.grad for i, x in enumerate(inputs) if torch.is_tensor(x)}
    grads |= {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"out": out.detach(), **{k: g for k, g in grads.items() if g is not None}}


def assert_close64(got, wanted):
    """Two float64 evaluations of one formula: a few hundred roundings apart."""
    assert got.dtype == wanted.dtype == torch.float64
    error = (got - wanted).abs().max().item()
    assert error <= 300 * torch.finfo(torch.float64).eps * wanted.abs().max().item(), error
