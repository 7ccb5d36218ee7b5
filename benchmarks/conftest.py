"""pytest-benchmark suites over the workloads of ``mmkern bench``.

pytest benchmarks/ --benchmark-json=out/benchmarks.json
"""

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    """The accelerator that is there, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pytest_benchmark_update_machine_info(config, machine_info):
    """What pytest-benchmark does not say about the machine."""
    from mmkern.bench import machine

    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    machine_info["mmkern"] = machine.environment(device, config.invocation_params.args)
