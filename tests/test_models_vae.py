"""Autoencoder and DDIM against diffusers; a photograph from end to end."""

import pytest
import torch
from accuracy import assert_accurate
from tiny_models import (
    assert_close64,
    build,
    one_thread,  # noqa: F401
    reference_of,
)
from torch.nn import functional as F

from mmkern.models import AutoencoderKL, ddim, img2img, sample, vae


def test_vae_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
    )
    model = AutoencoderKL(seed=5).double()
    theirs.double().load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 40).double()
    with torch.no_grad():
        posterior = theirs.encode(images).latent_dist
        latents = model.encode(images)
        assert latents.shape == (2, 4, 4, 5)
        assert_close64(latents, posterior.mean * 0.18215)
        assert_close64(model.decode(latents), theirs.decode(latents / 0.18215).sample)
        assert_close64(
            model.encode(images, sample=True, generator=torch.Generator().manual_seed(3)),
            posterior.sample(torch.Generator().manual_seed(3)) * 0.18215,
        )


def test_vae_weights_come_from_its_seed():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = AutoencoderKL(seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    again, other = AutoencoderKL(seed=1).state_dict(), AutoencoderKL(seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["encoder.conv_in.weight"], other["encoder.conv_in.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vae_attention_at_the_published_width(dtype):
    torch.manual_seed(0)
    block = vae.SpatialAttention(512, 32, "mmkern").to(dtype)
    x = torch.randn(1, 512, 6, 8).to(dtype)
    with torch.no_grad():
        oracle = reference_of(block, torch.float64)(x.double())
        assert_accurate("images", block(x), reference_of(block)(x), oracle, 2)


def test_ddim_recovers_a_point_distribution():
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 6, 6, dtype=torch.float64)
    alphas = ddim.alphas_cumprod()

    def ideal(x, t):
        return (x - alphas[t].sqrt() * clean) / (1 - alphas[t]).sqrt()

    for steps in (1, 7, 50):
        timesteps = ddim.spaced_timesteps(steps)
        assert len(timesteps) == steps and timesteps[0] == 999
        assert (ddim.ddim(ideal, noise, timesteps) - clean).abs().max() < 1e-12
    assert timesteps[-1] == 0 and timesteps == sorted(set(timesteps), reverse=True)


def test_ddim_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(20)
    torch.manual_seed(0)
    x, weight = torch.randn(1, 4, 6, 6).double(), torch.randn(4, 4, 1, 1).double() * 0.3

    def predict(x, t):
        return F.conv2d(x, weight).sin()

    wanted = x
    for t in scheduler.timesteps:
        wanted = scheduler.step(predict(wanted, t), t, wanted).prev_sample
    got = ddim.ddim(predict, x, scheduler.timesteps.tolist())
    # diffusers keeps its schedule in float32: a relative 1e-7 per step, 20 steps
    assert (got - wanted).abs().max() < 20 * torch.finfo(torch.float32).eps * wanted.abs().max()


def photograph(side):
    """The middle of a real photograph, (1, 3, side, side) in [-1, 1]."""
    data = pytest.importorskip("skimage.data")
    pixels = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return F.interpolate(pixels, (side, side), mode="area")


def test_img2img_on_a_photograph():
    images = photograph(64)
    autoencoder = AutoencoderKL().eval()
    model, _ = build("dit")
    noise = torch.randn(1, 4, 8, 8)
    label = torch.tensor([3])

    def paint(vae, dit, dtype, strength):
        return img2img(
            vae, dit, images.to(dtype), label, noise.to(dtype), strength=strength, steps=6
        )

    got = paint(autoencoder, model, torch.float32, 0.5)
    eager = paint(reference_of(autoencoder), reference_of(model), torch.float32, 0.5)
    oracle = paint(
        reference_of(autoencoder, torch.float64),
        reference_of(model, torch.float64),
        torch.float64,
        0.5,
    )
    assert_accurate("images", got, eager, oracle, 2)
    with torch.no_grad():
        untouched = paint(autoencoder, model, torch.float32, 0.0)
        assert torch.equal(untouched, autoencoder(images))
        assert not torch.equal(untouched, got)
    with pytest.raises(ValueError, match=r"strength is 1\.5"):
        paint(autoencoder, model, torch.float32, 1.5)


def test_sampling_in_bfloat16():
    model, _ = build("dit", torch.bfloat16)
    torch.manual_seed(2)
    noise, labels = torch.randn(2, 4, 8, 8), torch.tensor([1, 7])
    got = sample(model, noise, labels, steps=4)
    eager = sample(reference_of(model), noise, labels, steps=4)
    oracle = sample(reference_of(model, torch.float64), noise.double(), labels, steps=4)
    assert got.dtype == torch.float32
    assert_accurate("images", got, eager, oracle, 2)
