"""Every model of docs/models.md, patched and unpatched: numbers, names, modes, files, training."""

import collections
import copy

import pytest
import torch
from accuracy import assert_accurate
from patch_checks import (
    check_accuracy,
    check_autocast,
    counts,
    exact_forward,
    oracle_of,
    output,
    run,
)
from patch_models import BUILDERS, DIFFUSERS, build
from test_models import assert_all_accurate
from tiny_models import cast, one_thread  # noqa: F401
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

import mmkern
from mmkern.patch.probe import Exact

pytest.importorskip("transformers")
pytest.importorskip("diffusers")

# rules that must have swapped something, and the number of modules that each swapped
EXPECTED = {
    "llama": {"attention": 2, "residual_norm": 2, "rope": 2, "gated_mlp": 2, "rms_norm": 5},
    "qwen3": {"attention": 2, "residual_norm": 2, "rope": 2, "gated_mlp": 2, "rms_norm": 9},
    "siglip": {
        "attention": 1, "patch_embed": 1, "residual_norm": 2, "mlp": 3, "pooling_head": 1,
    },
    "vit": {"attention": 2, "patch_embed": 1, "residual_norm": 2, "mlp": 2},
    "qwen3_vl": {
        "attention": 4, "patch_embed": 1, "residual_norm": 4, "vision_attention": 2, "mlp": 2,
        "projector": 2, "rope": 2, "rms_norm": 9, "gated_mlp": 2,
    },
    "qwen3_vl_moe": {
        "attention": 4, "patch_embed": 1, "residual_norm": 4, "vision_attention": 2, "mlp": 2,
        "projector": 2, "rope": 2, "rms_norm": 9,
    },
    "kimi": {
        "attention": 4, "patch_embed": 1, "residual_norm": 4, "vision_attention": 2, "mlp": 2,
        "projector": 1, "rms_norm": 9, "gated_mlp": 2,
    },
    "llava": {
        "attention": 4, "patch_embed": 1, "residual_norm": 4, "mlp": 3, "rope": 2, "rms_norm": 5,
        "gated_mlp": 2,
    },
    "llava_onevision": {
        "attention": 4, "patch_embed": 1, "residual_norm": 4, "mlp": 3, "rope": 2, "rms_norm": 5,
        "gated_mlp": 2,
    },
    "dit": {
        "patch_embed": 1, "adaln_block": 2, "adaln": 2, "mlp": 2, "attention": 2,
        "feed_forward": 2,
    },
    "sd3": {
        "patch_embed": 1, "adaln_block": 2, "adaln": 5, "mlp": 2, "attention": 2,
        "feed_forward": 3,
    },
    "sd35": {
        "patch_embed": 1, "adaln_block": 2, "adaln": 5, "mlp": 2, "attention": 3,
        "feed_forward": 3, "rms_norm": 10,
    },
    "flux": {
        "adaln_block": 2, "adaln": 4, "mlp": 3, "attention": 2, "feed_forward": 2, "rms_norm": 6,
    },
    "wan": {
        "patch_embed": 1, "adaln_block": 2, "mlp": 2, "attention": 4, "feed_forward": 2,
        "rms_norm": 8,
    },
    "wan22": {
        "patch_embed": 1, "adaln_block": 2, "mlp": 2, "attention": 4, "feed_forward": 2,
        "rms_norm": 8,
    },
    "wan_i2v": {
        "patch_embed": 1, "adaln_block": 2, "mlp": 2, "attention": 4, "feed_forward": 3,
        "rms_norm": 10,
    },
    "vae": {"attention": 2},
    "pixart": {
        "patch_embed": 1, "adaln_block": 2, "mlp": 2, "attention": 4, "feed_forward": 2,
    },
    "qwenimage": {
        "adaln_block": 2, "adaln": 1, "mlp": 1, "attention": 2, "feed_forward": 4, "rms_norm": 9,
    },
    "flux2": {
        "adaln_block": 2, "adaln": 1, "mlp": 2, "attention": 2, "swiglu": 3, "rms_norm": 6,
    },
    "hunyuan_video": {
        "patch_embed": 1, "adaln_block": 3, "adaln": 4, "mlp": 5, "attention": 3,
        "feed_forward": 3, "rms_norm": 6,
    },
    "lumina2": {
        "adaln_block": 4, "adaln": 3, "mlp": 1, "attention": 4, "gated_mlp": 4, "rms_norm": 25,
    },
    "kimi_vl": {
        "patch_embed": 1, "vision_block": 2, "mlp": 2, "projector": 1, "mla": 2,
        "residual_norm": 2, "rms_norm": 7, "gated_mlp": 5,
    },
}  # fmt: skip
# float64 has the eager experts alone, which compute their gate by themselves
LEFT = {"qwen3_vl_moe": ["experts"] * 2, "kimi": ["experts"]}


@pytest.fixture(autouse=True)
def compile_anew():
    """torch.compile counts what it compiled of one function across models."""
    yield
    torch._dynamo.reset()


def held(model):
    """What each module's attributes are, to be compared by identity."""
    # rope_deltas: what Qwen3-VL notes of its last call
    return [{k: v for k, v in vars(m).items() if k != "rope_deltas"} for m in model.modules()]


def same_objects(before, after):
    return all(
        old.keys() == new.keys() and all(new[k] is old[k] for k in old)
        for old, new in zip(before, after, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BUILDERS)
def test_accuracy_names_and_the_way_back(name, dtype):
    model, inputs = build(name, dtype)
    model(**inputs)  # transformers installs hooks of its own at the first call
    keys, classes = list(model.state_dict()), [type(m) for m in model.modules()]
    before = held(model)
    eager, report = check_accuracy(model, inputs)
    assert counts(report) == EXPECTED[name]
    assert [e.rule for e in report.left] == LEFT.get(name, [])
    assert list(model.state_dict()) == keys and [type(m) for m in model.modules()] == classes
    again = mmkern.patch(model)
    assert (again.swapped, again.left) == (report.swapped, report.left)
    mmkern.unpatch(model)
    assert same_objects(before, held(model))
    config = getattr(model, "config", None)
    assert getattr(config, "_attn_implementation", "sdpa") == "sdpa"
    restored = run(model, inputs)
    assert restored.keys() == eager.keys()
    assert all(torch.equal(restored[key], eager[key]) for key in eager)


@pytest.mark.parametrize("name", BUILDERS)
def test_autocast(name):
    check_autocast(*build(name))


def calls(model, paths, inputs):
    """How often the children of some modules run, and what the run gives.

    Norms may be fused, and a dropout that drops nothing need not run.
    """
    counter, handles = collections.Counter(), []
    for path in paths:
        for name, child in model.get_submodule(path).named_children():
            if "norm" not in name and name != "dropout":
                key = f"{path}.{name}"
                hook = child.register_forward_pre_hook(lambda *_, k=key: counter.update([k]))
                handles.append(hook)
    torch.manual_seed(1)  # DiT drops labels at random
    result = run(model, inputs)
    for handle in handles:
        handle.remove()
    return counter, result


def checkpoint(model):
    if hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.enable_gradient_checkpointing()


# the autoencoder checkpoints its convolutions, which no swap touches; kimi_vl has none of its own
@pytest.mark.parametrize("name", [n for n in BUILDERS if n not in ("vae", "kimi_vl")])
def test_gradient_checkpointing_recomputes(name):
    model, inputs = build(name)
    unpatched = copy.deepcopy(model).train()
    report = mmkern.patch(model)
    model.train()
    blocks = [e.path for e in report.swapped if e.rule in ("residual_norm", "adaln_block")]
    once, plain = calls(model, blocks, inputs)
    checkpoint(model)
    checkpoint(unpatched)
    twice, checkpointed = calls(model, blocks, inputs)
    wanted, _ = calls(unpatched, blocks, inputs)
    assert twice == wanted and sum(twice.values()) > sum(once.values()) > 0
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[key], checkpointed[key]) for key in plain)


# what torch.compile does not take as one graph, patched or not, and why; their text alone it does
RAGGED = "it reads the sizes of the images, which are a tensor, in Python"
BREAKS = {
    "qwen3_vl": RAGGED,
    "qwen3_vl_moe": RAGGED,
    "kimi": RAGGED,
    "llava_onevision": RAGGED,
    "kimi_vl": RAGGED,
    "lumina2": "it reads the lengths of the texts, which are a tensor, in Python",
}
UNTRACEABLE = (torch._dynamo.exc.TorchDynamoException, GuardOnDataDependentSymNode)
TEXT_ALONE = ["qwen3_vl", "qwen3_vl_moe", "kimi", "llava_onevision"]
WHOLE = [name for name in BUILDERS if name not in BREAKS]


def use_experts(model, implementation):
    """The tests' models have the eager experts, for float64; transformers' own are grouped_mm."""
    text = getattr(getattr(model, "config", None), "text_config", None)
    if hasattr(text, "_experts_implementation"):
        text._experts_implementation = implementation


@pytest.mark.parametrize("name", [*WHOLE, *TEXT_ALONE])
def test_compiles_as_one_graph(name):
    model, inputs = build(name)
    if name in TEXT_ALONE:
        inputs = {"input_ids": inputs["input_ids"].clamp(max=59)}
    with torch.no_grad():
        eager, oracle = output(model(**inputs)), exact_forward(model, inputs)
        use_experts(model, "grouped_mm")
        mmkern.patch(model, check=False)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert_accurate(name, output(compiled(**inputs)), eager, oracle, 2)


@pytest.mark.parametrize("name", BREAKS)
def test_what_breaks_the_graph_does_so_unpatched(name):
    model, inputs = build(name)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad(), pytest.raises(UNTRACEABLE):
        compiled(**inputs)


# whose gradients under torch.compile are not tried here, and why
NO_COMPILED_GRADIENTS = {
    "llama": "time: qwen3 without QK-norm",
    "qwen3_vl_moe": "time: qwen3_vl with experts, which kimi has",
    "sd3": "time: sd35 has all of its swaps",
    "wan22": "time: wan with another timestep",
    "wan_i2v": "time: wan with a second cross-attention",
    "qwenimage": "time: flux and hunyuan_video have its swaps",
    "vae": "aot_eager raises in the backward of its group norms, patched or not",
}


@pytest.mark.parametrize(
    "name", [n for n in (*WHOLE, *TEXT_ALONE) if n not in NO_COMPILED_GRADIENTS]
)
def test_compiles_with_gradients(name):
    model, inputs = build(name)
    if name in TEXT_ALONE:
        inputs = {"input_ids": inputs["input_ids"].clamp(max=59)}
    eager, oracle = run(model, inputs), oracle_of(model, inputs)
    use_experts(model, "grouped_mm")
    mmkern.patch(model, check=False)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = {key.removeprefix("_orig_mod."): v for key, v in run(compiled, inputs).items()}
    # weights of an output that nobody used have a gradient of zeros here, and none in eager
    assert not any(got.pop(key).any() for key in got.keys() - eager.keys())
    assert_all_accurate(got, eager, oracle)


@pytest.mark.parametrize("name", BUILDERS)
def test_save_and_load(name, tmp_path):
    model, inputs = build(name)
    with torch.no_grad():
        wanted = output(model(**inputs))
        patched = copy.deepcopy(model)
        mmkern.patch(patched, check=False)
        got = output(patched(**inputs))
        if name == "kimi_vl":  # a plain module
            torch.save(patched.state_dict(), tmp_path / "weights")
            again = build(name)[0]
            again.load_state_dict(torch.load(tmp_path / "weights"))
        else:
            patched.save_pretrained(tmp_path)
            again = type(model).from_pretrained(tmp_path).eval()
            use_experts(again, "eager")
        assert torch.equal(output(again(**inputs)), wanted)
        patched.load_state_dict(again.state_dict())
        assert torch.equal(output(patched(**inputs)), got)
        mmkern.patch(again, check=False)
        assert torch.equal(output(again(**inputs)), got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [n for n in DIFFUSERS if n != "vae"])
def test_a_denoising_loop_stays_within_the_rule(name, dtype):
    model, inputs = build(name, dtype)

    def sample(model, inputs):
        x = inputs["hidden_states"]
        dim = 1 if x.dim() > 3 else -1  # maps have their channels second, tokens last
        for _ in range(4):
            noise = output(model(**inputs | {"hidden_states": x}))
            x = x - 0.1 * noise.narrow(dim, 0, x.shape[dim])
        return x

    with torch.no_grad():
        eager = sample(model, inputs)
        with Exact():
            wide = {key: cast(x, torch.float64) for key, x in inputs.items()}
            oracle = sample(copy.deepcopy(model).double(), wide)
        mmkern.patch(model, check=False)
        assert_accurate(name, sample(model, inputs), eager, oracle, 2)


def losses(model, inputs, target):
    """The loss of each of 50 steps that move the model's output to the target."""
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    for _ in range(50):
        loss = torch.nn.functional.mse_loss(output(model(**inputs)).float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found)


@pytest.mark.parametrize("name", BUILDERS)
def test_fifty_steps_of_training_follow_the_unpatched_model(name):
    """In float32; in bfloat16 the patched model strays from that at most twice as far as eager."""
    model, inputs = build(name)
    with torch.no_grad():
        wanted_out = output(model(**inputs))
    target = wanted_out + torch.randn(wanted_out.shape, generator=torch.Generator().manual_seed(1))
    patched = copy.deepcopy(model)
    mmkern.patch(patched, check=False)
    narrow, narrow_inputs = build(name, torch.bfloat16)
    narrow_patched = copy.deepcopy(narrow)
    mmkern.patch(narrow_patched, check=False)
    wanted, got = losses(model, inputs, target), losses(patched, inputs, target)
    assert got[-1] < 0.8 * got[0]
    assert (got - wanted).abs().max() < 0.01 * wanted[0]
    eager, got = (losses(m, narrow_inputs, target) for m in (narrow, narrow_patched))
    strays, allowed = (got - wanted).abs().max(), 2 * (eager - wanted).abs().max()
    assert got[-1] < 0.8 * got[0]
    assert strays < allowed + 0.01 * wanted[0], f"{strays} over {allowed}"
