"""The run on a CUDA machine: correctness of every op, compute-sanitizer, and times against peers.

    python benchmarks/gpu_check.py [--output FILE] [--op OP ...] [--part PART ...]

Writes one JSON, again after each part, so that a run that is cut short keeps what it has:
environment, copy (GB/s of a large copy), correctness (failures by the accuracy rule against
float64), sanitizer, and rows of times. A time is the median over launches with CUDA events, the L2
cache overwritten before each; contestants take turns, launch by launch, on the same tensors. FLOPs
count the true head dimension and the pairs that the mask lets through; bytes are those that must
move. Exits with 1 if anything is wrong, or if there is no CUDA device.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import gpu_shapes  # noqa: E402
from accuracy import (  # noqa: E402
    DTYPES,
    check_forward,
    check_gradients,
    cotangents,
    forward,
    outputs,
)

import mmkern  # noqa: E402
from mmkern import cases, library  # noqa: E402
from mmkern.bench import cost  # noqa: E402

PARTS = ("correctness", "sanitizer", "times")
#: Launches of a contestant: as many as fit SECONDS, within these bounds.
SECONDS, FEWEST, MOST = 0.3, 5, 50
#: Times the forward's FLOPs that a backward has: attention forms the scores again.
BACKWARD_FLOPS = {"attention": 2.5}


class Cuda:
    """Times launches on the device."""

    name = "cuda"

    def __init__(self):
        properties = torch.cuda.get_device_properties(0)
        # large enough that writing it outlasts the host's part of a call
        size = max(4 * properties.L2_cache_size, 1 << 29)
        self.cache = torch.empty(size, dtype=torch.int8, device="cuda")

    def seconds(self, call):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # also keeps the device busy while the host enqueues the call
        self.cache.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


class Host:
    """Times calls on the CPU: a rehearsal of this script."""

    name = "cpu"

    def seconds(self, call):
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin


def environment():
    """What the numbers depend on."""
    found = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "mmkern": mmkern.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "driver": _output(
            "nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm",
            "--format=csv,noheader",
        ),
    }  # fmt: skip
    for package in ("triton", "flash_attn", "liger_kernel"):
        module = gpu_shapes._imported(package, "__name__") and sys.modules[package]
        found[package] = getattr(module, "__version__", "installed") if module else None
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def _output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def correctness(ops, device, small=False):
    """Every case x dtype, forward and gradients, by the accuracy rule.

    {run, failures, by_reference}: the last are forwards that no kernel takes here.
    """
    run, failures, by_reference = 0, [], []
    # eager in float32 is the yardstick: its convolutions are TF32 by default
    torch.backends.cudnn.allow_tf32 = False
    chosen = [c for c in cases.CASES if c.op in ops and (not small or "smoke" in c.tags)]
    for case in chosen:
        for dtype in DTYPES:
            kwargs = case.make(dtype, device)
            if _backend(lambda c=case, k=kwargs: forward(mmkern, c, k)) == "reference":
                by_reference.append(f"{case.id} {dtype}")
            for check in (check_forward, check_gradients):
                run += 1
                try:
                    check(case, case.make(dtype, device))
                except Exception as error:
                    text = f"{case.id} {dtype} {check.__name__}: {type(error).__name__}: {error}"
                    failures.append(text)
                    print(f"  {text[:300]}", flush=True)
    torch.backends.cudnn.allow_tf32 = True
    return {"run": run, "failures": failures, "by_reference": by_reference}


def sanitizer(ops):
    """compute-sanitizer memcheck over the small matrix, in a process of its own."""
    tool = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if tool is None:
        print("  skipped: compute-sanitizer is not installed", flush=True)
        return {"skipped": "compute-sanitizer is not installed"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "3", sys.executable, __file__]
    command += ["--small", *(f"--op={op}" for op in ops)]
    # every tensor an allocation of its own, or a read past one lands in another
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    return {"returncode": run.returncode, "tail": (run.stdout + run.stderr)[-2000:]}


def copy_speed(clock):
    """GB/s of a copy far larger than the cache, read and write counted: the practical limit."""
    source = torch.empty(1 << (29 if clock.name == "cuda" else 24), dtype=torch.int8)
    source = source.to(clock.name)
    target = torch.empty_like(source)
    times = [clock.seconds(lambda: target.copy_(source)) for _ in range(20)]
    return 2 * source.numel() / statistics.median(times) / 1e9


def _calls(functions, kwargs, names, backward):
    """({contestant: call}, {contestant: error}, {contestant: results}), each tried once."""
    calls, errors, results = {}, {}, {}
    leaves = {n: v.detach().requires_grad_(n in names) if n in names else v
              for n, v in kwargs.items()}  # fmt: skip
    inputs = [leaves[n] for n in names]
    for name, function in functions.items():
        try:
            if backward:
                outs = outputs(function(**leaves))
                outs = [o for o in outs if o is not None and o.requires_grad]
                grads = [g.to(o.device) for g, o in zip(cotangents(outs), outs, strict=True)]

                def call(outs=outs, grads=grads):
                    return torch.autograd.grad(outs, inputs, grads, retain_graph=True)

            else:

                def call(function=function):
                    with torch.no_grad():
                        return function(**kwargs)

            results[name] = outputs(call())
            calls[name] = call
        except Exception as error:
            text = str(error).strip().partition("\n")[0]
            errors[name] = f"{type(error).__name__}: {text}"[:300]
    return calls, errors, results


def _backend(call):
    """The backend whose kernels serve the call; "reference" if none does."""
    for name, backend in library.BACKENDS.items():
        if call and not backend.missing:
            try:
                with mmkern.use(name):
                    call()
            except RuntimeError:
                continue
            return name
    return "reference"


def _difference(results):
    """Largest difference of mmkern's results from eager's, over eager's largest value."""
    if not {"eager", "mmkern"} <= results.keys():
        return None
    pairs = list(zip(results["mmkern"], results["eager"], strict=True))
    most = max(float(b.abs().max()) for _, b in pairs)
    return max(float((a.float() - b.float()).abs().max()) for a, b in pairs) / most


def _moved(case, kwargs, grads):
    """Bytes that the backward must move: inputs that it reads, gradients in, gradients out."""
    with torch.no_grad():
        outs = outputs(getattr(mmkern, case.function)(**kwargs))
    unread = set()
    if case.op == "rms_norm" and kwargs.get("residual") is not None:
        # h is read in place of x and residual, whose gradients are one tensor
        unread, grads = {"residual"}, [g for n, g in grads.items() if n != "residual"]
    elif case.op == "rope" and kwargs.get("q_weight") is None:
        unread = {"q", "k"}
    grads = grads.values() if isinstance(grads, dict) else grads
    return cost.moved([v for n, v in kwargs.items() if n not in unread], [*outs, *grads])


def times_of(case, dtype, backward, clock, peers=gpu_shapes.peers):
    """The row of one case: {identity, contestants, errors, flops, bytes, difference}."""
    kwargs = case.make(dtype, clock.name)
    names = case.differentiable()
    functions = {"mmkern": getattr(mmkern, case.function), **peers(case)}
    calls, errors, results = _calls(functions, kwargs, names, backward)
    difference = _difference(results)
    outs = results.get("mmkern", ())
    work = cost.flops(case.function, kwargs)
    if work and backward:
        work *= BACKWARD_FLOPS.get(case.op, 2.0)
    if backward and outs:
        moved = _moved(case, kwargs, dict(zip(names, outs, strict=True)))
    else:
        moved = cost.moved(kwargs.values(), outs)
    del results, outs
    samples = {name: [] for name in calls}
    first = {name: clock.seconds(call) for name, call in calls.items()}
    rounds = max(FEWEST, min(MOST, int(SECONDS * len(calls) / max(sum(first.values()), 1e-9))))
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(clock.seconds(call))
    contestants = {}
    for name, values in samples.items():
        median = statistics.median(values)
        quartiles = statistics.quantiles(values, n=4)
        contestants[name] = {
            "ms": 1e3 * median,
            "quartiles_ms": [1e3 * quartiles[0], 1e3 * quartiles[2]],
            "tflops": work / median / 1e12 if work else None,
            "gbps": moved / median / 1e9,
        }
    return {
        "op": case.op, "function": case.function, "name": case.name,
        "dtype": str(dtype).removeprefix("torch."), "pass": "backward" if backward else "forward",
        "backend": _backend(calls.get("mmkern")), "rounds": rounds, "flops": work, "bytes": moved,
        "difference": difference,
        "contestants": contestants, "errors": errors,
    }  # fmt: skip


def times(chosen, clock, keep):
    """Rows of every case, forward and backward, in bfloat16; ``keep`` is called after each."""
    rows = []
    for case in chosen:
        for backward in (False, True):
            try:
                with gpu_shapes.fresh_compiler():
                    row = times_of(case, torch.bfloat16, backward, clock)
            except Exception as error:  # out of memory, say: the other rows are still of use
                row = {"op": case.op, "name": case.name, "contestants": {}}
                row["pass"] = "backward" if backward else "forward"
                row["errors"] = {"mmkern": f"{type(error).__name__}: {error}"[:300]}
            rows.append(row)
            keep(rows)
            found = row["contestants"]
            line = ", ".join(f"{n} {v['ms']:.3f}" for n, v in found.items())
            print(f"  {case.id} {row['pass']}: {line} ms", flush=True)
            for name, error in row["errors"].items():
                print(f"    {name}: {error}", flush=True)
    return rows


def write(path, result):
    """Replace the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, path)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/gpu.json")
    parser.add_argument("--op", action="append", choices=sorted(library.OPS), help="default: all")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--match", default="", help="time the cases whose id contains this")
    parser.add_argument("--small", action="store_true", help="only a few cases for correctness")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, to try this script")
    return parser.parse_args()


def main():
    """Run the parts; returns the exit code."""
    args = _arguments()
    if not (args.rehearse or torch.cuda.is_available()):
        print("gpu_check: torch sees no CUDA device here, and this run is for one.")
        return 1
    missing = library.BACKENDS["triton"].missing
    if missing and not args.rehearse:
        print(f"gpu_check: the Triton kernels do not serve here: {missing}")
        return 1
    clock = Host() if args.rehearse else Cuda()
    ops = args.op or sorted(library.OPS)
    if args.small:
        return bool(correctness(ops, clock.name, small=True)["failures"])
    parts = args.part or PARTS
    result = {"schema": "mmkern-gpu/1", "complete": False, "environment": environment()}
    result["copy_gbps"] = copy_speed(clock)
    if "correctness" in parts:
        print("correctness", flush=True)
        result["correctness"] = correctness(ops, clock.name)
        write(args.output, result)
    if "sanitizer" in parts and not args.rehearse:
        print("sanitizer", flush=True)
        result["sanitizer"] = sanitizer(ops)
        write(args.output, result)
    if "times" in parts:
        print("times", flush=True)
        chosen = [c for c in gpu_shapes.CASES if c.op in ops and args.match in c.id]
        result["rows"] = times(
            chosen, clock, lambda rows: write(args.output, {**result, "rows": rows})
        )
    result["complete"] = not (args.op or args.part or args.match)
    write(args.output, result)
    wrong = bool(result.get("correctness", {}).get("failures"))
    wrong |= bool(result.get("sanitizer", {}).get("returncode"))
    wrong |= any("mmkern" in row["errors"] for row in result.get("rows", ()))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
