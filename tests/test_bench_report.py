"""What becomes of a result: files, report, comparison, and the tables of the README."""

import json

import pytest
from bench_helpers import CPU, recorder, run_tiny

from mmkern.bench import (
    compare,
    machine,
    markdown,
    matrix,
    overhead,
    photos,
    plots,
    plots_lines,
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
        "or: a &lt;rival&gt;", "unborn", "0.50<br><small>(0.40-0.60)</small>",
        "astronaut", "&lt;here&gt;", "Cost of a call", "geometric mean",
    ):  # fmt: skip
        assert text in html, text
    # by op, ops, models, limits, and the roofline of the row whose FLOPs are counted
    assert html.count("<svg") == 5
    for outside in ("<script", "<link", "@import", 'src="', "url(h", 'href="h'):
        assert outside not in html
    assert html.count('<tr class="failed">') == 1


def test_report_holds_what_a_new_result_has_besides_times(found):
    full = json.loads(json.dumps(found))
    full["noise"] = {"differences": [0.01, 0.034], "half_widths": [0.02, 0.05]}
    full["peers"] = {"Liger": "absent: <no module>"}
    full["memory"] = [
        {"op": "glu", "size": "tokens", "passes": "forward", "dtype": "bfloat16", "x": [1, 2],
         "peak_bytes": {"eager": [2**20, 2**21], "mmkern": [2**20, None]}},
    ]  # fmt: skip
    full["rows"][0]["repeatable"] = False
    full["rows"][0]["peak_bytes"] = {"eager": 2**21, "mmkern": 2**23}
    full["rows"][1]["stages"] = [{"name": "blocks", "times": {"eager": 3.0, "mmkern": 2.0}},
                                 {"name": "rest", "times": {"eager": 1.0}}]  # fmt: skip
    html = report.render(full)
    for text in (
        "differed by 3.4 % at most in 2 tries", "5.0 % to either side", "Peak memory of a call",
        "absent: &lt;no module&gt;", "<td>no</td>", "<td>8.0</td><td>2.0</td>", "vs best peer",
        "<td>blocks</td><td>75 %</td><td>3</td><td>2</td><td>1.50</td>",
        "<td>rest</td><td>25 %</td><td>1</td><td>-</td><td>-</td>", "8.0 MiB, eager 2.0",
    ):  # fmt: skip
        assert text in html, text
    assert html.count("<svg") == 6
    full["memory"][0]["peak_bytes"]["mmkern"][1] = 2**22
    lost = "glu, forward, bfloat16 (2 tokens): 4.0 MiB, eager 2.0"
    assert lost in report.render(full) and lost in markdown.render(full)
    unmeasured = {name: [None, None] for name in ("eager", "mmkern")}
    assert plots_lines.memory(full["memory"][0] | {"peak_bytes": unmeasured}) == ""


def test_result_of_an_earlier_version_shows_what_it_lacks_as_a_dash(found):
    old = json.loads(json.dumps(found))
    old = {k: v for k, v in old.items() if k not in ("noise", "peers", "memory")}
    for row in old["rows"]:
        for field in ("peak_bytes", "host_us", "repeatable", "stages"):
            row.pop(field, None)
    html = report.render(old)
    lacking = "<td>-</td>" * 3
    assert f"{lacking}<td>{old['rows'][0]['backend']}</td>" in html
    assert "Noise floor" not in html and "Peak memory" not in html and "Parts of" not in html
    assert markdown.render(old, old).count("## ") == 4
    assert results.to_csv(old["rows"]).count("\n") == 1 + len(old["rows"])


def test_report_and_markdown_say_what_changed(found):
    later = changed(found, 0.8)
    later["rows"][1]["name"] = "renamed"
    html, text = report.render(later, found), markdown.render(later, found)
    for page in (html, text):
        assert (
            "Changes since" in page
            and "-20.0 %" in page
            and "1.50 -> 1.20" in page.replace("-&gt;", "->")
        )
    assert "overhead" not in html[html.index("Changes since") : html.index("<h2>At a glance")]
    assert "only before: glu lost" in html and "only after: glu renamed" in html


def test_bars_by_op_are_geometric_means_between_the_worst_and_the_best(found):
    rows = json.loads(json.dumps(found["rows"][:1] * 2))
    rows[1]["ratios"]["eager"]["value"] = 6.0
    rows[1]["ratios"]["other peer"] = {"value": 0.2, "low": 0.1, "high": 0.3}
    (bar,) = plots.by_op(rows)
    assert bar["ratios"]["eager"] == {"value": pytest.approx(3.0), "low": 1.5, "high": 6.0}
    assert bar["ratios"]["best peer"] == {"value": pytest.approx(0.4), "low": 0.2, "high": 0.8}


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


def test_power_table_counts_the_jobs_and_bounds_the_share(tmp_path):
    line = {"planted": 10, "jobs": 20, "void": 3, "caught": 17, "judged": 17, "false": 0}
    study = {
        "schema": "mmkern-gate-power/1", "rule": {"margin": 0.05}, "jobs": [{"load": 3.0}],
        "environment": dict.fromkeys(("cpu", "cores", "isa", "date", "commit"), "x"),
        "summary": [line | {"planted": 0, "caught": None, "void": 1, "judged": 19}, line],
    }  # fmt: skip
    text = readme.power_table(study)
    assert "| +0 % | 20 | 1 |  | 0 of 19 | 0-17 % |" in text
    assert "| +10 % | 20 | 3 | 17 of 17 | 0 of 17 | 82-100 % |" in text
    evidence, document = tmp_path / "study.json", tmp_path / "d.md"
    evidence.write_text(json.dumps(study))
    document.write_text("<!-- study:begin -->\n<!-- study:end -->\n")
    assert readme.main([str(evidence), str(document), "--check"]) == 1
    assert readme.main([str(evidence), str(document)]) == 0
    assert readme.main([str(evidence), str(document), "--check"]) == 0


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
