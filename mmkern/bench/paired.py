"""The statistics of the regression gate: paired blocks, a bootstrap interval, a verdict.

A block times two contestants in the order A B B A or B A A B, chosen at random, on the same
buffers; its value is the difference of the mean logarithms of their times. What slows the machine
for longer than a block slows both alike and drops out. On separate buffers two equal contestants
differed by 9 % on one machine, so the buffers are shared.
"""

import gc
import math
import time
from dataclasses import dataclass

import numpy as np

from mmkern.bench import timing


@dataclass(frozen=True)
class Rule:
    """When a difference is a regression.

    margin: the slowdown that is let pass. alpha: the chance of a false alarm that the whole job
    may have, shared out over its cases by Holm's procedure. blocks, rounds: blocks per round;
    a case that is undecided after one round gets another, up to ``rounds``. sample_s: a sample is
    as many calls as take this long. floor_s: differences below it never fail.
    """

    margin: float = 0.05
    alpha: float = 0.01
    blocks: int = 25
    rounds: int = 3
    sample_s: float = 2e-4
    floor_s: float = 2e-6
    draws: int = 10_000


@dataclass(frozen=True)
class Finding:
    """What the blocks of one case say.

    change: the median relative slowdown of B, with its interval ``low`` to ``high`` at alpha on
    either side. p: the share of bootstrap medians within the margin, so small for a regression.
    seconds: the median time of a call of A. blocks: how many there were.
    """

    change: float
    low: float
    high: float
    p: float
    seconds: float
    blocks: int

    def fast(self, rule):
        """Whether the interval excludes a regression."""
        return self.high < rule.margin

    def slow(self, rule, alpha):
        """Whether the interval, at ``alpha``, excludes what is let pass."""
        return self.p <= alpha and self.change * self.seconds > rule.floor_s


def find(differences, seconds, rule):
    """The Finding of block values ``differences``, the natural logarithms of time ratios."""
    values = np.asarray(differences, dtype=np.float64)
    rng = np.random.default_rng(0)
    picks = rng.integers(len(values), size=(rule.draws, len(values)), dtype=np.int32)
    medians = np.median(values[picks], axis=1)
    low, high = np.quantile(medians, [rule.alpha, 1 - rule.alpha])
    within = int((medians <= math.log1p(rule.margin)).sum())
    return Finding(
        change=float(np.expm1(np.median(values))),
        low=float(np.expm1(low)),
        high=float(np.expm1(high)),
        p=(within + 1) / (rule.draws + 1),
        seconds=float(np.median(seconds)),
        blocks=len(values),
    )


def compare(a, b, rule, *, rng, cases=1, timer=time.thread_time):
    """Time two calls in blocks until they are decided, or ``rule.rounds`` are over.

    Args:
        a, b: functions of no argument that work on the same buffers.
        rng: numpy Generator of the orders.
        cases: among how many cases the job shares ``rule.alpha``.
        timer: a function whose differences are seconds.
    """
    repeats = timing.repeats(a, rule.sample_s, timer=timer)
    timing.sample(b, repeats, timer=timer)
    differences, seconds = [], []
    for _ in range(rule.rounds):
        for _ in range(rule.blocks):
            difference, of_a = _block(a, b, repeats, rng, timer)
            differences.append(difference)
            seconds.append(of_a)
        found = find(differences, seconds, rule)
        if found.fast(rule) or found.slow(rule, rule.alpha / cases):
            break
    return found


def _block(a, b, repeats, rng, timer):
    """(log of B's time over A's, seconds of a call of A)."""
    calls = (a, b)
    first = int(rng.random() < 0.5)
    times = ([], [])
    collecting = gc.isenabled()
    gc.disable()
    try:
        for which in (first, 1 - first, 1 - first, first):
            elapsed = timing.sample(calls[which], repeats, timer=timer) / repeats
            times[which].append(max(elapsed, 1e-12))
    finally:
        if collecting:
            gc.enable()
    of_a, of_b = (np.mean(np.log(values)) for values in times)
    return float(of_b - of_a), float(np.exp(of_a))


def holm(findings, rule):
    """The keys of ``findings`` {key: Finding} that are regressions, by Holm's procedure."""
    ordered = sorted(findings, key=lambda key: findings[key].p)
    slow = []
    for rank, key in enumerate(ordered):
        if findings[key].p > rule.alpha / (len(ordered) - rank):
            break
        if findings[key].slow(rule, rule.alpha):
            slow.append(key)
    return slow


def noisy(finding, rule):
    """Why the machine can't be judged by: a canary, two equal contestants, says so; or ""."""
    if finding.low > rule.margin or finding.high < -rule.margin:
        return f"two equal builds differ by {100 * finding.change:+.1f} %"
    half = (finding.high - finding.low) / 2
    if half > rule.margin:
        return f"the interval of two equal builds is {100 * half:.1f} % to either side"
    return ""
