"""What the terminal shows: a line per finished row, the table, and where mmkern loses."""

from rich import box
from rich.table import Table
from rich.text import Text

from mmkern.bench import results

BASELINES = results.BASELINES
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def milliseconds(value):
    """Three significant digits, "-" for None."""
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def mebibytes(value):
    """Bytes in MiB, "-" for None."""
    return "-" if value is None else f"{value / 2**20:.1f}"


def interval(row, contestant):
    """The median time with its interval, as text: "1.52 (1.49-1.55)"."""
    time = row["times"].get(contestant, {})
    if "median_ms" not in time:
        return "-"
    low, high = (milliseconds(time[f"{end}_ms"]) for end in ("low", "high"))
    return f"{milliseconds(time['median_ms'])} ({low}-{high})"


def times_faster(row, contestant):
    """The ratio with its interval, as text: "1.52 (1.49-1.55)"."""
    found = row["ratios"].get(contestant)
    if found is None:
        return "failed" if "error" in row["times"].get(contestant, {}) else "-"
    return f"{found['value']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def error(row):
    """mmkern's error as a multiple of eager's."""
    found = row["errors"].get("mmkern")
    if found is None:
        return "-"
    return "inf" if found["multiple"] is None else f"{found['multiple']:.2f}"


def line(row):
    """One line about a finished row."""
    name = f"{results.label(row)} {row['dtype']}"
    if row["status"] == "failed":
        return f"[red]FAILED[/] {name}: {row['message']}"
    if row["kind"] == "overhead":
        times = row["times"]
        return (
            f"{row['op']} overhead {1e3 * times['overhead']['median_ms']:.2f} us a call "
            f"(call {1e3 * times['call']['median_ms']:.2f} us)"
        )
    parts = [
        f"{other} {milliseconds(results.milliseconds(row, other))} ms"
        for other in (*BASELINES, "mmkern")
    ]
    faster = ", ".join(f"{r['value']:.2f}x {n}" for n, r in row["ratios"].items())
    return f"{name}: {', '.join(parts)}; {faster}"


def results_table(rows):
    """The table of ops and models, sorted by op; narrow enough for 80 columns."""
    table = Table(
        title="Median times in ms, and how many times faster mmkern is", box=box.SIMPLE, expand=True
    )
    table.title_justify = "left"
    table.add_column("op, shape", overflow="fold", ratio=1)
    table.add_column("dtype", no_wrap=True)
    for name in ("eager", "compile", "mmkern", "vs eager", "vs comp", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda r: (r["kind"] == "model", r["op"])):
        _add(table, row)
    return table


def _add(table, row):
    lost = any(r["value"] < 1 for r in row["ratios"].values())
    title = f"{results.label(row)}{' *' if lost else ''}\n  {row['shape']}"
    dtype = SHORT.get(row["dtype"], row["dtype"])
    if row["status"] == "failed":
        table.add_row(Text(f"{title}\n  FAILED {row['message']}"), dtype, style="red")
        return
    table.add_row(
        Text(title),
        dtype,
        *(milliseconds(results.milliseconds(row, c)) for c in (*BASELINES, "mmkern")),
        *(_short_ratio(row, c) for c in BASELINES),
        error(row),
        style="yellow" if lost else None,
    )
    for name in row["times"]:
        if name not in (*BASELINES, "mmkern"):
            time = milliseconds(results.milliseconds(row, name))
            table.add_row(f"  or: {name}", "", time, "", "", _short_ratio(row, name), "", "")


def _short_ratio(row, contestant):
    value = results.ratio(row, contestant)
    return times_faster(row, contestant) if value is None else f"{value:.2f}"


def overhead_table(rows):
    """The cost of a call besides its kernel."""
    table = Table(title="Cost of a call, microseconds", title_justify="left", box=box.SIMPLE)
    for name in ("op", "overhead", "whole call", "raw op", "shape"):
        table.add_column(name, justify="left" if name in ("op", "shape") else "right")
    for row in rows:
        times = (
            f"{1e3 * row['times'][n]['median_ms']:.2f}" for n in ("overhead", "call", "kernel")
        )
        table.add_row(row["op"], *times, row["shape"])
    return table


def loss_lines(rows):
    """One line for each row in which mmkern is slower than something, worst first."""
    lines = {}
    for row, name in results.losses(rows):
        r = row["ratios"][name]
        certain = "" if r["high"] < 1 else " (within the noise)"
        what = f"{results.label(row)} {row['dtype']} ({row['shape']})"
        lines.setdefault(what, []).append(f"{r['value']:.2f}x {name}{certain}")
    return [f"{what}: {', '.join(ratios)}" for what, ratios in lines.items()]


def memory_loss_lines(found):
    """One line for each row, and each curve at its largest size, in which mmkern takes over 10 %
    and 1 MiB more memory than eager."""
    cases = [
        (
            f"{results.label(row)} {row['dtype']} ({row['shape']})",
            *(results.peak_bytes(row, name) for name in ("mmkern", "eager")),
        )
        for row in found["rows"]
    ]
    for curve in found.get("memory", []):
        peaks = curve["peak_bytes"]
        what = f"{curve['op']}, {curve['passes']}, {curve['dtype']} ({curve['x'][-1]}"
        cases.append((f"{what} {curve['size']})", peaks["mmkern"][-1], peaks["eager"][-1]))
    return [
        f"{what}: {mebibytes(ours)} MiB, eager {mebibytes(eager)}"
        for what, ours, eager in cases
        if None not in (ours, eager) and ours > 1.1 * eager + 2**20
    ]


def print_results(found, console):
    """The whole report on a terminal."""
    rows = found["rows"]
    measured = [row for row in rows if row["kind"] != "overhead"]
    if measured:
        console.print(results_table(measured))
        console.print(
            "* slower than a baseline. Ratios: medians within rounds. error: the largest against "
            "float64, as a multiple of eager's.",
            highlight=False,
        )
    overhead = [row for row in rows if row["kind"] == "overhead"]
    if overhead:
        console.print(overhead_table(overhead))
    lines = loss_lines(rows)
    if measured:
        console.print(
            f"\nWhere mmkern loses ({len(lines)}):" if lines else "\nmmkern loses nowhere"
        )
    for text in lines:
        console.print(f"  {text}", markup=False, highlight=False)
    for row in results.failures(rows):
        console.print(f"FAILED {results.label(row)} {row['dtype']}: {row['message']}", style="red")
    for identity in found["not_run"]:
        console.print(f"not run: {identity['name']} {identity['dtype']}", markup=False)
