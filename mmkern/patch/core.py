"""How a swap is described, decided, applied, recorded and undone.

A :class:`Rule` names modules by class or by structure and gives the function that computes their
forward with mmkern's ops. A swap sets attributes on objects of the model (a ``forward`` on the
instance, an attention processor, a field of a config) and leaves a record on the module, so that a
deep copy or a pickle of the model carries its own way back.
"""

import fnmatch
import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from mmkern.patch import probe

RECORD = "_mmkern_swaps"


@dataclass(frozen=True)
class Rule:
    """What to replace and by what.

    Attributes:
        name: what ``include``, ``exclude`` and the report call it.
        ops: the mmkern ops that run instead, for the report.
        match: (path, module) -> whether the rule speaks of this module.
        refuse: module -> why it cannot be swapped as it is, or None.
        forward: (module, *args, **kwargs) -> what the module's forward returns.
        inputs: (module, sample) -> (args, kwargs) of a probe; ``sample(*shape)`` is random normal.
        swaps: module -> [(owner, attribute, new value)], where it is not ``forward``.
        stubs: (child, module) pairs that stand in the probe for children it need not run.
        reads: whether it reads parameters, which it cannot where they are sharded.
    """

    name: str
    ops: str
    match: Callable
    forward: Callable | None = None
    inputs: Callable | None = None
    refuse: Callable = lambda module: None
    swaps: Callable | None = None
    stubs: tuple = ()
    reads: bool = True

    def changes(self, module):
        if self.swaps is not None:
            return self.swaps(module)
        new = functools.partial(self.forward, module)
        name = _first_parameter(functools.partial(definer(module).forward, module))
        if name != _first_parameter(new):
            new = functools.partial(by_name, self.forward, name, module)
        return [(module, "forward", new)]


@dataclass(frozen=True)
class Entry:
    path: str
    cls: str
    rule: str
    ops: str
    reason: str | None = None


@dataclass
class Report:
    """What :func:`mmkern.patch` did: ``swapped`` and ``left``, lists of entries; str() is a table.

    An entry has path, cls, rule, ops, and, where the module was left as it was, the reason.
    """

    swapped: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def __str__(self):
        rows = [("swapped", e, e.ops) for e in self.swapped]
        rows += [("left", e, e.reason) for e in self.left]
        groups = {}
        for state, e, text in rows:
            groups.setdefault((state, e.rule, e.cls, text), []).append(e.path)
        if not groups:
            return "mmkern.patch: no module of a kind that it knows"
        table = [("", "rule", "class", "modules", "mmkern ops, or why not")]
        table += [
            (state, rule, cls, str(len(paths)), text)
            for (state, rule, cls, text), paths in groups.items()
        ]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        return "\n".join(
            "  ".join([c.ljust(w) for c, w in zip(row, widths, strict=False)] + [row[4]])
            for row in table
        )


def _first_parameter(function):
    return next(iter(inspect.signature(function).parameters), None)


def by_name(forward, name, module, *args, **kwargs):
    """A replacement for whose input the class's forward has another name, here called by that."""
    if not args:
        if name not in kwargs:
            return original(module, **kwargs)  # which raises what the class raises
        args = (kwargs.pop(name),)
    return forward(module, *args, **kwargs)


def qualified(cls):
    return f"{cls.__module__}.{cls.__qualname__}"


def definer(module):
    """The class whose forward the module runs: FSDP2 and others subclass it without another."""
    return next(c for c in type(module).__mro__ if "forward" in vars(c))


def of_class(*patterns):
    """A match by the qualified name of the class that defines forward; fnmatch patterns."""

    def match(path, module):
        name = qualified(definer(module))
        return any(fnmatch.fnmatchcase(name, p) for p in patterns)

    return match


def original(module, *args, **kwargs):
    """The forward of the module's class: for what a replacement does not take."""
    return type(module).forward(module, *args, **kwargs)


def plain(module, *kinds):
    """Whether a child is what it seems, so that its weights may be read past its forward.

    LoRA and quantised layers are other classes; accelerate's hooks and transformers' tensor
    parallelism are a forward on the instance, maybe over the swapped one.
    """
    own = vars(module)
    # dynamo does not compare partials, so their type stands for "the one that is recorded"
    swapped = is_swapped(module) and isinstance(own.get("forward"), functools.partial)
    return (
        definer(module) in kinds
        and ("forward" not in own or swapped)
        and "_hf_hook" not in own
        and "_diffusers_hook" not in own
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def is_swapped(module):
    return RECORD in vars(module)


def record(module, rule):
    """Set the attributes of a swap and note on the module what they were."""
    notes = []
    for owner, attribute, new in rule.changes(module):
        shared = not isinstance(owner, nn.Module)
        if shared and getattr(owner, attribute) == new:
            continue  # a config, say, that an outer model holds too and has the record of
        had = shared or attribute in vars(owner)
        old = getattr(owner, attribute) if had else None
        notes.append(((rule.name, rule.ops), owner, attribute, new, had, old))
        setattr(owner, attribute, new)
    if notes:
        vars(module).setdefault(RECORD, []).extend(notes)


def undo(module):
    """Put back what :func:`record` noted on this one module, unless it was changed since."""
    for _, owner, attribute, new, had, old in reversed(vars(module).pop(RECORD, ())):
        now = getattr(owner, attribute)
        if now is not new and (isinstance(owner, nn.Module) or now != new):
            # accelerate puts a hook over the swapped forward and keeps it under this name
            if vars(owner).get("_old_forward") is new:
                owner._old_forward = functools.partial(original, owner)
        elif had:
            setattr(owner, attribute, old)
        else:
            delattr(owner, attribute)


def obstacle(rule, module):
    """Why a module must not be touched by any rule, or None."""
    if rule.swaps is None and "forward" in vars(module):
        return (
            "its forward is overridden on the instance (an accelerate hook?): "
            "patch before, then install hooks"
        )
    # not imported here: it takes 0.6 s, and where nobody did there is no DTensor
    sharded = sys.modules.get("torch.distributed.tensor")
    if rule.reads and sharded and any(isinstance(p, sharded.DTensor) for p in module.parameters()):
        return "its parameters are DTensors: patch before fully_shard or parallelize_module"
    if module._compiled_call_impl is not None:
        return "it is compiled: patch before compile()"
    return None


def chosen(path, module, rule, include, exclude):
    def hit(patterns):
        names = (path, type(module).__name__, rule.name)
        return any(fnmatch.fnmatchcase(n, p) for n in names for p in patterns)

    return (include is None or hit(include)) and not hit(exclude or ())


def _verdict(rule, module, verdicts, check):
    """Why not to swap (or None), with one probe for all modules that look alike."""
    reason = obstacle(rule, module) or rule.refuse(module)
    if reason or not check or rule.inputs is None:
        return reason
    key = (
        rule.name, type(module), repr(module),
        tuple((n, p.shape, p.dtype, p.device) for n, p in module.named_parameters()),
    )  # fmt: skip
    if key not in verdicts:
        try:
            verdicts[key] = probe.mismatch(rule, module)
        except Exception as error:  # a module of a familiar structure with another signature
            verdicts[key] = f"the probe raised {type(error).__name__}: {error}"
    return verdicts[key]


def apply(rules, model, include, exclude, check):
    """Try every rule on every module; returns the Report."""
    report, verdicts, plan = Report(), {}, []
    for path, module in model.named_modules():
        if is_swapped(module):
            names = dict.fromkeys(note[0] for note in vars(module)[RECORD])
            report.swapped += [Entry(path, type(module).__name__, *name) for name in names]
            continue
        for rule in rules:
            if not rule.match(path, module):
                continue
            entry = (path, type(module).__name__, rule.name, rule.ops)
            if not chosen(path, module, rule, include, exclude):
                report.left.append(Entry(*entry, "excluded by include= or exclude="))
            elif reason := _verdict(rule, module, verdicts, check):
                report.left.append(Entry(*entry, reason))
            else:
                plan.append((rule, module))
                report.swapped.append(Entry(*entry))
                break
    for rule, module in plan:
        record(module, rule)
    return report
