"""One row of the benchmark: the contestants on the same tensors, checked, then timed."""

import contextlib
import functools
import gc
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch._functorch import config as functorch_config

import mmkern
from mmkern import library
from mmkern.bench import clocks, cost, eager, memory, stages, timing
from mmkern.bench import peers as registered

#: how far mmkern's error may exceed eager's: outputs, gradients
OUTPUT_FACTOR, GRADIENT_FACTOR = 2.0, 3.0
#: how far a peer's may: beyond it the peer computes something else, and has no time
PEER_FACTOR = 16.0


@dataclass(frozen=True)
class Contest:
    """The contestants of one row.

    identity: the fields of the row that say what it is. functions: {"eager": f, rival: f, ...,
    "mmkern": f}. bind: makes a function of that dict into a call without arguments that returns
    the tensors to check. oracle: the same tensors in float64. factors: the accuracy rule's factor
    for each of them.
    """

    identity: dict
    functions: dict[str, Callable]
    bind: Callable
    oracle: Callable
    factors: tuple
    backward: bool = False
    flops: float | None = None
    bytes: int | None = None


def op_contest(workload, dtype, device, seed, passes=None, peers=False):
    """The contest of a workload of mmkern.bench.workloads.

    passes: "forward", "backward" or "forward+backward"; by default what the workload says.
    peers: whether the libraries of mmkern.bench.peers take part.
    """
    case = workload.case
    passes = passes or workload.passes
    kwargs = case.make(dtype, device, seed)
    plain = getattr(eager, case.function)
    functions = {
        "eager": plain,
        **{name: eager.RIVALS[name] for name in workload.rivals},
        **(registered.of(case.function, device) if peers else {}),
        "mmkern": getattr(mmkern, case.function),
    }
    with torch.no_grad():
        outs = as_tuple(plain(**kwargs))
    gradients = [kwargs[n] for n in case.differentiable()]
    wide = {n: widened(v) for n, v in kwargs.items()}
    exact = getattr(mmkern.reference, case.function)
    return Contest(
        identity={
            "kind": "op",
            "op": case.op,
            "function": case.function,
            "name": case.name,
            "variant": passes,
            "dtype": str(dtype).removeprefix("torch."),
            "shape": workload.shape,
            "model": workload.model,
            "scale": workload.scale,
            "inputs": workload.inputs,
        },
        functions=functions,
        bind=binder(case, kwargs, passes, outs, seed),
        oracle=lambda: binder(case, wide, passes, outs, seed)(exact)(),
        factors=factors(passes, len(outs), len(gradients)),
        backward=passes != "forward",
        flops=cost.flops(case.function, kwargs, passes),
        bytes=cost.moved(kwargs.values(), outs, gradients, passes),
    )


def as_tuple(result):
    """What a function returned, as a tuple of tensors."""
    return result if isinstance(result, tuple) else (result,)


def widened(value):
    """A floating-point tensor in float64, anything else as it is."""
    floating = isinstance(value, torch.Tensor) and value.dtype.is_floating_point
    return value.double() if floating else value


def factors(passes, outputs, gradients):
    """The accuracy rule's factor for each tensor that a call of ``passes`` returns."""
    factors_of = {"forward": (OUTPUT_FACTOR,) * outputs, "backward": (GRADIENT_FACTOR,) * gradients}
    return sum((factors_of[one] for one in passes.split("+")), ())


def binder(case, kwargs, passes, outs, seed):
    """A function that binds a contestant to ``kwargs``: a call of ``passes``, without arguments.

    outs: what a contestant returns, for the shapes of the output gradients. A backward alone keeps
    the graph of one forward, which runs when the contestant is bound.
    """
    if passes == "forward":
        return lambda function: functools.partial(function, **registered.own(function, kwargs))
    names = case.differentiable()
    wide = any(kwargs[n].dtype == torch.float64 for n in names)
    cotangents = [g.double() if wide else g for g in _cotangents(outs, seed)]

    def prepared(function):
        given = registered.own(function, kwargs)
        leaves = {n: v.detach().requires_grad_() if n in names else v for n, v in given.items()}
        gradients = list(registered.own(function, dict(enumerate(cotangents))).values())
        return leaves, [leaves[n] for n in names], gradients

    def both(function):
        leaves, inputs, gradients = prepared(function)

        def step():
            results = as_tuple(function(**leaves))
            if results[0] is NotImplemented:
                return NotImplemented
            grads = torch.autograd.grad(results, inputs, gradients)
            return (*(r.detach() for r in results), *grads)

        return step

    def backward(function):
        leaves, inputs, gradients = prepared(function)
        with torch.enable_grad():
            results = as_tuple(function(**leaves))
        if results[0] is NotImplemented:
            return lambda: NotImplemented
        return functools.partial(torch.autograd.grad, results, inputs, gradients, retain_graph=True)

    return backward if passes == "backward" else both


def _cotangents(outs, seed):
    generator = torch.Generator().manual_seed(seed + 1)
    return [torch.randn(o.shape, generator=generator).to(o.device, o.dtype) for o in outs]


def run(contest, plan, *, device, compile=True):
    """Check and time a contest.

    Returns:
        The row, a dict as mmkern.bench.results documents it. A contestant that raises has the
        error's text in place of times; mmkern's failing, or being wrong, fails the row.
    """
    row = {**contest.identity, "status": "ok", "message": "", "backend": "", "notes": []}
    row |= {"flops": contest.flops, "bytes": contest.bytes, "times": {}, "ratios": {}, "errors": {}}
    row |= {"peak_bytes": {}, "host_us": {}, "repeatable": None}
    functions = dict(contest.functions)
    if compile:
        torch._dynamo.reset()
        compiled = torch.compile(functions["eager"], dynamic=False)
        functions = {"eager": functions.pop("eager"), "compile": compiled, **functions}
    with grad_mode(contest):
        calls, results = _first_calls(contest, functions, row)
        if "mmkern" in calls and "eager" in calls:
            _check(contest, results, row)
            row["backend"] = _backend(calls["mmkern"], device)
            row["repeatable"] = _same_bits(results["mmkern"], as_tuple(calls["mmkern"]()))
        elif "mmkern" in calls:
            row["status"] = "failed"
            row["message"] = f"not checked: eager raised {row['times']['eager']['error']}"
        del results
        gc.collect()
        if row["status"] == "ok":
            calls = {n: call for n, call in calls.items() if n not in row["times"]}
            row["peak_bytes"] = {name: memory.peak(call, device) for name, call in calls.items()}
            row["host_us"] = host_us(calls, device)
            clock = {"synchronize": _synchronize(device), "timer": clocks.timer(device)}
            samples = timing.measure(calls, plan, **clock)
            _summarize(samples, row)
            models = {n: functions[n] for n in ("eager", "mmkern") if n in calls}
            if all(isinstance(model, torch.nn.Module) for model in models.values()):
                parts = {n: (model, calls[n]) for n, model in models.items()}
                row["stages"] = stages.stages(parts, device)
    return row


@contextlib.contextmanager
def grad_mode(contest):
    """Gradients on or off, as the contest's calls need them."""
    # a backward that is timed alone keeps its graph, which donated buffers would not survive
    keeps_graph = functorch_config.patch(donated_buffer=False)
    with torch.set_grad_enabled(contest.backward), keeps_graph:
        yield


def _same_bits(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def host_us(calls, device, tries=20):
    """Microseconds until a call returns, while an accelerator still works; {} on the CPU."""
    if device.type == "cpu":
        return {}
    found = {}
    for name, call in calls.items():
        torch.accelerator.synchronize()
        seconds = [timing.sample(call, 1) for _ in range(tries)]
        found[name] = 1e6 * timing.median(seconds).value
        torch.accelerator.synchronize()
    return found


def _first_calls(contest, functions, row):
    """The contestants that run, and what they return."""
    calls, results = {}, {}
    for name, function in functions.items():
        try:
            call = contest.bind(function)
            result = call()
            if result is NotImplemented:
                continue
            results[name] = as_tuple(result)
        except Exception as error:
            text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            row["times"][name] = {"error": text}
            if name == "mmkern":
                row["status"], row["message"] = "failed", f"mmkern raised {text}"
        else:
            calls[name] = call
    return calls, results


@dataclass(frozen=True)
class Oracle:
    """What the contestants are judged by.

    exact: the tensors in float64. eager, floors: for each of them eager's largest error, and one
    rounding of the largest value. factors: those of the contest.
    """

    exact: tuple
    eager: list
    floors: list
    factors: tuple

    @classmethod
    def of(cls, contest, outs):
        """The oracle of a contest, of which eager returned the tensors ``outs``."""
        exact = as_tuple(contest.oracle())
        floors = [
            torch.finfo(got.dtype).eps / 2 * float(wide.abs().max()) if wide.numel() else 0.0
            for got, wide in zip(outs, exact, strict=True)
        ]
        return cls(exact, _errors(outs, exact), floors, contest.factors)

    def judge(self, name, outs):
        """Judge what contestant ``name`` returned.

        Returns:
            ({"max": largest error, "multiple": the largest as a multiple of eager's}, what is
            wrong, or "").
        """
        errors = _errors(outs, self.exact)
        multiples = [
            error / max(base, floor, torch.finfo(torch.float64).tiny)
            for error, base, floor in zip(errors, self.eager, self.floors, strict=True)
        ]
        found = {"max": _finite(max(errors)), "multiple": _finite(max(multiples))}
        return found, "" if name == "eager" else self._wrong(name, errors)

    def _wrong(self, name, errors):
        limits = zip(errors, self.eager, self.floors, self.factors, strict=True)
        for i, (error, base, floor, factor) in enumerate(limits):
            if name != "mmkern":
                if not error <= PEER_FACTOR * max(base, floor):
                    return f"wrong result: error {max(errors):.2e}"
            elif not error <= factor * base + floor:
                return (
                    f"wrong result: error {error:.2e} of tensor {i} is over {factor:g} x eager's "
                    f"{base:.2e} + one rounding {floor:.2e}"
                )
        return ""


def _errors(outs, exact):
    return [largest_error(got, wide) for got, wide in zip(outs, exact, strict=True)]


def _check(contest, results, row):
    """Fill in the errors against float64; fail the row if mmkern's break the accuracy rule."""
    oracle = Oracle.of(contest, results["eager"])
    for name, outs in results.items():
        row["errors"][name], wrong = oracle.judge(name, outs)
        if wrong and name == "mmkern":
            row["status"], row["message"] = "failed", wrong
        elif wrong:
            row["times"][name] = {"error": wrong}


def _finite(value):
    return value if math.isfinite(value) else None


def largest_error(got, exact):
    """Largest absolute difference; infinite where one is finite and the other is not."""
    if got.shape != exact.shape:
        return float("inf")
    if not exact.numel():
        return 0.0
    largest = float((exact - got).abs_().max())
    if math.isfinite(largest):
        return largest
    same = got == exact
    finite = (exact - got).abs_().masked_fill_(same, 0.0).nan_to_num_(nan=float("inf"))
    return float(finite.max())


def _backend(call, device):
    """The backend whose kernels served mmkern's call, or "reference"."""
    for name, backend in library.BACKENDS.items():
        if backend.device == device.type and not backend.missing:
            try:
                with mmkern.use(name):
                    call()
            except RuntimeError:
                return "reference"
            return name
    return "reference"


def _synchronize(device):
    return None if device.type == "cpu" else torch.accelerator.synchronize


def _summarize(samples, row):
    for name, values in samples.items():
        estimate = timing.median(values)
        row["times"][name] = {f"{k}_ms": 1e3 * v for k, v in _named(estimate).items()}
        row["times"][name]["rounds"] = len(values)
    for name, values in samples.items():
        if name != "mmkern":
            row["ratios"][name] = asdict(timing.ratio(values, samples["mmkern"]))


def _named(estimate):
    return {"median": estimate.value, "low": estimate.low, "high": estimate.high}
