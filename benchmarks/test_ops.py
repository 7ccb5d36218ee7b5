"""Every workload x dtype x pass x contestant; one group for each workload, dtype and pass.

Contestants of a group run one after the other here, so their ratios carry the machine's drift;
``mmkern bench`` interleaves them. Use this suite to store, compare and plot absolute times.
"""

import functools

import pytest
import suite

from mmkern.bench import contest, peers
from mmkern.bench.workloads import WORKLOADS

pytestmark = suite.TIMED


@functools.lru_cache(maxsize=1)
def prepared(workload, dtype, passes):
    """The contest of a workload and its oracle, kept while its contestants run."""
    made = contest.op_contest(
        workload, suite.DTYPES[dtype], suite.DEVICE, 0, suite.PASSES[passes], peers=True
    )
    return suite.prepared(made)


def parameters():
    """(workload, dtype, pass, contestant); a workload of training has each pass."""
    rows = {
        (workload.case.id, passes): workload
        for workload in WORKLOADS
        for passes in (suite.PASSES if workload.backward else ("fwd",))
    }
    return [
        suite.parameter(row, workload, dtype, passes, name, quick=workload.quick)
        for (row, passes), workload in rows.items()
        for dtype in suite.DTYPES
        for name in contestants(workload)
    ]


def contestants(workload):
    """The names of those that run, the peers among them that import."""
    found = peers.of(workload.case.function, suite.DEVICE)
    return ("eager", "compile", *workload.rivals, *found, "mmkern")


@pytest.mark.parametrize(("workload", "dtype", "passes", "name"), parameters())
def test_op(benchmark, workload, dtype, passes, name):
    suite.race(benchmark, *prepared(workload, dtype, passes), name)
