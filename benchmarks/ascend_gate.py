"""The compile gate for Ascend 910B: every Triton kernel and tile, on a machine without an NPU.

As gpu_gate.py: each op's host functions are called on meta tensors (gate_cases.py), and a launch
becomes a compile by triton-ascend and BiShengIR. The gate fails on a compile error (an overflow of
the unified buffer is one), a memory over the chip's, an element-wise access to global memory, and
an entry of the tile table that no call picks. Bytes and operations are a committed table. Runs in
.venv-ascend, which has the other Triton.

    python benchmarks/ascend_gate.py --check     # compile what is in the table, and compare
    python benchmarks/ascend_gate.py             # compile, and write what has no complaint into it
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_gate import differences

TARGET = "ascend910b"
RESULTS = Path(__file__).parent / "results" / "ascend_gate.json"


def complaint(figures):
    """What the gate holds against a compiled kernel; None if nothing."""
    import ascend_compiler

    row = dict(zip(ascend_compiler.COLUMNS, figures, strict=True))
    for memory, most in ascend_compiler.LIMITS.items():
        if row[memory] > most:
            return f"{row[memory]} bytes of {memory}, over {most}"
    if row["scalar_gm"]:
        return f"{row['scalar_gm']} element-wise accesses to global memory"
    return None


def compile_op(op, sample):
    """(rows, complaints) of one op; sample: bfloat16 alone. rows: {kernel: figures}."""
    import ascend_compiler
    import torch
    from gate_cases import CALLS
    from triton.runtime.jit import JITFunction

    from mmkern.kernels.triton import tuning

    rows, complaints, seen, picked = {}, [], set(), collections.defaultdict(set)
    context, launch, pick = {}, JITFunction.run, tuning.pick

    def compile_only(self, *args, grid, warmup=False, **meta):
        name = " ".join([self.fn.__name__, context["dtype"], context["label"]])
        name += "".join(f" {k}={v}" for k, v in sorted(meta.items()))
        try:
            kernel = ascend_compiler.patiently(
                lambda: launch(self, *args, grid=grid, warmup=True, **meta)
            )
        except Exception as error:
            complaints.append(f"{name}: {type(error).__name__}: {str(error)[-300:]}")
            return
        if kernel.hash in seen:
            return
        seen.add(kernel.hash)
        rows[name] = ascend_compiler.figures(kernel.asm["npubin"].decode())
        wrong = complaint(rows[name])
        if wrong:
            complaints.append(f"{name}: {wrong}")

    def noted_pick(kernel, device, **shape):
        tile = pick(kernel, device, **shape)
        picked[kernel].add(id(tile))
        return tile

    ascend_compiler.install()
    JITFunction.run, tuning.pick = compile_only, noted_pick
    # a kernel of several dtypes has the name of the first: the sample's
    dtypes = (torch.bfloat16,) if sample else (torch.bfloat16, torch.float32, torch.float16)
    with tuning.use_target(TARGET):
        for dtype in dtypes:
            context["dtype"] = str(dtype).removeprefix("torch.")
            for call in CALLS[op](tuning.table(TARGET), dtype):
                context["label"] = call.label
                if call.run() is NotImplemented:
                    complaints.append(f"{op} {context['dtype']} {call.label}: no kernel takes it")
        for kernel, tiles in picked.items() if not sample else ():
            for limits, tile in tuning.table(TARGET)[kernel]:
                if id(tile) not in tiles:
                    complaints.append(f"{kernel}: no call of the gate picks the entry {limits}")
    return rows, complaints


def in_a_process(op, sample):
    """compile_op in a process of its own: the compiler can abort."""
    with tempfile.TemporaryDirectory() as cache:
        run = subprocess.run(
            [sys.executable, __file__, "--worker", op, *["--sample"] * sample],
            capture_output=True,
            text=True,
            env={**os.environ, "TRITON_CACHE_DIR": cache, "MMKERN_TILES": f"{cache}/none.json"},
        )
    if run.returncode:
        return {}, [f"{op}: the compiler died: {run.stderr.strip()[-500:]}"]
    return json.loads(run.stdout.splitlines()[-1])


def text_of(results, columns):
    """The committed form, {op: {kernel: figures}}: sorted, a line per kernel."""
    parts = [f' "columns": {json.dumps(columns)}']
    for op, rows in sorted(results.items()):
        lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(rows.items())]
        parts.append(f" {json.dumps(op)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main():
    """Run the gate; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if the table differs")
    parser.add_argument("--sample", action="store_true", help="with --check: bfloat16 alone")
    parser.add_argument("--op", action="append", help="default: all")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.sample and not (args.check or args.worker):
        parser.error("--sample writes no table: it goes with --check")
    if args.worker:
        print(json.dumps(compile_op(args.worker, args.sample)))
        return 0
    from ascend_compiler import COLUMNS

    from mmkern.kernels import triton as kernels

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results.pop("columns", None)
    ops, failed = args.op or kernels.OPS, False
    if args.check:
        for op in [op for op in ops if op not in results]:
            print(f"{op}: not in the table, not compared", flush=True)
        ops = [op for op in ops if op in results]
    with ThreadPoolExecutor(max_workers=2) as pool:
        done = pool.map(lambda op: in_a_process(op, args.sample), ops)
        for op, (rows, complaints) in zip(ops, done, strict=True):
            if args.check:
                before = results[op]
                if args.sample:
                    before = {k: v for k, v in before.items() if k.split()[1] == "bfloat16"}
                complaints += differences(before, rows)
            elif not complaints:
                results[op] = rows
                RESULTS.write_text(text_of(results, COLUMNS))
            failed |= bool(complaints)
            print(f"{op}: {len(rows)} kernels, {len(complaints)} complaints", flush=True)
            for line in complaints:
                print(f"  {line}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
