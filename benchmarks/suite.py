"""What the pytest-benchmark suites share: a contestant of mmkern.bench is checked, then timed."""

import pytest
import torch

from mmkern.bench import clocks, contest, machine, memory

DEVICE = clocks.default_device()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PASSES = {"fwd": "forward", "bwd": "backward", "fwd+bwd": "forward+backward"}
#: a call on an accelerator returns before its work is done, so events on its stream tell the time;
#: a sample of several calls hides the gap between two of them
TIMED = [] if DEVICE.type == "cpu" else [pytest.mark.benchmark(timer=clocks.now, min_time=1e-3)]


def parameter(row, *values, quick):
    """A test of ``values``: a row's workload, a dtype, a contestant; its id names the row."""
    words = "-".join((row, *values[1:])).replace(" ", "_")
    return pytest.param(*values, id=words, marks=[pytest.mark.quick] if quick else [])


def prepared(made):
    """A contest with its oracle, for the contestants of one group."""
    with contest.grad_mode(made):
        eager = contest.as_tuple(made.bind(made.functions["eager"])())
        return made, contest.Oracle.of(made, eager)


def race(benchmark, made, oracle, name):
    """Check contestant ``name`` of a contest, then time it; a wrong result fails and has no time.

    A peer that raises, or does not take the case, is skipped.
    """
    identity = made.identity
    benchmark.group = " ".join(identity[k] for k in ("function", "name", "dtype", "variant"))
    with contest.grad_mode(made):
        call, outs = _first_call(made, name)
        errors, wrong = oracle.judge(name, outs)
        if wrong:
            pytest.fail(f"{name}: {wrong}", pytrace=False)
        del outs
        peak = memory.peak(call, DEVICE)
        host = contest.host_us({name: call}, DEVICE)
        benchmark(call)
    benchmark.extra_info |= {**identity, "contestant": name, "device": machine.device_name(DEVICE)}
    benchmark.extra_info["error ratio"] = errors["multiple"]
    benchmark.extra_info["peak MiB"] = None if peak is None else peak / 2**20
    if host:
        benchmark.extra_info["host us"] = host[name]
    # --benchmark-disable runs a test without timing it
    if benchmark.stats:
        median = benchmark.stats.stats.median
        if made.bytes:
            benchmark.extra_info["GB/s"] = made.bytes / median / 1e9
        if made.flops:
            benchmark.extra_info["TFLOP/s"] = made.flops / median / 1e12


def _first_call(made, name):
    """A contestant's call, and what it returns."""
    if name == "compile":
        torch._dynamo.reset()
        function = torch.compile(made.functions["eager"], dynamic=False)
    else:
        function = made.functions[name]
    try:
        call = made.bind(function)
        outs = call()
    except Exception as error:
        if name in ("eager", "mmkern"):
            raise
        pytest.skip(f"{name} raised {type(error).__name__}: {error}")
    if outs is NotImplemented:
        pytest.skip(f"{name} does not take this case")
    return call, contest.as_tuple(outs)
