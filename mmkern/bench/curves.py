"""Peak memory against size, of a few ops: the memory curves of a report."""

import torch

import mmkern
from mmkern.bench import contest, eager, memory, shapes


def sweeps():
    """{label of the size: workloads of growing size}."""
    where = ("", "")
    return {
        "tokens, 16 heads of 72": [
            shapes.square(f"{n}", 1, n, 16, 72, *where, layout="qkv")
            for n in (256, 512, 1024, 2048)
        ],
        "tokens of 1152": [
            shapes.modulation("gated_modulate", f"{n}", (1, n, 1152), (1, 1152), *where)
            for n in (512, 1024, 2048, 4096)
        ],
        "tokens, 1152-4608-1152": [
            shapes.mlp(f"{n}", (n, 1152), 4608, 1152, *where) for n in (64, 128, 256, 512)
        ],
        "tokens of 4096": [
            shapes.rms(f"{n}", (n, 4096), *where, residual=True) for n in (256, 512, 1024, 2048)
        ],
    }  # fmt: skip


def curves(device, dtype=torch.bfloat16):
    """Peak memory against size: [{op, size, passes, x: [...], peak_bytes: {contestant: [...]}}]."""
    found = []
    for size, workloads in sweeps().items():
        for passes in ("forward", "forward+backward"):
            line = {"op": workloads[0].case.function, "size": size, "passes": passes}
            line |= {"dtype": str(dtype).removeprefix("torch."), "x": [], "peak_bytes": {}}
            for workload in workloads:
                line["x"].append(int(workload.case.name))
                for name, value in _peaks(workload.case, passes, device, dtype).items():
                    line["peak_bytes"].setdefault(name, []).append(value)
            found.append(line)
    return found


def _peaks(case, passes, device, dtype):
    kwargs = case.make(dtype, device)
    with torch.no_grad():
        outs = contest.as_tuple(getattr(eager, case.function)(**kwargs))
    bind = contest.binder(case, kwargs, passes, outs, 0)
    found = {}
    with torch.set_grad_enabled(passes != "forward"):
        for name, module in (("eager", eager), ("mmkern", mmkern)):
            call = bind(getattr(module, case.function))
            call()
            found[name] = memory.peak(call, device)
    return found
