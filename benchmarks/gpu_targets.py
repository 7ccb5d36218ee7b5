"""The speeds to reach on an H100 in bfloat16, held against the times that gpu_check.py measured.

Every target has a verdict for each of its cases: pass, miss, or not measured, where the case was
not run or one that it is compared with has no time. What was measured is a number of which more is
better, and wanted its least.
"""

import fnmatch
import math
from collections.abc import Callable
from typing import NamedTuple

from gpu_shapes import CASES
from rich.console import Console
from rich.table import Table

STREAMING = ("modulate", "rms_norm", "glu", "rope")
#: Bytes from which a target on bandwidth holds: below, launches and the L2 cache decide.
LARGE = 64 << 20


class Target(NamedTuple):
    """cases: which of CASES. measure: (number or None, who it was compared with) of a row."""

    name: str
    passes: str
    wanted: float
    cases: Callable
    measure: Callable
    least_bytes: int = 0


def _times_faster_than(pattern):
    """How many times faster mmkern is than the fastest of the contestants that match ``pattern``.

    One that refused the case, or is not installed, does not count.
    """

    def measure(row, copy_gbps):
        times = {n: v["ms"] for n, v in row["contestants"].items()}
        ours = times.pop("mmkern", None)
        others = {n: ms for n, ms in times.items() if fnmatch.fnmatchcase(n, pattern)}
        if ours is None or not others:
            return None, None
        fastest = min(others, key=others.get)
        return others[fastest] / ours, fastest

    return measure


def _of_copy(row, copy_gbps):
    found = row["contestants"].get("mmkern")
    return found and found["gbps"] / copy_gbps, "copy"


def _tflops(row, copy_gbps):
    found = row["contestants"].get("mmkern")
    return found and found["tflops"], None


def _not_kept(row, copy_gbps):
    """Of the activation's bytes, how many eager keeps for the backward and mmkern does not."""
    kept = row.get("kept_bytes", {})
    if not {"mmkern", "eager"} <= kept.keys():
        return None, None
    args = CASE_OF[row["function"], row["name"]].args
    rows = math.prod(args["x"].shape[:-1]) // args.get("merge", 1) ** 2
    return (kept["eager"] - kept["mmkern"]) / (2 * rows * args["w1"].shape[0]), "eager"


def _attends(case, dim=None, packed=False):
    if case.op != "attention" or ("cu_seqlens_q" in case.args) is not packed:
        return False
    return dim is None or case.args["q"].shape[-1] == dim == case.args["v"].shape[-1]


def _long(case):
    """4k to 16k tokens that all see each other."""
    if not _attends(case, 128) or case.args.get("causal"):
        return False
    tokens = {case.args[n].shape[1] for n in "qk"}
    return all(4096 <= n <= 16384 for n in tokens)


def _streams(case):
    return case.op in STREAMING


CASE_OF = {(case.function, case.name): case for case in CASES}
TARGETS = [
    Target("of a copy's bandwidth, from 64 MiB", "forward", 0.87, _streams, _of_copy, LARGE),
    Target("of a copy's bandwidth, from 64 MiB", "backward", 0.75, _streams, _of_copy, LARGE),
    Target("times torch.compile", "forward", 1.0, _streams, _times_faster_than("torch.compile")),
    Target("TFLOP/s, D=128, 4k-16k, non-causal", "forward", 480.0, _long, _tflops),
    Target(
        "times FlexAttention, D=72", "forward", 1.25, lambda c: _attends(c, 72),
        _times_faster_than("FlexAttention"),
    ),
    Target(
        "times SDPA's best, D=72", "forward", 1.0, lambda c: _attends(c, 72),
        _times_faster_than("SDPA *"),
    ),
    Target(
        "times the fastest peer, packed segments of 64-1024", "forward", 1.0,
        lambda c: _attends(c, packed=True), _times_faster_than("*"),
    ),
    Target(
        "times the GEMM alone", "forward", 1 / 1.1, lambda c: c.op == "patch_embed",
        _times_faster_than("GEMM alone"),
    ),
    Target(
        "times cuBLAS and a GELU of its own", "forward", 1.0, lambda c: c.op == "mlp",
        _times_faster_than("eager"),
    ),
    Target(
        "of the activation not kept", "backward", 1.0, lambda c: c.op == "mlp", _not_kept
    ),
]  # fmt: skip


def verdicts(rows, copy_gbps):
    """[{target, case, pass, wanted, measured, against, verdict}] of every target and case.

    rows: those of gpu_check.py. A target of large rows has no verdict where the row is small.
    """
    measured = {(row["function"], row["name"], row["pass"]): row for row in rows}
    found = []
    for target in TARGETS:
        for case in filter(target.cases, CASES):
            row = measured.get((case.function, case.name, target.passes))
            if row and row.get("bytes", math.inf) < target.least_bytes:
                continue
            value, against = target.measure(row, copy_gbps) if row else (None, None)
            passed = "pass" if value is not None and value >= target.wanted else "miss"
            found.append({
                "target": target.name, "case": case.id, "pass": target.passes,
                "wanted": target.wanted, "measured": value, "against": against,
                "verdict": "not measured" if value is None else passed,
            })  # fmt: skip
    return found


def show(found):
    """Print the verdicts as a table."""
    table = Table("case", "pass", "measured", "wanted", "target", "verdict")
    for v in found:
        number = "" if v["measured"] is None else f"{v['measured']:.3g}"
        against = f" ({v['against']})" if v["against"] else ""
        cells = number, f"{v['wanted']:.3g}", v["target"] + against
        table.add_row(v["case"], v["pass"], *cells, v["verdict"])
    Console().print(table)
