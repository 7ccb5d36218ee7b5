"""DiT against the paper's formulas and diffusers; guidance, names, initialization."""

import math

import pytest
import torch
from tiny_models import (
    SIZES,
    assert_close64,
    build,
    one_thread,  # noqa: F401
)
from torch.nn import functional as F

from mmkern.models import DiT, ddim


def plain_dit(w, x, t, y, *, heads, patch):
    """The paper's formulas on a state_dict, written out; float64."""

    def linear(name, x):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def attention(name, x):
        b, n, c = x.shape
        qkv = linear(f"{name}.qkv", x).reshape(b, n, 3, heads, c // heads)
        q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
        p = (q @ k.transpose(-1, -2) / (c // heads) ** 0.5).softmax(-1)
        return linear(f"{name}.proj", (p @ v).transpose(1, 2).reshape(b, n, c))

    frequency = torch.exp(-math.log(10000) * torch.arange(128).float() / 128)
    angle = t.float()[:, None] * frequency
    c = torch.cat((angle.cos(), angle.sin()), dim=-1).double()
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", c)))
    c = F.silu(c + w["y_embedder.embedding_table.weight"][y])[:, None]
    x = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch)
    side = x.shape[-1]
    x = x.flatten(2).transpose(1, 2) + w["pos_embed"]
    depth = 1 + max(int(key.split(".")[1]) for key in w if key.startswith("blocks."))
    for i in range(depth):
        b = f"blocks.{i}"
        s1, a1, g1, s2, a2, g2 = linear(f"{b}.adaLN_modulation.1", c).chunk(6, dim=-1)
        x = x + g1 * attention(f"{b}.attn", norm(x) * (1 + a1) + s1)
        hidden = linear(f"{b}.mlp.fc1", norm(x) * (1 + a2) + s2)
        x = x + g2 * linear(f"{b}.mlp.fc2", F.gelu(hidden, approximate="tanh"))
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, dim=-1)
    x = linear("final_layer.linear", norm(x) * (1 + scale) + shift)
    rows = x.reshape(len(x), side, side, patch, patch, -1)
    return torch.einsum("bhwpqc->bchpwq", rows).reshape(len(x), -1, side * patch, side * patch)


def test_dit_agrees_with_the_papers_formulas():
    model, (x, t, y) = build("dit", torch.float64)
    with torch.no_grad():
        wanted = plain_dit(model.state_dict(), x, t, y, heads=3, patch=2)
        assert_close64(model(x, t, y), wanted)
        with pytest.raises(ValueError, match="pos_embed"):
            model(x[:, :, :6], t, y)


def test_dit_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    model, (x, t, y) = build("dit", torch.float64)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
        norm_eps=1e-6,
    )
    weights, w = {}, model.state_dict()

    def put(theirs, ours, value=None):
        for kind in ("weight", "bias"):
            source = w[f"{ours}.{kind}"] if value is None else value[kind]
            weights[f"{theirs}.{kind}"] = source

    put("pos_embed.proj", "x_embedder.proj")
    put("proj_out_1", "final_layer.adaLN_modulation.1")
    put("proj_out_2", "final_layer.linear")
    for i in range(2):
        a, b = f"transformer_blocks.{i}", f"blocks.{i}"
        put(f"{a}.norm1.emb.timestep_embedder.linear_1", "t_embedder.mlp.0")
        put(f"{a}.norm1.emb.timestep_embedder.linear_2", "t_embedder.mlp.2")
        labels = w["y_embedder.embedding_table.weight"]
        weights[f"{a}.norm1.emb.class_embedder.embedding_table.weight"] = labels
        put(f"{a}.norm1.linear", f"{b}.adaLN_modulation.1")
        for j, name in enumerate("qkv"):
            part = {k: w[f"{b}.attn.qkv.{k}"].chunk(3)[j] for k in ("weight", "bias")}
            put(f"{a}.attn1.to_{name}", None, part)
        put(f"{a}.attn1.to_out.0", f"{b}.attn.proj")
        put(f"{a}.ff.net.0.proj", f"{b}.mlp.fc1")
        put(f"{a}.ff.net.2", f"{b}.mlp.fc2")
    theirs.load_state_dict(weights)
    for block in theirs.transformer_blocks:
        # diffusers divides by 127 where the paper's code divides by 128
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    with torch.no_grad():
        wanted = theirs.double().eval()(x, t, y).sample
        assert_close64(model(x, t, y), wanted)


def test_dit_names_and_initialization():
    torch.manual_seed(0)
    model = DiT(**{**SIZES, "depth": 1}, input_size=8, num_classes=10)
    block = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    layers = ["x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2"]
    layers += [f"blocks.0.{name}" for name in block]
    layers += ["final_layer.linear", "final_layer.adaLN_modulation.1"]
    names = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(model.state_dict()) == names | {"pos_embed", "y_embedder.embedding_table.weight"}
    assert model.y_embedder.embedding_table.weight.shape == (11, 48)
    assert not model.pos_embed.requires_grad
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([0, 999]), torch.tensor([0, 9])
    assert torch.equal(model(x, t, y), torch.zeros(2, 8, 8, 8))


def test_dit_labels_are_dropped_in_training_only():
    model, _ = build("dit")
    embedder = model.y_embedder
    labels = torch.arange(10).repeat(1000)
    weight = embedder.embedding_table.weight
    assert torch.equal(embedder(labels), weight[labels])
    embedder.train()
    torch.manual_seed(0)
    dropped = (embedder(labels) == weight[10]).all(-1)
    # 10000 draws with probability 0.1: five standard deviations are 150
    assert abs(dropped.sum().item() - 1000) < 150
    assert torch.equal(embedder(labels)[0], weight[0]) or dropped[0]


def test_guidance():
    model, (x, t, y) = build("dit", torch.float64)
    null = torch.full_like(y, 10)
    args = torch.cat((x, x)), torch.cat((t, t)), torch.cat((y, null))
    with torch.no_grad():
        conditional, unconditional = model(x, t, y), model(x, t, null)
        for guided, channels in ((None, 4), (3, 3)):
            got = model.forward_with_cfg(*args, 4.0, guided_channels=guided)
            eps = unconditional + 4.0 * (conditional - unconditional)
            for half, own in ((got[:2], conditional), (got[2:], unconditional)):
                assert_close64(half[:, :channels], eps[:, :channels])
                assert_close64(half[:, channels:], own[:, channels:])
        predict = ddim.guided_noise(model, y, 1.0)
        same_t = torch.full_like(t, 500)
        assert_close64(predict(x, 500), model(x, same_t, y)[:, :4])
