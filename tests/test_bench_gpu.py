"""The GPU run, without a GPU: its targets on made-up numbers, its rows on the CPU."""

import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch

from mmkern.bench import contest, cost, peers, readme, shapes
from mmkern.cases import Case, T

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import gpu_shapes
import gpu_targets
import gpu_times

DOCS = Path(__file__).parent.parent / "docs" / "triton.md"
COPY = 3000.0
PEERS = {
    "attention": ("SDPA flash", "SDPA cudnn", "FlexAttention", "flash-attn"),
    "patch_embed": ("GEMM alone",),
}
#: what an H100 should reach: op, pass, least of what is measured
WANTED = {
    *((op, "forward", least) for op in gpu_targets.STREAMING for least in (0.87, 1.0)),
    *((op, "backward", 0.75) for op in gpu_targets.STREAMING),
    *(("attention", "forward", least) for least in (480.0, 1.25, 1.0)),
    ("patch_embed", "forward", 1 / 1.1),
    ("mlp", "forward", 1.0),
    ("mlp", "backward", 1.0),
}


def row(case, passes, fraction=0.9, tflops=500.0, ms=1.0, peer_ms=1.5, kept=1.0, size=1 << 30):
    """A row in which mmkern reaches ``fraction`` of the copy, and each peer takes ``peer_ms``."""
    found = {"op": case.op, "function": case.function, "name": case.name, "pass": passes}
    peers = ("eager", "torch.compile", *PEERS.get(case.op, ()))
    contestants = {name: {"ms": peer_ms} for name in peers}
    contestants["mmkern"] = {"ms": ms, "gbps": fraction * COPY, "tflops": tflops}
    found |= {"contestants": contestants, "errors": {}, "bytes": size}
    if case.op == "mlp" and passes == "backward":
        rows = math.prod(case.args["x"].shape[:-1]) // case.args.get("merge", 1) ** 2
        hidden = 2 * rows * case.args["w1"].shape[0]
        found["kept_bytes"] = {"mmkern": hidden, "eager": hidden + kept * hidden}
    return found


def judged(**numbers):
    rows = [row(c, p, **numbers) for c in gpu_shapes.CASES for p in ("forward", "backward")]
    return gpu_targets.verdicts(rows, COPY)


def by_name(found):
    cases = {case.id: case for case in gpu_shapes.CASES}
    return {(cases[v["case"]].op, v["pass"], v["wanted"]) for v in found}


def test_every_target_has_a_verdict_measured_or_not():
    assert by_name(judged()) == WANTED
    empty = gpu_targets.verdicts([], COPY)
    assert by_name(empty) == WANTED and len(empty) == len(judged())
    assert {v["verdict"] for v in empty} == {"not measured"}


def test_targets_pass_at_good_numbers_and_miss_at_bad_ones():
    assert {v["verdict"] for v in judged()} == {"pass"}
    bad = judged(fraction=0.7, tflops=479.0, peer_ms=0.9, kept=0.5)
    assert {v["verdict"] for v in bad} == {"miss"}


@pytest.mark.parametrize(
    ("numbers", "missed"),
    [
        ({"fraction": 0.8}, {0.87}),
        ({"tflops": 470.0}, {480.0}),
        ({"peer_ms": 1.2}, {1.25}),
        ({"kept": 0.9}, {1.0}),
    ],
)
def test_each_number_decides_its_own_target(numbers, missed):
    assert {v["wanted"] for v in judged(**numbers) if v["verdict"] == "miss"} == missed


def test_the_fastest_peer_that_ran_is_the_one_to_beat():
    case = next(c for c in gpu_shapes.CASES if c.name == "packed_64")
    found = row(case, "forward")
    found["contestants"]["flash-attn"]["ms"] = 0.5

    def verdict():
        return next(v for v in gpu_targets.verdicts([found], COPY) if v["case"] == case.id)

    assert (verdict()["against"], verdict()["measured"]) == ("flash-attn", 0.5)
    assert verdict()["verdict"] == "miss"
    del found["contestants"]["mmkern"]
    assert verdict()["verdict"] == "not measured"


def test_the_verdicts_of_a_run_are_a_table_of_the_docs(tmp_path):
    about = dict.fromkeys(("torch", "triton", "commit", "date", "command"), "x")
    found = {
        "schema": "mmkern-gpu/1", "environment": about | {"device": "NVIDIA H100"},
        "copy_gbps": COPY, "correctness": {"run": 9, "failures": ["one"]},
        "targets": judged(tflops=470.0)[:20] + gpu_targets.verdicts([], COPY)[20:],
    }  # fmt: skip
    evidence, document = tmp_path / "gpu.json", tmp_path / "triton.md"
    evidence.write_text(json.dumps(found))
    document.write_text(DOCS.read_text())
    assert readme.main([str(evidence), str(document), "--check"]) == 1
    assert readme.main([str(evidence), str(document)]) == 0
    text = document.read_text()
    assert "| gated_modulate-flux | forward | 0.9 | 0.87 | of a copy's bandwidth" in text
    assert "| not measured |" in text and "1 of 9 checks failed" in text and "H100" in text


def test_bandwidth_of_small_tensors_is_no_target():
    assert not [v for v in judged(size=1 << 20) if v["wanted"] in (0.87, 0.75)]


def test_a_peer_that_overwrites_its_inputs_gets_copies(monkeypatch):
    """As Liger's gated unit does in its backward."""

    class Overwriting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, gate, up):
            ctx.both = gate.detach(), up.detach()
            return torch.nn.functional.silu(gate) * up

        @staticmethod
        def backward(ctx, grad):
            return tuple(t.fill_(7.0).clone() for t in ctx.both)

    module = types.SimpleNamespace(LigerSiLUMulFunction=Overwriting)
    monkeypatch.setitem(sys.modules, "liger_kernel.ops.swiglu", module)
    case = Case("glu", "tiny", {"gate": T((3, 8)), "up": T((3, 8)), "activation": "silu"})
    kwargs = case.make(torch.float32)
    before = {n: kwargs[n].clone() for n in ("gate", "up")}
    liger = {"Liger": gpu_shapes.peers(case, backward=True)["Liger"]}
    calls, errors, results = gpu_times._calls(liger, kwargs, case.differentiable(), True)
    assert not errors and calls and all((g == 7).all() for g in results["Liger"])
    assert all(torch.equal(kwargs[n], t) for n, t in before.items())


def test_a_row_counts_bytes_flops_and_what_is_kept():
    args = {
        "x": T((8, 4)), "w1": T((64, 4)), "b1": T((64,)), "w2": T((4, 64)), "b2": T((4,)),
        "activation": "gelu",
    }  # fmt: skip
    case = Case("mlp", "tiny", args)
    plain = lambda case, backward: {"eager": gpu_shapes.eager.mlp}  # noqa: E731
    found = gpu_times.times_of(case, torch.float32, True, gpu_times.Host(), plain)
    # eager keeps the hidden layer before and after the activation
    assert found["kept_bytes"] == {"eager": 2 * 8 * 64 * 4, "mmkern": 8 * 64 * 4}
    assert found["flops"] == 2 * 2 * 8 * 2 * 64 * 4
    assert set(found["contestants"]) == {"eager", "mmkern"} and not found["errors"]
    assert found["difference"] < 1e-5


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (5, 48)], ids=["pixels", "patches"])
def test_the_gemm_alone_is_the_product_of_patch_embed(shape):
    x, weight = torch.randn(shape), torch.randn(6, 3, 4, 4)
    alone = gpu_shapes._gemm_alone()
    wanted = gpu_shapes.eager.patch_embed_linear(x, weight).reshape(-1, 6)
    assert torch.allclose(alone(x=x, weight=weight), wanted, atol=1e-4)


def test_backward_flops_count_both_head_dims():
    kimi = next(c for c in gpu_shapes.CASES if c.name == "kimi_mla")
    args = {n: torch.empty(t.shape, device="meta") for n, t in kimi.args.items() if n != "causal"}
    pairs = 16 * 4096 * 4097 // 2
    assert cost.flops("attention", args | {"causal": True}) == pairs * 2 * (192 + 128)
    found = cost.flops("attention", args | {"causal": True}, "backward")
    assert found == pairs * (6 * 192 + 4 * 128)


@pytest.mark.parametrize("passes", ["forward", "backward", "forward+backward"])
def test_a_peer_that_overwrites_shares_no_tensor_with_the_others(passes, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", [])

    class Rotating(torch.autograd.Function):
        @staticmethod
        def forward(ctx, gate, up):
            out = torch.nn.functional.silu(gate.detach()) * up
            gate.detach().zero_()
            return out

        @staticmethod
        def backward(ctx, grad):
            return grad.zero_(), grad

    @peers.peer("glu", "overwriting", overwrites=True)
    def overwriting(gate, up, activation="silu"):
        return Rotating.apply(gate, up)

    case = Case("glu", "tiny", {"gate": T((3, 8)), "up": T((3, 8))}, shapes.BENCH)
    workload = shapes.Workload(case, "model", "3x8")
    device = torch.device("cpu")
    made = contest.op_contest(workload, torch.float32, device, 0, passes=passes, peers=True)
    with torch.set_grad_enabled(made.backward):
        before = contest.as_tuple(made.bind(made.functions["eager"])())
        contest.as_tuple(made.bind(made.functions["overwriting"])())
        after = contest.as_tuple(made.bind(made.functions["eager"])())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(t.abs().max() > 0 for t in before)
