"""What a call of mmkern costs besides its kernel: checks and dispatch, at a tiny shape."""

import functools
import time

import torch

import mmkern
from mmkern.bench import timing
from mmkern.cases import T

LIMIT_US = 6.0
PLAN = timing.Plan(sample_s=0.002, min_rounds=25, max_rounds=60, budget_s=0.5)

#: arguments of the public function, small enough that the kernel's own work is nothing
TINY = {
    "attention": {"q": T((1, 1, 1, 8)), "k": T((1, 1, 1, 8)), "v": T((1, 1, 1, 8))},
    "glu": {"gate": T((1, 8)), "up": T((1, 8))},
    "mlp": {"x": T((1, 8)), "w1": T((8, 8)), "b1": T((8,)), "w2": T((8, 8)), "b2": T((8,))},
    "modulate": {"x": T((1, 1, 8)), "shift": T((1, 8)), "scale": T((1, 8))},
    "patch_embed": {"x": T((1, 8)), "weight": T((8, 8)), "bias": T((8,))},
    "rms_norm": {"x": T((1, 8)), "weight": T((8,))},
    "rope": {
        "q": T((1, 1, 8)), "k": T((1, 1, 8)),
        "cos": T((1, 8), kind="angle_cos"), "sin": T((1, 8), kind="angle_sin"),
    },
}  # fmt: skip


def calls(op, device):
    """{"call": the public function, "kernel": the raw op under it}, bound to the same tensors.

    The raw arguments are those that the public function passes, recorded from one call of it.
    """
    generator = torch.Generator().manual_seed(0)
    kwargs = {n: spec.make(torch.float32, device, generator) for n, spec in TINY[op].items()}
    public = functools.partial(getattr(mmkern, op), **kwargs)
    raw = getattr(torch.ops.mmkern, op).default
    return {"call": public, "kernel": functools.partial(raw, *_raw_arguments(op, public))}


def _raw_arguments(op, public):
    entry = mmkern.library.OPS[op]
    seen = []
    forward = entry.forward

    def record(*args):
        seen.append(args)
        return forward(*args)

    entry.forward = record
    try:
        with torch.no_grad():
            public()
    finally:
        entry.forward = forward
    return seen[0]


def measure(op, device, plan=PLAN):
    """(overhead, call, kernel): Estimates in seconds, the first the paired difference."""
    bound = calls(op, device)
    if device.type == "cpu":
        # one thread does all of it, and its own time leaves out what other programs take
        clock = {"timer": time.thread_time}
    else:
        clock = {"synchronize": torch.accelerator.synchronize}
    with torch.no_grad():
        samples = timing.measure(bound, plan, **clock)
    difference = [c - k for c, k in zip(samples["call"], samples["kernel"], strict=True)]
    return tuple(timing.median(v) for v in (difference, samples["call"], samples["kernel"]))


def row(op, device):
    """The overhead as a row of the results, with a note where it is above LIMIT_US."""
    overhead, call, kernel = measure(op, device)
    over = overhead.value * 1e6 > LIMIT_US
    notes = [f"overhead {overhead.value * 1e6:.2f} us is over {LIMIT_US:g} us"] if over else []
    times = {
        name: {"median_ms": 1e3 * e.value, "low_ms": 1e3 * e.low, "high_ms": 1e3 * e.high}
        for name, e in (("overhead", overhead), ("call", call), ("kernel", kernel))
    }
    shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in TINY[op].items())
    identity = {"kind": "overhead", "op": op, "function": op, "name": "overhead"}
    return identity | {
        "variant": "forward", "dtype": "float32", "shape": shapes, "model": "", "scale": "",
        "inputs": "random", "backend": "", "status": "ok", "message": "", "notes": notes,
        "flops": None, "bytes": None, "times": times, "ratios": {}, "errors": {},
    }  # fmt: skip
