"""Times of the ops beside their peers, as gpu_check.py and npu_check.py write them.

A time is the median over launches with the device's events, the L2 cache overwritten before each;
contestants take turns, launch by launch, on the same tensors. FLOPs count the true head dimension
and the pairs that the mask lets through; bytes are those that must move.
"""

import contextlib
import statistics
import time

import gpu_shapes
import torch
from accuracy import cotangents, outputs

import mmkern
from mmkern import library
from mmkern.bench import cost

#: Launches of a contestant: as many as fit SECONDS, within these bounds.
SECONDS, FEWEST, MOST = 0.3, 5, 50
#: Whose memory for the backward is counted.
KEEPING = ("eager", "mmkern")


class Launches:
    """Times launches on a device by its events: "cuda" or "npu"."""

    def __init__(self, name, cache):
        self.name = name
        self.event = getattr(torch, name).Event
        # more bytes than L2 has, and so many that writing them outlasts the host's part of a call
        self.cache = torch.empty(cache, dtype=torch.int8, device=name)

    def seconds(self, call):
        begin, end = (self.event(enable_timing=True) for _ in range(2))
        # also keeps the device busy while the host enqueues the call
        self.cache.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def on_cuda():
    """The clock of a CUDA device."""
    return Launches("cuda", max(4 * torch.cuda.get_device_properties(0).L2_cache_size, 1 << 29))


def on_npu():
    """The clock of an Ascend NPU; the 910B family has at most 192 MiB of L2."""
    return Launches("npu", 1 << 29)


class Host:
    """Times calls on the CPU: a rehearsal of this script."""

    name = "cpu"

    def seconds(self, call):
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin


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
    leaves = _leaves(kwargs, names)
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


def _leaves(kwargs, names):
    return {n: v.detach().requires_grad_() if n in names else v for n, v in kwargs.items()}


def _kept(functions, kwargs, names):
    """{contestant of KEEPING: bytes that its forward keeps for the backward, arguments apart}."""
    leaves = _leaves(kwargs, names)
    own = {v.untyped_storage().data_ptr() for v in leaves.values() if isinstance(v, torch.Tensor)}
    found = {}
    for name in KEEPING:
        kept = {}

        def pack(tensor, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            # an output that its own node holds would never be freed
            return tensor.detach()

        with (
            contextlib.suppress(Exception),  # _calls says what
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            alive = functions[name](**leaves)
            found[name] = sum(kept.values())
            del alive
    return found


def backend_of(call):
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
    return cost.nbytes([*(v for n, v in kwargs.items() if n not in unread), *outs, *grads])


def times_of(case, dtype, backward, clock, peers=gpu_shapes.peers):
    """The row of one case: {identity, contestants, errors, flops, bytes, difference}."""
    kwargs = case.make(dtype, clock.name)
    names = case.differentiable()
    functions = {"mmkern": getattr(mmkern, case.function), **peers(case, backward)}
    kept = _kept(functions, kwargs, names) if backward else {}
    calls, errors, results = _calls(functions, kwargs, names, backward)
    difference = _difference(results)
    outs = results.get("mmkern", ())
    work = cost.flops(case.function, kwargs, "backward" if backward else "forward")
    if backward and outs:
        moved = _moved(case, kwargs, dict(zip(names, outs, strict=True)))
    else:
        moved = cost.nbytes([*kwargs.values(), *outs])
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
        "backend": backend_of(calls.get("mmkern")), "rounds": rounds, "flops": work, "bytes": moved,
        "difference": difference, "kept_bytes": kept,
        "contestants": contestants, "errors": errors,
    }  # fmt: skip


def times(chosen, clock, keep, peers=gpu_shapes.peers):
    """Rows of every case, forward and backward, in bfloat16; ``keep`` is called after each."""
    rows = []
    for case in chosen:
        for backward in (False, True):
            try:
                with gpu_shapes.fresh_compiler():
                    row = times_of(case, torch.bfloat16, backward, clock, peers)
            except Exception as error:  # out of memory, say: the other rows are still of use
                row = {"op": case.op, "function": case.function, "name": case.name}
                row["contestants"] = {}
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
