"""What becomes of a result: files, report, comparison, and the tables of the README."""

import json

import pytest
from bench_helpers import CPU, recorder, run_tiny

from mmkern.bench import (
    compare,
    machine,
    matrix,
    overhead,
    photos,
    plots,
    readme,
    report,
    results,
    tables,
    workloads,
)


def example():
    """A result with a win, a loss, a failure, an overhead row and rows not run."""
    won = run_tiny(lambda x: x * 2)
    for name, value in (("eager", 1.5), ("compile", 1.2), ("a <rival>", 0.8)):
        won["ratios"][name] = {"value": value, "low": value - 0.1, "high": value + 0.1}
        won["times"][name] = {"median_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "rounds": 3}
    won |= {"flops": 1e6, "bytes": 10**6}
    lost = json.loads(json.dumps(won)) | {"name": "lost", "dtype": "bfloat16", "kind": "model"}
    lost["ratios"]["eager"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    failed = run_tiny(lambda x: x * 3) | {"name": "failed"}
    rows = [won, lost, failed, overhead.row("glu", CPU)]
    return {
        "schema": results.SCHEMA,
        "complete": False,
        "environment": machine.environment(CPU, ["mmkern", "bench", "<here>"]),
        "options": {"compile": True, "seed": 0, "quick": True},
        "inputs": photos.SOURCE,
        "peaks": {"copy": [[1e5, 10.0], [1e7, 20.0]], "matmul": {"float32": 100.0}},
        "rows": rows,
        "not_run": [{"kind": "op", "op": "glu", "name": "unborn", "dtype": "float32"}],
    }


@pytest.fixture(scope="module")
def found():
    return example()


def test_results_survive_the_round_trip(found, tmp_path):
    results.save(found, tmp_path)
    again = results.load(tmp_path / "results.json")
    assert again == json.loads(json.dumps(found))
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0].split(",")[:3] == ["kind", "op", "function"]
    assert len(lines) == 1 + len(found["rows"])
    assert "a <rival>: 0.800" in lines[1]


def test_a_write_that_fails_leaves_the_old_file_and_no_scrap(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    results.write_text(path, "old")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(results.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        results.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no JSON"),
        ("[]", "has schema None; wanted 'mmkern-bench/1'"),
        ('{"schema": "other/9"}', "has schema 'other/9'"),
    ],
)
def test_load_says_what_is_wrong_with_a_file(tmp_path, text, message):
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(results.ResultsError, match=message):
        results.load(path)


def test_report_holds_every_row_and_nothing_from_outside(found):
    html = report.render(found)
    for text in (
        "glu &lt;tiny&gt;", "glu lost", "glu failed", "wrong result", "Where mmkern loses",
        "or: a &lt;rival&gt;", "unborn", "0.50 (0.40-0.60)", "astronaut", "&lt;here&gt;",
        "Cost of a call", "geometric mean",
    ):  # fmt: skip
        assert text in html, text
    assert html.count("<svg") == 3
    for outside in ("<script", "<link", "@import", 'src="', "url(h", 'href="h'):
        assert outside not in html
    assert html.count('<tr class="failed">') == 1


def test_losses_are_listed_worst_first(found):
    lines = tables.loss_lines(found["rows"])
    assert [line.split(":")[0] for line in lines] == [
        "glu lost bfloat16 (64)",
        "glu <tiny> float32 (64)",
    ]
    assert lines[0] == "glu lost bfloat16 (64): 0.50x eager, 0.80x a <rival>"
    near = json.loads(json.dumps(found["rows"][:1]))
    near[0]["ratios"]["a <rival>"]["high"] = 1.02
    assert tables.loss_lines(near) == [
        "glu <tiny> float32 (64): 0.80x a <rival> (within the noise)"
    ]


def test_achieved_takes_the_limit_that_binds(found):
    row, peaks = found["rows"][0], found["peaks"]
    row = row | {"times": {"mmkern": {"median_ms": 0.1}}}
    assert plots.achieved(row, peaks, "mmkern") == (pytest.approx(10 / 15, rel=1e-6), "10 GB/s")
    heavy = row | {"flops": 9e6}
    assert plots.achieved(heavy, peaks, "mmkern") == (pytest.approx(0.9), "90 GFLOP/s")
    assert plots.achieved(row, peaks, "eager") is None


def test_peaks_are_the_better_of_two():
    a = {"copy": [[1, 5.0], [2, 9.0]], "matmul": {"float32": 3.0}}
    b = {"copy": [[1, 6.0], [2, 8.0]], "matmul": {"float32": 2.0}}
    best = {"copy": [[1, 6.0], [2, 9.0]], "matmul": {"float32": 3.0}}
    assert machine.best_peaks(a, b) == best


def changed(found, factor):
    other = json.loads(json.dumps(found))
    for row in other["rows"]:
        for ratio in row["ratios"].values():
            ratio["value"] *= factor
    return other


@pytest.mark.parametrize(
    ("factor", "fail_over", "code"), [(0.8, 10, 1), (0.8, 30, 0), (0.8, None, 0), (1.3, 10, 0)]
)
def test_compare_fails_over_the_given_change(found, factor, fail_over, code):
    console = recorder()
    assert compare.run(found, changed(found, factor), console, fail_over=fail_over) == code
    assert f"{100 * (factor - 1):+.1f} %" in console.export_text()


def test_compare_fails_on_a_row_that_broke_and_lists_rows_of_one_file(found):
    broken = changed(found, 1)
    broken["rows"][0]["status"] = "failed"
    broken["rows"][1]["name"] = "renamed"
    console = recorder()
    assert compare.run(found, broken, console, fail_over=50) == 1
    text = console.export_text()
    assert "only before: glu lost" in text and "only after: glu renamed" in text
    with pytest.raises(results.ResultsError, match="no row in common"):
        compare.run(found, found | {"rows": []}, console)


DOCUMENT = """top
<!-- bench:begin -->
stale text
<!-- bench:end -->
<!-- matrix:begin --><!-- matrix:end -->
"""


def test_readme_table_is_replaced_and_checked(found, tmp_path, capsys):
    evidence, document = tmp_path / "r.json", tmp_path / "README.md"
    evidence.write_text(json.dumps(found))
    document.write_text(DOCUMENT)
    command = [str(evidence), str(document)]
    assert readme.main([*command, "--check"]) == 1
    assert document.read_text() == DOCUMENT
    assert readme.main(command) == 0
    text = document.read_text()
    assert "stale" not in text and text.startswith("top\n") and "| **0.50** |" in text
    assert "FAILED" in text and found["environment"]["cpu"] in text
    assert readme.main([*command, "--check"]) == 0
    document.write_text(text.replace("**0.50**", "1.50"))
    assert readme.main([*command, "--check"]) == 1
    assert "differs" in capsys.readouterr().out


def test_readme_without_markers_is_an_error(found, tmp_path, capsys):
    (tmp_path / "r.json").write_text(json.dumps(found))
    (tmp_path / "README.md").write_text("no place")
    with pytest.raises(SystemExit) as stop:
        readme.main([str(tmp_path / "r.json"), str(tmp_path / "README.md")])
    assert stop.value.code == 2
    assert "wanted one pair of <!-- bench:begin -->" in capsys.readouterr().err


JUNIT = """<testsuites><testsuite>
<testcase name="test_forward[glu-one-float32-fallback]"/>
<testcase name="test_gradients[glu-one-float32-fallback]"/>
<testcase name="test_forward[gated_modulate-dit-float32-fallback]"><failure/></testcase>
<testcase name="test_forward[rope-llama-float32-fallback]"><skipped/></testcase>
<testcase name="test_other[glu-one-fallback]"/>
</testsuite></testsuites>"""


def test_matrix_counts_the_accuracy_tests(found, tmp_path):
    junit, output, document = tmp_path / "j.xml", tmp_path / "m.json", tmp_path / "README.md"
    junit.write_text(JUNIT)
    (tmp_path / "r.json").write_text(json.dumps(found))
    assert matrix.count([junit]) == {
        ("glu", "reference"): [2, 0],
        ("modulate", "reference"): [0, 1],
    }
    assert matrix.main([str(junit), str(tmp_path / "r.json"), "-o", str(output)]) == 0
    document.write_text(DOCUMENT)
    assert readme.main([str(output), str(document)]) == 0
    text = document.read_text()
    assert "| glu | 4 right (2 tests) |" in text
    assert "| modulate | 1 tests fail |" in text and "| rope | 0 none |" in text


def test_matrix_has_a_column_for_each_target_of_the_compile_gate(found, tmp_path):
    junit = tmp_path / "j.xml"
    junit.write_text(
        '<testsuite><testcase classname="tests.test_triton" name="test_forward[glu-one-float32]"/>'
        '<testcase classname="tests.test_triton" name="test_gradients[rope-llama-float32]"/>'
        "</testsuite>"
    )
    evidence = matrix.collect([junit], found, {"sm_90": {"glu": {}}})
    rungs = {op: cells["triton sm_90"]["rung"] for op, cells in evidence["ops"].items()}
    assert (rungs["glu"], rungs["rope"], rungs["mlp"]) == (2, 1, 0)
    assert "| 2 compiles (1 tests) |" in matrix.table(evidence)


def test_matrix_says_measured_only_of_rows_that_ran_on_the_kernels(found, tmp_path, monkeypatch):
    junit = tmp_path / "j.xml"
    junit.write_text(
        '<testsuite><testcase name="test_forward[glu-one-float32-dispatched]"/></testsuite>'
    )
    everywhere = {op: {"reference": (True, ""), "cpu": (True, "CPU")} for op in workloads.OPS}
    monkeypatch.setattr(matrix.mmkern, "info", lambda: everywhere)
    ran = {"rows": [found["rows"][0] | {"backend": "cpu"}]}
    assert matrix.collect([junit], ran)["ops"]["glu"]["cpu"]["rung"] == 5
    fell_back = {"rows": [found["rows"][0] | {"backend": "reference"}]}
    assert matrix.collect([junit], fell_back)["ops"]["glu"]["cpu"]["rung"] == 4
    assert matrix.collect([junit], ran)["ops"]["rope"]["cpu"]["rung"] == 0
