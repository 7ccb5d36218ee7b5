"""The command line: ``python -m mmkern info | bench | compare | report | tune``."""

import argparse
import signal
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import mmkern
from mmkern import library


def main(argv=None):
    """Run a command; returns the exit code (2 for a wrong command line)."""
    args = _parser().parse_args(argv)
    return args.command(args)


def _parser():
    parser = argparse.ArgumentParser(prog="mmkern", description=mmkern.__doc__)
    parser.add_argument("--version", action="version", version=mmkern.__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    info = commands.add_parser("info", help="which kernels there are, and why others are not")
    info.set_defaults(command=_info)
    _add_bench(commands)
    _add_compare(commands)
    report = commands.add_parser(
        "report", help="write report.html and report.md from a results.json, or compare two"
    )
    report.add_argument("results", type=Path, help="results.json; of two, the earlier one")
    report.add_argument("after", type=Path, nargs="?", help="the later results.json")
    report.add_argument(
        "--output", type=Path, help="default: report.html, or comparison.html, beside the later one"
    )
    report.set_defaults(command=_report, parser=report)
    tune = commands.add_parser(
        "tune",
        help="measure better tile sizes for the Triton kernels on this GPU",
        description="Time the Triton kernels at real models' shapes with other tile sizes, and "
        "write the faster ones where mmkern looks for them.",
    )
    tune.add_argument("--op", action="append", default=[], metavar="OP[,OP]", help="these ops only")
    tune.add_argument("--output", type=Path, metavar="FILE", help="default: in the user's cache")
    tune.set_defaults(command=_tune, parser=tune)
    return parser


def _add_bench(commands):
    bench = commands.add_parser(
        "bench",
        help="time ops and models against eager PyTorch and torch.compile",
        description="Time every op and model against eager PyTorch and torch.compile, check each "
        "result against float64, and write a report. Exits 1 if a result of mmkern is wrong.",
    )
    add = bench.add_argument
    add("--op", action="append", default=[], metavar="OP[,OP]", help='these ops only; or "all"')
    add(
        "--model",
        action="append",
        default=[],
        metavar="M[,M]",
        help='these; "all"; "blocks": blocks of published models',
    )
    add("--dtype", action="append", default=[], metavar="DT[,DT]", help="float32,bfloat16")
    add("--device", help="default: the accelerator that is there, else cpu")
    add("--quick", action="store_true", help="a selection, in about a minute")
    add("--full", action="store_true", help="every workload in every dtype, in about ten minutes")
    add("--output", type=Path, default=Path("out/bench"), metavar="DIR", help="default out/bench")
    add("--threads", type=int, help="CPU threads; default torch's")
    add("--seed", type=int, default=0, help="of the random inputs and weights")
    add("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    bench.set_defaults(command=_bench, parser=bench)


def _add_compare(commands):
    compare = commands.add_parser(
        "compare",
        help="whether a build is slower than another, or what changed between two results",
        description="Two builds (git revisions, or folders with mmkern in them): time both in "
        "turns in one process, and exit 1 if the second is slower by more than the margin. "
        '"previous" is the last commit of main before the working tree. '
        "Two results.json: print what changed.",
    )
    add = compare.add_argument
    add("before", help="git revision, folder, or results.json")
    add("after", help='the same kind; "." is the working tree as it is built')
    add("--margin", type=float, default=5.0, metavar="PCT", help="builds: slowdown let pass (5)")
    add("--op", action="append", default=[], metavar="OP[,OP]", help="builds: these ops only")
    add("--dtype", action="append", default=[], metavar="DT[,DT]", help="builds: fp32,bf16")
    add("--device", help="builds: default the accelerator that is there, else cpu")
    add("--threads", type=int, default=1, help="builds: CPU threads; with 1 (the default) the "
        "thread's own time counts, which other programs do not disturb")  # fmt: skip
    add("--quick", action="store_true", help="builds: the workloads of bench --quick")
    add("--seconds", type=float, default=float("inf"), metavar="S", help="builds: begin no case "
        "after so many seconds of measuring; default no limit")  # fmt: skip
    add("--output", type=Path, metavar="FILE", help="builds: write the findings as JSON")
    add(
        "--fail-over",
        type=float,
        metavar="PCT",
        help="results: exit 1 if a ratio fell by more than PCT percent, or a row fails only in "
        "AFTER",
    )
    compare.set_defaults(command=_compare, parser=compare)


def _bench(args):
    try:
        from mmkern.bench import blocks, job, models, photos, workloads
    except ImportError as error:
        args.parser.error(f"{error}; pip install 'mmkern[bench]'")
    dtypes = _dtypes(args) or ["float32", "bfloat16"]
    if args.threads is not None:
        if args.threads < 1:
            args.parser.error(f"--threads is {args.threads}; wanted at least 1")
        torch.set_num_threads(args.threads)
    if args.quick and args.full:
        args.parser.error("--quick and --full exclude each other")
    names = [w.name for w in (*models.MODELS, *blocks.BLOCKS)]
    wanted = _choice(args, "--model", _expanded(args.model, blocks.BLOCKS), names)
    for block in blocks.BLOCKS:
        if block.name in wanted and block.missing():
            args.parser.error(f"--model {block.name} needs {block.library}, which is not installed")
    options = job.Options(
        ops=_choice(args, "--op", _split(args.op), workloads.OPS),
        models=wanted,
        dtypes=_choice(args, "--dtype", dtypes, job.DTYPES),
        device=_device(args),
        quick=args.quick,
        full=args.full,
        compile=args.compile,
        seed=args.seed,
        output=args.output,
    )
    # a time limit (SIGTERM) keeps what is done, as Ctrl-C does
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return job.run(options, Console())
    except photos.PhotographsMissing as error:
        args.parser.error(str(error))


def _split(values):
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _expanded(values, blocks):
    """The names of models, with every block's in the place of "blocks"."""
    names = [[b.name for b in blocks] if v == "blocks" else [v] for v in _split(values)]
    return [name for group in names for name in group]


def _dtypes(args):
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    return [short.get(dtype, dtype) for dtype in _split(args.dtype)]


def _choice(args, flag, values, allowed):
    """The values without repetition; "all" is every allowed one. Unknown ones end the program."""
    if "all" in values:
        return tuple(allowed)
    for value in values:
        if value not in allowed:
            args.parser.error(f"{flag} is {value!r}; wanted one of {', '.join(allowed)}")
    return tuple(dict.fromkeys(values))


def _device(args):
    """The torch.device asked for, or the accelerator that is there, or the CPU."""
    if args.device is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        args.parser.error(f"--device is {args.device!r}, which cannot be used here: {reason}")
    if device.type == "meta":
        args.parser.error("--device is 'meta', which computes nothing; wanted a real device")
    return device


def _info(args):
    from mmkern.bench import machine

    console = Console()
    console.print(f"mmkern {mmkern.__version__}, torch {torch.__version__}", highlight=False)
    console.print(f"CPU: {machine.cpu_model()}; kernels: {machine.isa()}", highlight=False)
    native = sys.modules.get("mmkern._C")
    if native is not None:
        build = ", ".join(f"{key} {value}" for key, value in native.build_info().items())
        console.print(f"build: {build}", markup=False, highlight=False)
    table = Table()
    table.add_column("op", no_wrap=True)
    kernels = mmkern.info()
    backends = list(dict.fromkeys(name for row in kernels.values() for name in row))
    for backend in backends:
        table.add_column(backend, overflow="fold")
    for op, row in kernels.items():
        table.add_row(op, *(_availability(*row[backend]) for backend in backends))
    console.print(table)
    return 0


def _availability(available, reason):
    return f"yes ({reason})" if available else f"no: {reason}"


def _compare(args):
    if all(name.endswith(".json") for name in (args.before, args.after)):
        return _compare_results(args)
    try:
        from mmkern.bench import builds, gate, paired, workloads
    except ImportError as error:
        args.parser.error(f"{error}; pip install 'mmkern[bench]'")
    if not args.margin > 0 or args.threads < 1:
        args.parser.error(
            f"--margin is {args.margin:g} and --threads {args.threads}; wanted more than 0"
        )
    options = gate.Options(
        ops=_choice(args, "--op", _split(args.op), workloads.OPS),
        dtypes=_choice(args, "--dtype", _dtypes(args) or gate.DEFAULT_DTYPES, gate.DTYPES),
        device=_device(args),
        threads=args.threads,
        quick=args.quick,
        seconds=args.seconds,
        rule=paired.Rule(margin=args.margin / 100),
    )
    console, here = Console(), Path(mmkern.__file__).parents[1]
    try:
        head = builds.find(args.after, here, here / "build" / "compare")
        base, why_not = _base(args.before, here)
        if base is None:
            console.print(f"skipped: {why_not}", markup=False, soft_wrap=True)
            return 0
        return gate.run(base, head, options, console, args.output)
    except builds.BuildError as error:
        args.parser.error(str(error))


def _base(spec, here):
    """(the Build to compare with, None), or (None, why there is no "previous" one)."""
    from mmkern.bench import builds

    cache = here / "build" / "compare"
    if spec != "previous":
        return builds.find(spec, here, cache), None
    commit = builds.previous(here)
    if commit is None:
        return None, f"{here} has no earlier commit of main to compare with"
    try:
        return builds.find(commit, here, cache), None
    except builds.BuildError as error:
        return None, f"the commit before cannot be built: {error}"


def _compare_results(args):
    from mmkern.bench import compare, results

    try:
        before, after = results.load(args.before), results.load(args.after)
        return compare.run(before, after, Console(), fail_over=args.fail_over)
    except results.ResultsError as error:
        args.parser.error(str(error))


def _report(args):
    from mmkern.bench import compare, markdown, report, results

    console = Console()
    try:
        found, before = results.load(args.after or args.results), None
        if args.after:
            before = results.load(args.results)
            compare.run(before, found, console)
    except results.ResultsError as error:
        args.parser.error(str(error))
    name = "comparison.html" if args.after else "report.html"
    path = args.output or (args.after or args.results).with_name(name)
    report.write(found, path, before)
    markdown.write(found, path.with_suffix(".md"), before)
    console.print(f"written: {path}, {path.with_suffix('.md').name}")
    return 0


def _tune(args):
    ops = _choice(args, "--op", _split(args.op), tuple(library.OPS))
    backends = {name: b for name, b in library.BACKENDS.items() if name.startswith("triton")}
    usable = [b.device for b in backends.values() if not b.missing]
    if not usable:
        reasons = "; ".join(b.missing for b in backends.values())
        print(f"mmkern tune: no device runs the Triton kernels here ({reasons})", file=sys.stderr)
        return 1
    from mmkern.bench import tune
    from mmkern.kernels.triton import tuning

    device = torch.device(usable[0], 0)
    found = tune.tune(device, print, ops=ops)
    path = args.output or tuning.user_file()
    tune.write(path, tuning.target(device), found)
    print(f"written: {path} ({len(found)} kernels got faster)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
