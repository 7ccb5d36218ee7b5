"""pytest-benchmark suites over the workloads of ``mmkern bench``.

    pytest benchmarks/ --benchmark-json=out/benchmarks.json
    pytest benchmarks/ -m quick -k "attention and bfloat16 and mmkern" --benchmark-compare

pytest-benchmark's own options select, save and compare; nothing here takes their place.
"""

import pytest
import suite

from mmkern.bench import blocks, machine, peers


@pytest.fixture(scope="session")
def device():
    """The accelerator that is there, else the CPU."""
    return suite.DEVICE


def absent():
    """{name: reason} of the peers, and of the blocks of models, that take no part."""
    missing = {w.name: f"{w.missing()} is not installed" for w in blocks.BLOCKS if w.missing()}
    return peers.absent(suite.DEVICE) | missing


def pytest_configure(config):
    config.addinivalue_line("markers", "quick: the selection of mmkern bench --quick")


def pytest_report_header():
    lines = [f"mmkern: {machine.device_name(suite.DEVICE)}, {machine.isa()}"]
    return lines + [f"absent: {name}: {reason}" for name, reason in absent().items()]


def pytest_benchmark_update_machine_info(config, machine_info):
    """What pytest-benchmark does not say about the machine."""
    found = machine.environment(suite.DEVICE, config.invocation_params.args)
    machine_info["mmkern"] = found | {"absent": absent()}
