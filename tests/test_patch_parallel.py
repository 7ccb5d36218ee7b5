"""Patched models under tensor parallelism, on two gloo ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("diffusers")

TESTS = Path(__file__).parent


@pytest.mark.parametrize("check", ["torch_plan", "dtensors", "transformers_plan", "diffusers_plan"])
def test_on_two_ranks(check, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    env = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, TESTS / "two_ranks.py", check], cwd=tmp_path, env=env,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
