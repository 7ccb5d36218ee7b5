"""Every workload x dtype x contestant, one pytest-benchmark group for each workload and dtype.

Contestants of a group run one after the other here, so their ratios carry the machine's drift;
``mmkern bench`` interleaves them. Use this suite to store and plot absolute times.
"""

import functools

import pytest
import torch

from mmkern.bench import contest
from mmkern.bench.workloads import WORKLOADS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@functools.lru_cache(maxsize=1)
def prepared(workload, dtype, device):
    """The contest of a workload, kept while its contestants run."""
    return contest.op_contest(workload, DTYPES[dtype], device, seed=0)


def contestants():
    """(workload, contestant), the rivals of a workload included."""
    return [
        pytest.param(workload, name, id=f"{workload.id}-{name.replace(' ', '_')}")
        for workload in WORKLOADS
        for name in ("eager", "compile", *workload.rivals, "mmkern")
    ]


@pytest.mark.benchmark(max_time=0.3, min_rounds=5, warmup=True, warmup_iterations=2)
@pytest.mark.parametrize(("workload", "name"), contestants())
@pytest.mark.parametrize("dtype", DTYPES)
def test_op(benchmark, workload, dtype, name, device):
    made = prepared(workload, dtype, device)
    if name == "compile":
        torch._dynamo.reset()
        call = made.bind(torch.compile(made.functions["eager"], dynamic=False))
    else:
        call = made.bind(made.functions[name])
    synchronize = torch.accelerator.synchronize if device.type != "cpu" else None

    def run():
        call()
        if synchronize:
            synchronize()

    benchmark.group = f"{workload.id} {dtype}"
    with torch.set_grad_enabled(made.backward):
        benchmark(run)
    median = benchmark.stats.stats.median
    benchmark.extra_info |= {**made.identity, "contestant": name}
    benchmark.extra_info["GB/s"] = made.bytes / median / 1e9
    if made.flops:
        benchmark.extra_info["GFLOP/s"] = made.flops / median / 1e9
