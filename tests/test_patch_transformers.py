"""What transformers alone has: generation, masks, the attention interface, fast experts."""

import copy

import pytest
import torch
from accuracy import assert_accurate
from patch_checks import counts, oracle_of, run
from patch_models import TEXT, build, ids
from test_models import assert_all_accurate
from tiny_models import cast, one_thread  # noqa: F401

import mmkern
from mmkern.patch.probe import Exact

pytest.importorskip("transformers")

CAUSAL = ["llama", "qwen3", "qwen3_vl", "qwen3_vl_moe", "kimi", "llava", "llava_onevision"]


@pytest.mark.parametrize("name", CAUSAL)
def test_generates_the_same_tokens(name):
    model, inputs = build(name)
    wanted = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    mmkern.patch(model)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False), wanted)


class Forced:
    """A logits processor that lets generate() take the tokens of another run."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, ids, scores):
        chosen = self.tokens[:, ids.shape[1], None]
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


@pytest.mark.parametrize("name", CAUSAL)
def test_generates_in_bfloat16_by_the_rule(name):
    """Logits of one rounding tie, so the tokens are eager's, and the logits along them compared."""
    model, inputs = build(name, torch.bfloat16)
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)

    def logits(model, inputs):
        result = model.generate(
            **inputs, max_new_tokens=8, do_sample=False, eos_token_id=None,
            logits_processor=[Forced(tokens)], output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        assert torch.equal(result.sequences, tokens)
        return torch.stack(result.logits)

    eager = logits(model, inputs)
    with Exact():
        wide = {key: cast(x, torch.float64) for key, x in inputs.items()}
        oracle = logits(copy.deepcopy(model).double(), wide)
    mmkern.patch(model)
    # generate() widens them
    assert_accurate(name, logits(model, inputs).bfloat16(), eager.bfloat16(), oracle, 2)


def test_generates_the_same_tokens_from_a_padded_batch():
    model, inputs = build("qwen3")
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    wanted = model.generate(**inputs, **options)
    mmkern.patch(model)
    assert torch.equal(model.generate(**inputs, **options), wanted)
    static = model.generate(**inputs, **options, cache_implementation="static")
    assert torch.equal(static, wanted)


@pytest.mark.parametrize("name", ["llama", "siglip", "qwen3_vl"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_recomputes(name, reentrant):
    model, inputs = build(name)
    mmkern.patch(model)
    model.train()
    plain = run(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    for module in model.modules():
        if type(module).__name__.endswith(("MLP", "Merger")):
            module.register_forward_pre_hook(lambda m, _: calls.append(type(m).__name__))
    checkpointed = run(model, inputs)
    inside = [c for c in calls if "Merger" not in c]
    layers = {"llama": 2, "siglip": 2, "qwen3_vl": 4}[name]
    heads = 1 if name == "siglip" else 0
    assert len(inside) == 2 * layers + heads
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[key], checkpointed[key]) for key in plain)


def test_vision_tower_makes_one_attention_call_per_layer(monkeypatch):
    model, inputs = build("qwen3_vl")
    mmkern.patch(model)
    calls = []
    attention = mmkern.attention

    def spy(q, k, v, **options):
        calls.append(options.get("cu_seqlens_q"))
        return attention(q, k, v, **options)

    monkeypatch.setattr(mmkern, "attention", spy)
    model(**inputs)
    packed = [c.tolist() for c in calls if c is not None]
    assert packed == [[0, 24, 32]] * 2 and len(calls) == 4


@pytest.mark.parametrize(("name", "layers"), [("qwen3_vl_moe", 2), ("kimi", 1)])
def test_the_gate_of_fast_experts(name, layers):
    """What transformers takes by default; float64 has the eager experts alone."""
    model, inputs = build(name)
    oracle = oracle_of(model, inputs)
    model.config.text_config._experts_implementation = "grouped_mm"
    eager = run(model, inputs)
    report = mmkern.patch(model)
    assert counts(report)["experts"] == layers and not report.left
    assert_all_accurate(run(model, inputs), eager, oracle)
    mmkern.unpatch(model)
    assert all(torch.equal(v, eager[k]) for k, v in run(model, inputs).items())


def masks(kind):
    """Arguments of a call, and the positions whose logits count."""
    keep = torch.ones(2, 9, dtype=torch.bool)
    if kind == "left":
        keep[0, :3] = False
    elif kind == "right":
        keep[1, 5:] = False
    if kind in ("left", "right"):
        return {"attention_mask": keep.long()}, keep
    if kind == "packed":
        position = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3]])
        return {"position_ids": position, "use_cache": False}, keep[:1]
    allowed = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    return {"attention_mask": allowed | torch.eye(9, dtype=torch.bool)}, keep


@pytest.mark.parametrize("kind", ["left", "right", "packed", "arbitrary"])
def test_masks(kind, monkeypatch):
    model, inputs = build("qwen3")
    extra, keep = masks(kind)
    inputs = {"input_ids": inputs["input_ids"][: len(keep)], **extra}
    calls = []
    attention = mmkern.attention
    monkeypatch.setattr(mmkern, "attention", lambda *a, **o: calls.append(o) or attention(*a, **o))
    with torch.no_grad():
        eager = model(**inputs)[0][keep]
        wide = copy.deepcopy(model).double()
        oracle = wide(**inputs)[0][keep]
        mmkern.patch(model)
        assert_accurate(kind, model(**inputs)[0][keep], eager, oracle, 2)
    # an arbitrary mask is scaled_dot_product_attention's
    assert len(calls) == (0 if kind == "arbitrary" else 2)
    if kind == "packed":
        assert calls[0]["cu_seqlens_q"].tolist() == [0, 3, 5, 9]


def test_packed_sequences_by_their_lengths():
    """What flash-attention users pass: lengths of the sequences in a batch of one."""
    model, inputs = build("qwen3")
    tokens = inputs["input_ids"][:1]
    cu = torch.tensor([0, 4, 9], dtype=torch.int32)
    lengths = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": 5, "max_length_k": 5}
    with torch.no_grad():
        apart = [model(input_ids=t)[0] for t in tokens.split([4, 5], dim=1)]
        mmkern.patch(model)
        packed = model(input_ids=tokens, use_cache=False, **lengths)[0]
    torch.testing.assert_close(packed, torch.cat(apart, dim=1))


def test_a_sliding_window_goes_to_sdpa():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    options = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    model = Qwen3ForCausalLM(Qwen3Config(**TEXT, **options)).eval()
    tokens = ids(12)
    with torch.no_grad():
        wanted = model(tokens)[0]
        mmkern.patch(model)
        torch.testing.assert_close(model(tokens)[0], wanted)


def test_attention_dropout_goes_to_sdpa():
    model, inputs = build("qwen3")
    mmkern.patch(model)
    model.train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    torch.manual_seed(0)
    got = model(**inputs)[0]
    mmkern.unpatch(model)
    torch.manual_seed(0)
    torch.testing.assert_close(got, model(**inputs)[0])


def test_the_official_door():
    from transformers import AutoModelForCausalLM

    from mmkern.patch import doors

    doors.register()
    model, inputs = build("qwen3")
    door = AutoModelForCausalLM.from_config(model.config, attn_implementation="mmkern")
    door.load_state_dict(model.state_dict())
    torch.testing.assert_close(door.eval()(**inputs)[0], model(**inputs)[0])
