"""The main job: run every chosen row, show progress, keep what is done."""

import functools
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mmkern.bench import (
    blocks,
    contest,
    curves,
    machine,
    markdown,
    models,
    overhead,
    peers,
    photos,
    report,
    results,
    tables,
    timing,
)
from mmkern.bench.timing import Plan
from mmkern.bench.workloads import OPS, WORKLOADS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: seconds that a whole run aims at; rows get fewer rounds where it would take longer
TARGET_S, QUICK_TARGET_S, FULL_TARGET_S = 90, 60, 480
PLAN = Plan()
QUICK_PLAN = Plan(min_rounds=5, budget_s=0.5, max_rounds=30)
MODEL_PLAN = Plan(min_rounds=5, budget_s=2.0, max_rounds=20)


@dataclass(frozen=True)
class Options:
    """The choices of one run; empty ``ops`` and ``models`` mean everything."""

    ops: tuple = ()
    models: tuple = ()
    dtypes: tuple = ("float32", "bfloat16")
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quick: bool = False
    full: bool = False
    compile: bool = True
    seed: int = 0
    output: Path = Path("out/bench")


@dataclass(frozen=True)
class Row:
    """A row to run: what it is called, and the function (of a Plan's pace) that runs it."""

    identity: dict
    run: Callable


def chosen(options):
    """The rows that the options ask for, in the order of the table."""
    everything = not options.ops and not options.models
    rows = []
    for workload in WORKLOADS:
        if not (everything or workload.case.op in options.ops):
            continue
        if workload.quick or not options.quick:
            dtypes = _dtypes(workload, options, everything)
            rows += [_op_row(workload, d, p, options) for p in _passes(workload, options)
                     for d in dtypes]  # fmt: skip
    for model in models.MODELS:
        if not (everything or model.name in options.models):
            continue
        if model.quick or not options.quick or model.name in options.models:
            named = options.full or not everything
            dtypes = options.dtypes if named else models.default_dtypes(options.dtypes)
            rows += [_model_row(model, dtype, options) for dtype in dtypes]
    for op in OPS:
        if everything or op in options.ops:
            rows.append(_overhead_row(op, options))
    return rows + _block_rows(options, everything)


def _block_rows(options, everything):
    """Blocks of published models: those that were named, and with --full all, in one dtype."""
    if everything:
        dtypes = models.default_dtypes(options.dtypes) if options.full else ()
        wanted = [block for block in blocks.BLOCKS if not block.missing()]
    else:
        dtypes = options.dtypes
        wanted = [block for block in blocks.BLOCKS if block.name in options.models]
    return [_block_row(block, dtype, options) for block in wanted for dtype in dtypes]


def _dtypes(workload, options, everything):
    """All that were asked for, or, of the whole job, what fits its time."""
    if options.full or workload.quick or not everything:
        return options.dtypes
    return () if workload.extra else models.default_dtypes(options.dtypes)


def _passes(workload, options):
    """What to time; with --full the forward and the backward of a training workload alone, too."""
    if options.full and workload.backward:
        return ("forward", "backward", workload.passes)
    return (workload.passes,)


def _op_row(workload, dtype, passes, options):
    def run(pace):
        made = contest.op_contest(
            workload, DTYPES[dtype], options.device, options.seed, passes, peers=options.full
        )
        plan = pace(QUICK_PLAN if options.quick else PLAN)
        return _contest(made, plan, options, workload.compiles, "one ATen call")

    name = workload.id if passes == workload.passes else f"{workload.id}, {passes} alone"
    return Row({"kind": "op", "op": workload.case.op, "name": name, "dtype": dtype}, run)


def _model_row(model, dtype, options, make=models.model_contest):
    def run(pace):
        made = make(model, DTYPES[dtype], options.device, options.seed)
        return _contest(made, pace(MODEL_PLAN), options, model.compiles, "slow to compile")

    return Row({"kind": "model", "op": "model", "name": model.name, "dtype": dtype}, run)


_block_row = functools.partial(_model_row, make=blocks.block_contest)


def _contest(made, plan, options, worth_compiling, why_not):
    """The row of a contest, without torch.compile where only --full takes the time for it."""
    compiles = options.compile and (worth_compiling or options.full)
    row = contest.run(made, plan, device=options.device, compile=compiles)
    if options.compile and not compiles:
        row["notes"].append(f"torch.compile left out ({why_not}): mmkern bench --full")
    return row


def _overhead_row(op, options):
    def run(pace):
        return overhead.row(op, options.device)

    return Row({"kind": "overhead", "op": op, "name": f"{op}-overhead", "dtype": "float32"}, run)


def run(options, console=None, command=None):
    """Run the benchmark, print the tables, write the files.

    An interrupt (Ctrl-C) ends it early; the rows that are done are kept and printed all the same.

    Returns:
        The exit code: 0; 1 if mmkern failed in a row; 130 after an interrupt.

    Raises:
        photos.PhotographsMissing: the photographs are not installed.
    """
    console = console or Console()
    photos.photographs()
    # graph breaks in the baselines are part of what is measured; their warnings tear the progress
    torch._logging.set_logs(dynamo=logging.ERROR, inductor=logging.ERROR)
    rows = chosen(options)
    found = {
        "schema": results.SCHEMA,
        "complete": False,
        "environment": machine.environment(options.device, command or sys.argv),
        "options": {
            "ops": list(options.ops),
            "models": list(options.models),
            "dtypes": list(options.dtypes),
            "quick": options.quick,
            "full": options.full,
            "compile": options.compile,
            "seed": options.seed,
        },
        "inputs": photos.SOURCE,
        "peers": {name: "absent: " + why for name, why in peers.absent(options.device).items()},
        "peaks": None,
        "noise": None,
        "memory": [],
        "rows": [],
        "not_run": [row.identity for row in rows],
    }
    start = time.monotonic()
    try:
        _run_rows(rows, options, found, console)
        found["complete"] = True
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
        console.print(f"interrupted; {len(found['not_run'])} rows were not run")
    found["environment"]["seconds"] = round(time.monotonic() - start, 1)
    results.save(found, options.output)
    report.write(found, options.output / "report.html")
    markdown.write(found, options.output / "report.md")
    tables.print_results(found, console)
    console.print(f"written: {options.output}/results.json, results.csv, report.html, report.md")
    if interrupted:
        return 130
    return 1 if results.failures(found["rows"]) else 0


def _target_s(options):
    if options.quick:
        return QUICK_TARGET_S
    return FULL_TARGET_S if options.full else TARGET_S


def _run_rows(rows, options, found, console):
    """Fill in ``found`` row by row, saving after each, so that a crash keeps what is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("limits of the machine", total=len(rows))
        peaks = functools.partial(
            machine.peaks, options.device, [DTYPES[d] for d in options.dtypes], quick=options.quick
        )
        found["peaks"] = peaks()
        found["noise"] = machine.noise(options.device)
        end = time.monotonic() + _target_s(options)
        for number, row in enumerate(rows):
            left = end - time.monotonic()
            pace = functools.partial(timing.paced, seconds_left=left, rows_left=len(rows) - number)
            progress.update(task, description=f"{row.identity['name']} {row.identity['dtype']}")
            done = row.run(pace)
            found["rows"].append(done)
            found["not_run"].pop(0)
            results.save(found, options.output)
            progress.advance(task)
            progress.console.print(tables.line(done), highlight=False)
        found["peaks"] = machine.best_peaks(found["peaks"], peaks())
        if options.full:
            progress.update(task, description="memory")
            found["memory"] = curves.curves(options.device)
