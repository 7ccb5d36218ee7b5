"""The command line: what it prints, and how it refuses."""

import json
import os
import signal

import pytest
import torch

import mmkern
from mmkern import library
from mmkern.__main__ import main
from mmkern.bench import job, machine, photos, results


def refused(capsys, *argv):
    """The message of a command line that must exit with code 2."""
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--op", "glue"), "--op is 'glue'; wanted one of attention, glu, mlp"),
        (("--op", "glu,nope"), "--op is 'nope'"),
        (("--model", "gpt"), "--model is 'gpt'; wanted one of vit, dit"),
        (("--dtype", "int8"), "--dtype is 'int8'; wanted one of float32, bfloat16, float16"),
        (("--device", "toaster"), "--device is 'toaster', which cannot be used here"),
        (("--device", "meta"), "--device is 'meta', which computes nothing"),
        (("--threads", "0"), "--threads is 0; wanted at least 1"),
        (("--threads", "two"), "invalid int value: 'two'"),
        (("--seed", "x"), "invalid int value"),
        (("--colour",), "unrecognized arguments: --colour"),
    ],
    ids=lambda v: "" if isinstance(v, str) else " ".join(v),
)
def test_bench_refuses_what_it_does_not_know(capsys, argv, message):
    assert message in refused(capsys, "bench", *argv)


def test_no_command_and_an_unknown_one_exit_2(capsys):
    assert "required: command" in refused(capsys)
    assert "invalid choice: 'fly'" in refused(capsys, "fly")


def test_a_device_that_is_not_there(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert "--device is 'cuda', which cannot be used here" in refused(
        capsys, "bench", "--device", "cuda"
    )


def test_missing_photographs_exit_2_with_the_sentence(capsys, monkeypatch):
    def missing():
        raise photos.PhotographsMissing("photographs are not there; pip install scikit-image")

    monkeypatch.setattr(photos, "photographs", missing)
    assert "pip install scikit-image" in refused(capsys, "bench", "--op", "glu", "--device", "cpu")


@pytest.fixture
def options(monkeypatch):
    """The Options that a command line becomes, in a list; nothing is run."""
    seen = []
    monkeypatch.setattr(job, "run", lambda chosen, console: seen.append(chosen) or 0)
    return seen


def names(options):
    return [(row.identity["kind"], row.identity["op"]) for row in job.chosen(options)]


def test_bench_reads_its_options(options):
    argv = (
        "bench --op glu,rope --op glu --dtype bf16 --dtype fp32 --device cpu --seed 7 --no-compile"
    )
    assert main(argv.split()) == 0
    (chosen,) = options
    assert chosen.ops == ("glu", "rope") and chosen.models == ()
    assert chosen.dtypes == ("bfloat16", "float32")
    assert (chosen.seed, chosen.compile, chosen.quick) == (7, False, False)
    assert set(names(chosen)) == {(k, op) for k in ("op", "overhead") for op in ("glu", "rope")}


def test_bench_without_a_choice_takes_everything(options):
    assert main(["bench", "--device", "cpu"]) == 0
    kinds = {kind for kind, _ in names(options[0])}
    assert kinds == {"op", "model", "overhead"}
    assert {op for kind, op in names(options[0]) if kind == "op"} == set(mmkern.library.OPS)


def test_models_alone_and_all_ops(options):
    assert main(["bench", "--model", "vit", "--device", "cpu", "--quick"]) == 0
    assert main(["bench", "--op", "all", "--device", "cpu"]) == 0
    assert set(names(options[0])) == {("model", "model")}
    assert {kind for kind, _ in names(options[1])} == {"op", "overhead"}


def test_quick_is_a_part_of_everything(options):
    main(["bench", "--device", "cpu", "--quick"])
    main(["bench", "--device", "cpu"])
    quick, full = ([row.identity for row in job.chosen(o)] for o in options)
    assert len(quick) < len(full) and all(identity in full for identity in quick)


def test_a_time_limit_interrupts_as_ctrl_c_does(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(job, "run", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(KeyboardInterrupt):
            main(["bench", "--device", "cpu"])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_info_names_every_op_and_backend(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for op, backends in mmkern.info().items():
        assert op in out
        assert all(backend in out for backend in backends)
    assert mmkern.__version__ in out and torch.__version__ in out


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == mmkern.__version__


def test_compare_and_report_refuse_what_is_no_result(capsys, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    path = str(tmp_path / "a.json")
    assert "wanted 'mmkern-bench/1'" in refused(capsys, "compare", path, path)
    assert "wanted 'mmkern-bench/1'" in refused(capsys, "report", path)
    assert "cannot be read" in refused(capsys, "report", str(tmp_path / "none.json"))


@pytest.fixture
def result(tmp_path):
    time = {"median_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "rounds": 5}
    row = dict.fromkeys(results.KEY, "x") | {
        "kind": "op", "variant": "forward", "dtype": "float32", "shape": "1", "model": "m",
        "scale": "", "inputs": "random", "backend": "cpu", "status": "ok", "message": "",
        "notes": [], "flops": None, "bytes": 8, "errors": {},
        "times": dict.fromkeys(("eager", "mmkern"), time),
        "ratios": {"eager": {"value": 2.0, "low": 1.9, "high": 2.1}},
    }  # fmt: skip
    environment = machine.environment(torch.device("cpu"), ["mmkern"]) | {"cpu": "a chip"}
    found = {
        "schema": results.SCHEMA, "complete": True, "environment": environment,
        "options": {"compile": False, "seed": 0, "quick": False}, "inputs": "none",
        "peaks": {"copy": [[1, 1.0], [9, 1.0]], "matmul": {}}, "rows": [row], "not_run": [],
    }  # fmt: skip
    path = tmp_path / "results.json"
    path.write_text(json.dumps(found))
    return path, found


def test_report_renders_a_result_again(capsys, result):
    path, _ = result
    assert main(["report", str(path)]) == 0
    html = path.with_name("report.html").read_text()
    assert "a chip" in html and "2.00<br><small>(1.90-2.10)" in html
    other = path.with_name("other.html")
    assert main(["report", str(path), "--output", str(other)]) == 0
    assert other.read_text() == html


def test_report_of_two_results_compares_them(capsys, result):
    path, found = result
    found["rows"][0]["ratios"]["eager"]["value"] = 1.5
    after = path.with_name("after.json")
    after.write_text(json.dumps(found))
    assert main(["report", str(path), str(after)]) == 0
    assert "-25.0 %" in capsys.readouterr().out
    for name in ("comparison.html", "comparison.md"):
        text = path.with_name(name).read_text()
        assert "Changes since" in text and "-25.0 %" in text


def test_compare_exits_1_over_the_given_percentage(capsys, result):
    path, found = result
    found["rows"][0]["ratios"]["eager"]["value"] = 1.5
    after = path.with_name("after.json")
    after.write_text(json.dumps(found))
    assert main(["compare", str(path), str(after)]) == 0
    assert main(["compare", str(path), str(after), "--fail-over", "10"]) == 1
    assert main(["compare", str(path), str(after), "--fail-over", "30"]) == 0
    assert "-25.0 %" in capsys.readouterr().out


def test_tune_without_a_gpu_says_so_and_exits_1(capsys, monkeypatch):
    gone = {"triton": library.Backend("cuda", "torch sees no cuda device")}
    monkeypatch.setattr(library, "BACKENDS", gone)
    assert main(["tune"]) == 1
    sentence = "no device runs the Triton kernels here (torch sees no cuda device)"
    assert capsys.readouterr().err == f"mmkern tune: {sentence}\n"
