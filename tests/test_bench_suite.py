"""benchmarks/ under pytest-benchmark, as a user runs it: select, save, compare, disable."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmkern.bench import clocks

ROOT = Path(__file__).parents[1]
ROW = "rms_norm-qwen3_8b_residual-bfloat16-fwd"
SHORT = ("--benchmark-max-time=0.01", "--benchmark-min-rounds=2", "-p", "no:cacheprovider")
#: a plugin of pytest that breaks mmkern.rms_norm
BROKEN = """
import mmkern
right = mmkern.rms_norm
mmkern.rms_norm = lambda *args, **kwargs: tuple(out * 1.1 for out in right(*args, **kwargs))
"""


def suite(folder, select, *options, **environment):
    """Run benchmarks/test_ops.py with ``-k select`` in a process of its own, in ``folder``."""
    command = [sys.executable, "-m", "pytest", ROOT / "benchmarks" / "test_ops.py", "-k", select]
    return subprocess.run(
        [*command, *SHORT, *options],
        cwd=folder, capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip


def collected(select):
    """The ids that ``-k select`` leaves of benchmarks/."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q", "-k", select]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return [line.partition("[")[2][:-1] for line in done.stdout.splitlines() if "::" in line]


def test_a_selection_is_saved_and_compared(tmp_path):
    """One run saves; the next, in which mmkern is wrong, compares: it fails and has no time."""
    select = f"{ROW} and not compile"
    done = suite(tmp_path, select, "--benchmark-save=before")
    assert done.returncode == 0, done.stdout
    # what does not import is listed
    assert "absent: flash-attn: flash_attn does not import" in done.stdout
    (saved,) = tmp_path.rglob("0001_before.json")
    found = json.loads(saved.read_text())
    assert found["machine_info"]["mmkern"]["threads"]
    rows = {row["extra_info"]["contestant"]: row for row in found["benchmarks"]}
    assert rows.keys() == {"eager", "F.rms_norm", "mmkern"}
    assert {row["group"] for row in rows.values()} == {
        "rms_norm qwen3_8b_residual bfloat16 forward"
    }
    for row in rows.values():
        assert row["extra_info"]["GB/s"] > 0
        assert row["extra_info"]["device"]
    assert rows["eager"]["extra_info"]["error ratio"] == pytest.approx(1)

    (tmp_path / "broken.py").write_text(BROKEN)
    options = ("--benchmark-compare", "--benchmark-json=after.json", "-p", "broken")
    done = suite(tmp_path, select, *options, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stdout
    assert "mmkern: wrong result: error" in done.stdout
    rows = json.loads((tmp_path / "after.json").read_text())["benchmarks"]
    assert {row["extra_info"]["contestant"] for row in rows} == {"eager", "F.rms_norm"}
    # a line of the earlier run beside one of this run
    assert f"test_op[{ROW}-eager] (0001_before)" in done.stdout
    assert f"test_op[{ROW}-eager] (NOW)" in done.stdout


def test_a_backward_alone_runs_without_being_timed(tmp_path):
    row = "rope-qwen3_vl_vision_1k-float32-bwd"
    done = suite(tmp_path, f"{row}-mmkern", "--benchmark-disable")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_op_dtype_pass_and_contestant_select():
    ids = collected("(glu and bfloat16 and fwd+bwd and mmkern) or (flux-single and bfloat16)")
    contestants = ("eager", "compile", "mmkern")
    assert set(ids) == {
        "glu-qwen3_0_6b-bfloat16-fwd+bwd-mmkern",
        *(f"flux-single-bfloat16-{name}" for name in contestants),
    }


class Event:
    """torch.Event's interface, on the CPU's clock."""

    def __init__(self, device, enable_timing):
        assert enable_timing
        self.seconds = None

    def record(self):
        self.seconds = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, later):
        return 1e3 * (later.seconds - self.seconds)


@pytest.mark.benchmark(
    timer=lambda: clocks.Moment("cuda", Event), max_time=0.02, min_rounds=3, min_time=1e-3
)
def test_events_are_a_timer_that_pytest_benchmark_takes(benchmark):
    benchmark(lambda: time.sleep(0.005))
    if benchmark.stats:
        assert 0.005 <= benchmark.stats.stats.min < 0.05
