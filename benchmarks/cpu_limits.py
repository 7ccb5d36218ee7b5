"""The CPU kernels against eager PyTorch, torch.compile and the limits of the machine, in one table.

    python benchmarks/cpu_limits.py [--only TEXT] [-o benchmarks/results/cpu_limits.json]

One or two shapes of each op, forward and backward apart, each with the ratio that a prototype
reached on two idle cores of a Zen 4 (AVX-512 with bfloat16 products): the aim. Timed in paired
rounds and checked against float64, as by ``mmkern bench``, whose file format this writes.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from mmkern.bench import contest, cost, machine, photos, results, tables
from mmkern.bench.job import DTYPES, PLAN
from mmkern.bench.workloads import BENCH, F32, Real, Workload, _weights
from mmkern.cases import Case

RESULTS = Path(__file__).parent / "results/cpu_limits.json"
FP32, BF16 = "float32", "bfloat16"


@dataclass(frozen=True)
class Limit:
    """A workload in one dtype, and the aims: {contestant: how many times faster}."""

    workload: Workload
    dtype: str
    aims: dict
    backward: bool = False


def _limit(function, name, shape, dtype, aims, args, *, rivals=(), backward=False):
    workload = Workload(Case(function, name, args, BENCH), "", shape, rivals=rivals)
    return Limit(workload, dtype, aims, backward)


def _attention(dtype, aim, seqlen, dim, *, causal=False, backward=False):
    x = Real((1, seqlen, 16, dim), channel_dims=2)
    mask = ", causal" if causal else ""
    shape = f"1x{seqlen} tokens, 16x{dim}{mask}"
    args = {"q": x, "k": x, "v": x, "causal": causal}
    name = f"s{seqlen}_d{dim}{'_causal' if causal else ''}"
    return _limit("attention", name, shape, dtype, {"eager": aim}, args, backward=backward)


def _decode(dtype, aims):
    q, kv = (Real(s, channel_dims=2) for s in ((1, 1, 32, 128), (1, 4096, 8, 128)))
    args = {"q": q, "k": kv, "v": kv, "causal": True}
    shape = "1 token to 4096, 32/8x128"
    return _limit("attention", "decode", shape, dtype, aims, args, rivals=("grouped matmul",))


def _modulation(function, dtype, aims):
    parts = ("gate", "shift", "scale") if function == "gated_modulate" else ("shift", "scale")
    x = Real((8, 256, 1152))
    args = {"x": x} | ({"branch": x} if function == "gated_modulate" else {})
    args |= {part: _weights((8, 1152), layout="chunk", scale=0.1) for part in parts}
    return _limit(function, "b8", "8x256x1152", dtype, aims, args)


def _rms_norm(dtype, aims):
    args = {"x": Real((2048, 2048)), "weight": _weights((2048,), offset=1.0, scale=0.1)}
    return _limit("rms_norm", "n2048", "2048x2048", dtype, aims, args, rivals=("F.rms_norm",))


def _rope(dtype, aims):
    x = Real((1, 1024, 16, 72), channel_dims=2)
    args = {"q": x, "k": x} | {n: _table(f"angle_{n}") for n in ("cos", "sin")}
    return _limit("rope", "h16", "1x1024 tokens, 16+16 heads of 72", dtype, aims, args)


def _table(kind):
    from mmkern.cases import T

    return T((1024, 72), kind=kind, dtype=F32)


def _glu(dtype, aims):
    args = {"gate": Real((1024, 4304)), "up": Real((1024, 4304))}
    return _limit("glu", "n4304", "1024x4304", dtype, aims, args)


PATCHES = {
    "Qwen3-VL": ((1024, 1536), (1152, 3, 2, 16, 16), None),
    "DiT": ((8, 4, 32, 32), (1152, 4, 2, 2), (256, 1152)),
    "ViT-B/16": ((8, 3, 224, 224), (768, 3, 16, 16), (196, 768)),
}


def _patches(name, dtype, aim):
    x, weight, pos = PATCHES[name]
    fan = torch.Size(weight[1:]).numel()
    args = {"x": Real(x, kind="pixels"), "weight": _weights(weight, scale=fan**-0.5)}
    args |= {"bias": _weights(weight[:1])} | ({} if pos is None else {"pos_embed": _weights(pos)})
    shape = f"{name}: {'x'.join(map(str, x))} -> {weight[0]}"
    aims = {"eager": aim, "unfold + linear": 1.0}
    return _limit("patch_embed", name, shape, dtype, aims, args, rivals=("unfold + linear",))


def _mlp(dtype, aim, rows):
    args = {
        "x": Real((rows, 1024)), "w1": _weights((4096, 1024), scale=1024**-0.5),
        "b1": _weights((4096,), scale=0.1), "b2": _weights((4096,), scale=0.1),
        "w2": _weights((4096, 4096), scale=4096**-0.5),
    }  # fmt: skip
    shape = f"projector: {rows} tokens, 1024-4096-4096"
    return _limit("mlp", f"r{rows}", shape, dtype, {"eager": aim}, args)


LIMITS = [
    _attention(BF16, 2.4, 1024, 64),
    _attention(BF16, 3.1, 1024, 64, causal=True),
    *(_attention(BF16, 3.0, 256, d) for d in (64, 72, 128)),
    *(_attention(BF16, 4.3, 256, d, causal=True) for d in (64, 72, 128)),
    _decode(BF16, {"eager": 40, "grouped matmul": 5}),
    *(_attention(BF16, 1.6, 1024, d, backward=True) for d in (64, 72, 128)),
    *(_attention(BF16, 2.0, 1024, d, causal=True, backward=True) for d in (64, 72, 128)),
    *(_attention(FP32, 1.2, 1024, d) for d in (64, 128)),
    *(_attention(FP32, 1.6, 1024, d, causal=True) for d in (64, 128)),
    *(_attention(FP32, 1.3, 1024, d, backward=True) for d in (64, 128)),
    _modulation("modulate", BF16, {"eager": 6, "compile": 4}),
    _modulation("modulate", FP32, {"eager": 5, "compile": 3}),
    _modulation("gated_modulate", BF16, {"eager": 4.4, "compile": 3}),
    _rms_norm(BF16, {"eager": 15, "compile": 3.5}),
    _rms_norm(FP32, {"eager": 4, "compile": 1.3}),
    _rope(FP32, {"eager": 5, "compile": 3}),
    _glu(FP32, {"eager": 2.3, "compile": 1.4}),
    _patches("Qwen3-VL", FP32, 3.8),
    _patches("Qwen3-VL", BF16, 2.5),
    _patches("DiT", FP32, 3.5),
    _patches("DiT", BF16, 3.0),
    _patches("ViT-B/16", FP32, 1.15),
    _patches("ViT-B/16", BF16, 1.5),
    _mlp(FP32, 1.2, 2048),
    _mlp(BF16, 1.08, 2048),
]


def made(limit):
    """The contest of a row; a backward alone is the gradient of a forward that was run before."""
    device = torch.device("cpu")
    forward = contest.op_contest(limit.workload, DTYPES[limit.dtype], device, seed=0)
    if not limit.backward:
        return forward
    case = limit.workload.case
    names = case.differentiable()

    def bound(kwargs):
        leaves = {n: v.detach().requires_grad_() if n in names else v for n, v in kwargs.items()}
        inputs = [leaves[n] for n in names]

        def bind(function):
            out = function(**leaves)
            generator = torch.Generator().manual_seed(1)
            grad = torch.randn(out.shape, generator=generator).to(out.dtype)
            return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)

        return bind

    kwargs = case.make(DTYPES[limit.dtype], device, 0)
    wide = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in kwargs.items()}
    import mmkern

    return contest.Contest(
        identity=forward.identity | {"variant": "backward"},
        functions=forward.functions,
        bind=bound(kwargs),
        oracle=lambda: bound(wide)(getattr(mmkern.reference, case.function))(),
        factors=(contest.GRADIENT_FACTOR,) * len(names),
        backward=True,
        flops=cost.flops(case.function, kwargs, backward=True) - forward.flops,
    )


def measure(limits, console):
    """The rows, printed as they come."""
    rows = []
    for limit in limits:
        compiles = limit.workload.compiles
        row = contest.run(made(limit), PLAN, device=torch.device("cpu"), compile=compiles)
        row["aims"] = limit.aims
        rows.append(row)
        aims = ", ".join(f"{v:g}x {n}" for n, v in limit.aims.items())
        console.print(f"{tables.line(row)} (aim: {aims})", highlight=False)
    return rows


def main():
    """Run the command; returns the exit code, 1 if a result was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("-o", "--output", type=Path, help="write the result here")
    args = parser.parse_args()
    named = [(f"{li.workload.id} {li.dtype} {'backward' * li.backward}", li) for li in LIMITS]
    rows = measure([limit for name, limit in named if args.only in name], Console(width=160))
    found = {
        "schema": results.SCHEMA,
        "complete": not args.only,
        "environment": machine.environment(torch.device("cpu"), sys.argv),
        "options": {},
        "inputs": photos.SOURCE,
        "peaks": machine.peaks(torch.device("cpu"), list(DTYPES.values())[:2], quick=True),
        "rows": rows,
        "not_run": [],
    }
    if args.output:
        results.save_file(found, args.output)
    return 1 if results.failures(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
