"""How often the regression gate is right: jobs with a planted slowdown of 0, 5 and 10 %.

    python benchmarks/gate_power.py --jobs 100      # 100 of each, in random order

A job is what ``mmkern compare`` does with a handful of cases, on copies of the installed build. In
one case of it, drawn anew for each job, HEAD then spins for a share of the time that its call took,
by the clock that the gate reads. What that leaves out is a slowdown that disturbs the caches. The
result is saved after every job, so that an interrupted study is a shorter one.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from rich.progress import track

from mmkern.bench import builds, gate, machine, paired, results
from mmkern.bench.shapes import Real, Workload, weights
from mmkern.cases import Case

RESULTS = Path(__file__).parent / "results" / "gate_power.json"
SCHEMA = "mmkern-gate-power/1"


def cases():
    """Small cases of four ops: about a millisecond a call on one core."""
    qkv = Real((1, 96, 100, 72), channel_dims=2)
    modulation = {n: weights((1, 1152), scale=0.1) for n in ("gate", "shift", "scale")}
    arguments = {
        "attention": {"q": qkv, "k": qkv, "v": qkv},
        "gated_modulate": {n: Real((1, 1600, 1152)) for n in ("x", "branch")} | modulation,
        "glu": {n: Real((500, 4096)) for n in ("gate", "up")},
        "rms_norm": {n: Real((600, 4096)) for n in ("x", "residual")}
        | {"weight": weights((4096,))},
    }
    return [
        gate.Case(Workload(Case(function, "power", args), "", ""), "float32")
        for function, args in arguments.items()
    ]


def slowed(module, function, share):
    """``module`` with ``function`` taking longer by ``share`` of its own time, call by call."""
    original = getattr(module, function)

    def call(**kwargs):
        start = time.thread_time()
        result = original(**kwargs)
        end = time.thread_time()
        while time.thread_time() < end + share * (end - start):
            pass
        return result

    functions = [case.workload.case.function for case in cases()]
    return SimpleNamespace(**{f: getattr(module, f) for f in functions} | {function: call})


def job(modules, planted, case, options):
    """One job's outcome, with ``planted`` percent more time in ``case``."""
    base, head, twin = modules
    if planted:
        head, twin = (slowed(m, case.workload.case.function, planted / 100) for m in (head, twin))
    found = gate.judge(base, head, twin, cases(), options)
    names = {c.name for c in found["slow"]}
    return {
        "planted": planted,
        "case": case.name,
        "verdict": gate.verdict(found),
        "caught": case.name in names if planted else None,
        "false": sorted(names - ({case.name} if planted else set())),
        "change": next(f.change for c, f in found["findings"].items() if c.name == case.name),
        "blocks": sum(f.blocks for f in found["findings"].values()),
        "load": round(machine.load(), 2),
    }


def summary(jobs):
    """One dict per planted slowdown: what became of its jobs."""
    lines = []
    for planted in sorted({j["planted"] for j in jobs}):
        these = [j for j in jobs if j["planted"] == planted]
        judged = [j for j in these if j["verdict"] != "VOID"]
        lines.append(
            {
                "planted": planted,
                "jobs": len(these),
                "void": len(these) - len(judged),
                "caught": sum(bool(j["caught"]) for j in judged) if planted else None,
                "judged": len(judged),
                "false": sum(bool(j["false"]) for j in judged),
                "median_change": float(np.median([j["change"] for j in these])),
            }
        )
    return lines


def main(argv=None):
    """Run the study; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=100, help="of each slowdown; default 100")
    parser.add_argument("--planted", type=int, nargs="*", default=[0, 5, 10], metavar="PCT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    options = gate.Options(rule=paired.Rule())
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(args.seed)
    plan = rng.permutation(np.repeat(args.planted, args.jobs))
    build = builds.find(".", Path(), Path("build/compare"))
    study = {
        "schema": SCHEMA,
        "environment": machine.environment(options.device, sys.argv),
        "rule": asdict(options.rule),
        "cases": [c.name for c in cases()],
    }
    jobs, start = [], time.monotonic()
    with builds.Loaded([build, build, build]) as modules:
        for number, planted in enumerate(track(plan, "jobs")):
            case = cases()[rng.integers(len(cases()))]
            jobs.append(job(modules, int(planted), case, replace(options, seed=number)))
            study["environment"]["seconds"] = round(time.monotonic() - start)
            study |= {"summary": summary(jobs), "jobs": jobs}
            results.write_text(args.output, json.dumps(study, indent=1) + "\n")
    print(json.dumps(study["summary"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
