"""Reference models: accuracy against float64, agreement with the published implementations."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mmkern
from mmkern.models import (
    LLM,
    VLM,
    AutoencoderKL,
    DiT,
    KVCache,
    VisionTower,
    ViT,
    ddim,
    dit,
    img2img,
    llm,
    sample,
    vae,
    vit,
    vlm,
)
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


def assert_rule(got, eager, oracle, factor, name=""):
    """max|got - oracle| <= factor * max|eager - oracle| + one rounding of got's dtype."""
    assert got.shape == oracle.shape and oracle.dtype == torch.float64
    error, eager_error = ((x.double() - oracle).abs().max().item() for x in (got, eager))
    rounding = torch.finfo(got.dtype).eps * oracle.abs().max().item()
    assert error <= factor * eager_error + rounding, (name, error, eager_error, rounding)


def assert_close64(got, wanted):
    """Two float64 evaluations of one formula: a few hundred roundings apart."""
    assert got.dtype == wanted.dtype == torch.float64
    error = (got - wanted).abs().max().item()
    assert error <= 300 * torch.finfo(torch.float64).eps * wanted.abs().max().item(), error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BUILDERS)
def test_accuracy(name, dtype):
    model, inputs = build(name, dtype)
    got = forward_and_grads(model, inputs)
    eager = forward_and_grads(reference_of(model), inputs)
    oracle = forward_and_grads(reference_of(model, torch.float64), cast(inputs, torch.float64))
    assert got.keys() == eager.keys() == oracle.keys()
    for key in got:
        assert got[key].dtype == dtype
        assert_rule(got[key], eager[key], oracle[key], 2 if key == "out" else 3, key)


@pytest.mark.parametrize("name", BUILDERS)
def test_compiles_as_one_graph(name):
    model, inputs = build(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = forward_and_grads(compiled, inputs)
    eager = forward_and_grads(reference_of(model), inputs)
    oracle = forward_and_grads(reference_of(model, torch.float64), cast(inputs, torch.float64))
    for key in eager:
        compiled_key = key if key == "out" or key.startswith("input") else f"_orig_mod.{key}"
        assert_rule(got[compiled_key], eager[key], oracle[key], 3, key)


def test_compiles_with_inductor():
    torch.manual_seed(0)
    model = LLM(**{**TEXT, "depth": 1}, qk_norm=True)
    ids = torch.randint(0, 64, (2, 11))
    with torch.no_grad():
        got = torch.compile(model, fullgraph=True)(ids)
        oracle = reference_of(model, torch.float64)(ids)
        assert_rule(got, reference_of(model)(ids), oracle, 2)


def test_cached_decoding_compiles_without_a_graph_per_token():
    torch._dynamo.reset()
    model, (ids,) = build("llm")
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        cache = KVCache(model, 2, ids.shape[1])
        parts = [compiled(ids[:, :3], cache=cache)]
        parts += [compiled(ids[:, i : i + 1], cache=cache) for i in range(3, 11)]
        oracle = reference_of(model, torch.float64)(ids)
        assert_rule(torch.cat(parts, dim=1), reference_of(model)(ids), oracle, 2)
    assert len(graphs) == 2  # several tokens on an empty cache; one token at any cache length


@pytest.mark.parametrize("name", ["vit", "llm", "dit", "vlm"])
def test_checkpointing_recomputes_blocks_with_the_same_gradients(name):
    model, inputs = build(name)
    plain = forward_and_grads(model, inputs)
    calls = []
    for module in model.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = True
        if type(module).__name__ in ("Block", "DecoderLayer", "DiTBlock", "TowerBlock"):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointed = forward_and_grads(model, inputs)
    assert len(calls) == (8 if name == "vlm" else 4)
    assert all(torch.equal(plain[key], checkpointed[key]) for key in plain)


def test_residual_adds_are_fused_and_attention_reads_the_packed_projection(monkeypatch):
    calls = []

    def record(name):
        function = getattr(mmkern, name)

        def run(*args, **kwargs):
            calls.append(name)
            if name == "attention":
                q, k, v = args
                assert q.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
                assert k.storage_offset() - q.storage_offset() == q.shape[-1] * q.shape[-2]
            return function(*args, **kwargs)

        monkeypatch.setattr(mmkern, name, run)

    for name in ("modulate", "gated_modulate", "gated_residual", "attention", "mlp"):
        record(name)
    block = ["attention", "gated_modulate", "mlp", "gated_modulate"]
    for name in ("vit", "dit"):
        calls.clear()
        model, inputs = build(name)
        model(*inputs)
        assert calls == ["modulate", *block, *block]


def test_ops_argument():
    with pytest.raises(ValueError, match="ops is 'triton'; wanted 'mmkern' or 'reference'"):
        ViT(**SIZES, ops="triton")
    model, _ = build("vlm")
    chosen = {m.ops for m in set_ops(model, "reference").modules() if hasattr(m, "ops")}
    assert chosen == {"reference"}


@pytest.mark.parametrize(
    ("model", "config", "count"),
    [
        (ViT, vit.CONFIGS["vit_b16"], 86_567_656),
        (ViT, vit.CONFIGS["vit_l16"], 304_326_632),
        (DiT, dit.CONFIGS["DiT_XL_2"], 675_129_632),
        (LLM, llm.CONFIGS["qwen3_0_6b"], 596_049_920),
        (LLM, llm.CONFIGS["qwen3_8b"], 8_190_735_360),
        (LLM, llm.CONFIGS["llama3_8b"], 8_030_261_248),
        (AutoencoderKL, vae.CONFIGS["stable_diffusion"], 83_653_863),
    ],
)
def test_published_parameter_counts(model, config, count):
    with torch.device("meta"):
        built = model(**config)
    assert sum(p.numel() for p in built.parameters()) == count


# ViT


def hf_vit(**options):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=80,
        image_size=32,
        patch_size=8,
        num_labels=7,
        initializer_range=0.2,
        **options,
    )
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config).eval()


def test_vit_agrees_with_transformers():
    theirs = hf_vit()
    images = torch.randn(2, 3, 32, 32)
    model, _ = build("vit")
    model.load_state_dict(vit.from_transformers(theirs.state_dict()))
    with torch.no_grad():
        eager, got = theirs(images).logits, model(images)
        oracle = theirs.double()(images.double()).logits
        ours64 = model.double()(images.double())
        resized = torch.randn(2, 3, 40, 24).double()
        theirs_resized = theirs(resized, interpolate_pos_encoding=True).logits
        ours_resized = model(resized)
    assert_close64(ours64, oracle)
    assert_close64(ours_resized, theirs_resized)
    assert_rule(got, eager, oracle, 2)


def test_vit_loads_the_names_of_older_checkpoints():
    theirs = hf_vit()
    old = {
        r"\.layers\.": ".encoder.layer.",
        r"attention\.q_proj": "attention.attention.query",
        r"attention\.k_proj": "attention.attention.key",
        r"attention\.v_proj": "attention.attention.value",
        r"attention\.o_proj": "attention.output.dense",
        r"mlp\.fc1": "intermediate.dense",
        r"mlp\.fc2": "output.dense",
    }
    renamed = {}
    for key, value in theirs.state_dict().items():
        for pattern, replacement in old.items():
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    assert "vit.encoder.layer.1.attention.attention.query.weight" in renamed
    new_names = vit.from_transformers(theirs.state_dict())
    old_names = vit.from_transformers(renamed)
    assert old_names.keys() == new_names.keys() == build("vit")[0].state_dict().keys()
    assert all(torch.equal(old_names[key], new_names[key]) for key in new_names)


def test_siglip_agrees_with_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.SiglipVisionConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=80,
        image_size=30,
        patch_size=7,
    )
    torch.manual_seed(0)
    theirs = transformers.SiglipVisionModel(config).double().eval()
    tiny = {**SIZES, "image_size": 30, "patch_size": 7, "mlp_dim": 80}
    model = ViT(**{**vit.CONFIGS["so400m"], **tiny}).double()
    model.load_state_dict(vit.from_transformers(theirs.state_dict()))
    images = torch.randn(2, 3, 30, 30).double()
    with torch.no_grad():
        wanted = theirs(images).last_hidden_state
        assert_close64(model.forward_features(images), wanted)
        assert torch.equal(model(images), model.forward_features(images).mean(1))


# LLM


def hf_llm(kind, **options):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize(("kind", "tied"), [("Qwen3", False), ("Qwen3", True), ("Llama", False)])
def test_llm_agrees_with_transformers(kind, tied):
    theirs = hf_llm(kind, tie_word_embeddings=tied)
    model = LLM(**TEXT, rope_theta=1e4, qk_norm=kind == "Qwen3", tie_embeddings=tied)
    model.load_state_dict(theirs.state_dict())
    ids = torch.randint(1, 64, (2, 11))
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[0, :4] = False
    with torch.no_grad():
        eager, got = theirs(ids).logits, model(ids)
        oracle = reference_of(model, torch.float64)(ids)
        assert_rule(got, eager, oracle, 2)
        assert_rule(eager, reference_of(model)(ids), oracle, 3)
        eager = theirs(ids, attention_mask=mask.long()).logits[mask]
        got = model(ids, attention_mask=mask)[mask]
        oracle = reference_of(model, torch.float64)(ids, attention_mask=mask)[mask]
        assert_rule(got, eager, oracle, 2)
        assert_rule(eager, reference_of(model)(ids, attention_mask=mask)[mask], oracle, 3)
        for padding in (None, mask):
            theirs_mask = torch.ones_like(ids) if padding is None else padding.long()
            tokens = theirs.generate(
                ids, attention_mask=theirs_mask, max_new_tokens=12, do_sample=False
            )
            ours = model.generate(ids, attention_mask=padding, max_new_tokens=12)
            assert torch.equal(ours, tokens[:, ids.shape[1] :])


def test_cached_decoding_equals_the_full_forward():
    model, (ids,) = build("llm")
    reference = reference_of(model)
    oracle = reference_of(model, torch.float64)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :3] = False

    def decode(model, mask, chunks):
        cache, logits, past = KVCache(model, 2, ids.shape[1]), [], 0
        for n in chunks:
            seen = None if mask is None else mask[:, : past + n]
            logits.append(model(ids[:, past : past + n], attention_mask=seen, cache=cache))
            past += n
        return torch.cat(logits, dim=1)

    with torch.no_grad():
        for padding in (None, mask):
            real = torch.ones_like(mask) if padding is None else padding
            wanted = oracle(ids, attention_mask=padding)[real]
            eager = reference(ids, attention_mask=padding)[real]
            for chunks in ([5, *[1] * 6], [4, 3, 4]):
                assert_close64(decode(oracle, padding, chunks)[real], wanted)
                assert_rule(decode(model, padding, chunks)[real], eager, wanted, 2)
        cache = KVCache(model, 2, 4)
        with pytest.raises(ValueError, match="cache holds 0 of 4 positions; 11 more came"):
            model(ids, cache=cache)
    with pytest.raises(ValueError, match="gradients are enabled"):
        model(ids, cache=cache)


def test_generate_is_the_same_on_both_backends_and_stops():
    model, (ids,) = build("llm")
    tokens = model.generate(ids, max_new_tokens=8)
    assert torch.equal(tokens, reference_of(model).generate(ids, max_new_tokens=8))
    full = ids
    for i in range(8):
        full = torch.cat((full, model(full)[:, -1].argmax(-1, keepdim=True)), dim=1)
        assert torch.equal(full[:, -1], tokens[:, i])
    eos = tokens[0, 2].item()
    stopped = model.generate(ids, max_new_tokens=8, eos_token_id=eos)
    first = (tokens == eos).int().argmax(1)
    for row, stop in enumerate(first):
        end = stop + 1 if (tokens[row] == eos).any() else stopped.shape[1]
        assert torch.equal(stopped[row, :end], tokens[row, :end])
        assert (stopped[row, end:] == eos).all()


def test_packed_sequences_equal_separate_ones():
    model, _ = build("llm")
    oracle = reference_of(model, torch.float64)
    lengths = [4, 0, 11, 1]
    packed = torch.randint(0, 64, (sum(lengths),))
    cu_seqlens = torch.tensor([0, 4, 4, 15, 16], dtype=torch.int32)
    with torch.no_grad():
        got = model(packed, cu_seqlens=cu_seqlens, max_seqlen=11)
        separate = [part[None] for part in packed.split(lengths) if len(part)]
        eager = torch.cat([reference_of(model)(part)[0] for part in separate])
        wanted = torch.cat([oracle(part)[0] for part in separate])
        assert_close64(oracle(packed, cu_seqlens=cu_seqlens), wanted)
    assert_rule(got, eager, wanted, 2)


# DiT


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


# VLM


def kimi_weights(tower, projector):
    """Names and layout of transformers' Kimi_K25: split q, k, v, rotate-half order of q and k."""

    def half_split(rows, heads):
        rows = rows.unflatten(0, (heads, -1))
        return torch.cat((rows[:, 0::2], rows[:, 1::2]), dim=1).flatten(0, 1)

    vision = {}
    names = {
        "patch_embed.pos_emb.weight": "patch_embed.pos_emb.position_embeddings",
        "encoder.final_layernorm": "final_layernorm",
        "encoder.blocks": "layers",
        "norm1": "norm2",
        "norm0": "norm1",
        "mlp.fc1": "mlp.fc2",
        "mlp.fc0": "mlp.fc1",
        ".wo.": ".attn.proj.",
    }
    for key, value in tower.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        if "wqkv" not in key:
            vision[key] = value
            continue
        for name, part in zip("qkv", value.chunk(3), strict=True):
            rows = part if name == "v" else half_split(part, 3)
            vision[key.replace("wqkv", f"attn.{name}_proj")] = rows
    projection = {
        key.replace("linear_1", "in_proj").replace("linear_2", "out_proj"): value
        for key, value in projector.state_dict().items()
    }
    return vision, projection


def test_vision_tower_agrees_with_transformers_kimi():
    pytest.importorskip("transformers")
    from transformers.models.kimi_k25 import configuration_kimi_k25, modeling_kimi_k25

    model, (_, patches, grid_hw) = build("vlm")
    config = configuration_kimi_k25.Kimi_K25VisionConfig(
        patch_size=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=80,
        pos_emb_height=6,
        pos_emb_width=6,
    )
    whole = configuration_kimi_k25.Kimi_K25Config(
        vision_config=config,
        text_config={"model_type": "llama", "hidden_size": 48, "num_attention_heads": 4},
        projection_hidden_size=48,
    )
    theirs = modeling_kimi_k25.Kimi_K25VisionModel(config).eval()
    projector = modeling_kimi_k25.Kimi_K25MultimodalProjection(whole).eval()
    vision, projection = kimi_weights(model.vision_tower, model.multi_modal_projector)
    theirs.load_state_dict(vision)
    projector.load_state_dict(projection)
    grid_thw = torch.tensor([(1, h, w) for h, w in grid_hw])
    reference, oracle = reference_of(model), reference_of(model, torch.float64)
    with torch.no_grad():
        wanted = oracle.vision_tower(patches.double(), grid_hw)
        eager = theirs(patches, grid_thw)
        assert_rule(model.vision_tower(patches, grid_hw), eager.last_hidden_state, wanted, 2)
        own = reference.vision_tower(patches, grid_hw)
        assert_rule(eager.last_hidden_state, own, wanted, 3)
        merged = oracle.encode_images(patches.double(), grid_hw)
        eager = projector(eager.pooler_output)[:, 0]
        assert_rule(model.encode_images(patches, grid_hw), eager, merged, 2)
        assert_rule(eager, reference.encode_images(patches, grid_hw), merged, 3)


def test_packed_images_equal_separate_ones():
    model, (_, patches, grid_hw) = build("vlm")
    oracle = reference_of(model, torch.float64)
    lengths = [h * w for h, w in grid_hw]
    with torch.no_grad():
        parts = list(zip(patches.split(lengths), grid_hw, strict=True))
        wanted = torch.cat([oracle.encode_images(p.double(), [g]) for p, g in parts])
        eager = torch.cat([reference_of(model).encode_images(p, [g]) for p, g in parts])
        assert_close64(oracle.encode_images(patches.double(), grid_hw), wanted)
        assert_rule(model.encode_images(patches, grid_hw), eager, wanted, 2)


def test_visual_tokens_take_the_placeholders_in_order():
    model, (ids, patches, grid_hw) = build("vlm")
    with torch.no_grad():
        x = model.embed(ids, patches, grid_hw)
        visual = model.encode_images(patches, grid_hw)
        text = model.language_model.model.embed_tokens(ids)
        at = ids == IMAGE_TOKEN
        assert torch.equal(x[at], visual) and torch.equal(x[~at], text[~at])
        assert torch.equal(model.embed(ids), text)
    with pytest.raises(ValueError, match=r"input_ids has 16 image tokens \(id 63\); .* make 17"):
        model(ids.masked_fill(torch.arange(14) == 1, 0), patches, grid_hw)
    with pytest.raises(ValueError, match="has 68 patches; patches has 67"):
        model(ids, patches[:-1], grid_hw)


def test_vlm_generates_what_its_logits_say():
    model, (ids, patches, grid_hw) = build("vlm")
    tokens = model.generate(ids, patches, grid_hw, max_new_tokens=5)
    reference = reference_of(model)
    assert torch.equal(tokens, reference.generate(ids, patches, grid_hw, max_new_tokens=5))
    full = ids
    with torch.no_grad():
        for i in range(5):
            logits = model.language_model(
                inputs_embeds=torch.cat(
                    (model.embed(ids, patches, grid_hw), model.embed(full[:, 14:])), dim=1
                )
            )
            full = torch.cat((full, logits[:, -1:].argmax(-1)), dim=1)
            assert torch.equal(full[:, -1], tokens[:, i])


def test_pack_images_crops_and_orders_patches():
    image = torch.arange(3 * 9 * 20).reshape(3, 9, 20).float()
    patches, grid_hw = vlm.pack_images([image], patch_size=4)
    assert grid_hw == [(2, 4)] and patches.shape == (8, 3, 4, 4)
    assert torch.equal(patches[5], image[:, 4:8, 4:8])


# VAE and DDIM


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
        assert_rule(block(x), reference_of(block)(x), oracle, 2)


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
    assert_rule(got, eager, oracle, 2)
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
    assert_rule(got, eager, oracle, 2)


def test_vision_tower_alone_takes_its_published_size():
    with torch.device("meta"):
        tower = VisionTower(**vlm.CONFIGS["kimi_vl_vision"])
    assert tower.patch_embed.pos_emb.weight.shape == (64, 64, 1152)
    assert tower.encoder.blocks[26].mlp.fc0.weight.shape == (4304, 1152)
    assert tower.head_dim == 72
