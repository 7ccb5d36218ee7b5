"""Where the time of a model goes: its parts, timed by hooks while the whole model runs."""

import contextlib
import time
from collections import defaultdict

import numpy as np
import torch
from torch import nn

ROUNDS = 5
#: the name of what no part accounts for
REST = "rest"


def stages(contestants, device):
    """The parts of models, in the order of the first one's calls.

    contestants: {name: (module, call of no argument that runs it)}. A part is a child module that
    is called, or one of its children where it is not; the modules of a list count as one. What a
    contestant computes outside of a part's call, a fused kernel in the block around it for
    instance, is in "rest".

    Returns:
        [{"name": part, "times": {contestant: median_ms}}], and "rest" as the last one.
    """
    found = {name: _timed(module, call, device) for name, (module, call) in contestants.items()}
    names = dict.fromkeys(part for times in found.values() for part in times if part != REST)
    return [
        {"name": part, "times": {n: times[part] for n, times in found.items() if part in times}}
        for part in (*names, REST)
    ]


def _timed(module, call, device):
    parts = _called_parts(module, call)
    rounds = []
    for _ in range(ROUNDS):
        with _hooks(parts, device) as seconds:
            begin = _now(device)
            call()
            whole = _now(device) - begin
        rounds.append({**seconds, REST: whole - sum(seconds.values())})
    return {part: 1e3 * float(np.median([r[part] for r in rounds])) for part in rounds[0]}


def _called_parts(module, call, depth=3):
    """{module: name} of the outermost modules below ``module`` that a call of it calls."""
    candidates = {child: name for name, child in module.named_children()}
    for _ in range(depth):
        ordered = dict.fromkeys(_calls_of(candidates, call))
        silent = {c: name for c, name in candidates.items() if c not in ordered}
        inner = {g: _inner(name, c, n) for c, name in silent.items() for n, g in c.named_children()}
        if not inner:
            break
        candidates = {**{c: candidates[c] for c in ordered}, **inner}
    return {c: candidates[c] for c in ordered}


def _calls_of(modules, call):
    """Those of ``modules`` that a call calls, in order, as often as it does."""
    called = []
    handles = [m.register_forward_pre_hook(lambda m, _: called.append(m)) for m in modules]
    call()
    for handle in handles:
        handle.remove()
    return called


def _inner(name, parent, child):
    return name if isinstance(parent, (nn.ModuleList, nn.Sequential)) else f"{name}.{child}"


@contextlib.contextmanager
def _hooks(parts, device):
    """{name: seconds} of the parts, filled in while the context lasts."""
    seconds, begun, handles = defaultdict(float), {}, []

    def before(module, _):
        begun[module] = _now(device)

    def after(module, *_):
        seconds[parts[module]] += _now(device) - begun[module]

    for part in parts:
        handles += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _now(device):
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()
