"""What changed between two result files: a plain reading of both, not a regression gate.

The two were measured at different times, so their milliseconds are not comparable on a shared
machine. The ratios against eager were measured within each run, and are.
"""

from rich.table import Table

from mmkern.bench import results
from mmkern.bench.tables import milliseconds

HEAD = ("row", "dtype", "mmkern ms", "vs eager", "vs compile", "change")


def changes(before, after):
    """The texts under HEAD, for each row that both have; those of overheads have no ratio."""
    old, new = ({results.key(row): row for row in f["rows"]} for f in (before, after))
    common = [key for key in old if key in new and old[key]["kind"] != "overhead"]
    pairs = [(old[key], new[key]) for key in common]
    return [_cells(*pair, _worst_change(*pair)) for pair in pairs]


def unshared(before, after):
    """[("only before" or "only after", row)] of the rows that one of the two lacks."""
    keys = [{results.key(row) for row in f["rows"]} for f in (before, after)]
    return [
        (text, row)
        for text, found, others in (
            ("only before", before, keys[1]),
            ("only after", after, keys[0]),
        )
        for row in found["rows"]
        if results.key(row) not in others
    ]


def run(before, after, console, *, fail_over=None):
    """Print the changes; returns 1 if ``fail_over`` is given and a row got worse by more percent.

    Rows that only one file has are listed, and are no failure.

    Raises:
        ResultsError: the files have no row in common.
    """
    old, new = ({results.key(row): row for row in f["rows"]} for f in (before, after))
    common = [key for key in old if key in new]
    if not common:
        raise results.ResultsError("the two results have no row in common")
    table = Table()
    for name in HEAD:
        table.add_column(name, justify="left" if name == "row" else "right", overflow="fold")
    worse = []
    for key in common:
        change = _worst_change(old[key], new[key])
        bad = fail_over is not None and _is_worse(old[key], new[key], change, fail_over)
        worse += [key] if bad else []
        table.add_row(*_cells(old[key], new[key], change), style="red" if bad else None)
    console.print(table)
    for text, row in unshared(before, after):
        console.print(f"{text}: {results.label(row)} {row['dtype']}")
    if worse:
        console.print(f"{len(worse)} rows are worse by more than {fail_over:g} %")
    return 1 if worse else 0


def _worst_change(old, new):
    """The lowest relative change of a ratio, in percent; None where there is none in both."""
    changes = [
        100 * (new["ratios"][name]["value"] / r["value"] - 1)
        for name, r in old["ratios"].items()
        if name in ("eager", "compile") and name in new["ratios"]
    ]
    return min(changes, default=None)


def _is_worse(old, new, change, fail_over):
    broke = new["status"] == "failed" and old["status"] != "failed"
    return broke or (change is not None and change < -fail_over)


def _cells(old, new, change):
    def pair(read):
        return " -> ".join(read(row) for row in (old, new))

    def ratio(name):
        return lambda row: (
            "-" if results.ratio(row, name) is None else f"{row['ratios'][name]['value']:.2f}"
        )

    def time(row):
        failed = row["status"] == "failed"
        return "FAILED" if failed else milliseconds(results.milliseconds(row, "mmkern"))

    return (
        results.label(old),
        old["dtype"],
        pair(time),
        pair(ratio("eager")),
        pair(ratio("compile")),
        "-" if change is None else f"{change:+.1f} %",
    )
