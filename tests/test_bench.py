"""The benchmark harness: statistics, order, files, tables, and one short run of the job."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from bench_helpers import CPU, FAST, recorder, run_tiny

from mmkern.bench import (
    contest,
    cost,
    eager,
    job,
    machine,
    overhead,
    photos,
    results,
    shapes,
    timing,
    workloads,
)
from mmkern.cases import Case, T


class Clock:
    """A timer that a call advances by what it costs."""

    def __init__(self, noise=lambda: 1.0):
        self.now = 0.0
        self.noise = noise
        self.log = []

    def __call__(self):
        return self.now

    def work(self, name, seconds):
        def call():
            self.log.append(name)
            self.now += seconds * self.noise()

        return call


def sampled(seconds, plan, noise=lambda: 1.0):
    clock = Clock(noise)
    calls = {name: clock.work(name, s) for name, s in seconds.items()}
    return timing.measure(calls, plan, timer=clock), clock


def test_rounds_turn_the_order_around():
    plan = timing.Plan(sample_s=1.0, min_rounds=4, max_rounds=4)
    samples, clock = sampled({"a": 2.0, "b": 3.0, "c": 4.0}, plan)
    assert "".join(clock.log[-12:]) == "abccbaabccba"
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}


def test_short_calls_are_repeated_until_a_sample_is_full():
    plan = timing.Plan(sample_s=1.0, min_rounds=3, max_rounds=3)
    samples, clock = sampled({"short": 0.01, "long": 5.0}, plan)
    assert samples["short"] == pytest.approx([0.01] * 3)
    rounds = "".join("s" if name == "short" else "l" for name in clock.log).rpartition("l")[0]
    assert "s" * 100 in rounds
    assert "ll" in rounds and "lll" not in rounds[rounds.index("s") :]


def test_rounds_stop_at_the_precision_the_budget_or_the_limit():
    quiet = timing.Plan(sample_s=1.0, min_rounds=3, max_rounds=50, budget_s=1e9)
    assert len(sampled({"a": 2.0, "b": 1.0}, quiet)[0]["a"]) == 3
    rng = np.random.default_rng(0)
    noisy = lambda: rng.uniform(0.5, 2)  # noqa: E731
    assert len(sampled({"a": 2.0, "b": 1.0}, quiet, noisy)[0]["a"]) == 50
    short = timing.Plan(sample_s=1.0, min_rounds=3, max_rounds=50, budget_s=20.0)
    assert 3 < len(sampled({"a": 2.0, "b": 1.0}, short, noisy)[0]["a"]) < 20


def test_pace_takes_fewer_rounds_when_time_is_short():
    plan = timing.Plan(min_rounds=9, budget_s=1.0)
    assert timing.paced(plan, seconds_left=30, rows_left=10) == plan
    late = timing.paced(plan, seconds_left=6, rows_left=10)
    assert (late.min_rounds, late.budget_s) == (4, pytest.approx(0.2))
    overdue = timing.paced(plan, seconds_left=-5, rows_left=10)
    assert (overdue.min_rounds, overdue.budget_s) == (4, 0.1)


def test_paired_ratio_cancels_what_slows_both():
    rng = np.random.default_rng(1)
    machine_load = rng.uniform(1, 5, size=40)
    own = rng.normal(1, 0.01, size=(2, 40))
    found = timing.ratio(1.5 * machine_load * own[0], machine_load * own[1])
    assert found.value == pytest.approx(1.5, rel=0.02)
    assert found.low <= found.value <= found.high
    assert (found.high - found.low) / found.value < 0.03


def test_interval_covers_the_true_median():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(100):
        found = timing.median(rng.lognormal(0, 0.2, size=25), draws=300)
        hits += found.low <= 1.0 <= found.high
    assert 88 <= hits < 100


def test_ratio_of_unpaired_samples_is_an_error():
    with pytest.raises(ValueError, match="3 samples to 2; wanted pairs"):
        timing.ratio([1, 2, 3], [1, 2])


def test_a_sleep_is_timed_at_its_length():
    import time

    plan = timing.Plan(sample_s=0.001, min_rounds=5, max_rounds=5)
    samples = timing.measure({"sleep": lambda: time.sleep(0.005)}, plan)
    assert 0.005 <= timing.median(samples["sleep"]).value < 0.02


@pytest.mark.parametrize("workload", workloads.WORKLOADS, ids=lambda w: w.id)
def test_every_workload_is_a_tagged_case_of_the_table(workload):
    assert isinstance(workload.case, Case)
    assert "bench" in workload.case.tags
    assert workload.model and workload.shape
    assert set(workload.rivals) <= set(eager.RIVALS)


def test_workload_ids_are_unique_and_cover_every_op():
    ids = [w.id for w in workloads.WORKLOADS]
    assert len(set(ids)) == len(ids)
    assert set(workloads.OPS) == set(overhead.TINY) == set(contest.library.OPS)
    assert {w.case.op for w in workloads.WORKLOADS if w.quick} == set(workloads.OPS)


#: the functions that each model calls, and a word of its rows
VISION = "patch_embed attention gated_modulate mlp"
MODELS = {
    "ViT-L": VISION,
    "SigLIP": VISION,
    "Qwen3-VL vision": "patch_embed attention rope",
    "Qwen3-VL and Kimi-VL vision": "gated_modulate",
    "Kimi-VL and Qwen3-VL vision": "mlp",
    "Qwen3-VL-8B": "mlp",
    "Qwen3-8B": "attention rms_norm rope glu",
    "Qwen3-VL-30B-A3B": "mlp attention rms_norm rope glu",
    "Kimi-VL vision": "patch_embed attention rope",
    "Kimi-VL projector": "mlp",
    "Kimi-VL, one expert": "glu",
    "Kimi-VL, residual": "rms_norm",
    "Kimi-VL language": "attention rope",
    **dict.fromkeys(("DiT-XL/2, 256", "DiT-XL/2, 512"), "patch_embed attention gated_modulate"),
    **dict.fromkeys(("DiT-XL/2 MLP, 256", "DiT-XL/2 MLP, 512"), "mlp"),
    "SD3": "patch_embed attention modulate gated_modulate mlp rms_norm",
    "FLUX.1": "patch_embed attention gated_modulate mlp rope",
    **dict.fromkeys(
        ("Wan2.1-1.3B", "Wan2.1-14B"), "patch_embed attention gated_modulate mlp rms_norm rope"
    ),
}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_in_the_table_with_each_of_its_ops(model):
    found = {w.case.function for w in workloads.WORKLOADS if model in w.model}
    assert not set(MODELS[model].split()) - found


def test_eager_baselines_compute_what_the_references_do():
    """On every correctness case that the baselines take, in float64."""
    from mmkern.cases import CASES

    reference = contest.mmkern.reference
    compared = 0
    for case in CASES:
        kwargs = {n: contest.widened(v) for n, v in case.make(torch.float64).items()}
        empty = case.op == "attention" and "empty_row" in case.name
        causal_overhang = "more_queries" in case.name or "cross" in case.name
        if kwargs.pop("return_lse", False) or empty or causal_overhang:
            continue
        got = contest.as_tuple(getattr(eager, case.function)(**kwargs))
        wanted = contest.as_tuple(getattr(reference, case.function)(**kwargs))
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=case.id)
        compared += 1
    assert compared > 80


def test_rivals_compute_what_their_baselines_do():
    for workload in workloads.WORKLOADS:
        for name in workload.rivals:
            case = workload.case
            if case.name not in ("dit_xl2", "qwen3_8b_decode", "qwen3_8b"):
                continue
            kwargs = case.make(torch.float32)
            got = eager.RIVALS[name](**kwargs)
            wanted = getattr(eager, case.function)(**kwargs)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_flops_count_what_the_mask_lets_through():
    q = torch.empty(2, 3, 4, 8)
    k = torch.empty(2, 5, 2, 8)
    v = torch.empty(2, 5, 2, 6)
    pairs = {(): 15, (("causal", True),): 3 + 4 + 5, (("window", (1, 0)),): 6}
    for options, count in pairs.items():
        found = cost.flops("attention", {"q": q, "k": k, "v": v, **dict(options)})
        assert found == 2 * 2 * 4 * count * (8 + 6)
    packed = {"q": q[0], "k": k[0], "v": v[0], "causal": False}
    packed["cu_seqlens_q"] = torch.tensor([0, 1, 3], dtype=torch.int32)
    packed["cu_seqlens_k"] = torch.tensor([0, 2, 5], dtype=torch.int32)
    product = 2 * 4 * (1 * 2 + 2 * 3)
    assert cost.flops("attention", packed) == product * (8 + 6)
    # the scores again, dq and dk; dv and the weights' gradients
    assert cost.flops("attention", packed, "backward") == product * (3 * 8 + 2 * 6)
    assert cost.flops("attention", packed, "forward+backward") == product * (4 * 8 + 3 * 6)


def test_flops_of_the_matrix_products():
    w = torch.empty(10, 3, 2, 2)
    assert cost.flops("patch_embed", {"x": torch.empty(2, 3, 5, 6), "weight": w}) == 2 * 2 * 6 * 120
    assert cost.flops("patch_embed", {"x": torch.empty(7, 12), "weight": w}) == 2 * 7 * 120
    mlp = {"x": torch.empty(8, 3), "w1": torch.empty(5, 12), "w2": torch.empty(6, 5), "merge": 2}
    assert cost.flops("mlp", mlp) == 2 * 2 * (60 + 30)
    assert cost.flops("glu", {"gate": torch.empty(4)}) is None


def test_photographs_are_real_and_differ():
    images = photos.pixels(4, 3, 48, 64)
    assert images.shape == (4, 3, 48, 64)
    assert images.std() > 0.3 and images.abs().max() < 1.6
    assert len({round(float(image.mean()), 4) for image in images}) == 4
    assert torch.equal(photos.pixels(5, 3, 48, 64)[4], images[0])
    flat = photos.activations(3200, 16, torch.Generator().manual_seed(0))
    assert torch.allclose(flat.std(1, unbiased=False), torch.ones(3200), atol=1e-2)
    assert torch.equal(flat[3136:], flat[:64])


def test_missing_photographs_say_what_to_install(monkeypatch, tmp_path):
    import skimage.data

    photos.photographs.cache_clear()
    monkeypatch.setattr(skimage.data, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(photos.PhotographsMissing, match=r"astronaut.png.*pip install"):
        photos.photographs()
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(photos.PhotographsMissing, match="pip install scikit-image"):
        photos.photographs()


def test_a_right_result_is_timed():
    row = run_tiny(lambda x: x * 2)
    assert row["status"] == "ok"
    assert row["times"]["mmkern"]["rounds"] == row["times"]["eager"]["rounds"] == 3
    assert row["ratios"]["eager"]["low"] <= row["ratios"]["eager"]["value"]
    assert row["errors"]["eager"]["multiple"] == pytest.approx(1)
    assert row["errors"]["mmkern"]["multiple"] < 0.01


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * 2.001, "wrong result: error 1.00e-03"),
        (lambda x: (x * 2).masked_fill(x > 0.99, float("nan")), "wrong result: error inf"),
        (lambda x: (x * 2)[:-1], "wrong result: error inf"),
        (lambda x: x.undefined, "mmkern raised AttributeError"),
    ],
    ids=["inaccurate", "nan", "shape", "raises"],
)
def test_a_wrong_result_has_no_time(function, message):
    row = run_tiny(function)
    assert row["status"] == "failed"
    assert row["message"].startswith(message)
    assert "median_ms" not in row["times"].get("mmkern", {})
    assert row["ratios"] == {}
    json.dumps(row, allow_nan=False)


def test_accuracy_rule_allows_twice_eagers_error_and_no_more():
    assert run_tiny(lambda x: x * 2 * (1 + 1.9e-4))["status"] == "ok"
    assert run_tiny(lambda x: x * 2 * (1 + 2.1e-4))["status"] == "failed"


def test_a_baseline_that_raises_leaves_mmkern_unchecked():
    def broken(x):
        raise NotImplementedError("no kernel\nlong story")

    row = run_tiny(
        lambda x: x * 2, exact=lambda x: x * 2 if x.dtype == torch.float64 else broken(x)
    )
    assert row["times"]["eager"] == {"error": "NotImplementedError: no kernel"}
    assert row["status"] == "failed" and row["message"].startswith("not checked: eager raised")


def test_training_contest_checks_gradients():
    case = Case("glu", "g", {"gate": T((3, 8)), "up": T((3, 8))}, shapes.BENCH)
    workload = shapes.Workload(case, "model", "3x8", backward=True)
    made = contest.op_contest(workload, torch.float32, CPU, 0)
    assert made.factors == (2.0, 3.0, 3.0)
    row = contest.run(made, FAST, device=CPU, compile=False)
    assert row["status"] == "ok" and row["variant"] == "forward+backward"
    out, dgate, dup = made.oracle()
    assert out.dtype == dgate.dtype == dup.dtype == torch.float64


@pytest.mark.parametrize("op", workloads.OPS)
def test_overhead_compares_the_call_with_the_raw_op_on_the_same_arguments(op):
    calls = overhead.calls(op, CPU)
    with torch.no_grad():
        whole, raw = (contest.as_tuple(calls[name]()) for name in ("call", "kernel"))
    wanted = raw[-1:] if op == "modulate" or op == "rms_norm" else raw[: len(whole)]
    assert all(torch.equal(a, b) for a, b in zip(whole, wanted, strict=True))


def test_an_interrupt_keeps_the_rows_that_are_done(monkeypatch, tmp_path):
    def interrupt(pace):
        raise KeyboardInterrupt

    def row(name, run):
        return job.Row({"kind": "op", "op": "glu", "name": name, "dtype": "float32"}, run)

    rows = [row("first", lambda pace: run_tiny(lambda x: x * 2)), row("second", interrupt)]
    monkeypatch.setattr(job, "chosen", lambda options: rows)
    monkeypatch.setattr(machine, "_best", lambda call, device: 1e-3)
    console = recorder()
    assert job.run(job.Options(output=tmp_path), console) == 130
    kept = results.load(tmp_path / "results.json")
    assert [r["name"] for r in kept["rows"]] == ["<tiny>"] and not kept["complete"]
    assert [r["name"] for r in kept["not_run"]] == ["second"]
    assert "not run: second" in console.export_text()
    assert "not run" in (tmp_path / "report.html").read_text().lower()


def test_quick_run_end_to_end(tmp_path):
    command = [sys.executable, "-m", "mmkern", "bench", "--quick", "--op", "glu", "--dtype", "fp32"]
    done = subprocess.run(
        [*command, "--no-compile", "--threads", "1", "--output", str(tmp_path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = results.load(tmp_path / "results.json")
    assert found["complete"] and found["not_run"] == []
    names = {(row["kind"], row["name"]) for row in found["rows"]}
    quick = {("op", w.case.name) for w in workloads.WORKLOADS if w.quick and w.case.op == "glu"}
    assert names == quick | {("overhead", "overhead")}
    assert found["environment"]["threads"] == 1
    assert found["peaks"]["matmul"]["float32"] > 0
    html = (tmp_path / "report.html").read_text()
    assert all(results.label(row) in html for row in found["rows"] if row["kind"] == "op")
    assert (tmp_path / "results.csv").read_text().count("\n") == 1 + len(found["rows"])
    assert "vs eager" in done.stdout and "report.html" in done.stdout
