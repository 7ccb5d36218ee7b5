"""Where the time of a model goes once its ops are mmkern's, and what bounds it next.

    python benchmarks/model_shares.py                          # measure, and write the result
    python benchmarks/model_shares.py --table docs/benchmarks.md [--check]

The CPU time of each op of mmkern and of PyTorch's linear layers and convolutions, by
torch.profiler, as shares of all. Products are linear layers, mlp and patch_embed together; their
rate is held against that of a large matrix product on the same machine. Where it is near, the
processor's arithmetic is the next bound; where few rows meet large weights, memory is.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import mmkern
from mmkern.bench import job, machine, models, readme, results, tables

RESULT = Path(__file__).parent / "results/model_shares.json"
RUNS = 5
LINEAR = ("aten::addmm", "aten::mm", "aten::mkldnn_linear", "mkldnn::_linear_pointwise")
CONVOLUTION = ("aten::mkldnn_convolution", "aten::_slow_conv2d_forward")
#: mmkern.nn.Linear is mmkern.patch_embed where that is faster
OF_OPS = {
    "attention": "attention", "glu": "rope, glu", "mlp": "mlp", "modulate": "norms",
    "patch_embed": "linear, patch_embed", "rms_norm": "norms", "rope": "rope, glu",
}  # fmt: skip
PRODUCTS = ("linear, patch_embed", "mlp")
COLUMNS = (*PRODUCTS, "attention", "norms", "rope, glu", "convolution", "rest")


def group(name):
    """The column of an event of the profiler."""
    if name in LINEAR:
        return "linear, patch_embed"
    if name in CONVOLUTION:
        return "convolution"
    return OF_OPS.get(name.removeprefix("mmkern::"), "rest") if "mmkern::" in name else "rest"


def peak(dtype):
    """GFLOP/s of a product of 2048 x 2048 matrices, PyTorch's or mmkern's, whichever is faster."""
    a = torch.randn(2048, 2048).to(dtype)
    seconds = []
    for product in (torch.mm, mmkern.patch_embed):
        for _ in range(8):
            begin = time.perf_counter()
            product(a, a)
            seconds.append(time.perf_counter() - begin)
    return 2 * 2048**3 / min(seconds) * 1e-9


def measure(workload, dtype):
    """A row: shares of a model's time, and the rate of its products in GFLOP/s."""
    contest = models.model_contest(workload, dtype, torch.device("cpu"), 0)
    run = contest.bind(contest.functions["mmkern"])
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            contest.bind(contest.functions["eager"])()
        for _ in range(2):
            run()
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            for _ in range(RUNS):
                run()
    times = Counter()
    for event in recorded.key_averages():
        times[group(event.key)] += event.self_cpu_time_total * 1e-6 / RUNS
    counts = counter.get_flop_counts()["Global"]
    flops = sum(n for op, n in counts.items() if str(op) in ("aten.addmm", "aten.mm"))
    total = sum(times.values())
    return {
        "name": workload.name,
        "model": workload.model,
        "shape": workload.shape,
        "dtype": str(dtype).removeprefix("torch."),
        "ms": total * 1e3,
        "shares": {column: times[column] / total for column in COLUMNS},
        "product_gflops": flops / sum(times[p] for p in PRODUCTS) * 1e-9,
    }


def table(found):
    """Markdown: a line per model and dtype."""
    lines = [f"| model | dtype | {' | '.join(COLUMNS)} | products, of the peak |"]
    lines.append("| --- | --- |" + " ---: |" * (len(COLUMNS) + 1))
    for row in found["rows"]:
        shares = [f"{100 * row['shares'][column]:.0f} %" for column in COLUMNS]
        peak = found["peaks"][row["dtype"]]
        rate = f"{row['product_gflops']:.0f} GFLOP/s, {100 * row['product_gflops'] / peak:.0f} %"
        cells = [f"{row['model']}: {row['shape']}", tables.SHORT[row["dtype"]], *shares, rate]
        lines.append(f"| {' | '.join(cells)} |")
    e = found["environment"]
    lines += ["", f"{e['cpu']}, {e['threads']} threads, {e['isa']}, torch {e['torch']}, mmkern "]
    lines[-1] += f"{e['commit']}, {e['date']}: `{e['command']}`."
    return "\n".join(lines)


def main():
    """Run the command; returns the exit code, 1 if a table differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", type=Path, help="write the result's table into this")
    parser.add_argument("--check", action="store_true", help="with --table: fail if it differs")
    args = parser.parse_args()
    if args.table:
        old = args.table.read_text(encoding="utf-8")
        new = readme.replace(old, RESULT.stem, table(json.loads(RESULT.read_text())))
        if args.check and new != old:
            print(f"{args.table}: the table {RESULT.stem} differs from {RESULT}")
        elif new != old:
            results.write_text(args.table, new)
        return int(args.check and new != old)
    device = torch.device("cpu")
    dtypes = [job.DTYPES["bfloat16"], job.DTYPES["float32"]]
    rows = [measure(workload, dtype) for workload in models.MODELS for dtype in dtypes]
    found = {"environment": machine.environment(device, ["python", *sys.argv]), "rows": rows}
    found["peaks"] = {str(dtype).removeprefix("torch."): peak(dtype) for dtype in dtypes}
    results.write_text(RESULT, json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
