"""Kimi-VL by structure: classes with the names of its repository's own code."""

import functools

import pytest
import torch
from tiny_models import one_thread  # noqa: F401
from torch.utils.checkpoint import checkpoint

import mmkern

pytest.importorskip("transformers")

from patch_checks import counts
from patch_kimi import Cache, MoonViTEncoderLayer, step_inputs
from patch_models import build


def test_one_packed_attention_call_per_vision_layer(monkeypatch):
    model, inputs = build("kimi_vl")
    mmkern.patch(model)
    calls = []
    attention = mmkern.attention
    monkeypatch.setattr(mmkern, "attention", lambda *a, **o: calls.append(o) or attention(*a, **o))
    model(**inputs)
    packed = [c["cu_seqlens_q"].tolist() for c in calls if "cu_seqlens_q" in c]
    assert packed == [[0, 24, 32]] * 2


def test_a_text_layer_returns_what_was_asked_for():
    model, inputs = build("kimi_vl")
    wanted = model(**inputs, output_attentions=True)[1]
    mmkern.patch(model)
    got = model(**inputs, output_attentions=True)[1]
    assert len(got) == 2
    torch.testing.assert_close(got, wanted)


def test_the_published_eager_attention_is_left():
    """It attends across images, so its layer is not what the swap computes."""
    model, _ = build("kimi_vl")
    for block in model.vision_tower.encoder.blocks:
        block.attn_implementation = "eager"
    left = mmkern.patch(model).left
    assert [e.rule for e in left] == ["vision_block"] * 2 and "differs" in left[0].reason


def test_flash_attention_is_swapped_where_it_cannot_run():
    model, inputs = build("kimi_vl")
    wanted = model(**inputs)[0]
    for block in model.vision_tower.encoder.blocks:
        block.attn_implementation = "flash_attention_2"
    assert not mmkern.patch(model).left
    torch.testing.assert_close(model(**inputs)[0], wanted)
    assert model.vision_tower.encoder.blocks[0].attn_implementation == "flash_attention_2"


def test_layers_that_take_the_longest_segment():
    torch.manual_seed(0)
    layer, x = MoonViTEncoderLayer(4, 32, 48), torch.randn(9, 32)
    angle = torch.randn(9, 4)
    arguments = (x, torch.tensor([0, 3, 9], dtype=torch.int32), 6)
    freqs = torch.polar(torch.ones_like(angle), angle)
    wanted = layer(*arguments, rope_freqs_cis=freqs)
    report = mmkern.patch(layer)
    assert counts(report) == {"vision_block": 1, "mlp": 1}
    torch.testing.assert_close(layer(*arguments, rope_freqs_cis=freqs), wanted)
    torch.testing.assert_close(layer(*arguments, freqs), wanted)


def test_text_layers_recompute_under_checkpoint():
    """As the published model asks for it: around the call of each layer."""
    model, _ = build("kimi_vl")
    mmkern.patch(model)
    x, calls, results = torch.randn(2, 5, 48), [], []
    step = step_inputs(x)
    for layer in model.language_model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
        calls.clear()
        leaf = x.clone().requires_grad_()
        y = leaf
        for layer in model.language_model.model.layers:
            (y,) = run(functools.partial(layer, **step), y)
        y.square().sum().backward()
        results.append((len(calls), y.detach(), leaf.grad))
    (once, *plain), (twice, *again) = results
    assert (once, twice) == (2, 4)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_latent_attention_is_one_causal_call_per_layer(monkeypatch):
    """Of one token and a cache too; another mask goes to scaled_dot_product_attention."""
    text = build("kimi_vl")[0].language_model.model
    x, keep = torch.randn(2, 7, 48), torch.ones(2, 7, dtype=torch.bool)
    keep[1, :3] = False

    def steps():
        cache = Cache()
        with torch.inference_mode():
            outs = [text(part, cache=cache)[0] for part in x.split((5, 1, 1), 1)]
            return torch.cat(outs, 1), text(x, keep=keep)[0]

    wanted = steps()
    assert mmkern.patch(text, include=["mla"]).swapped
    calls, attention = [], mmkern.attention
    monkeypatch.setattr(mmkern, "attention", lambda *a, **o: calls.append(o) or attention(*a, **o))
    got = steps()
    assert [o["causal"] for o in calls] == [True] * 6
    for found, want in zip(got, wanted, strict=True):
        torch.testing.assert_close(found, want)


def test_latent_attention_tells_masks_apart():
    """Soft penalties, rows that see nothing, and a mask that is written to between two calls."""
    attention = build("kimi_vl")[0].language_model.model.layers[0].self_attn
    x, positions = torch.randn(2, 6, 48), torch.arange(6)[None]
    later = torch.ones(6, 6, dtype=torch.bool).triu(1).expand(2, 1, 6, 6)
    lowest = torch.finfo(torch.float32).min
    causal = torch.zeros(2, 1, 6, 6).masked_fill(later, lowest)
    padded = causal.clone()
    padded[1, :, :, :2] = lowest
    masks = causal, padded, torch.zeros(2, 1, 6, 6).masked_fill(later, -1.0)

    def run():
        def call(mask):
            return attention(x, attention_mask=mask, position_ids=positions)[0]

        with torch.inference_mode():
            outs = [call(mask) for mask in masks]
            mask = causal.clone()
            outs += [call(mask), call(mask.zero_())]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return outs, call(padded)

    wanted, wanted_half = run()
    assert mmkern.patch(attention).swapped
    got, got_half = run()
    for found, want in zip(got, wanted, strict=True):
        torch.testing.assert_close(found, want)
    torch.testing.assert_close(got_half, wanted_half, rtol=0.05, atol=0.02)
