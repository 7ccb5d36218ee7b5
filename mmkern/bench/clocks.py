"""What tells the time: the CPU's clocks, and events on the stream of an accelerator.

A call on an accelerator returns before its work is done. Events lie in the same queue as the work,
so the time between two of them is the device's own, whatever the host does meanwhile.
"""

import functools
import time

import torch


class Moment:
    """An event in the current stream; a later one minus an earlier one waits, and gives seconds."""

    def __init__(self, device, event=torch.Event):
        self.event = event(device, enable_timing=True)
        self.event.record()

    def __sub__(self, earlier):
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1e3


def timer(device, *, threads=None):
    """A function whose differences are seconds of work on ``device``.

    On the CPU with ``threads`` = 1 it is the calling thread's own time, which leaves out what other
    programs take; otherwise the wall clock.
    """
    if device.type != "cpu":
        return functools.partial(Moment, device)
    return time.thread_time if threads == 1 else time.perf_counter


@functools.cache
def default_device():
    """The accelerator that is there, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def now():
    """The present moment on the default device: the timer of the pytest-benchmark suites."""
    return timer(default_device())()
