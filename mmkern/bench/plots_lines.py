"""The report's figures with two numeric axes: the roofline, and memory against size."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mmkern.bench import plots, results

MARKERS = {"attention": "o", "mlp": "s", "patch_embed": "^", "model": "D"}


def roofline(rows, peaks, dtype):
    """FLOP/s against FLOPs per byte, under the measured limits: rows whose FLOPs are counted."""
    rows = [r for r in rows if r["flops"] and r["bytes"] and results.milliseconds(r, "mmkern")]
    if not rows or not peaks or dtype not in peaks["matmul"]:
        return ""
    top = peaks["matmul"][dtype]
    copies = {"memory": peaks["copy"][-1][1], "cache": max(speed for _, speed in peaks["copy"])}
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.WIDTH, 3.6), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log")
        intensity = [r["flops"] / r["bytes"] for r in rows]
        x = np.geomspace(min(intensity) / 3, max(intensity) * 3, 200)
        for (name, speed), dashes in zip(copies.items(), ("-", "--"), strict=True):
            label = f"copy in {name}, {speed:.0f} GB/s"
            axes.plot(x, np.minimum(top, x * speed), dashes, color="#555", linewidth=1, label=label)
        axes.plot([], [], " ", label=f"matrix product, {top:.0f} GFLOP/s")
        for op in dict.fromkeys(row["op"] for row in rows):
            of_op = [row for row in rows if row["op"] == op]
            for name in ("eager", "mmkern"):
                timed = [r for r in of_op if results.milliseconds(r, name)]
                axes.plot(
                    [r["flops"] / r["bytes"] for r in timed],
                    [r["flops"] / results.milliseconds(r, name) / 1e6 for r in timed],
                    MARKERS.get(op, "v"), markersize=5, color=plots.COLOURS[name], alpha=0.8,
                    label=f"{op}, {name}",
                )  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("FLOP per byte")
        axes.set_ylabel("GFLOP/s")
        figure.legend(loc="outside upper left", title=dtype, alignment="left", frameon=False,
            title_fontproperties={"weight": "bold"}, ncols=2, columnspacing=1.0)  # fmt: skip
    return plots.svg(figure, f"{dtype}: roofline of attention, mlp and patch_embed")


def memory(line):
    """Peak memory of one op against size."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.WIDTH, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for name, values in line["peak_bytes"].items():
            if None not in values:
                mib = [value / 2**20 for value in values]
                axes.plot(line["x"], mib, "o-", color=plots.COLOURS[name], label=name, markersize=4)
        if not axes.lines:
            return ""
        axes.set_ylim(bottom=0)
        axes.set_xlabel(line["size"])
        axes.set_ylabel("MiB")
        title = f"{line['op']}, {line['passes']}, {line['dtype']}"
        figure.legend(loc="outside upper left", title=title, alignment="left", frameon=False,
            title_fontproperties={"weight": "bold"}, ncols=2)  # fmt: skip
    return plots.svg(figure, f"{title}: peak memory against {line['size']}")
