"""The support matrix: columns of the compile gates, of lowered code, and of a GPU."""

import json
from pathlib import Path

import pytest

from mmkern.bench import matrix, results
from mmkern.cases import CASES

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
NOTHING = {"rows": []}


def junit(folder, module, *tests, failed=()):
    """A JUnit file of accuracy tests of one module; returns its path."""
    lines = [
        f'<testcase classname="tests.{module}" name="{name}">'
        f"{'<failure/>' if name in failed else ''}</testcase>"
        for name in tests
    ]
    path = folder / f"{module}.xml"
    path.write_text(f"<testsuite>{''.join(lines)}</testsuite>")
    return path


def rungs(evidence, column):
    return {op: cells[column]["rung"] for op, cells in evidence["ops"].items()}


def test_lowered_code_on_ascend_is_a_column(tmp_path):
    ops = ("glu", "rope", "mlp", "rms_norm")
    emulated = junit(tmp_path, "test_triton", *(f"test_forward[{op}-one-float32]" for op in ops))
    lowered = [f"test_forward[{op}-one-float32]" for op in ("glu", "rms_norm", "patch_embed")]
    lowered = junit(tmp_path, "test_ascend", *lowered, failed=lowered[1:2])
    compiled = {"glu": {}, "rope": {}, "rms_norm": {}, "patch_embed": {}}
    evidence = matrix.collect([emulated, lowered], NOTHING, ascend_gate=compiled)
    found = rungs(evidence, matrix.ASCEND)
    # lowered and right; compiled; emulated alone; lowered and wrong; not emulated; nothing
    wanted = {"glu": 3, "rope": 2, "mlp": 1, "rms_norm": 0, "patch_embed": 0, "attention": 0}
    assert {op: found[op] for op in wanted} == wanted
    text = matrix.table(evidence)
    assert "| 3 lowered (1 tests) |" in text and "| 1 tests fail |" in text
    assert "none has run on an NPU" in text


def test_tests_that_are_not_given_are_those_of_the_matrix_before(tmp_path):
    tests = [f"test_forward[{op}-one-float32]" for op in ("glu", "rope")]
    emulated = junit(tmp_path, "test_triton", *tests)
    lowered = junit(tmp_path, "test_ascend", tests[0])
    before = matrix.collect([emulated, lowered], NOTHING, {"sm_90": {"glu": {}}}, {"glu": {}})
    before["environment"]["cpu"] = "another"
    gates = {"sm_90": {"glu": {}, "rope": {}}}, {"glu": {}, "rope": {}}
    again = matrix.collect([], NOTHING, *gates, before=before)
    assert rungs(again, "triton sm_90")["rope"] == 2 == rungs(again, matrix.ASCEND)["rope"]
    assert again["ops"]["glu"] == before["ops"]["glu"]
    assert again["environment"] == before["environment"]
    broken = junit(tmp_path, "test_ascend", *tests, failed=tests[:1])
    again = matrix.collect([broken], NOTHING, *gates, before=before)
    found = rungs(again, matrix.ASCEND)
    assert (found["glu"], found["rope"]) == (0, 3) and rungs(again, "triton sm_90")["glu"] == 2


def gpu(row=None, failed=0):
    """What gpu_check writes, of glu alone."""
    rows = [row] if row else []
    correctness = {"ops": {"glu": [6, failed], "rope": [0, 0]}}
    environment = {"target": "sm_90", "device": "NVIDIA H100"}
    return {"environment": environment, "correctness": correctness, "rows": rows}


ROW = {"op": "glu", "backend": "triton", "contestants": {"mmkern": {}, "eager": {}}, "errors": {}}


@pytest.mark.parametrize(
    ("found", "rung"),
    [
        (gpu(), 4),
        (gpu(failed=1), 0),
        (gpu() | {"sanitizer": {"returncode": 3}}, 2),
        (gpu() | {"sanitizer": {"returncode": 0}}, 4),
        (gpu(ROW), 5),
        (gpu(ROW | {"backend": "reference"}), 4),
        (gpu(ROW | {"contestants": {"mmkern": {}}}), 4),
        (gpu({"op": "glu", "contestants": {}, "errors": {"mmkern": "no memory"}}), 4),
    ],
)
def test_a_run_on_a_gpu_raises_its_target_alone(found, rung, tmp_path):
    tests = [f"test_forward[{op}-one-float32]" for op in ("glu", "rope")]
    gate = {target: {"glu": {}, "rope": {}} for target in ("sm_80", "sm_90")}
    emulated = junit(tmp_path, "test_triton", *tests)
    evidence = matrix.collect([emulated], NOTHING, gate, gpu=found)
    assert rungs(evidence, "triton sm_90")["glu"] == rung
    assert rungs(evidence, "triton sm_80")["glu"] == rungs(evidence, "triton sm_90")["rope"] == 2
    assert "NVIDIA H100" in matrix.table(evidence)


def test_a_failure_on_a_gpu_is_not_the_interpreters_afterwards(tmp_path):
    emulated = junit(tmp_path, "test_triton", "test_forward[glu-one-float32]")
    gate = {target: {"glu": {}} for target in ("sm_80", "sm_90")}
    before = matrix.collect([emulated], NOTHING, gate, gpu=gpu(failed=1))
    assert rungs(before, "triton sm_90")["glu"] == 0
    again = matrix.collect([], NOTHING, gate, before=before)
    assert rungs(again, "triton sm_80")["glu"] == rungs(again, "triton sm_90")["glu"] == 2


def test_a_run_without_a_gpu_is_no_evidence():
    with pytest.raises(results.ResultsError, match="on no GPU"):
        matrix.collect([], NOTHING, gpu={"environment": {}})


def test_the_committed_matrix_counts_the_cases_there_are():
    cells = json.loads((RESULTS / "matrix.json").read_text())["ops"]
    for op, row in cells.items():
        tests = 2 * 3 * sum(case.op == op for case in CASES)  # passes x dtypes
        assert (row["reference"]["passed"], row["cpu"]["passed"]) == (tests, tests), op


def test_the_committed_matrix_is_that_of_the_committed_gates():
    cells = json.loads((RESULTS / "matrix.json").read_text())["ops"]
    gates = json.loads((RESULTS / "gpu_gate.json").read_text())
    gates["ascend910b"] = json.loads((RESULTS / "ascend_gate.json").read_text())
    del gates["columns"], gates["ascend910b"]["columns"]
    for op, row in cells.items():
        columns = {name for name in row if name.startswith(f"{matrix.TRITON} ")}
        assert columns == {f"{matrix.TRITON} {target}" for target in gates}
        for target, compiled in gates.items():
            assert (row[f"{matrix.TRITON} {target}"]["rung"] >= 2) is (op in compiled), (op, target)
