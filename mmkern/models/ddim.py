"""Deterministic diffusion sampling, DDIM with eta = 0 (Song et al., arXiv:2010.02502, eq. 12).

The schedule is DiT's: 1000 steps, beta linear from 1e-4 to 0.02, and fewer steps spread evenly
over them.
"""

import torch

STEPS = 1000


def alphas_cumprod():
    """Product of (1 - beta) up to each of the 1000 training steps, float64."""
    return torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64).neg().add(1).cumprod(0)


def spaced_timesteps(steps):
    """``steps`` of the 1000 timesteps, evenly spread from 999 down to 0."""
    if not 1 <= steps <= STEPS:
        raise ValueError(f"steps is {steps}; wanted 1 to {STEPS}")
    return torch.linspace(STEPS - 1, 0, steps, dtype=torch.float64).round().int().tolist()


def add_noise(x, noise, timestep):
    """The forward process: sqrt(a) * x + sqrt(1 - a) * noise, a = alphas_cumprod[timestep]."""
    a = alphas_cumprod()[timestep].item()
    return a**0.5 * x + (1 - a) ** 0.5 * noise


def ddim(predict_noise, x, timesteps):
    """Integrate from ``timesteps[0]`` through the descending ``timesteps`` to the clean image.

    ``predict_noise(x, t)`` is the model, t an int; x keeps its shape and dtype.
    """
    alphas = alphas_cumprod().tolist()
    for t, after in zip(timesteps, [*timesteps[1:], None], strict=True):
        a = alphas[t]
        a_after = 1.0 if after is None else alphas[after]
        eps = predict_noise(x, t).to(x.dtype)
        clean = (x - (1 - a) ** 0.5 * eps) / a**0.5
        x = a_after**0.5 * clean + (1 - a_after) ** 0.5 * eps
    return x


def guided_noise(dit, labels, cfg_scale):
    """``predict_noise`` for :func:`ddim`: the DiT under classifier-free guidance.

    ``cfg_scale=1`` is the conditional model alone, at half the cost.
    """
    dtype = dit.pos_embed.dtype

    def predict(x, timestep):
        t = torch.full((len(x),), timestep, device=x.device)
        x = x.to(dtype)
        if cfg_scale == 1:
            return dit(x, t, labels)[:, : dit.in_channels]
        null = torch.full_like(labels, dit.num_classes)
        out = dit.forward_with_cfg(
            torch.cat((x, x)), torch.cat((t, t)), torch.cat((labels, null)), cfg_scale
        )
        return out[: len(x), : dit.in_channels]

    return predict


@torch.no_grad()
def sample(dit, noise, labels, *, steps=50, cfg_scale=4.0):
    """Latents (B, C, h, w) from ``noise`` of that shape; labels (B,). ``dit`` in eval mode."""
    return ddim(guided_noise(dit, labels, cfg_scale), noise, spaced_timesteps(steps))


@torch.no_grad()
def img2img(vae, dit, images, labels, noise, *, strength=0.6, steps=50, cfg_scale=4.0):
    """Repaint images: encode, add noise, denoise with the DiT, decode.

    Args:
        vae, dit: models whose latents agree; in eval mode.
        images: (B, 3, H, W) in [-1, 1].
        labels: (B,) classes.
        noise: (B, C, h, w), of the latents' shape.
        strength: fraction of the ``steps`` that run: 0 only reconstructs, 1 ignores the image
            but for what the last training step keeps of it.

    Returns:
        (B, 3, H, W).
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; wanted 0 to 1")
    latents = vae.encode(images)
    timesteps = spaced_timesteps(steps)[steps - round(strength * steps) :]
    if timesteps:
        x = add_noise(latents, noise, timesteps[0])
        latents = ddim(guided_noise(dit, labels, cfg_scale), x, timesteps)
    return vae.decode(latents.to(images.dtype))
