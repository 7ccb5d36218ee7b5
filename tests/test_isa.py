"""The accuracy rule again, on every instruction set that this CPU can run."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmkern import library

HERE = Path(__file__).parent
native = None if library.BACKENDS["cpu"].missing else importlib.import_module("mmkern._C")


def other_isas():
    """The instruction sets below the one in use, on which all other tests run."""
    return [isa for isa in native.available_isas() if isa != native.isa()] if native else []


def run(isa, *command):
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "MMKERN_CPU_ISA": isa},
        capture_output=True,
        text=True,
        cwd=HERE.parent,
    )


@pytest.mark.parametrize("isa", other_isas())
def test_accuracy(isa):
    check = "import mmkern._C as c; print(c.isa())"
    assert run(isa, "-c", check).stdout.strip() == isa
    done = run(
        isa, "-m", "pytest", str(HERE / "test_accuracy.py"), "-q", "-k", "not fallback", "-x"
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.skipif(native is None, reason="the extension is not built")
def test_impossible_choice_is_refused():
    done = run("avx9", "-c", "import mmkern, torch; mmkern.modulate(torch.ones(2, 3))")
    assert done.returncode != 0
    assert "ValueError" in done.stderr and "MMKERN_CPU_ISA" in done.stderr
