"""Tile sizes: one table per target, chosen by shape on the host, never by timing a user's call.

A table maps a kernel's name to a list of (limits, tile), tried in order. limits: a number is the
largest value of that dimension, a string or bool the only one. tile: the constexprs of the launch,
``num_warps`` and ``num_stages`` among them. ``mmkern tune`` writes a better table for the device at
hand to ``user_file()``, whose kernels replace those of the table here.
"""

import contextlib
import functools
import json
import os
from pathlib import Path

from triton.runtime import driver

from mmkern.kernels.triton.tiles import TABLES

_forced = None


def user_file():
    """Where ``mmkern tune`` writes: $MMKERN_TILES, or tiles.json in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MMKERN_TILES") or cache / "mmkern" / "tiles.json")


@functools.cache
def table(target):
    """{kernel: [(limits, tile)]} of a target, with the user's own kernels in place of ours."""
    tuned = {}
    with contextlib.suppress(FileNotFoundError):
        tuned = json.loads(user_file().read_text()).get(target, {})
    return {**TABLES[target], **tuned}


@contextlib.contextmanager
def use_target(target):
    """Take the tiles of ``target`` whatever the device: for tests and the compile gate."""
    global _forced
    previous, _forced = _forced, target
    try:
        yield
    finally:
        _forced = previous


def target(device):
    """The table's name for a device: the newest one that is not newer than the device."""
    return _forced or _target(device.type, device.index)


@functools.cache
def _target(device_type, index):
    if device_type == "npu":
        return "ascend910b"
    if device_type == "cpu":
        return "sm_90"  # the interpreter: any table will do
    found = driver.active.get_current_target()
    if found.backend == "hip":
        return "gfx942"
    return "sm_80" if found.arch < 90 else "sm_90" if found.arch < 100 else "sm_100"


def pick(kernel, device, **shape):
    """The tile of a kernel for this shape; None if the table has none: the reference's case."""
    return _pick(kernel, target(device), tuple(shape.items()))


@functools.lru_cache(maxsize=4096)
def _pick(kernel, target, shape):
    shape = dict(shape)
    for limits, tile in table(target)[kernel]:
        if all(_admits(limit, shape[name]) for name, limit in limits.items()):
            return tile
    return None


def replace(target, kernel, index, tile):
    """Put another tile into an entry of this process's table."""
    entries = list(table(target)[kernel])
    entries[index] = (entries[index][0], tile)
    table(target)[kernel] = entries
    _pick.cache_clear()


def _admits(limit, value):
    if isinstance(limit, str | bool):
        return value == limit
    return value <= limit


#: Ascend starts at most so many programs, and they should be as many as there are vector cores.
_ASCEND_PROGRAMS = 65535
_ASCEND_CORES = 40


def programs(device, tiles):
    """How many programs to start for ``tiles`` tiles that a kernel loops over."""
    return min(tiles, _ASCEND_CORES) if target(device) == "ascend910b" else tiles


def gathers(device):
    """False where addresses that are not evenly spaced mean an access per element, as on Ascend."""
    return target(device) != "ascend910b"


def too_many(device, count):
    """True if ``count`` programs, each with one task, cannot be started."""
    return target(device) == "ascend910b" and count > _ASCEND_PROGRAMS
