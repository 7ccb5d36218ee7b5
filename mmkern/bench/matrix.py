"""The support matrix: how far each op is proven on each target, from committed evidence.

    python -m pytest tests/test_accuracy.py --junit-xml out/cpu.xml
    TRITON_INTERPRET=1 python -m pytest tests/test_triton.py --junit-xml out/triton.xml
    .venv-ascend/bin/python -m pytest tests/test_ascend.py --junit-xml out/ascend.xml
    python -m pytest tests/test_ascendc.py --junit-xml out/ascendc.xml
    python -m mmkern.bench.matrix out/cpu.xml out/triton.xml out/ascend.xml out/ascendc.xml \\
        benchmarks/results/cpu.json --gate benchmarks/results/gpu_gate.json \\
        --ascend-gate benchmarks/results/ascend_gate.json \\
        [--gpu benchmarks/results/gpu.json] -o benchmarks/results/matrix.json

Rungs: 0 none; 1 right in emulation; 2 compiles for the target; 3 its lowered code executed and
right; 4 right on the hardware; 5 measured on the hardware against its peers. The reference is plain
PyTorch and stands on 4 where its tests passed.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import mmkern
from mmkern.bench import machine, results

SCHEMA = "mmkern-matrix/1"
#: the column of what Triton's interpreter ran; it stands for every target of the compile gate
TRITON = "triton"
#: the column of what the AscendC twin ran
ASCENDC = "ascendc"
#: the tests of what triton-ascend lowers, and the column of the Triton kernels on that target
GPU = "gpu"
LOWERED, ASCEND = "ascend", f"{TRITON} ascend910b"
#: a parameter of tests/test_accuracy.py -> the column that it proves
COLUMNS = {"fallback": "reference", "dispatched": "cpu"}
RUNGS = ("none", "emulated", "compiles", "lowered", "right", "measured")
_ID = re.compile(r"test_(?:forward|gradients)\[(?P<parameters>.*)\]")


def count(junits):
    """{(op, column): [passed, failed]} from JUnit files of the tests named above."""
    counts = {}
    for junit in junits:
        for test in ElementTree.parse(junit).getroot().iter("testcase"):
            match = _ID.search(test.get("name", ""))
            if match is None or test.find("skipped") is not None:
                continue
            parts = match["parameters"].split("-")
            module = test.get("classname", "").rpartition(".")[2]
            if module in ("test_triton", "test_ascend", "test_ascendc"):
                column = module.removeprefix("test_")
            else:
                column = next((COLUMNS[part] for part in parts if part in COLUMNS), None)
            op = next((_raw(part) for part in parts if _raw(part) in mmkern.library.OPS), None)
            if column and op:
                broken = test.find("failure") is not None or test.find("error") is not None
                counts.setdefault((op, column), [0, 0])[broken] += 1
    return counts


def _counted(evidence):
    """What ``count`` found when a matrix was made."""
    return {
        (op, cell["tests"]): [cell["passed"], cell["failed"]]
        for op, cells in evidence["ops"].items()
        for cell in cells.values()
        if cell["tests"] != GPU
    }


def _cell_of(tests, rung, passed, failed, rows=0):
    """A cell; tests: the column of the JUnit files, or GPU, whose tests it counts."""
    return {"rung": rung, "tests": tests, "passed": passed, "failed": failed, "rows": rows}


def _raw(function):
    return "modulate" if function.startswith("gated_") else function


def collect(junits, found, gate=None, ascend_gate=None, gpu=None, before=None):
    """The evidence: for each op and column its rung and what it stands on.

    gate: {target: {op: ...}} of what benchmarks/gpu_gate.py compiled, ascend_gate: {op: ...} of
    what benchmarks/ascend_gate.py did, gpu: what benchmarks/gpu_check.py found; or None. before: an
    older matrix, whose tests count where the JUnit files have none of their kind.
    """
    counts = _counted(before) if before else {}
    now = count(junits)
    counts = {k: v for k, v in counts.items() if k[1] not in {column for _, column in now}} | now
    on_gpu = _target(gpu) if gpu else None
    cells = {}
    for op in mmkern.library.OPS:
        cells[op] = {column: _native(op, column, counts, found) for column in COLUMNS.values()}
        for target, compiled in (gate or {}).items():
            cell = _compiled(op, compiled, counts)
            cells[op][f"{TRITON} {target}"] = _on_gpu(op, gpu, cell) if target == on_gpu else cell
        if ascend_gate is not None:
            cells[op][ASCEND] = _lowered(op, ascend_gate, counts)
        cells[op][ASCENDC] = _emulated(op, counts)
    environment = {"cpu": machine.cpu_model(), "isa": machine.isa(), "mmkern": mmkern.__version__}
    if before and not any(column in COLUMNS.values() for _, column in now):
        environment = {name: before["environment"][name] for name in environment}
    if gpu:
        environment["gpu"] = gpu["environment"]["device"]
    return {"schema": SCHEMA, "environment": environment, "ops": cells}


def _target(gpu):
    target = gpu["environment"].get("target")
    if target is None:
        raise results.ResultsError("the run of gpu_check was on no GPU; wanted one with a target")
    return target


def _compiled(op, compiled, counts):
    """The cell of a target that a Triton kernel was compiled for, none being at hand."""
    passed, failed = counts.get((op, TRITON), (0, 0))
    right = passed > 0 and failed == 0
    rung = 0 if not right else 2 if op in compiled else 1
    return _cell_of(TRITON, rung, passed, failed)


def _lowered(op, compiled, counts):
    """The cell of Triton on Ascend: the tests are those of the lowered code, where it is right."""
    cell = _compiled(op, compiled, counts)
    passed, failed = counts.get((op, LOWERED), (0, 0))
    if failed or (passed and cell["rung"] == 2):
        cell = _cell_of(LOWERED, 0 if failed else 3, passed, failed)
    return cell


def _on_gpu(op, gpu, otherwise):
    """The cell of the GPU that gpu_check ran on."""
    passed, failed = gpu.get("correctness", {}).get("ops", {}).get(op, (0, 0))
    # what reads out of bounds is not right, whatever it returns
    if not passed + failed or gpu.get("sanitizer", {}).get("returncode"):
        return otherwise
    rows = [row for row in gpu.get("rows", ()) if row["op"] == op]
    measured = [row for row in rows if row.get("backend") == TRITON and len(row["contestants"]) > 1]
    good = all("mmkern" not in row["errors"] for row in rows)
    rung = 0 if failed else 5 if measured and good else 4
    return _cell_of(GPU, rung, passed, failed, len(measured))


def _emulated(op, counts):
    """The cell of AscendC: on the twin alone."""
    passed, failed = counts.get((op, ASCENDC), (0, 0))
    rung = int(passed > 0 and failed == 0)
    return _cell_of(ASCENDC, rung, passed, failed)


def _native(op, column, counts, found):
    """The cell of a column whose tests ran on the hardware itself."""
    passed, failed = counts.get((op, column), (0, 0))
    available = mmkern.info()[op].get(column, (False, ""))[0]
    measured = [
        row
        for row in found["rows"]
        if row["kind"] == "op" and row["op"] == op and row["backend"] == column
    ]
    right = available and passed > 0 and failed == 0
    good = all(row["status"] == "ok" for row in measured)
    rung = 0 if not right else 5 if column != "reference" and measured and good else 4
    return _cell_of(column, rung, passed, failed, len(measured))


def load(path):
    """Read a matrix.json.

    Raises:
        ResultsError: the file has another schema.
    """
    evidence = json.loads(Path(path).read_text(encoding="utf-8"))
    if evidence.get("schema") != SCHEMA:
        raise results.ResultsError(
            f"{path} has schema {evidence.get('schema')!r}; wanted {SCHEMA!r}"
        )
    return evidence


def table(evidence):
    """The matrix as Markdown."""
    columns = list(next(iter(evidence["ops"].values())))
    lines = [f"| op | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for op, cells in evidence["ops"].items():
        texts = (_cell(cells[column]) for column in columns)
        lines.append(f"| {op} | {' | '.join(texts)} |")
    e = evidence["environment"]
    text = f"Evidence: mmkern {e['mmkern']} on {e['cpu']}, {e['isa']}; accuracy tests passed."
    if any(column.startswith(TRITON) for column in columns):
        ran = f"{e['gpu']} ran them" if "gpu" in e else "none has run on a GPU"
        text += (
            " Triton kernels: 1 right in Triton's interpreter, 2 compile for the target besides, "
            f"within its registers and shared memory; {ran}."
        )
    if ASCEND in columns:
        text += (
            " On Ascend 910B: 2 compile within the chip's memories, 3 the lowered code runs right "
            "on the CPU, in float32 and bfloat16; none has run on an NPU."
        )
    if ASCENDC in columns:
        text += (
            " AscendC kernels: 1 right on the twin of its API, on the CPU; none has run on an NPU."
        )
    return "\n".join([*lines, "", text])


def _cell(cell):
    if cell["failed"]:
        return f"{cell['failed']} tests fail"
    if cell["rung"] == 0:
        return "0 none"
    return f"{cell['rung']} {RUNGS[cell['rung']]} ({cell['passed']} tests)"


def _read(path):
    """A JSON file's content without its list of columns; None without a file."""
    if path is None:
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    found.pop("columns", None)
    return found


def main(argv=None):
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mmkern.bench.matrix", description=__doc__)
    parser.add_argument("junit", type=Path, nargs="+", help="pytest --junit-xml of the tests")
    parser.add_argument("results", type=Path, help="results.json of mmkern bench")
    parser.add_argument("--gate", type=Path, help="what benchmarks/gpu_gate.py wrote")
    parser.add_argument("--ascend-gate", type=Path, help="what benchmarks/ascend_gate.py wrote")
    parser.add_argument("--gpu", type=Path, help="what benchmarks/gpu_check.py wrote")
    parser.add_argument("--before", type=Path, help="matrix.json that has the tests not given")
    parser.add_argument("-o", "--output", type=Path, required=True, help="matrix.json")
    args = parser.parse_args(argv)
    try:
        found = results.load(args.results)
        gates = _read(args.gate), _read(args.ascend_gate), _read(args.gpu)
        before = load(args.before) if args.before else None
        evidence = collect(args.junit, found, *gates, before)
    except (OSError, json.JSONDecodeError, ElementTree.ParseError, results.ResultsError) as error:
        parser.error(str(error))
    results.write_text(args.output, json.dumps(evidence, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
