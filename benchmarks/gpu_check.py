"""The run on a CUDA machine: correctness of every op, compute-sanitizer, and times against peers.

    python benchmarks/gpu_check.py [--output FILE] [--op OP ...] [--part PART ...]

Writes one JSON, again after each part, so that a run that is cut short keeps what it has:
environment, copy (GB/s of a large copy), correctness (failures by the accuracy rule against
float64), sanitizer, rows of times (gpu_times.py), and the verdict on each target (gpu_targets.py).
Exits with 1 if anything is wrong, or if there is no CUDA device; a missed target is not wrong.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import gpu_shapes  # noqa: E402
import gpu_targets  # noqa: E402
from accuracy import (  # noqa: E402
    DTYPES,
    check_forward,
    check_gradients,
    cotangents,
    forward,
    gradients,
)
from gpu_times import Host, backend_of, copy_speed, on_cuda, times  # noqa: E402

import mmkern  # noqa: E402
from mmkern import cases, library  # noqa: E402

RESULTS = ROOT / "benchmarks/results/gpu.json"
PARTS = ("correctness", "sanitizer", "times")


def of_any_device():
    """What the numbers depend on, whatever they were measured on."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "mmkern": mmkern.__version__,
        "torch": torch.__version__,
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD"),
    }


def environment():
    """What the numbers depend on."""
    found = of_any_device() | {
        "cuda": torch.version.cuda,
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
        # imports Triton, which a machine without a GPU need not have
        from mmkern.kernels.triton import tuning

        found["target"] = tuning.target(torch.device("cuda"))
    return found


def _output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def correctness(ops, device, small=False):
    """Every case x dtype, forward and gradients, by the accuracy rule.

    {run, failures, by_reference, ops}: by_reference are checks that no kernel takes here; ops is
    {op: [passed, failed]} of the others.
    """
    run, failures, by_reference, counts = 0, [], [], {op: [0, 0] for op in ops}
    # eager in float32 is the yardstick: its convolutions are TF32 by default
    torch.backends.cudnn.allow_tf32 = False
    chosen = [c for c in cases.CASES if c.op in ops and (not small or "smoke" in c.tags)]
    for case in chosen:
        for dtype in DTYPES:
            for check in (check_forward, check_gradients):
                run += 1
                name = f"{case.id} {dtype} {check.__name__}"
                count = counts[case.op]
                if _served_by(check, case, case.make(dtype, device)) == "reference":
                    by_reference.append(name)
                    count = [0, 0]
                try:
                    check(case, case.make(dtype, device))
                    count[0] += 1
                except Exception as error:
                    count[1] += 1
                    text = f"{name}: {type(error).__name__}: {error}"
                    failures.append(text)
                    print(f"  {text[:300]}", flush=True)
    torch.backends.cudnn.allow_tf32 = True
    return {"run": run, "failures": failures, "by_reference": by_reference, "ops": counts}


def _served_by(check, case, kwargs):
    if check is check_forward:
        return backend_of(lambda: forward(mmkern, case, kwargs))
    cotangent = cotangents(forward(mmkern.reference, case, kwargs))
    return backend_of(lambda: gradients(mmkern, case, kwargs, cotangent))


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


def judged(result, rows):
    """The result with the rows so far, and the verdicts on them."""
    return result | {"rows": rows, "targets": gpu_targets.verdicts(rows, result["copy_gbps"])}


def is_wrong(result):
    """Whether a result has a failure."""
    wrong = bool(result.get("correctness", {}).get("failures"))
    wrong |= bool(result.get("sanitizer", {}).get("returncode"))
    return wrong | any("mmkern" in row["errors"] for row in result.get("rows", ()))


def write(path, result):
    """Replace the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, path)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help=f"default {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--op", action="append", choices=sorted(library.OPS), help="default: all")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--match", default="", help="time the cases whose id contains this")
    parser.add_argument("--small", action="store_true", help="only a few cases for correctness")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, to try this script")
    args = parser.parse_args()
    args.output = args.output or (ROOT / "out/gpu_rehearsal.json" if args.rehearse else RESULTS)
    return args


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
    clock = Host() if args.rehearse else on_cuda()
    ops = args.op or sorted(library.OPS)
    if args.small:
        found = correctness(ops, clock.name, small=True)
        print(f"{found['run']} checks, {len(found['failures'])} failed")
        return bool(found["failures"])
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
        result["rows"] = times(chosen, clock, lambda rows: write(args.output, judged(result, rows)))
    result["complete"] = not (args.op or args.part or args.match)
    result = judged(result, result.get("rows", []))
    write(args.output, result)
    gpu_targets.show(result["targets"])
    return int(is_wrong(result))


if __name__ == "__main__":
    sys.exit(main())
