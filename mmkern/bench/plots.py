"""The bars and dots of the report, as inline SVG narrow enough for a phone."""

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mmkern.bench import results
from mmkern.bench.machine import copy_speed

COLOURS = {"eager": "#0072b2", "compile": "#e69f00", "mmkern": "#009e73", "best peer": "#cc79a7"}
RIVALS = ("eager", "compile", "best peer")
CONTESTANTS = ("eager", "compile", "mmkern")
LOSS = "#b2182b"
WIDTH = 4.7
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mmkern",
    "font.family": "sans-serif",
    "font.sans-serif": ["Verdana", "DejaVu Sans", "sans-serif"],
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
#: of an axis that spans less than a factor of 3
FINE_TICKS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2, 2.5)
#: behind a text that an axis line would cross
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}


def _figure(rows, inches=0.5):
    """A figure with a slot of height 1 for each row: its label above, its marks below."""
    figure = Figure(figsize=(WIDTH, inches * len(rows) + 1.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.yaxis.set_major_locator(NullLocator())
    return figure, axes


def _label(axes, y, text, *, lost=False):
    place = axes.get_yaxis_transform()
    colour = LOSS if lost else "#222"
    axes.text(0.005, y - 0.38, text, transform=place, color=colour, va="center", bbox=PAPER)


def _legend(figure, handles, names, title):
    figure.legend(
        handles,
        names,
        title=title,
        title_fontproperties={"weight": "bold"},
        alignment="left",
        loc="outside upper left",
        frameon=False,
        ncols=len(names),
        columnspacing=1.0,
    )


def svg(figure, description):
    """A figure as an SVG element."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return text.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def speedups(rows, title):
    """Bars of the ratios against eager, torch.compile and the best peer, around 1."""
    rows = [row for row in rows if row["ratios"]]
    names = [n for n in RIVALS if any(_against(row, n) for row in rows)]
    if not rows:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(rows, inches=0.26 + 0.12 * len(names))
        axes.set_xscale("log")
        ends = [0.8, 1.25]
        for y, row in enumerate(rows):
            lost = any(r["value"] < 1 for r in row["ratios"].values())
            _label(axes, y, results.label(row), lost=lost)
            # the bars share what the label leaves of the slot
            height = 0.6 / len(names)
            for number, name in enumerate(names):
                if ratio := _against(row, name):
                    middle = y - 0.2 + (number + 0.5) * height
                    _bar(axes, middle, 0.9 * height, ratio, COLOURS[name])
                    ends += [ratio[end] for end in ("low", "high")]
        axes.axvline(1, color="#222", linewidth=0.8)
        # room at the right for the number at the end of the longest bar
        axes.set_xlim(min(ends) / 1.1, max(ends) * (max(ends) / min(ends)) ** 0.14)
        narrow = max(ends) / min(ends) < 3
        axes.xaxis.set_major_locator(FixedLocator(FINE_TICKS if narrow else TICKS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
        handles = [matplotlib.patches.Patch(color=COLOURS[n]) for n in names]
        _legend(figure, handles, [f"vs {n}" for n in names], title)
    return svg(figure, f"{title}: bars of how many times faster mmkern is")


def _against(row, name):
    """The ratio against one of RIVALS, None if there is none."""
    return row["ratios"].get(results.best_peer(row) if name == "best peer" else name)


def by_op(rows):
    """Rows in the manner of a result's: an op's geometric means, from its worst row to its best."""
    found = []
    for op in dict.fromkeys(row["op"] for row in rows):
        ratios = {}
        for name in RIVALS:
            values = [r["value"] for row in rows if row["op"] == op and (r := _against(row, name))]
            if values:
                mean = float(np.exp(np.mean(np.log(values))))
                ratios[name] = {"value": mean, "low": min(values), "high": max(values)}
        found.append({"function": op, "name": "", "variant": "forward", "ratios": ratios})
    return found


def _bar(axes, y, height, ratio, colour):
    axes.barh(y, ratio["value"] - 1, left=1, height=height, color=colour)
    axes.plot([ratio["low"], ratio["high"]], [y, y], color="#222", linewidth=0.9)
    end = max(ratio["high"], 1.0)
    text_colour = LOSS if ratio["value"] < 1 else "#222"
    axes.annotate(f"{ratio['value']:.2f}", (end, y), (3, 0), textcoords="offset points",
                  va="center", fontsize=7, color=text_colour)  # fmt: skip


def achieved(row, peaks, contestant):
    """(share of the machine's limit, text) of a contestant; None where it has no time.

    The limit is whichever binds: the measured matrix product in the row's dtype, or a measured copy
    of as many bytes.
    """
    time = results.milliseconds(row, contestant)
    if not time or not peaks:
        return None
    found = []
    if row["flops"] and row["dtype"] in peaks["matmul"]:
        speed = row["flops"] / time / 1e6
        found.append((speed / peaks["matmul"][row["dtype"]], f"{speed:.0f} GFLOP/s"))
    if row["bytes"]:
        speed = row["bytes"] / time / 1e6
        found.append((speed / copy_speed(peaks["copy"], row["bytes"]), f"{speed:.0f} GB/s"))
    return max(found, default=None)


def limits(rows, peaks, title):
    """Dots: how near each contestant comes to what the machine can do."""
    rows = [row for row in rows if achieved(row, peaks, "mmkern")]
    if not rows:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(rows)
        names = [n for n in CONTESTANTS if any(results.milliseconds(row, n) for row in rows)]
        for y, row in enumerate(rows):
            found = {name: achieved(row, peaks, name) for name in names}
            _label(axes, y, f"{results.label(row)}: {found['mmkern'][1]}")
            shares = {name: 100 * value[0] for name, value in found.items() if value}
            axes.plot([0, max(shares.values())], [y + 0.05] * 2, color="#ddd", zorder=1)
            for name, share in shares.items():
                axes.plot(share, y + 0.05, "o", color=COLOURS[name], markersize=5, zorder=2)
        axes.axvline(100, color="#222", linewidth=0.8)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} %"))
        handles = [
            matplotlib.lines.Line2D([], [], marker="o", linestyle="", color=c)
            for c in map(COLOURS.get, names)
        ]
        _legend(figure, handles, names, title)
    return svg(figure, f"{title}: share of the measured limit of the machine")
