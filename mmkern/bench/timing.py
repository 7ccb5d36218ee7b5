"""Paired, interleaved timing, and the statistics on it.

Other programs on the machine slow every contestant of a round alike, so a ratio is the median of
the ratios within rounds, never a ratio of medians taken one after the other. Measured on a shared
2-core machine, two equal contestants timed in sequence differ by 15 to 20 % (90th percentile),
paired ones by 3 %.
"""

import gc
import itertools
import math
import time
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Plan:
    """How long to measure one group of contestants.

    A sample is as many calls as fill ``sample_s``. A round is one sample of each contestant; the
    order turns around after every round. Rounds go on until there are ``min_rounds`` and the 95 %
    interval of every ratio is within ``precision`` of it, or until ``budget_s`` or ``max_rounds``.
    """

    sample_s: float = 0.004
    min_rounds: int = 7
    max_rounds: int = 60
    budget_s: float = 0.8
    precision: float = 0.02


def paced(plan, seconds_left, rows_left):
    """``plan``, with fewer rounds where the rows to come would overrun the seconds left."""
    share = seconds_left / max(rows_left, 1)
    if share > 2 * plan.budget_s:
        return plan
    return replace(plan, budget_s=max(share / 3, 0.1), min_rounds=min(plan.min_rounds, 4))


@dataclass(frozen=True)
class Estimate:
    """A median and the 95 % bootstrap interval around it."""

    value: float
    low: float
    high: float


def measure(calls, plan, *, synchronize=None, timer=time.perf_counter):
    """Time ``calls`` ({name: function of no argument}) in paired rounds.

    Returns:
        {name: [seconds per call, one entry per round]}, lists of one length.
    """
    synchronize = synchronize or (lambda: None)
    counts = {
        name: repeats(call, plan.sample_s, synchronize=synchronize, timer=timer)
        for name, call in calls.items()
    }
    samples = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = timer()
        for done in itertools.count(1):
            for name in list(calls) if done % 2 else reversed(list(calls)):
                elapsed = sample(calls[name], counts[name], synchronize=synchronize, timer=timer)
                samples[name].append(elapsed / counts[name])
            if done >= plan.max_rounds:
                break
            enough = done >= plan.min_rounds
            if enough and (timer() - start > plan.budget_s or _settled(samples, plan.precision)):
                break
    finally:
        if collecting:
            gc.enable()
    return samples


def sample(call, count, *, synchronize=lambda: None, timer=time.perf_counter):
    """Seconds that ``count`` calls take."""
    synchronize()
    start = timer()
    for _ in range(count):
        call()
    synchronize()
    return timer() - start


def repeats(call, sample_s, *, synchronize=lambda: None, timer=time.perf_counter):
    """Calls that fill ``sample_s`` seconds; the calls made to find out are the warm-up."""
    clock = {"synchronize": synchronize, "timer": timer}
    count = 1
    elapsed = sample(call, 1, **clock)
    while elapsed < sample_s / 2:
        count = max(count * 2, math.ceil(count * sample_s / max(elapsed, 1e-7) / 2))
        elapsed = sample(call, count, **clock)
    return max(1, math.ceil(count * sample_s / elapsed))


def _settled(samples, precision):
    *others, last = samples.values()
    ratios = (ratio(other, last, draws=200) for other in others)
    return all((r.high - r.low) / 2 < precision * r.value for r in ratios)


def median(values, *, draws=1000):
    """Estimate of the median of ``values``."""
    values = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return Estimate(float(np.median(values)), float(low), float(high))


def ratio(numerator, denominator, *, draws=1000):
    """Estimate of the median of the ratios of two contestants, round by round.

    Raises:
        ValueError: the two have different numbers of rounds.
    """
    if len(numerator) != len(denominator):
        raise ValueError(
            f"ratio of {len(numerator)} samples to {len(denominator)}; wanted pairs of one round"
        )
    return median(np.asarray(numerator) / np.asarray(denominator), draws=draws)
