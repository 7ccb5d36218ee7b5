"""Convolutional autoencoder of latent diffusion (Rombach et al., arXiv:2112.10752).

Names and maths of diffusers' AutoencoderKL, whose checkpoints load. Convolutions and GroupNorm are
PyTorch's own; the single-head attention of the middle blocks, whose head dim is the channel count,
is mmkern.attention.
"""

import torch
from torch import nn
from torch.nn import functional as F

from mmkern.nn import Linear, OpsModule

CONFIGS = {
    "tiny": {"channels": (16, 32, 32, 32), "layers_per_block": 1, "groups": 8},
    "stable_diffusion": {"channels": (128, 256, 512, 512), "layers_per_block": 2, "groups": 32},
}


class ResnetBlock(nn.Module):
    def __init__(self, in_channels, channels, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_shortcut = None
        if in_channels != channels:
            self.conv_shortcut = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SpatialAttention(OpsModule):
    def __init__(self, channels, groups, ops):
        super().__init__(ops)
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = Linear(channels, channels, ops=ops)
        self.to_k = Linear(channels, channels, ops=ops)
        self.to_v = Linear(channels, channels, ops=ops)
        self.to_out = nn.ModuleList([Linear(channels, channels, ops=ops)])

    def forward(self, x):
        y = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (project(y)[:, :, None] for project in (self.to_q, self.to_k, self.to_v))
        y = self.to_out[0](self.f.attention(q, k, v)[:, :, 0])
        return x + y.transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """Residual blocks of one resolution, then a resampler registered under ``name``."""

    def __init__(self, in_channels, channels, depth, groups, resampler=None, name=None):
        super().__init__()
        inputs = [in_channels] + [channels] * (depth - 1)
        self.resnets = nn.ModuleList(ResnetBlock(c, channels, groups) for c in inputs)
        self.resampler_name = name
        if resampler is not None:
            self.add_module(name, nn.ModuleList([resampler(channels)]))

    def forward(self, x):
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.resampler_name is None else getattr(self, self.resampler_name)[0](x)


class MidBlock(nn.Module):
    def __init__(self, channels, groups, ops):
        super().__init__()
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups, ops)])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    def __init__(self, in_channels, out_channels, channels, depth, groups, ops):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        inputs = (channels[0], *channels[:-1])
        halve = [(Downsample, "downsamplers")] * (len(channels) - 1) + [(None, None)]
        self.down_blocks = nn.ModuleList(
            Stage(i, o, depth, groups, *resampler)
            for i, o, resampler in zip(inputs, channels, halve, strict=True)
        )
        self.mid_block = MidBlock(channels[-1], groups, ops)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, in_channels, out_channels, channels, depth, groups, ops):
        super().__init__()
        channels = channels[::-1]
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], groups, ops)
        inputs = (channels[0], *channels[:-1])
        double = [(Upsample, "upsamplers")] * (len(channels) - 1) + [(None, None)]
        self.up_blocks = nn.ModuleList(
            Stage(i, o, depth + 1, groups, *resampler)
            for i, o, resampler in zip(inputs, channels, double, strict=True)
        )
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, x):
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Images to latents of a 2**(len(channels) - 1) times smaller side, and back.

    Args:
        channels: of each resolution, finest first; ``groups`` divides each.
        layers_per_block: residual blocks per resolution (the decoder has one more).
        groups: of the GroupNorms.
        latent_channels, scaling_factor: of the latents the diffusion model sees.
        seed: of the initial weights; the global generator is left as it was.
        ops: "mmkern" or "reference".

    ``CONFIGS`` has the default "tiny" and "stable_diffusion".
    """

    def __init__(
        self,
        *,
        channels=(16, 32, 32, 32),
        layers_per_block=1,
        groups=8,
        image_channels=3,
        latent_channels=4,
        scaling_factor=0.18215,
        seed=0,
        ops="mmkern",
    ):
        super().__init__()
        self.scaling_factor = scaling_factor
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            moments = 2 * latent_channels
            trunk = (channels, layers_per_block, groups, ops)
            self.encoder = Encoder(image_channels, moments, *trunk)
            self.decoder = Decoder(latent_channels, image_channels, *trunk)
            self.quant_conv = nn.Conv2d(moments, moments, 1)
            self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def encode(self, images, *, sample=False, generator=None):
        """images (B, 3, H, W) in [-1, 1] -> scaled latents: the posterior's mean, or a sample."""
        mean, log_variance = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        if sample:
            noise = torch.randn(
                mean.shape, generator=generator, device=mean.device, dtype=mean.dtype
            )
            mean = mean + (0.5 * log_variance.clamp(-30.0, 20.0)).exp() * noise
        return mean * self.scaling_factor

    def decode(self, latents):
        """Scaled latents (B, latent_channels, h, w) -> images (B, 3, H, W)."""
        return self.decoder(self.post_quant_conv(latents / self.scaling_factor))

    def forward(self, images):
        """Reconstruction of the images through the posterior's mean."""
        return self.decode(self.encode(images))
