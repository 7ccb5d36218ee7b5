"""Helpers of the benchmark's tests: a contest of two functions, and a console that remembers."""

import io

import torch
from rich.console import Console

from mmkern.bench import contest, timing

CPU = torch.device("cpu")
FAST = timing.Plan(sample_s=1e-4, min_rounds=3, max_rounds=3)


def tiny_contest(function, *, exact=lambda x: x * 2, rounding=1e-4):
    """mmkern's ``function`` against an eager that is off by ``rounding``."""
    x = torch.linspace(0.1, 1, 64)
    return contest.Contest(
        identity={
            "kind": "op", "op": "glu", "function": "glu", "name": "<tiny>", "variant": "forward",
            "dtype": "float32", "shape": "64", "model": "none", "scale": "", "inputs": "random",
        },
        functions={"eager": lambda x: exact(x) * (1 + rounding), "mmkern": function},
        bind=lambda f: lambda: f(x),
        oracle=lambda: exact(x.double()),
        factors=(2.0,),
    )  # fmt: skip


def run_tiny(function, **options):
    """The row of a tiny contest."""
    return contest.run(tiny_contest(function, **options), FAST, device=CPU, compile=False)


def recorder():
    """A console whose export_text() is what was printed."""
    return Console(record=True, width=100, file=io.StringIO())
