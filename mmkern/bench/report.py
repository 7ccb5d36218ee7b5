"""report.html: one self-contained file, legible on a phone."""

from html import escape

from mmkern.bench import compare, plots, plots_lines, results, tables

CSS = """
body{font:16px/1.45 system-ui,sans-serif;color:#222;background:#fff;max-width:76rem;
margin:0 auto;padding:.8rem}
h1{font-size:1.5rem;margin:.4rem 0}h2{font-size:1.15rem;margin:1.8rem 0 .5rem}
p,li{max-width:46rem}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.82rem}
th,td{padding:.22rem .5rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th{border-bottom:2px solid #888;vertical-align:bottom}
th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}
td:nth-child(2){white-space:normal;min-width:7rem}
small{color:#666;font-size:.92em}
.rows th,.rows td{padding:.22rem .35rem}
.rows td:first-child{white-space:normal;min-width:8.5rem;max-width:15rem;position:sticky;left:0;
background:#fff}
.rows td:nth-child(2){min-width:0}
.rows tr.lost td{background:#fdf1e3}.rows tr.failed td{background:#fbe3e3}
tr.failed td{text-align:left;white-space:normal}
tr.rival td{color:#666}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1rem}
.plots svg{width:100%;max-width:33rem;height:auto}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .8rem;font-size:.88rem}
dt{color:#666}dd{margin:0;overflow-wrap:anywhere}.small{font-size:.85rem;color:#555}
"""


def write(found, path, before=None):
    """Write the report of a result, whole or not at all; ``before``: a result to compare with."""
    results.write_text(path, render(found, before))


def render(found, before=None):
    """The HTML of a result, with what changed since ``before``."""
    rows = found["rows"]
    ops = [row for row in rows if row["kind"] == "op"]
    models = [row for row in rows if row["kind"] == "model"]
    environment = found["environment"]
    parts = [
        f"<h1>mmkern benchmark: {escape(environment['cpu'])}</h1>",
        f"<p>{escape(' '.join(results.summary(found)))}</p>",
        _changes(before, found),
        _failures(found),
        _plots("At a glance: times faster", [plots.speedups(plots.by_op(ops + models), "by op")]),
        _losses(found),
        _plots("Ops: times faster", [plots.speedups(group, d) for d, group in _by_dtype(ops)]),
        _plots(
            "Models: times faster", [plots.speedups(group, d) for d, group in _by_dtype(models)]
        ),
        _plots(
            "Ops: share of the machine's limit",
            [plots.limits(group, found["peaks"], d) for d, group in _by_dtype(ops)],
        ),
        _limits_text(found["peaks"]),
        _plots(
            "Roofline",
            [plots_lines.roofline(group, found["peaks"], d) for d, group in _by_dtype(ops)],
        ),
        _plots("Peak memory of a call", map(plots_lines.memory, found.get("memory", []))),
        _table(ops + models, found["peaks"]),
        _stages(models),
        _overhead([row for row in rows if row["kind"] == "overhead"]),
        _method(found),
        _peers(found.get("peers", {})),
        _environment(found),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>mmkern benchmark</title><style>{CSS}</style></head><body>"
        + "\n".join(part for part in parts if part)
        + "</body></html>\n"
    )


def _by_dtype(rows):
    dtypes = dict.fromkeys(row["dtype"] for row in rows)
    return [(dtype, [row for row in rows if row["dtype"] == dtype]) for dtype in dtypes]


def _failures(found):
    failed = [
        f"{results.label(row)} {row['dtype']}: {row['message']}"
        for row in results.failures(found["rows"])
    ]
    notes = [f"{results.label(row)}: {note}" for row in found["rows"] for note in row["notes"]]
    missing = [f"{i['name']} {i['dtype']}" for i in found["not_run"]]
    baselines = [
        f"{results.label(row)} {row['dtype']}, {name}: {time['error']}"
        for row in found["rows"]
        for name, time in row["times"].items()
        if "error" in time and name != "mmkern"
    ]
    groups = (
        ("Failed", failed), ("Not run: the run was interrupted", missing),
        ("Baselines and peers without a time", baselines), ("Remarks", notes),
    )  # fmt: skip
    return "".join(f"<h2>{title}</h2>{_list(texts)}" for title, texts in groups if texts)


def _list(texts):
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _losses(found):
    lines = tables.loss_lines(found["rows"])
    body = _list(lines) if lines else "<p>In time, nowhere in this run.</p>"
    memory = tables.memory_loss_lines(found)
    body += f"<p>In memory:</p>{_list(memory)}" if memory else ""
    return f"<h2>Where mmkern loses</h2>{body}"


def _plots(title, svgs):
    svgs = [svg for svg in svgs if svg]
    return f'<h2>{title}</h2><div class="plots">{"".join(svgs)}</div>' if svgs else ""


def _limits_text(peaks):
    if not peaks:
        return ""
    matmul = ", ".join(f"{dtype} {speed:.0f} GFLOP/s" for dtype, speed in peaks["matmul"].items())
    copies = ", ".join(f"{size / 2**20:.0f} MiB {speed:.0f} GB/s" for size, speed in peaks["copy"])
    return (
        '<p class="small">100 % is what this machine did in the same run: a square matrix product '
        f"({escape(matmul)}), or a copy of as many bytes, read and written ({escape(copies)}); "
        "whichever a row comes nearer to. FLOPs are those of the matrix products at the true head "
        "dim; bytes are inputs and outputs, each once.</p>"
    )


HEAD = (
    "row", "dtype", "eager ms", "compile ms", "mmkern ms", "vs eager", "vs compile",
    "reached", "of limit", "error", "repeats", "MiB", "eager MiB", "ran on",
)  # fmt: skip


def _table(rows, peaks):
    if not rows:
        return ""
    cells = "".join(f"<th>{name}</th>" for name in HEAD)
    body = "".join(_table_rows(row, peaks) for row in rows)
    return (
        '<h2>All rows</h2><div class="scroll"><table class="rows">'
        f"<tr>{cells}</tr>{body}</table></div>"
        '<p class="small">Times are medians, mmkern\'s with its 95 % interval. "vs" is the median '
        "of the ratios within rounds, with its 95 % interval; above 1, mmkern is faster. Shaded "
        "rows are slower than a baseline. Error: the largest against float64, as a multiple of "
        "eager's. Repeats: whether a second call gave the same bits. MiB: memory of a call at its "
        "peak, outputs and scratch included.</p>"
    )


def _table_rows(row, peaks):
    where = f"{row['model']}: {row['shape']}" + (f" ({row['scale']})" if row["scale"] else "")
    start = [f"{results.label(row)}\n{where}", tables.SHORT[row["dtype"]]]
    if row["status"] == "failed":
        cells = "".join(f"<td>{_cell(text)}</td>" for text in start)
        rest = len(HEAD) - len(start)
        return f'<tr class="failed">{cells}<td colspan="{rest}">{escape(row["message"])}</td></tr>'
    lost = any(r["value"] < 1 for r in row["ratios"].values())
    share, speed = plots.achieved(row, peaks, "mmkern") or (None, "-")
    texts = [
        *start,
        *(tables.milliseconds(results.milliseconds(row, c)) for c in tables.BASELINES),
        _stacked(tables.interval(row, "mmkern")),
        *(_stacked(tables.times_faster(row, c)) for c in tables.BASELINES),
        speed,
        "-" if share is None else f"{100 * share:.0f} %",
        tables.error(row),
        {True: "yes", False: "no"}.get(row.get("repeatable"), "-"),
        *(tables.mebibytes(results.peak_bytes(row, n)) for n in ("mmkern", "eager")),
        row["backend"],
    ]
    lines = [_line(texts, "lost" if lost else "")]
    for name in row["times"]:
        if name not in (*tables.BASELINES, "mmkern"):
            time = tables.milliseconds(results.milliseconds(row, name))
            faster = _stacked(tables.times_faster(row, name))
            texts = [f"or: {name}", "", time, "", "", faster]
            lines.append(_line(texts + [""] * (len(HEAD) - len(texts)), "rival"))
    return "".join(lines)


def _stacked(text):
    """The interval in a line below its estimate."""
    return text.replace(" (", "\n(", 1)


def _stages(models):
    """The parts of each model, eager's time and mmkern's."""
    lines = []
    for row in models:
        parts = row.get("stages", [])
        whole = sum(part["times"].get("eager", 0) for part in parts)
        for part in parts:
            eager, ours = (part["times"].get(n) for n in ("eager", "mmkern"))
            share = f"{100 * eager / whole:.0f} %" if eager and whole else "-"
            faster = f"{eager / ours:.2f}" if eager and ours and ours > 0 else "-"
            title = f"{results.label(row)} {tables.SHORT[row['dtype']]}"
            times = [tables.milliseconds(eager), tables.milliseconds(ours)]
            lines.append(_line([title, part["name"], share, *times, faster], ""))
    if not lines:
        return ""
    head = "".join(
        f"<th>{n}</th>" for n in ("model", "part", "of eager", "eager ms", "mmkern ms", "ratio")
    )
    return (
        f'<h2>Parts of the models</h2><div class="scroll"><table><tr>{head}</tr>{"".join(lines)}'
        '</table></div><p class="small">Medians of a few calls with hooks around the parts; the '
        'ratios of whole models are in the table above. "rest" is what no part accounts for: a '
        "kernel that the block around the parts calls counts there.</p>"
    )


def _changes(before, found):
    if before is None:
        return ""
    head = "".join(f"<th>{name}</th>" for name in compare.HEAD)
    body = "".join(_line(cells, "") for cells in compare.changes(before, found))
    only = {"only before": [], "only after": []}
    for text, row in compare.unshared(before, found):
        only[text].append(f"{results.label(row)} {row['dtype']}")
    since = f"{before['environment']['date']}, {before['environment']['commit']}"
    return (
        f'<h2>Changes since {escape(since)}</h2><div class="scroll"><table><tr>{head}</tr>{body}'
        '</table></div><p class="small">Before &rarr; after. The change is that of the ratio that '
        "fell most: ratios were measured within each run, milliseconds at different times.</p>"
        + _list([f"{text}: {', '.join(names)}" for text, names in only.items() if names])
    )


def _line(texts, style):
    return f'<tr class="{style}">' + "".join(f"<td>{_cell(t)}</td>" for t in texts) + "</tr>"


def _cell(text):
    """A cell's text; what follows a line end is small print."""
    first, _, rest = escape(text).partition("\n")
    return first + (f"<br><small>{rest}</small>" if rest else "")


def _overhead(rows):
    if not rows:
        return ""
    head = "".join(f"<th>{n}</th>" for n in ("op", "shape", "overhead us", "whole call us"))
    body = "".join(
        _line(
            [row["op"], row["shape"]]
            + [f"{1e3 * row['times'][n]['median_ms']:.2f}" for n in ("overhead", "call")],
            "",
        )
        for row in rows
    )
    return (
        "<h2>Cost of a call</h2>"
        f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
        '<p class="small">Overhead: the public function minus the raw op on the same tiny tensors, '
        "without gradients.</p>"
    )


def _method(found):
    compiled = "" if found["options"]["compile"] else " torch.compile was left out of this run."
    return (
        "<h2>How it was measured</h2><p>All contestants get the same tensors, and each allocates "
        "its own outputs in every call. They are warmed up, then timed in rounds: one sample of "
        "each (several calls where a call is short), the order turned around after every round. "
        "Rounds go on until the intervals are narrow or the row's time is up. Before the timing, "
        "each result is checked against float64; if mmkern's largest error exceeds twice eager's "
        "plus one rounding (three times for gradients), the row fails and has no time."
        f"{compiled}</p>"
    )


def _peers(absent):
    texts = [f"{name}: {why}" for name, why in absent.items()]
    return f"<h2>Peers that took no part</h2>{_list(texts)}" if texts else ""


def _environment(found):
    items = {
        **found["environment"], "seed": found["options"]["seed"], "quick": found["options"]["quick"]
    }  # fmt: skip
    body = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in items.items()
    )
    return f"<h2>Environment</h2><dl>{body}</dl>"
