"""The memory that a call takes at its peak, outputs and scratch included."""

import ctypes
import gc
from pathlib import Path

import torch

import mmkern

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: a page table, a Python object: what is smaller says nothing
RESOLUTION = 256 * 1024


def peak(call, device):
    """Bytes above what was there before, at the peak of one call; None where nobody counts them.

    On an accelerator it is what torch's allocator counts. On the CPU it is resident memory, which
    Linux can be asked to count anew: after mmkern and the C library gave back what they kept of
    earlier calls, every page that a call writes counts, whoever allocated it. Call it warm, so that
    what the contestant keeps for good is there already.
    """
    gc.collect()
    if device.type != "cpu":
        return _accelerator(call, device)
    try:
        mmkern.empty_cache()
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR_REFS.write_text("5")
        before = _resident("VmRSS")
        result = call()
        after = _resident("VmHWM")
    except (OSError, AttributeError, KeyError):
        return None
    del result
    return after - before if after - before >= RESOLUTION else 0


def _accelerator(call, device):
    torch.accelerator.synchronize()
    torch.accelerator.reset_peak_memory_stats(device)
    before = torch.accelerator.memory_allocated(device)
    result = call()
    torch.accelerator.synchronize()
    del result
    return torch.accelerator.max_memory_allocated(device) - before


def _resident(field):
    """A field of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024
