"""The CPU kernels against eager PyTorch, torch.compile and the limits of the machine, in one table.

    python benchmarks/cpu_limits.py                # time, and write the result
    python benchmarks/cpu_limits.py --only rope    # part of it, to look at
    python benchmarks/cpu_limits.py --table README.md [--check]
    python benchmarks/cpu_limits.py --result FILE  # of another machine, to time it or --table it

One or two shapes of each op, forward and backward apart, each with the rate that a prototype of
that one case reached on two idle cores of a Zen 4 (AVX-512 with bfloat16 products), and the ratios
that it meant against the eager PyTorch and the compiler of that day: the aims. On a CPU without
those products the aim is to be no slower than either. Timed in paired rounds and checked against
float64, as by ``mmkern bench``, whose file format this writes.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from mmkern.bench import contest, job, machine, photos, readme, results, shapes, tables

RESULTS = Path(__file__).parent / "results/cpu_limits.json"
FP32, BF16 = torch.float32, torch.bfloat16
PROTOTYPE_ISA = "avx512_bf16"
#: patches, weight, position embedding
PATCHES = {
    "Qwen3-VL": ((1024, 1536), (1152, 3, 2, 16, 16), None),
    "DiT": ((8, 4, 32, 32), (1152, 4, 2, 2), (256, 1152)),
    "ViT-B/16": ((8, 3, 224, 224), (768, 3, 16, 16), (196, 768)),
}


@dataclass(frozen=True)
class Limit:
    """A workload in one dtype, and the aims: {contestant: how many times faster}.

    rate: of the prototype, in GFLOP/s, or in GB/s for an op that moves bytes; 0: not known.
    """

    workload: shapes.Workload
    dtype: torch.dtype
    rate: int
    aims: dict
    passes: str = "forward"


def _attention(dtype, rate, aim, seqlen, dim, *, causal=False, passes="forward"):
    shape = f"1x{seqlen} tokens, 16x{dim}{', causal' if causal else ''}"
    name = f"s{seqlen}_d{dim}{'_causal' if causal else ''}"
    workload = shapes.square(name, 1, seqlen, 16, dim, "", shape, causal=causal)
    return Limit(workload, dtype, rate, {"eager": aim}, passes)


def _decode():
    workload = shapes.attention(
        "decode", (1, 1, 32, 128), (1, 4096, 8, 128), "", "1 token to 4096, 32/8x128",
        causal=True, rivals=("grouped matmul",),
    )  # fmt: skip
    return Limit(workload, BF16, 224, {"eager": 40, "grouped matmul": 5})


def _modulation(function, dtype, rate, aims):
    x, m = (8, 256, 1152), (8, 1152)
    return Limit(shapes.modulation(function, "b8", x, m, "", "8x256x1152"), dtype, rate, aims)


def _patches(name, dtype, rate, aim):
    x, weight, pos = PATCHES[name]
    shape = f"{name}: {'x'.join(map(str, x))} -> {weight[0]}"
    aims = {"eager": aim, "unfold + linear": 1.0}
    return Limit(shapes.patch(name, x, weight, pos, "", shape), dtype, rate, aims)


def _mlp(dtype, rate, aim):
    workload = shapes.mlp("r2048", (2048, 1024), 4096, 4096, "", "2048 tokens, 1024-4096-4096")
    return Limit(workload, dtype, rate, {"eager": aim})


_RMS = shapes.rms("n2048", (2048, 2048), "", "2048x2048")
_ROPE = shapes.rope("h16", (1, 1024, 16, 72), 16, "", "1024 tokens, 16+16x72")
_GLU = shapes.glu("n4304", (1024, 4304), "", "1024x4304")

LIMITS = [
    _attention(BF16, 370, 2.4, 1024, 64),
    _attention(BF16, 329, 3.1, 1024, 64, causal=True),
    *(_attention(BF16, r, 3.0, 256, d) for r, d in ((293, 64), (339, 72), (369, 128))),
    *(_attention(BF16, r, 4.3, 256, d, causal=True) for r, d in ((242, 64), (231, 72), (276, 128))),
    _decode(),
    *(
        _attention(BF16, r, 1.6, 1024, d, passes="backward")
        for r, d in ((350, 64), (338, 72), (358, 128))
    ),
    *(
        _attention(BF16, r, 2.0, 1024, d, causal=True, passes="backward")
        for r, d in ((298, 64), (0, 72), (306, 128))
    ),
    *(_attention(FP32, r, 1.2, 1024, d) for r, d in ((201, 64), (209, 128))),
    *(_attention(FP32, r, 1.6, 1024, d, causal=True) for r, d in ((183, 64), (187, 128))),
    *(_attention(FP32, r, 1.3, 1024, d, passes="backward") for r, d in ((191, 64), (198, 128))),
    _modulation("modulate", BF16, 63, {"eager": 6, "compile": 4}),
    _modulation("modulate", FP32, 44, {"eager": 5, "compile": 3}),
    _modulation("gated_modulate", BF16, 50, {"eager": 4.4, "compile": 3}),
    Limit(_RMS, BF16, 93, {"eager": 15, "compile": 3.5}),
    Limit(_RMS, FP32, 45, {"eager": 4, "compile": 1.3}),
    Limit(_ROPE, FP32, 32, {"eager": 5, "compile": 3}),
    Limit(_GLU, FP32, 48, {"eager": 2.3, "compile": 1.4}),
    _patches("Qwen3-VL", FP32, 204, 3.8),
    _patches("Qwen3-VL", BF16, 397, 2.5),
    _patches("DiT", FP32, 128, 3.5),
    _patches("DiT", BF16, 172, 3.0),
    _patches("ViT-B/16", FP32, 207, 1.15),
    _patches("ViT-B/16", BF16, 390, 1.5),
    _mlp(FP32, 221, 1.2),
    _mlp(BF16, 442, 1.08),
]


def measure(limits, console, isa):
    """The rows, printed as they come, each with its aims for kernels of that instruction set."""
    device = torch.device("cpu")
    rows = []
    for limit in limits:
        made = contest.op_contest(limit.workload, limit.dtype, device, 0, limit.passes)
        row = contest.run(made, job.PLAN, device=device, compile=limit.workload.compiles)
        if isa == PROTOTYPE_ISA:
            row |= {"aims": limit.aims, "prototype": limit.rate}
        else:
            row |= {"aims": dict.fromkeys(limit.aims, 1), "prototype": 0}
        rows.append(row)
        console.print(f"{tables.line(row)} (aim: {_aims(row)})", highlight=False)
    return rows


def _aims(row):
    return ", ".join(f"{aim:g} {name}" for name, aim in row["aims"].items())


def table(found):
    """Markdown: a line per row, ratios below their aim in bold."""
    lines = ["| op | workload | dtype | GFLOP/s or GB/s (prototype) | times faster than (aim) |"]
    lines.append("| --- | --- | --- | ---: | --- |")
    for row in found["rows"]:
        seconds = results.milliseconds(row, "mmkern") * 1e-3
        rate = (row["flops"] or row["bytes"]) / seconds * 1e-9
        unit = "GFLOP/s" if row["flops"] else "GB/s"
        cells = [row["function"] + results.PASSES[row["variant"]], row["shape"]]
        prototype = f" ({row['prototype']})" if row["prototype"] else ""
        cells += [tables.SHORT[row["dtype"]], f"{rate:.0f} {unit}{prototype}"]
        cells.append(", ".join(_against(row, name, aim) for name, aim in row["aims"].items()))
        lines.append(f"| {' | '.join(cells)} |")
    e = found["environment"]
    lines += ["", f"Bold: below the aim. {e['cpu']}, {e['threads']} threads, {e['isa']}, torch "]
    lines[-1] += f"{e['torch']}, mmkern {e['commit']}, {e['date']}: `{e['command']}`."
    return "\n".join(lines)


def _against(row, name, aim):
    ratio = results.ratio(row, name)
    text = f"{ratio:.2f}" if ratio >= aim else f"**{ratio:.2f}**"
    return f"{name} {text} ({aim:g})"


def main():
    """Run the command; returns the exit code, 1 if a result was wrong or a table differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="rows whose name contains this; nothing is written")
    parser.add_argument("--result", type=Path, default=RESULTS, help=f"default {RESULTS.name}")
    parser.add_argument("--table", type=Path, help="write the result's table into this")
    parser.add_argument("--check", action="store_true", help="with --table: fail if it differs")
    args = parser.parse_args()
    if args.table:
        old = args.table.read_text(encoding="utf-8")
        marker = args.result.stem.removeprefix("cpu_")
        new = readme.replace(old, marker, table(results.load(args.result)))
        if args.check and new != old:
            print(f"{args.table}: the table {marker} differs from {args.result}")
        elif new != old:
            results.write_text(args.table, new)
        return int(args.check and new != old)
    chosen = [
        li for li in LIMITS if (args.only or "") in f"{li.workload.id} {li.dtype} {li.passes}"
    ]
    device = torch.device("cpu")
    environment = machine.environment(device, ["python", *sys.argv])
    if environment["isa"] != PROTOTYPE_ISA and args.result == RESULTS and not args.only:
        parser.error(
            f"the kernels here are {environment['isa']}, and {RESULTS.name} is of {PROTOTYPE_ISA}: "
            "give another --result"
        )
    rows = measure(chosen, Console(width=160), environment["isa"])
    if not args.only:
        found = {"schema": results.SCHEMA, "complete": True, "environment": environment}
        found |= {"options": {}, "inputs": photos.SOURCE, "rows": rows, "not_run": []}
        found["peaks"] = machine.peaks(device, [FP32, BF16], quick=True)
        results.write_text(args.result, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return int(bool(results.failures(rows)))


if __name__ == "__main__":
    sys.exit(main())
