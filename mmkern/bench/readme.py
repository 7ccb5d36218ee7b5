"""Regenerate the README's tables from committed evidence.

    python -m mmkern.bench.readme benchmarks/results/cpu.json README.md [--check]
    python -m mmkern.bench.readme benchmarks/results/matrix.json README.md [--check]
    python -m mmkern.bench.readme benchmarks/results/gate_power.json docs/benchmarks.md [--check]
    python -m mmkern.bench.readme benchmarks/results/gpu.json docs/triton.md [--check]

A result of ``mmkern bench`` fills the text between ``<!-- bench:begin -->`` and
``<!-- bench:end -->``; a support matrix (mmkern.bench.matrix), that between
``<!-- matrix:begin -->`` and ``<!-- matrix:end -->``; a study of benchmarks/gate_power.py, that
between two of its file's name, as ``<!-- gate_power:begin -->``; a run of benchmarks/gpu_check.py,
that between ``<!-- gpu:begin -->`` and ``<!-- gpu:end -->``. With --check nothing is written, and
drift exits 1. --short keeps the workloads of ``mmkern bench --quick`` and the models.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

from mmkern.bench import matrix, results, tables
from mmkern.bench.workloads import WORKLOADS


class MarkersMissing(ValueError):
    """The document has no place for the table."""


def replace(document, name, body):
    """``document`` with the text between the markers of ``name`` replaced by ``body``.

    Raises:
        MarkersMissing: the pair of markers is not there exactly once.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(document)) != 1:
        raise MarkersMissing(f"wanted one pair of {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n{body}\n{end}", document)


def bench_table(found, short=False):
    """Markdown: one line per workload, one group of columns per dtype."""
    rows = [row for row in found["rows"] if row["kind"] != "overhead"]
    if short:
        quick = {w.id for w in WORKLOADS if w.quick}
        rows = [r for r in rows if r["function"] == "model" or _workload_id(r) in quick]
    dtypes = [d for d in tables.SHORT if any(row["dtype"] == d for row in rows)]
    head = [
        "op",
        "workload",
        *(f"{tables.SHORT[d]} {c}" for d in dtypes for c in ("ms", "vs eager", "vs compile")),
        "vs others",
    ]
    lines = [_line(head), _line(["---", "---"] + ["---:"] * (len(head) - 3) + ["---"])]
    for key in dict.fromkeys((row["kind"] == "model", *_identity(row)) for row in rows):
        same = {
            row["dtype"]: row for row in rows if (row["kind"] == "model", *_identity(row)) == key
        }
        any_row = next(iter(same.values()))
        passes = results.PASSES[any_row["variant"]]
        where = f"{any_row['model']}: {any_row['shape']}"
        cells = [any_row["function"] + passes, where]
        for dtype in dtypes:
            cells += _cells(same.get(dtype))
        cells.append(_others([same.get(dtype) for dtype in dtypes]))
        lines.append(_line(cells))
    return "\n".join([*lines, "", _footnote(found)])


def _identity(row):
    return row["function"], row["name"], row["variant"]


def _workload_id(row):
    passes = {"forward+backward": "training"}.get(row["variant"], row["variant"])
    return f"{row['function']}-{row['name']}-{passes}"


def _others(rows):
    """The ratios to rivals other than the two baselines, dtype by dtype."""
    names = dict.fromkeys(
        n for row in rows if row for n in row["ratios"] if n not in tables.BASELINES
    )
    texts = []
    for name in names:
        ratios = [results.ratio(row, name) if row else None for row in rows]
        texts.append(f"{name}: {', '.join(_ratio(r) for r in ratios if r is not None)}")
    return "; ".join(texts)


def _ratio(r):
    return "-" if r is None else f"{r:.2f}" if r >= 1 else f"**{r:.2f}**"


def _cells(row):
    if row is None:
        return ["", "", ""]
    if row["status"] == "failed":
        return ["FAILED", "", ""]
    ratios = (results.ratio(row, name) for name in tables.BASELINES)
    return [tables.milliseconds(results.milliseconds(row, "mmkern")), *map(_ratio, ratios)]


def _line(cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _footnote(found):
    e = found["environment"]
    return (
        f"Median ms of mmkern, and how many times faster it is (bold: slower). {e['cpu']}, "
        f"{e['threads']} threads, {e['isa']}, torch {e['torch']}, mmkern {e['mmkern']} "
        f"({e['commit']}), {e['date']}: `{e['command']}`."
    )


def power_table(study):
    """Markdown: what became of the gate's jobs, one line per planted slowdown."""
    head = ("planted", "jobs", "void", "caught", "false alarms", "95 % interval of the share")
    lines = [_line(head), _line(["---:"] * len(head))]
    for s in study["summary"]:
        hits = s["caught"] if s["planted"] else s["false"]
        caught = f"{s['caught']} of {s['judged']}" if s["planted"] else ""
        low, high = _share(hits, s["judged"])
        cells = [f"+{s['planted']} %", str(s["jobs"]), str(s["void"]), caught]
        cells += [f"{s['false']} of {s['judged']}", f"{100 * low:.0f}-{100 * high:.0f} %"]
        lines.append(_line(cells))
    e, rule = study["environment"], study["rule"]
    loads = sorted(job["load"] for job in study["jobs"])
    about = (
        f"Margin {100 * rule['margin']:g} %. {e['cpu']}, {e['cores']} cores, {e['isa']}; load "
        f"between {loads[0]:.1f} and {loads[-1]:.1f}; {e['date']}, commit {e['commit']}. The "
        "interval is of the catches, in the first line of the false alarms."
    )
    return "\n".join([*lines, "", about])


def gpu_table(run):
    """Markdown: the verdict on each target of a run on a GPU."""
    head = ("op, shape", "pass", "measured", "wanted", "what", "verdict")
    lines = [_line(head), _line(["---", "---", "---:", "---:", "---", "---"])]
    for v in run.get("targets", ()):
        measured = "" if v["measured"] is None else f"{v['measured']:.3g}"
        what = v["target"] + (f" ({v['against']})" if v["against"] else "")
        verdict = f"**{v['verdict']}**" if v["verdict"] == "miss" else v["verdict"]
        lines.append(_line([v["case"], v["pass"], measured, f"{v['wanted']:.3g}", what, verdict]))
    e, found = run["environment"], run.get("correctness")
    correct = "not run"
    if found:
        correct = f"{len(found['failures'])} of {found['run']} checks failed"
    about = (
        f"bfloat16, {e['device']}, torch {e['torch']}, Triton {e['triton']}, a copy at "
        f"{run['copy_gbps']:.0f} GB/s, commit {e['commit']}, {e['date']}: `{e['command']}`. "
        f"Correctness: {correct}."
    )
    return "\n".join([*lines, "", about])


def _share(hits, tries, z=1.96):
    """Wilson's 95 % interval of a share."""
    if not tries:
        return 0.0, 1.0
    p, spread = hits / tries, z * z / tries
    middle = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / tries + spread / tries / 4) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def main(argv=None):
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mmkern.bench.readme", description=__doc__)
    parser.add_argument("evidence", type=Path, help="results.json, or matrix.json")
    parser.add_argument("document", type=Path, help="README.md")
    parser.add_argument("--short", action="store_true", help="a selection of the workloads")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on drift")
    args = parser.parse_args(argv)
    try:
        evidence = json.loads(args.evidence.read_text(encoding="utf-8"))
        schema = evidence.get("schema")
        if schema == matrix.SCHEMA:
            name, body = "matrix", matrix.table(matrix.load(args.evidence))
        elif schema == "mmkern-gate-power/1":
            name, body = args.evidence.stem, power_table(evidence)
        elif schema == "mmkern-gpu/1":
            name, body = "gpu", gpu_table(evidence)
        else:
            name, body = "bench", bench_table(results.load(args.evidence), args.short)
        old = args.document.read_text(encoding="utf-8")
        new = replace(old, name, body)
    except (OSError, ValueError, AttributeError) as error:
        parser.error(f"{args.evidence}, {args.document}: {error}")
    if args.check:
        if new != old:
            print(f"{args.document}: the {name} table differs from {args.evidence}")
        return int(new != old)
    if new != old:
        results.write_text(args.document, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
