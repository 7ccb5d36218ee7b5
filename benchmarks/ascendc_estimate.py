"""What the twin estimates for the AscendC kernels: cycles per pipe, and what bounds each kernel.

    python benchmarks/ascendc_estimate.py           # run, write the results and the table in docs
    python benchmarks/ascendc_estimate.py --check   # fail where the table is another

Each kernel runs on one cube core and its two vector cores (a kernel without products on two vector
cores), on the share of a model's shape that one core has, tiles and loops being those of the whole
chip. Busy cycles count an instruction at its published peak rate; the end is later where pipes wait
for each other. What all cores together move is held against HBM besides, at 1.6 TB/s.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch

from mmkern.bench import results as bench_results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/ascendc.json"
DOCS = ROOT / "docs/ascend.md"
BEGIN, END = "<!-- estimate:begin -->", "<!-- estimate:end -->"
#: bytes read and written once, for which two vector cores have their share of HBM's speed
MOVED = {
    "modulate": 4 * 64 * 1152 * 2,
    "modulate, norm": 2 * 64 * 1280 * 2,
    "modulate_backward": 6 * 64 * 1152 * 2,
    "column_sums": 256 * 1024 * 2,
    "attention_delta": 2 * 1024 * 64 * 2,
}
CLOCK, HBM, VECTOR_CORES, CUBE_PRODUCTS = 1.8e9, 1.6e12, 48, 4096


def _randn(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16)


def _runs(ops):
    """{name: (what, call)}; a name begins with the kernel's that is meant, if a call runs more."""
    c = 1152
    x, m, w = _randn(1, 64, c), [_randn(1, c) for _ in range(3)], _randn(1024, c)
    bias, none, affine = _randn(1024), [None] * 3, [_randn(1280), _randn(1280)]

    def backward(rows, inputs, hidden, outputs, asked):
        grad, z = _randn(rows, outputs), _randn(rows, hidden)
        x, w1, w2 = _randn(rows, inputs), _randn(hidden, inputs), _randn(outputs, hidden)
        mask = [i == asked for i in range(7)]
        return lambda: ops.mlp_backward(
            grad, x, None, w1, w2, None, None, z, "gelu", "none", 1e-6, 1, mask
        )

    def attention(tokens, heads, dim):
        q = _randn(1, tokens, heads, dim)
        return lambda: ops.attention(q, q, q, None, None, None, 0, 0, False, -1, -1, dim**-0.5)

    def attention_backward(tokens, heads, dim):
        q, lse = _randn(1, tokens, heads, dim), torch.full((1, heads, tokens), math.log(tokens) + 1)
        args = (q, None, q, q, q, q, lse, *none, 0, 0, False, -1, -1, dim**-0.5)
        return lambda: ops.attention_backward(*args)

    def projector(norm):
        x, w1, weights = _randn(512, 1280), _randn(1792, 5120), affine if norm else [None] * 2
        args = (x, None, w1, _randn(1792), _randn(16, 1792), None, *weights, "gelu")
        return lambda: ops.mlp(*args, "layer" if norm else "none", 1e-6, 2, False)

    gradients, wide_gradients = attention_backward(1024, 1, 64), attention_backward(1024, 1, 128)

    return {
        "modulate": (
            "gate, LayerNorm, scale, shift; 64 tokens of 1152",
            lambda: ops.modulate(x, x, *m, None, None, "layer", 1e-6),
        ),
        "modulate_backward": (
            "the same; 64 tokens of 1152",
            lambda: ops.modulate_backward(
                x, x, x, x, *m, None, None, "layer", 1e-6, [True] * 5 + [False] * 2
            ),
        ),
        "modulate, norm": (
            "LayerNorm, weight, bias, before a linear layer; 64 tokens of 1280",
            lambda: ops.modulate(_randn(64, 1280), *none, None, *affine, "layer", 1e-6),
        ),
        "patch_embed": (
            "16 x 16 x 3 pixels; 384 patches to 768",
            lambda: ops.patch_embed(
                _randn(1, 3, 256, 384), _randn(768, 3, 16, 16), _randn(768), None
            ),
        ),
        "linear": (
            "bias, GELU; 512 rows of 1152 to 1024",
            lambda: ops.mlp(
                _randn(512, c), None, w, bias, _randn(16, 1024), *none, "gelu", "none", 1e-6, 1,
                False,
            ),
        ),
        "linear, merged": (
            "bias, GELU; 128 rows of 4 x 1280, merged, to 1792", projector(norm=False)
        ),
        "linear_normed": ("the same with LayerNorm, weight, bias inside", projector(norm=True)),
        "linear_backward": (
            "GELU' and GELU besides; 512 rows of 1024 to 1152", backward(512, 16, c, 1024, 3)
        ),
        "linear_backward, weight": (
            "2048 rows, summed to 256 x 384", backward(2048, 16, 384, 256, 3)
        ),
        "column_sums": ("256 rows of 1024", backward(256, 16, 16, 1024, 4)),
        "attention, short": ("one head of 64; 512 tokens", attention(512, 1, 64)),
        "attention": ("2 heads of 64; 1024 tokens", attention(1024, 2, 64)),
        "attention, wide": ("2 heads of 128; 1024 tokens", attention(1024, 2, 128)),
        "attention_delta": ("one head of 64; 1024 tokens", gradients),
        "attention_dkdv": ("one head of 64; 1024 tokens", gradients),
        "attention_dq": ("one head of 64; 1024 tokens", gradients),
        "attention_dkdv, wide": ("one head of 128; 1024 tokens", wide_gradients),
        "attention_dq, wide": ("one head of 128; 1024 tokens", wide_gradients),
    }  # fmt: skip


def _report_of(name, reports):
    kernel = name.partition(",")[0]
    own = [r for r in reports if r["kernel"] == kernel]
    # the gradient of a weight comes after that of the layer's output
    return own[1 if name.endswith("weight") else 0]


def _row(what, report):
    """The slowest core of each kind, and what bounds it."""
    busy = {}
    for core in report["cores"]:
        kind = "cube" if core["name"].startswith("aic") else "vector"
        for pipe, cycles in core["busy_cycles"].items():
            key = f"{kind} {pipe}"
            busy[key] = max(busy.get(key, 0), round(cycles))
    macs = sum(core["macs"] for core in report["cores"])
    cubes = sum(core["name"].startswith("aic") for core in report["cores"]) or 1
    end = round(report["cycles"])
    return {
        "what": what,
        "end": end,
        "busy": busy,
        "cube_of_peak": macs / cubes / CUBE_PRODUCTS / end if macs else None,
    }


def measure():
    """The rows of the table."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import ascendc_twin

    ops, rows = ascendc_twin.ops(), {}
    ops.configure(1, False, 0)
    for name, (what, call) in _runs(ops).items():
        ascendc_twin.take_reports()
        call()
        report = _report_of(name, ascendc_twin.take_reports())
        assert not report["lines"], report["lines"]
        rows[name] = _row(what, report)
        if name in MOVED:  # of HBM's speed the share of two vector cores
            rows[name]["hbm"] = round(MOVED[name] / (HBM / CLOCK / VECTOR_CORES * 2))
        print(name, rows[name], flush=True)
    return {"schema": "mmkern-ascendc/1", "kernels": rows}


def table(results):
    """The results as Markdown."""
    lines = [
        "| kernel, share of one core | end | busiest pipes, cycles | bound |",
        "|---|---|---|---|",
    ]
    for name, row in results["kernels"].items():
        busy = sorted(row["busy"].items(), key=lambda item: -item[1])
        pipes = ", ".join(f"{pipe} {cycles}" for pipe, cycles in busy[:4])
        pipe, cycles = busy[0]
        bound = f"{pipe}, busy {cycles / row['end']:.0%} of the time"
        if row["cube_of_peak"]:
            bound += f"; the cube at {row['cube_of_peak']:.0%} of its peak"
        if row.get("hbm", 0) > row["end"]:
            share = row["end"] / row["hbm"]
            bound = f"HBM: {row['hbm']} for what must be moved; the pipes need {share:.0%} of that"
        lines.append(f"| {name}: {row['what']} | {row['end']} | {pipes} | {bound} |")
    return "\n".join(lines)


def main():
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, run and write nothing")
    parser.add_argument("--table", action="store_true", help="write the table again, run nothing")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if args.check or args.table else measure()
    text = DOCS.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    new = f"{head}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"
    if args.check:
        if new != text:
            print(f"{DOCS}: its table is not what {RESULTS.name} makes")
        return int(new != text)
    if not args.table:
        bench_results.write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    bench_results.write_text(DOCS, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
