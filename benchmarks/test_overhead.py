"""What a call costs besides its kernel: at most mmkern.bench.overhead.LIMIT_US microseconds."""

import pytest
import torch

from mmkern.bench import overhead


@pytest.mark.benchmark(group="overhead of a call", max_time=0.3)
@pytest.mark.parametrize("op", overhead.TINY)
def test_overhead(benchmark, op, device):
    # other programs only ever add to it, by a factor of two at times
    runs = [[e.value * 1e6 for e in overhead.measure(op, device)] for _ in range(3)]
    extra, call, kernel = min(runs)
    benchmark.extra_info |= {"overhead_us": extra, "call_us": call, "raw_op_us": kernel}
    with torch.no_grad():
        benchmark(overhead.calls(op, device)["call"])
    assert extra <= overhead.LIMIT_US, (
        f"mmkern.{op} costs {extra:.2f} us besides its raw op; the promise is {overhead.LIMIT_US:g}"
    )
