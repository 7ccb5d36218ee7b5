"""The reference models and the blocks of published models x dtype x contestant, forward.

A block is absent where the library that builds it is: the header says so.
"""

import functools

import pytest
import suite

from mmkern.bench import blocks, blocks_workload, models

pytestmark = suite.TIMED
MAKERS = {
    models.ModelWorkload: models.model_contest,
    blocks_workload.BlockWorkload: blocks.block_contest,
}


@functools.lru_cache(maxsize=1)
def prepared(workload, dtype):
    """The contest of a model and its oracle, kept while its contestants run."""
    make = MAKERS[type(workload)]
    return suite.prepared(make(workload, suite.DTYPES[dtype], suite.DEVICE, seed=0))


def parameters():
    """(workload, dtype, contestant)"""
    return [
        suite.parameter(workload.name, workload, dtype, name, quick=workload.quick)
        for workload in (*models.MODELS, *(b for b in blocks.BLOCKS if not b.missing()))
        for dtype in suite.DTYPES
        for name in ("eager", "compile", "mmkern")
    ]


@pytest.mark.parametrize(("workload", "dtype", "name"), parameters())
def test_model(benchmark, workload, dtype, name):
    suite.race(benchmark, *prepared(workload, dtype), name)
