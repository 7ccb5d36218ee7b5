"""The machine that a result was measured on, and what it can do at best."""

import functools
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

import mmkern
from mmkern.bench import clocks, timing

COPY_BYTES = tuple(2**n * 1024 * 1024 for n in (0, 2, 4, 6, 8))


def environment(device, command):
    """What a reader needs to judge or repeat a measurement."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(command),
        "device": device_name(device),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": isa(),
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mmkern": mmkern.__version__,
        "commit": _commit(),
    }


def load():
    """Programs that want a core, the average of the last minute; NaN where nobody counts them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def isa():
    """The instruction set of the CPU kernels, or why there are none."""
    native = sys.modules.get("mmkern._C")
    return native.isa() if native else mmkern.library.BACKENDS["cpu"].missing


def cpu_model():
    """The name of the processor, as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device):
    """The name of the accelerator, or "cpu"."""
    if device.type == "cpu":
        return "cpu"
    module = getattr(torch, device.type)
    return f"{device.type}: {module.getdevice_name(device)}"


def _commit():
    """The commit of the source tree that mmkern is imported from, "" if it is none."""
    folder = Path(mmkern.__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def peaks(device, dtypes, *, quick=False):
    """Measured limits: {"copy": [[bytes, GB/s], ...], "matmul": {dtype: GFLOP/s}}.

    The copy reads and writes ``bytes`` in all, so that a row is held against a copy that lives in
    the same caches. Each figure is the best of several tries.
    """
    sizes = COPY_BYTES[:-1] if quick else COPY_BYTES
    copies = []
    for size in sizes:
        source = torch.ones(size // 8, dtype=torch.float32, device=device)
        target = torch.empty_like(source)
        copies.append([size, size / 1e9 / _best(lambda s=source, t=target: t.copy_(s), device)])
    n = 1024 if quick else 2048
    matmul = {}
    for dtype in dtypes:
        a = torch.randn(n, n, device=device).to(dtype)
        seconds = _best(lambda a=a: torch.mm(a, a), device)
        matmul[str(dtype).removeprefix("torch.")] = 2 * n**3 / 1e9 / seconds
    return {"copy": copies, "matmul": matmul}


def best_peaks(first, second):
    """The better of two measurements, figure by figure: other programs only ever slow it down."""
    copies = zip(first["copy"], second["copy"], strict=True)
    return {
        "copy": [[size, max(a, b)] for (size, a), (_, b) in copies],
        "matmul": {d: max(speed, second["matmul"][d]) for d, speed in first["matmul"].items()},
    }


def _best(call, device, budget_s=0.4):
    synchronize = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    best, start = float("inf"), time.perf_counter()
    tries = 0
    while tries < 4 or time.perf_counter() - start < budget_s:
        begin = time.perf_counter()
        call()
        synchronize()
        best = min(best, time.perf_counter() - begin)
        tries += 1
    return best


def noise(device, tries=5):
    """The noise floor: by how much two equal contestants differ here.

    Returns:
        {"differences": [|ratio - 1| of each try], "half_widths": [half the 95 % interval]}.
    """
    x = torch.ones(1024, 1152, device=device)
    calls = {name: functools.partial(torch.nn.functional.gelu, x) for name in ("first", "second")}
    plan = timing.Plan(min_rounds=9, max_rounds=30, budget_s=0.3)
    clock = {"timer": clocks.timer(device)}
    if device.type != "cpu":
        clock["synchronize"] = torch.accelerator.synchronize
    found = {"differences": [], "half_widths": []}
    for _ in range(tries):
        ratio = timing.ratio(*timing.measure(calls, plan, **clock).values())
        found["differences"].append(abs(ratio.value - 1))
        found["half_widths"].append((ratio.high - ratio.low) / 2)
    return found


def copy_speed(copies, nbytes):
    """GB/s of a copy of ``nbytes``, between the measured sizes."""
    sizes, speeds = zip(*copies, strict=True)
    return float(np.interp(np.log(max(nbytes, 1)), np.log(sizes), speeds))
