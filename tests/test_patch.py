"""patch and unpatch themselves: what is chosen, refused, recorded, copied and restored."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from patch_models import build
from tiny_models import one_thread  # noqa: F401
from torch import nn

import mmkern

pytest.importorskip("transformers")


class Mlp(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.act = nn.GELU() if act is None else act
        self.fc2 = nn.Linear(16, 8)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class RMSNorm(nn.Module):
    """With the weight stored as its distance from 1, as Gemma's."""

    def __init__(self, offset):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))
        self.eps = 1e-6
        self.offset = offset

    def forward(self, x):
        wide = x.float()
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (self.offset + self.weight) * y.to(x.dtype)


class LowRank(nn.Linear):
    """What PEFT puts in the place of a linear layer: its forward is more than its weight."""

    def forward(self, x):
        return super().forward(x) + 1


def only(report):
    (entry,) = report.left
    return entry.reason


def test_report_reads_as_a_table():
    model = nn.Sequential(Mlp(), Mlp(), RMSNorm(1.0))
    report = mmkern.patch(model)
    assert [(e.path, e.cls, e.rule, e.ops) for e in report.swapped] == [
        ("0", "Mlp", "mlp", "mlp"),
        ("1", "Mlp", "mlp", "mlp"),
    ]
    head, swapped, left = str(report).splitlines()
    assert head.split() == ["rule", "class", "modules", "mmkern", "ops,", "or", "why", "not"]
    assert swapped.split() == ["swapped", "mlp", "Mlp", "2", "mlp"]
    assert left.startswith("left     rms_norm  RMSNorm  1        the probe differs: error ")
    assert str(mmkern.patch(nn.Linear(2, 2))) == "mmkern.patch: no module of a kind that it knows"


def test_the_probe_refuses_another_formula():
    assert "the probe differs" in only(mmkern.patch(nn.Sequential(RMSNorm(1.0))))
    assert not mmkern.patch(nn.Sequential(RMSNorm(0.0))).left


def test_the_probe_refuses_another_signature():
    class Two(Mlp):
        def forward(self, x, scale):
            return super().forward(x) * scale

    assert "the probe raised TypeError" in only(mmkern.patch(nn.Sequential(Two())))


def test_the_probe_leaves_the_random_state_and_the_weights_alone():
    model = nn.Sequential(Mlp())
    state, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    mmkern.patch(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({"include": ["mlp"]}, {"mlp"}),
        ({"include": ["SiglipMLP", "*.patch_embedding"]}, {"mlp", "patch_embed"}),
        (
            {"exclude": ["attention", "SiglipEncoderLayer"]},
            {"mlp", "patch_embed", "pooling_head"},
        ),
        ({"include": ["encoder.layers.0*"], "exclude": ["mlp"]}, {"residual_norm"}),
    ],
)
def test_include_and_exclude(options, rules):
    model, _ = build("siglip")
    report = mmkern.patch(model, **options)
    assert {e.rule for e in report.swapped} == rules
    assert report.left
    assert {e.reason for e in report.left} == {"excluded by include= or exclude="}
    if "attention" not in rules:
        assert model.config._attn_implementation == "sdpa"


def test_errors():
    with pytest.raises(TypeError, match=r"model is dict; wanted a torch\.nn\.Module"):
        mmkern.patch({})
    with pytest.raises(TypeError, match="include is 'mlp'; wanted a list of patterns"):
        mmkern.patch(Mlp(), include="mlp")
    with pytest.raises(ValueError, match=r"compiled already; wanted it before torch\.compile"):
        mmkern.patch(torch.compile(Mlp()))


def test_a_module_compiled_in_place_is_left():
    model = nn.Sequential(Mlp())
    model[0].compile()
    assert only(mmkern.patch(model)) == "it is compiled: patch before compile()"


def test_a_forward_on_the_instance_is_left_and_survives():
    model = nn.Sequential(Mlp())
    hooked = model[0].forward = lambda x: x
    assert "forward is overridden on the instance" in only(mmkern.patch(model))
    assert mmkern.unpatch(model)[0].forward is hooked


def test_hooks_installed_after_patching_keep_the_swap():
    hooks = pytest.importorskip("accelerate.hooks")

    class Count(hooks.ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    model, x, hook = nn.Sequential(Mlp()), torch.randn(3, 8), Count()
    wanted = model(x)
    mmkern.patch(model)
    swapped = model(x)
    hooks.add_hook_to_module(model[0], hook)
    assert torch.equal(model(x), swapped) and hook.calls == 1
    mmkern.unpatch(model)
    assert torch.equal(model(x), wanted) and hook.calls == 2
    hooks.remove_hook_from_module(model[0])
    assert torch.equal(model(x), wanted)
    hooks.add_hook_to_module(model[0], hook)
    assert "accelerate" in only(mmkern.patch(model))


def test_hooks_on_a_norm_that_a_block_fuses_run():
    hooks = pytest.importorskip("accelerate.hooks")

    class Double(hooks.ModelHook):
        def post_forward(self, module, output):
            return 2 * output

    model, inputs = build("llama")
    norm = model.model.layers[0].post_attention_layernorm
    hooks.add_hook_to_module(norm, Double())
    wanted = model(**inputs)[0]
    hooks.remove_hook_from_module(norm)
    norm.__dict__.pop("forward")  # what accelerate leaves behind
    mmkern.patch(model)
    assert not torch.allclose(model(**inputs)[0], wanted)
    hooks.add_hook_to_module(norm, Double())
    torch.testing.assert_close(model(**inputs)[0], wanted)


@pytest.mark.parametrize("when", ["before", "after"])
def test_adapters_in_place_of_a_linear_layer_run(when):
    model, x = nn.Sequential(Mlp()), torch.randn(3, 8)
    adapter = LowRank(8, 16)
    adapter.load_state_dict(model[0].fc1.state_dict())
    if when == "after":
        mmkern.patch(model)
    model[0].fc1 = adapter
    wanted = Mlp.forward(model[0], x)
    if when == "before":
        mmkern.patch(model)
    assert torch.equal(model(x), wanted)


def test_an_input_may_be_given_by_the_name_that_the_class_has_for_it():
    class Named(Mlp):
        def forward(self, hidden_states):
            return super().forward(hidden_states)

    model, x = Named(), torch.randn(3, 8)
    wanted = model(hidden_states=x)
    assert mmkern.patch(model).swapped
    torch.testing.assert_close(model(hidden_states=x), wanted)
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        model(x=x)


def test_hooks_on_a_linear_layer_run():
    model, x, calls = nn.Sequential(Mlp()), torch.randn(3, 8), []
    mmkern.patch(model)
    model[0].fc1.register_forward_hook(lambda *_: calls.append(1))
    model(x)
    assert calls == [1]


def test_unknown_activations_are_left():
    report = mmkern.patch(nn.Sequential(Mlp(nn.Tanh())))
    assert not report.swapped and "activation Tanh is not one of mmkern.mlp's" in only(report)


def test_modules_in_half_built_states_are_left():
    """DTensors are left; a module on the meta device is probed on a copy and then swapped."""
    with torch.device("meta"):
        model = nn.Sequential(Mlp(), RMSNorm(1.0))
    report = mmkern.patch(model)
    assert [e.cls for e in report.swapped] == ["Mlp"] and "differs" in only(report)
    assert all(p.device.type == "meta" for p in model.parameters())
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 8)
    torch.testing.assert_close(model[0](x), Mlp.forward(model[0], x))


def test_dtensors_are_left():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        x = torch.randn(3, 8)
        late, early = nn.Sequential(Mlp()), nn.Sequential(Mlp())
        early.load_state_dict(late.state_dict())
        wanted = late(x)
        mmkern.patch(early)
        fully_shard(early[0], mesh=mesh)
        torch.testing.assert_close(early(x), wanted)
        assert early[0].forward.func.__name__ == "mlp"
        fully_shard(late[0], mesh=mesh)
        assert "DTensors" in only(mmkern.patch(late))
    finally:
        dist.destroy_process_group()


def test_copies_are_patched_and_can_be_unpatched_alone():
    model, inputs = build("vit")
    wanted = model(**inputs)[0]
    mmkern.patch(model)
    patched = model(**inputs)[0]
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**inputs)[0], patched)
    layer = twin.vit.layers[0] if hasattr(twin.vit, "layers") else twin.vit.encoder.layer[0]
    assert layer.mlp.forward.args[-1] is layer.mlp
    mmkern.unpatch(twin)
    assert torch.equal(twin(**inputs)[0], wanted) and torch.equal(model(**inputs)[0], patched)
    assert twin.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "mmkern"


def test_a_pickle_is_patched_and_can_be_unpatched():
    model, inputs = build("siglip")
    wanted = model(**inputs)[0]
    mmkern.patch(model)
    patched = model(**inputs)[0]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(again(**inputs)[0], patched)
    assert torch.equal(mmkern.unpatch(again)(**inputs)[0], wanted)


def test_a_part_can_be_patched_first():
    model, inputs = build("llama")
    wanted = model(**inputs)[0]
    mmkern.patch(model.model.layers[0])
    mmkern.patch(model.model)
    mmkern.patch(model)
    mmkern.unpatch(model)
    assert torch.equal(model(**inputs)[0], wanted)
    assert model.config._attn_implementation == "sdpa"


def test_an_implementation_chosen_after_patching_stays():
    model, _ = build("llama")
    mmkern.patch(model)
    model.set_attn_implementation("eager")
    mmkern.unpatch(model)
    assert model.config._attn_implementation == "eager"
    (left, _) = mmkern.patch(model, include=["attention"]).left[:2]
    assert "attn_implementation is 'eager'" in left.reason


def test_works_before_a_change_of_dtype():
    model, inputs = build("llama")
    mmkern.patch(model)
    got = model.to(torch.bfloat16)(**inputs)[0]
    mmkern.unpatch(model)
    eager = model(**inputs)[0]
    oracle = copy.deepcopy(model).double()(**inputs)[0]
    assert got.dtype == torch.bfloat16
    assert (got - oracle).abs().max() <= 2 * (
        eager - oracle
    ).abs().max() + 2**-8 * oracle.abs().max()


def test_patching_needs_no_ecosystem():
    code = (
        "import sys, torch, mmkern; "
        "mmkern.patch(torch.nn.Linear(2, 2)); "
        "assert not {'transformers', 'diffusers', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("when", ["before", "after"])
def test_lora_by_peft_trains_on_a_patched_model(when):
    peft = pytest.importorskip("peft")
    model, inputs = build("siglip")
    if when == "before":
        mmkern.patch(model)
    config = peft.LoraConfig(target_modules=["fc1", "q_proj"], r=2, init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config).eval()
    if when == "after":
        mmkern.patch(adapted)
    got = adapted(**inputs)[0]
    mmkern.unpatch(adapted)
    wanted = adapted(**inputs)[0]
    torch.testing.assert_close(got, wanted)
    with adapted.disable_adapter():
        assert not torch.allclose(adapted(**inputs)[0], wanted)
