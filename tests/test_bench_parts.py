"""What a result holds besides times: stages of models, memory curves, the noise floor."""

import itertools
import time

import pytest
import torch
from bench_helpers import CPU, FAST, recorder, run_tiny
from torch import nn

from mmkern.bench import contest, curves, job, machine, memory, shapes, stages, timing


class Wait(nn.Module):
    """A layer that takes a known time."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


class Body(nn.Module):
    """Blocks in a list, a part that is never called, and work outside of every part."""

    def __init__(self):
        super().__init__()
        self.head = Wait(0.004)
        self.blocks = nn.ModuleList([Wait(0.006), Wait(0.006)])
        self.unused = Wait(0.0)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        time.sleep(0.003)
        return self.head(x)


def test_stages_account_for_the_whole_of_a_call():
    model = Body()
    found = stages.stages({"eager": (model, lambda: model(torch.ones(1)))}, CPU)
    times = {part["name"]: part["times"]["eager"] for part in found}
    assert list(times) == ["blocks", "head", "rest"]
    for name, least in (("blocks", 12), ("head", 4), ("rest", 3)):
        assert least <= times[name] < 3 * least, (name, times)


def test_a_part_that_one_contestant_lacks_has_no_time_there():
    whole, fused = Body(), Body()
    fused.forward = lambda x: fused.head(x)
    found = stages.stages(
        {n: (m, lambda m=m: m(torch.ones(1))) for n, m in (("eager", whole), ("mmkern", fused))},
        CPU,
    )
    assert set(next(p for p in found if p["name"] == "blocks")["times"]) == {"eager"}
    assert set(found[-1]["times"]) == {"eager", "mmkern"}


def test_peak_memory_counts_what_a_call_writes():
    if memory.peak(lambda: None, CPU) is None:
        pytest.skip("nobody counts memory here")
    size = 32 * 2**20
    counted = memory.peak(lambda: torch.ones(size // 4) + 1, CPU)
    assert counted == pytest.approx(2 * size, rel=0.1)
    assert memory.peak(lambda: torch.ones(8), CPU) == 0


def test_memory_curves_grow_with_size(monkeypatch):
    where = ("", "")
    small = {"tokens": [shapes.rms(f"{n}", (n, 4096), *where) for n in (1024, 2048)]}
    monkeypatch.setattr(curves, "sweeps", lambda: small)
    found = curves.curves(CPU, torch.float32)
    assert [line["passes"] for line in found] == ["forward", "forward+backward"]
    assert found[0]["x"] == [1024, 2048] and set(found[0]["peak_bytes"]) == {"eager", "mmkern"}
    if memory.peak(lambda: None, CPU) is not None:
        first, last = found[0]["peak_bytes"]["mmkern"]
        assert first >= 1024 * 4096 * 4 and last == pytest.approx(2 * first, rel=0.2)


def test_the_noise_floor_is_that_of_two_equal_contestants(monkeypatch):
    monkeypatch.setattr(machine.timing, "measure", lambda calls, plan, **clock: {
        "first": [1.0, 1.1, 1.0], "second": [1.0, 1.0, 1.0]})  # fmt: skip
    found = machine.noise(CPU, tries=2)
    assert found["differences"] == [0.0, 0.0]
    assert found["half_widths"] == pytest.approx([0.05, 0.05], rel=0.01)


def test_a_row_says_whether_it_repeats_and_what_it_takes():
    row = run_tiny(lambda x: x * 2)
    assert row["repeatable"] is True and row["host_us"] == {}
    assert set(row["peak_bytes"]) == {"eager", "mmkern"}
    calls = itertools.count()
    row = run_tiny(lambda x: x * (2 + 1e-6 * next(calls)))
    assert row["status"] == "ok" and row["repeatable"] is False


def test_a_model_row_has_stages():
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU())
    made = contest.Contest(
        identity={
            "kind": "model", "op": "model", "function": "model", "name": "m", "variant": "forward",
            "dtype": "float32", "shape": "8", "model": "", "scale": "", "inputs": "random",
        },
        functions={"eager": model, "mmkern": model},
        bind=lambda m: lambda: m(torch.ones(2, 8)),
        oracle=lambda: model(torch.ones(2, 8)).double(),
        factors=(2.0,),
    )  # fmt: skip
    row = contest.run(made, FAST, device=CPU, compile=False)
    assert [part["name"] for part in row["stages"]] == ["0", "1", "rest"]


def test_a_run_keeps_the_noise_floor_and_the_absent_peers(monkeypatch, tmp_path):
    identity = {"kind": "op", "op": "glu", "name": "one", "dtype": "float32"}
    rows = [job.Row(identity, lambda pace: run_tiny(lambda x: x * 2))]
    monkeypatch.setattr(job, "chosen", lambda options: rows)
    monkeypatch.setattr(machine, "_best", lambda call, device: 1e-3)
    monkeypatch.setattr(job.peers, "absent", lambda device: {"liger": "not here"})
    assert job.run(job.Options(output=tmp_path), recorder()) == 0
    found = job.results.load(tmp_path / "results.json")
    assert found["peers"] == {"liger": "absent: not here"}
    assert len(found["noise"]["differences"]) == 5 and found["memory"] == []


def test_full_times_the_passes_of_training_alone():
    rows = job.chosen(job.Options(ops=("rms_norm",), dtypes=("float32",), full=True))
    names = [row.identity["name"] for row in rows]
    assert "rms_norm-qwen3_8b-training, backward alone" in names
    assert "rms_norm-qwen3_8b-training, forward alone" in names
    short = job.chosen(job.Options(ops=("rms_norm",), dtypes=("float32",)))
    assert not any("alone" in row.identity["name"] for row in short)


def test_a_ratio_needs_pairs():
    with pytest.raises(ValueError, match="wanted pairs of one round"):
        timing.ratio([1.0], [1.0, 2.0])
