"""The regression gate: its statistics on made-up clocks, its builds, and a job that must fail."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bench_helpers import recorder

import mmkern
from mmkern.__main__ import main
from mmkern.bench import builds, gate, paired
from mmkern.bench.shapes import Workload
from mmkern.cases import Case, T

ROOT = Path(mmkern.__file__).parents[1]
RULE = paired.Rule(sample_s=1e-3)


class Machine:
    """A clock that calls advance; ``drift`` slows the whole machine from call to call."""

    def __init__(self, noise=0.02, drift=0.0, seed=0):
        self.rng, self.noise, self.drift = np.random.default_rng(seed), noise, drift
        self.now, self.pace = 0.0, 1.0

    def timer(self):
        return self.now

    def call(self, seconds):
        def work():
            self.pace *= 1 + self.drift * self.rng.normal()
            self.now += seconds * self.pace * self.rng.lognormal(0, self.noise)

        return work


def compared(slowdown, rule=RULE, **machine):
    clock = Machine(**machine)
    a, b = clock.call(1e-3), clock.call(1e-3 * (1 + slowdown))
    return paired.compare(a, b, rule, rng=np.random.default_rng(1), timer=clock.timer)


def test_equal_contestants_pass_and_ten_percent_fail():
    same, slow = compared(0.0), compared(0.10)
    assert same.fast(RULE) and not same.slow(RULE, RULE.alpha)
    assert slow.slow(RULE, RULE.alpha / 20) and slow.change == pytest.approx(0.10, abs=0.02)
    assert same.blocks == slow.blocks == RULE.blocks


def test_a_machine_that_drifts_changes_nothing():
    slow, same = compared(0.10, drift=0.05), compared(0.0, drift=0.05)
    assert slow.change == pytest.approx(0.10, abs=0.04)
    assert not same.slow(RULE, RULE.alpha)


def test_an_undecided_case_gets_more_blocks_and_is_no_regression():
    edge = compared(0.05)
    assert edge.blocks == RULE.blocks * RULE.rounds
    assert not edge.fast(RULE) and not edge.slow(RULE, RULE.alpha)


def test_blocks_take_both_orders():
    log = []
    clock = Machine()

    def named(name):
        work = clock.call(2e-3)
        return lambda: (log.append(name), work())

    paired.compare(named("a"), named("b"), RULE, rng=np.random.default_rng(0), timer=clock.timer)
    # the warm-up ends with one call of b, and each later sample is one call
    text = "".join(log)
    blocks = text[text.index("b") + 1 :]
    orders = [blocks[i : i + 4] for i in range(0, len(blocks), 4)]
    assert set(orders) == {"abba", "baab"}
    assert 5 < orders.count("abba") < len(orders) - 5


def test_false_alarms_stay_under_alpha():
    alarms = sum(compared(0.0, noise=0.08, seed=seed).slow(RULE, RULE.alpha) for seed in range(100))
    assert alarms == 0


def test_holm_is_stricter_the_more_cases_there_are():
    def with_p(p, change=0.2):
        return paired.Finding(change, 0.06, 0.3, p, 1e-3, 25)

    borderline = {"x": with_p(0.004)}
    many = borderline | {n: with_p(0.9, 0.0) for n in range(9)}
    assert paired.holm(borderline, RULE) == ["x"]
    assert paired.holm(many, RULE) == []
    assert set(paired.holm({"x": with_p(0.004), "y": with_p(0.003)}, RULE)) == {"x", "y"}


def test_a_difference_below_the_floor_is_no_regression():
    found = paired.Finding(0.2, 0.15, 0.25, 1e-4, 5e-6, 25)
    assert not found.slow(RULE, RULE.alpha)
    assert paired.holm({"tiny": found}, RULE) == []


@pytest.mark.parametrize(
    ("low", "change", "high", "words"),
    [
        (0.06, 0.08, 0.10, "differ by +8.0 %"),
        (-0.10, -0.08, -0.06, "differ by -8.0 %"),
        (-0.07, 0.0, 0.07, "7.0 % to either side"),
        (-0.02, 0.01, 0.03, ""),
    ],
)
def test_the_canary_says_why_a_machine_is_too_noisy(low, change, high, words):
    reason = paired.noisy(paired.Finding(change, low, high, 0.5, 1e-3, 75), RULE)
    assert words in reason if words else reason == ""


def cases():
    glu = {"gate": T((64, 512)), "up": T((64, 512))}
    norm = {"x": T((64, 512)), "weight": T((512,))}
    return [
        gate.Case(Workload(Case("glu", "g", glu), "", ""), "float32"),
        gate.Case(Workload(Case("rms_norm", "n", norm), "", "", backward=True), "float32"),
    ]


def twice(function):
    def call(*args, **kwargs):
        function(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def modules(**changed):
    functions = {"glu": mmkern.glu, "rms_norm": mmkern.rms_norm}
    return SimpleNamespace(**functions | changed)


@pytest.fixture
def quiet():
    """Options whose margins hold on a busy machine: what is planted is 100 %."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield gate.Options(rule=paired.Rule(margin=0.4))
    torch.set_num_threads(threads)


def test_a_planted_slowdown_fails_the_job_and_names_the_case(quiet):
    slower = modules(glu=twice(mmkern.glu))
    found = gate.judge(modules(), slower, slower, cases(), quiet)
    assert [c.name for c in found["slow"]] == ["glu-g-forward fp32"]
    assert set(found["canaries"]) == set(cases())
    assert gate.verdict(found) == "REGRESSION"


def test_equal_builds_pass(quiet):
    found = gate.judge(modules(), modules(), modules(), cases(), quiet)
    assert gate.verdict(found) == "OK" and len(found["findings"]) == 2


def test_a_canary_that_differs_voids_the_job(quiet):
    found = gate.judge(modules(), modules(), modules(glu=twice(mmkern.glu)), cases(), quiet)
    assert gate.verdict(found) == "VOID"
    assert found["noise"][0].startswith("glu-g-forward fp32: two equal builds differ by")


def test_a_case_that_the_base_lacks_is_skipped(quiet):
    def missing(*args, **kwargs):
        raise TypeError("unexpected keyword")

    found = gate.judge(modules(glu=missing), modules(), modules(), cases(), quiet)
    assert list(found["skipped"].values()) == ["base raised TypeError: unexpected keyword"]
    assert len(found["findings"]) == 1


def test_no_case_is_begun_when_the_time_is_over(quiet):
    found = gate.judge(modules(), modules(), modules(), cases(), replace(quiet, seconds=0.0))
    assert len(found["findings"]) == 1 and gate.verdict(found) == "OK"
    assert list(found["skipped"].values()) == ["0 s were over"]


def test_two_builds_live_in_one_process_with_kernels_of_their_own():
    build = builds.find(str(ROOT), ROOT, ROOT / "build" / "compare")
    x = torch.randn(4, 64)
    with builds.Loaded([build, build]) as (first, second):
        assert first.__name__ != second.__name__ and first.glu is not second.glu
        assert torch.equal(first.glu(x), second.glu(x)) and torch.equal(first.glu(x), mmkern.glu(x))
        if build.extension:
            for module in (first, second):
                with module.use("cpu"):
                    module.glu(x)


def test_a_copy_refuses_a_name_that_would_move_the_code(tmp_path):
    build = builds.find(str(ROOT), ROOT, tmp_path)
    with pytest.raises(ValueError, match="name is 'other'; wanted 4 letters and 'rn'"):
        builds.copy_as(build, "other", tmp_path)


def test_what_is_no_build_is_refused(tmp_path):
    with pytest.raises(builds.BuildError, match="'nowhere' is neither a folder with mmkern"):
        builds.find("nowhere", ROOT, tmp_path)


@pytest.fixture
def repository(tmp_path):
    """A git repository with two commits of a package that has no extension to compile."""
    root = tmp_path / "repository"

    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run(["git", "-C", root, *identity, *arguments], check=True, capture_output=True)

    (root / "mmkern").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", "-b", "main", root], check=True)
    (root / "setup.py").write_text("")
    for text in ("VERSION = 1\n", "VERSION = 2\n"):
        (root / "mmkern" / "__init__.py").write_text(text)
        git("add", "-A")
        git("commit", "-q", "-m", text.strip())
    return SimpleNamespace(root=root, git=git)


def test_a_work_tree_says_its_commit_and_what_is_not_built(repository, tmp_path):
    def find():
        return builds.find(str(repository.root), repository.root, tmp_path)

    assert re.search(r" \([0-9a-f]{12}\)$", find().label)
    source, extension = repository.root / "csrc" / "a.cpp", repository.root / "mmkern" / "_C.so"
    source.parent.mkdir()
    for path in (source, extension):
        path.write_text("")
    os.utime(source, (1, 1))
    assert not find().stale()
    os.utime(extension, (0, 0))
    assert find().stale()
    (repository.root / "mmkern" / "__init__.py").write_text("VERSION = 3")
    assert find().label.endswith("-dirty)")


def test_a_revision_is_built_once_in_a_tree_of_its_own(repository, tmp_path):
    cache = tmp_path / "cache"
    old = builds.find("HEAD^", repository.root, cache)
    assert (old.package / "__init__.py").read_text() == "VERSION = 1\n"
    with builds.Loaded([old, builds.find(str(repository.root), repository.root, cache)]) as pair:
        assert [module.VERSION for module in pair] == [1, 2]
    (old.package / "__init__.py").write_text("touched")
    again = builds.find("HEAD^", repository.root, cache)
    assert (again.package / "__init__.py").read_text() == "touched"


def test_a_revision_that_does_not_compile_says_so(repository, tmp_path):
    (repository.root / "setup.py").write_text("raise SystemExit('no compiler')")
    repository.git("commit", "-qam", "broken")
    (repository.root / "setup.py").write_text("")
    with pytest.raises(builds.BuildError, match=r"does not compile:\n.*no compiler"):
        builds.find("HEAD", repository.root, tmp_path / "cache")


def test_the_previous_commit_of_main(repository):
    def commit(revision):
        command = ["git", "-C", repository.root, "rev-parse", revision]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    assert builds.previous(repository.root) == commit("HEAD^")
    (repository.root / "mmkern" / "__init__.py").write_text("VERSION = 3\n")
    assert builds.previous(repository.root) == commit("HEAD")
    repository.git("checkout", "-q", "-b", "topic")
    repository.git("commit", "-qam", "topic")
    assert builds.previous(repository.root) == commit("main")
    repository.git("checkout", "-q", "--orphan", "alone")
    repository.git("commit", "-qm", "alone")
    assert builds.previous(repository.root) is None
    assert builds.previous(repository.root.parent) is None


def test_the_previous_commit_where_there_is_no_main(repository):
    """A machine that checks out one commit has no branch of that name, and perhaps no parent."""
    repository.git("checkout", "-q", "--detach")
    repository.git("branch", "-D", "main")
    parent = builds._git(repository.root, "rev-parse", "HEAD^")
    assert builds.previous(repository.root) == parent
    shallow = repository.root.with_name("shallow")
    source = repository.root.as_uri()
    repository.git("branch", "topic")
    command = ["git", "clone", "-q", "--depth", "1", "--branch", "topic", source, shallow]
    subprocess.run(command, check=True, capture_output=True)
    assert builds.previous(shallow) is None


def test_a_previous_commit_that_cannot_be_had_skips_the_job(repository, monkeypatch, capsys):
    monkeypatch.setattr(mmkern, "__file__", str(repository.root / "mmkern" / "__init__.py"))
    command = ["compare", "previous", str(repository.root), "--device", "cpu"]
    (repository.root / "setup.py").write_text("raise SystemExit('no compiler')")
    repository.git("commit", "-qam", "broken")
    (repository.root / "setup.py").write_text("")
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "skipped: the commit before cannot be built" in text and "no compiler" in text
    repository.git("checkout", "-q", "--orphan", "alone")
    repository.git("commit", "-qam", "alone")
    assert main(command) == 0
    assert "skipped: " in (text := capsys.readouterr().out) and "no earlier commit" in text


def test_a_build_that_is_the_same_needs_no_measurement(tmp_path):
    console = recorder()
    build = builds.find(str(ROOT), ROOT, tmp_path)
    assert gate.run(build, build, gate.Options(), console) == 0
    assert "byte for byte" in console.export_text()


def test_the_record_holds_the_rule_and_every_finding(quiet, tmp_path):
    build = builds.find(str(ROOT), ROOT, tmp_path)
    found = gate.judge(modules(), modules(), modules(), cases(), quiet)
    kept = json.loads(json.dumps(gate.record(found, build, build, quiet)))
    assert kept["schema"] == "mmkern-gate/1" and kept["verdict"] == "OK"
    assert set(kept["findings"]) == {c.name for c in cases()}
    assert kept["rule"]["margin"] == 0.4


def test_compare_of_a_slower_folder_exits_1(tmp_path):
    """The whole command, on two folders: the second one's glu calls its kernel three times."""
    build = builds.find(str(ROOT), ROOT, tmp_path)
    for name in ("base", "head"):
        package = tmp_path / name / "mmkern"
        for path in build.package.rglob("*"):
            inside = path.relative_to(build.package)
            if path.suffix in (".py", ".so") and "bench" not in inside.parts:
                target = package / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    source = tmp_path / "head" / "mmkern" / "__init__.py"
    source.write_text(
        source.read_text() + "\n_glu = glu\ndef glu(*a, **k):\n    _glu(*a, **k)\n"
        "    _glu(*a, **k)\n    return _glu(*a, **k)\n"
    )
    command = [sys.executable, "-m", "mmkern", "compare", tmp_path / "base", tmp_path / "head"]
    command += ["--op", "glu", "--dtype", "fp32", "--quick", "--margin", "40", "--device", "cpu"]
    command += ["--output", tmp_path / "gate.json"]
    for _ in range(3):  # a machine too noisy to judge voids the job
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        if "VOID" not in done.stdout:
            break
    assert done.returncode == 1, done.stdout + done.stderr
    assert "REGRESSION: glu-qwen3_8b-forward fp32" in done.stdout
    kept = json.loads((tmp_path / "gate.json").read_text())
    assert kept["slow"] == ["glu-qwen3_8b-forward fp32"]
