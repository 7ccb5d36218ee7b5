"""Builds the AscendC kernels and their host code on the twin, and runs mmkern's ops on them.

The library is compiled as the first test asks for it, which takes about a minute, into build/.
"""

import fcntl
import functools
import importlib
import json
from pathlib import Path

import torch
from torch.utils import cpp_extension

from mmkern import library

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "attention", "attention_backward", "device", "device_twin", "linear_backward", "mlp",
    "modulate", "patch_embed",
)  # fmt: skip
#: the raw ops with a kernel
RAW_OPS = (
    "attention", "attention_backward", "mlp", "mlp_backward", "modulate", "modulate_backward",
    "patch_embed", "patch_embed_backward",
)  # fmt: skip


@functools.cache
def ops():
    """The namespace of the ops that run on the twin; builds their library where it is not."""
    folder = ROOT / "build/ascendc_twin"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "building").open("w") as building:
        # one process at a time; the system lets go of this lock when its process dies
        fcntl.flock(building, fcntl.LOCK_EX)
        # torch's own lock outlives a build that was killed, and the next would wait for ever
        (folder / "lock").unlink(missing_ok=True)
        cpp_extension.load(
            "mmkern_ascendc_twin",
            [str(ROOT / f"csrc/ascendc/{name}.cpp") for name in SOURCES],
            extra_include_paths=[str(ROOT / "csrc"), str(ROOT / "csrc/ascendc/twin")],
            extra_cflags=["-std=c++20", "-O2", "-g0"],
            build_directory=str(folder),
            is_python_module=False,
        )
    return torch.ops.mmkern_ascendc_twin


def run_ops_on_twin(monkeypatch):
    """Until the test ends, mmkern's ops run the host code and kernels of AscendC on the twin."""
    for raw in RAW_OPS:
        name = raw.removesuffix("_backward")
        op, module = library.OPS[name], importlib.import_module(f"mmkern.ops.{name}")
        function = getattr(ops(), raw)
        monkeypatch.setattr(module, "_backward" if raw != name else "_forward", function)
        if raw == name:
            monkeypatch.setattr(op, "forward", function)


def take_reports():
    """The reports of the kernels that ran since the last call."""
    return [json.loads(report) for report in ops().take_reports()]
