"""The regression gate: two builds on the same tensors in one process, and whether one is slower.

    mmkern compare BASE HEAD

Every case is timed in blocks (mmkern.bench.paired) with BASE's function and HEAD's. For one case
of each op a second copy of HEAD runs against the first: a canary. Where two equal builds seem to
differ, or their interval is wider than the margin, the machine is too noisy and the job is void.
A case that is slower is measured again on new tensors, with a canary of its own, and fails only if
it is slower then, too.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from rich.table import Table

from mmkern.bench import builds, clocks, contest, eager, machine, paired, results, tables
from mmkern.bench.workloads import WORKLOADS

SCHEMA = "mmkern-gate/1"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Options:
    """The choices of a job; empty ``ops`` means all. quick: the workloads of bench --quick.

    seconds: after them no other case is begun; the cases then come in random order.
    """

    ops: tuple = ()
    dtypes: tuple = DEFAULT_DTYPES
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 1
    quick: bool = False
    seconds: float = math.inf
    seed: int = 0
    rule: paired.Rule = field(default_factory=paired.Rule)


@dataclass(frozen=True)
class Case:
    """A workload in a dtype. bind(module) is its call with the functions of a build."""

    workload: object
    dtype: str

    @property
    def name(self):
        return f"{self.workload.id} {tables.SHORT[self.dtype]}"

    def prepare(self, device, seed):
        """bind, a function that makes a build's module into a call on tensors made here."""
        case = self.workload.case
        kwargs = case.make(DTYPES[self.dtype], device, seed)
        with torch.no_grad():
            outs = contest.as_tuple(getattr(eager, case.function)(**kwargs))
        bound = contest.binder(case, kwargs, self.workload.passes, outs, seed)
        return lambda module: bound(getattr(module, case.function))


def cases(options):
    """The cases of a job. Without ``quick`` those that bench --full alone runs are left out, too:
    the gate is about the code, and their shapes take the same paths."""
    chosen = [
        w
        for w in WORKLOADS
        if (not options.ops or w.case.op in options.ops)
        and (w.quick if options.quick else not w.extra)
    ]
    return [Case(w, dtype) for w in chosen for dtype in options.dtypes]


def canaries(chosen):
    """The first case of each op."""
    first = {}
    for case in chosen:
        first.setdefault(case.workload.case.op, case)
    return set(first.values())


def judge(base, head, twin, chosen, options, progress=lambda text: None):
    """Time the cases with the modules ``base``, ``head`` and its ``twin``.

    Returns:
        {"findings": {Case: Finding}, "slow": [Case], "noise": [reason], "canaries":
        {Case: Finding}, "skipped": {Case: reason}}; a case that BASE cannot run is skipped, and
        so are those for which no time is left.
    """
    rng = np.random.default_rng(options.seed)
    end = time.monotonic() + options.seconds
    if options.seconds < math.inf:
        chosen = [chosen[i] for i in rng.permutation(len(chosen))]
    watched = canaries(chosen)
    found = {"findings": {}, "slow": [], "noise": [], "canaries": {}, "skipped": {}}
    for case in chosen:
        if found["findings"] and time.monotonic() > end:
            found["skipped"][case] = f"{options.seconds:g} s were over"
            continue
        bind = case.prepare(options.device, options.seed)
        try:
            with torch.set_grad_enabled(case.workload.backward):
                bind(base)()
        except Exception as error:
            found["skipped"][case] = f"base raised {type(error).__name__}: {error}"
            continue
        finding = _pair(bind, base, head, case, options, rng, len(chosen))
        found["findings"][case] = finding
        if case in watched:
            found["canaries"][case] = _pair(bind, head, twin, case, options, rng, len(watched))
        progress(line(case, finding, options.rule))
    for case in paired.holm(found["findings"], options.rule):
        bind = case.prepare(options.device, options.seed + 1)
        again = _pair(bind, base, head, case, options, rng, 1)
        progress(f"again, {line(case, again, options.rule)}")
        if again.slow(options.rule, options.rule.alpha):
            found["slow"].append(case)
            # a case that is to fail the job has a canary of its own
            found["canaries"][case] = _pair(bind, head, twin, case, options, rng, 1)
    for case, finding in found["canaries"].items():
        reason = paired.noisy(finding, options.rule)
        found["noise"] += [f"{case.name}: {reason}"] if reason else []
    return found


def _pair(bind, a, b, case, options, rng, count):
    timer = clocks.timer(options.device, threads=options.threads)
    with torch.set_grad_enabled(case.workload.backward):
        return paired.compare(bind(a), bind(b), options.rule, rng=rng, cases=count, timer=timer)


def word(finding, rule):
    """The verdict on one case, before other cases are looked at."""
    if finding.slow(rule, rule.alpha):
        return "slower"
    return "ok" if finding.fast(rule) else "undecided"


def line(case, finding, rule):
    """One line about a case."""
    return (
        f"{case.name}: {1e6 * finding.seconds:.1f} us, {100 * finding.change:+.1f} % "
        f"({100 * finding.low:+.1f} to {100 * finding.high:+.1f}), {word(finding, rule)}"
    )


def verdict(found):
    """ "VOID", "REGRESSION" or "OK"."""
    if found["noise"]:
        return "VOID"
    return "REGRESSION" if found["slow"] else "OK"


def run(base, head, options, console, output=None):
    """Compare two builds.Build, print the findings; the exit code is 1 for a regression.

    A job that is void exits 0, and says so. ``output``: a JSON file to write.

    Raises:
        builds.BuildError: a build cannot be imported.
    """
    torch.set_num_threads(options.threads)
    chosen = cases(options)
    rule = options.rule
    console.print(f"base: {base.label}, head: {head.label}", markup=False, highlight=False)
    for build in (base, head):
        if build.stale():
            console.print(
                f"{build.label}: the C++ sources are newer than what is built: make build"
            )
    if builds.fingerprint(base) == builds.fingerprint(head):
        console.print("OK: the two builds are the same, byte for byte")
        return 0
    with builds.Loaded([base, head, head]) as modules:
        found = judge(*modules, chosen, options, progress=console.print)
    _print(found, rule, console)
    if output:
        results.write_text(output, json.dumps(record(found, base, head, options), indent=1) + "\n")
    return 1 if verdict(found) == "REGRESSION" else 0


def _print(found, rule, console):
    table = Table(title=f"Slowdown of head; more than {100 * rule.margin:g} % fails")
    for name in ("case", "base us", "change", "interval", "blocks", "verdict"):
        table.add_column(name, justify="left" if name == "case" else "right", overflow="fold")
    for case, f in sorted(found["findings"].items(), key=lambda item: -item[1].change):
        table.add_row(*_cells(case.name, f, word(f, rule)))
    for case, f in found["canaries"].items():
        table.add_row(*_cells(f"canary: {case.name}", f, "equal"), style="dim")
    console.print(table)
    for case, reason in found["skipped"].items():
        console.print(f"not compared: {case.name}: {reason}", markup=False)
    if found["findings"]:
        mean = np.mean([np.log1p(f.change) for f in found["findings"].values()])
        console.print(f"geometric mean of the changes: {100 * np.expm1(mean):+.2f} %")
    outcome = verdict(found)
    reasons = found["noise"] or [case.name for case in found["slow"]]
    undecided = [c for c, f in found["findings"].items() if word(f, rule) == "undecided"]
    if outcome == "OK" and undecided:
        reasons = [f"{len(undecided)} of {len(found['findings'])} cases undecided"]
    console.print(f"{outcome}{': ' if reasons else ''}{'; '.join(reasons)}", markup=False)


def _cells(name, f, outcome):
    interval = f"{100 * f.low:+.1f} to {100 * f.high:+.1f} %"
    change = f"{100 * f.change:+.1f} %"
    return name, f"{1e6 * f.seconds:.1f}", change, interval, str(f.blocks), outcome


def record(found, base, head, options):
    """The job as JSON: the rule, the machine, every finding, the verdict."""
    return {
        "schema": SCHEMA,
        "verdict": verdict(found),
        "base": base.label,
        "head": head.label,
        "rule": asdict(options.rule),
        "environment": machine.environment(options.device, ["mmkern", "compare"]),
        "findings": {c.name: asdict(f) for c, f in found["findings"].items()},
        "canaries": {c.name: asdict(f) for c, f in found["canaries"].items()},
        "slow": [c.name for c in found["slow"]],
        "noise": found["noise"],
        "skipped": {c.name: reason for c, reason in found["skipped"].items()},
    }
