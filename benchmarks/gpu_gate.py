"""The compile gate: every Triton kernel, for every target, on a machine without a GPU.

Each op's host functions are called on meta tensors (gate_cases.py) with a driver that only names a
target; a launch becomes a compile, with the specialisation that the launch would have had. The gate
fails on a compile error, a spill, shared memory over the target's limit, an atomic, a matrix
product without tensor-core instructions, a streaming kernel without 128-bit accesses, and an entry
of the tile tables that no call picks. The rest is a table, committed, whose changes are for review.

    python benchmarks/gpu_gate.py --check     # compile what is in the committed table, and compare
    python benchmarks/gpu_gate.py             # compile, and write what has no complaint into it
    python benchmarks/gpu_gate.py --no-table  # compile alone, with another Triton of other figures
"""

import argparse
import collections
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "gpu_gate.json"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
COLUMNS = ["registers", "spills", "shared", "instructions", "loads128", "stores128", "tensor_core"]


class Driver:
    """Names a target and can do nothing."""

    def __init__(self, target):
        from triton.backends.compiler import GPUTarget

        is_amd = target.startswith("gfx")
        arch = target if is_amd else int(target.removeprefix("sm_"))
        self.target = GPUTarget("hip" if is_amd else "cuda", arch, 64 if is_amd else 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


def nvidia_figures(kernel):
    """COLUMNS of a compiled kernel, from its SASS."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([tools / tool, flag, file.name], capture_output=True, text=True).stdout
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    return _figures(
        registers, kernel, sass, r"\b(?:LDL|STL)\b", r"/\*[0-9a-f]{4,}\*/", r"\bLDG\S*\.128",
        r"\bSTG\S*\.128", r"\b(?:HGMMA|HMMA|UTC[HQO]?MMA)",
    )  # fmt: skip


def amd_figures(kernel):
    """COLUMNS of a compiled kernel, from its GCN assembly."""
    text = kernel.asm["amdgcn"]
    found = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", text))
    figures = _figures(
        int(found["vgpr_count"]), kernel, text, r"\bno such\b", r"(?m)^\t[a-z]\w+ ",
        r"(?:global|buffer)_load_(?:dwordx4|b128)", r"(?:global|buffer)_store_(?:dwordx4|b128)",
        r"\bv_mfma",
    )  # fmt: skip
    figures[1] = int(found["vgpr_spill_count"])
    return figures


def _figures(registers, kernel, text, spill, instruction, load, store, product):
    def count(pattern):
        return len(re.findall(pattern, text))

    return [
        registers, count(spill), kernel.metadata.shared, count(instruction), count(load),
        count(store), count(product),
    ]  # fmt: skip


def complaint(target, kernel, figures, dtype, bits, scalar):
    """What the gate holds against a compiled kernel; None if nothing."""
    row = dict(zip(COLUMNS, figures, strict=True))
    if row["shared"] > SHARED_LIMIT[target]:
        return f"{row['shared']} bytes of shared memory, over {SHARED_LIMIT[target]}"
    if "tt.atomic" in kernel.asm["ttir"]:
        return "an atomic, whose order of sums changes from run to run"
    if "tt.dot" in kernel.asm["ttir"]:
        # float32 products are exact, on the ordinary units
        if "float32" not in dtype and not row["tensor_core"]:
            return "a matrix product without tensor cores"
    elif not scalar and bits == 128 and not (row["loads128"] and row["stores128"]):
        return "no 128-bit loads or stores"
    return f"{row['spills']} spills" if row["spills"] else None


def compile_op(target, op):
    """(rows, complaints) of one op; rows: {kernel, dtype and constexprs: figures}."""
    sys.path.insert(0, str(Path(__file__).parent))
    import torch
    from gate_cases import CALLS, SCALAR
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from mmkern.kernels.triton import tuning

    figures_of = amd_figures if target.startswith("gfx") else nvidia_figures
    rows, complaints, seen, picked = {}, [], set(), collections.defaultdict(set)
    context = {}
    launch, pick = JITFunction.run, tuning.pick

    def compile_only(self, *args, grid, warmup=False, **meta):
        name = " ".join([self.fn.__name__, context["dtype"], context["call"].label])
        name += "".join(f" {k}={v}" for k, v in sorted(meta.items()))
        try:
            kernel = launch(self, *args, grid=grid, warmup=True, **meta)
        except Exception as error:
            complaints.append(f"{name}: {type(error).__name__}: {str(error)[-300:]}")
            return
        if kernel.hash in seen:
            return
        seen.add(kernel.hash)
        rows[name] = figures_of(kernel)
        bits, scalar = context["call"].bits, self.fn.__name__ in SCALAR
        wrong = complaint(target, kernel, rows[name], context["dtype"], bits, scalar)
        if wrong:
            complaints.append(f"{name}: {wrong}")

    def noted_pick(kernel, device, **shape):
        tile = pick(kernel, device, **shape)
        picked[kernel].add(id(tile))
        return tile

    driver.set_active(Driver(target))
    JITFunction.run, tuning.pick = compile_only, noted_pick
    with tuning.use_target(target):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            context["dtype"] = str(dtype).removeprefix("torch.")
            for call in CALLS[op](tuning.table(target), dtype):
                context["call"] = call
                if call.run() is NotImplemented:
                    complaints.append(f"{op} {context['dtype']} {call.label}: no kernel takes it")
        for kernel, tiles in picked.items():
            for limits, tile in tuning.table(target)[kernel]:
                if id(tile) not in tiles:
                    complaints.append(f"{kernel}: no call of the gate picks the entry {limits}")
    return rows, complaints


def in_a_process(target, op):
    """compile_op in a process of its own: the compiler can abort."""
    with tempfile.TemporaryDirectory() as cache:
        run = subprocess.run(
            [sys.executable, __file__, "--worker", target, op],
            capture_output=True,
            text=True,
            # a user's own tiles are not what is checked here
            env={**os.environ, "TRITON_CACHE_DIR": cache, "MMKERN_TILES": f"{cache}/none.json"},
        )
    if run.returncode:
        return {}, [f"{op}: the compiler died: {run.stderr.strip()[-500:]}"]
    return json.loads(run.stdout.splitlines()[-1])


def text_of(results):
    """The committed form, {target: {op: {kernel: figures}}}: sorted, a line per kernel."""
    targets = []
    for target, ops in sorted(results.items()):
        parts = []
        for op, rows in sorted(ops.items()):
            lines = [f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(rows.items())]
            parts.append(f"  {json.dumps(op)}: {{\n" + ",\n".join(lines) + "\n  }")
        targets.append(f" {json.dumps(target)}: {{\n" + ",\n".join(parts) + "\n }")
    columns = f' "columns": {json.dumps(COLUMNS)}'
    return "{\n" + ",\n".join([columns, *targets]) + "\n}\n"


def committed():
    """The committed table."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results.pop("columns", None)
    return results


def differences(before, rows):
    """Sentences on what of one op and target is not as in the committed table."""
    return [
        f"{name}: {before.get(name)} -> {rows.get(name)}"
        for name in sorted(before.keys() | rows.keys())
        if before.get(name) != rows.get(name)
    ]


def main():
    """Run the gate; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if the table differs")
    parser.add_argument("--no-table", action="store_true", help="neither compare nor write")
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--op", action="append", help="default: all")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(compile_op(*args.worker)))
        return 0
    from mmkern.kernels import triton as kernels

    jobs = [(t, op) for t in args.target or TARGETS for op in args.op or kernels.OPS]
    results, failed = committed(), False
    if args.check:
        for target, op in [(t, op) for t, op in jobs if op not in results.get(t, {})]:
            print(f"{target} {op}: not in the table, not compared", flush=True)
            jobs.remove((target, op))
            failed = True
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        done = pool.map(lambda job: in_a_process(*job), jobs)
        for (target, op), (rows, complaints) in zip(jobs, done, strict=True):
            if args.check:
                complaints += differences(results.get(target, {}).get(op, {}), rows)
            elif not complaints and not args.no_table:
                results.setdefault(target, {})[op] = rows
                RESULTS.write_text(text_of(results))
            failed |= bool(complaints)
            print(f"{target} {op}: {len(rows)} kernels, {len(complaints)} complaints", flush=True)
            for line in complaints:
                print(f"  {line}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
