"""What each call of the Triton kernels launches: Triton's kernels, and PyTorch's beside them.

The calls are those of the compile gate, on meta tensors, so that no GPU is needed, and nothing is
compiled. A launch costs some microseconds on the host and a gap on the device; one more than the
committed table has, or one of PyTorch's where there was none, is for review.

    python benchmarks/gpu_launches.py --check     # fail if the committed table differs
    python benchmarks/gpu_launches.py             # write it
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from gate_cases import CALLS
from gpu_gate import TARGETS, Driver
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mmkern.kernels.triton import tuning

RESULTS = Path(__file__).parent / "results" / "gpu_launches.json"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Launches(TorchDispatchMode):
    """Notes what is launched inside it, in order; Triton's kernels are not run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __enter__(self):
        self.run = JITFunction.run

        def note(function, *args, **kwargs):
            self.names.append(function.fn.__name__)

        JITFunction.run = note
        return super().__enter__()

    def __exit__(self, *exc):
        JITFunction.run = self.run
        return super().__exit__(*exc)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **kwargs or {})
        # memory comes from the allocator and a view is arithmetic on the host
        free = op.is_view or op.__name__.startswith(("empty", "new_empty"))
        if not free and any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(out)):
            self.names.append(f"aten.{op.__name__.partition('.')[0]}")
        return out


def launches(target):
    """{op: {dtype and label of the calls: [what one launches, joined]}} on a target."""
    driver.set_active(Driver(target))
    found = {}
    with tuning.use_target(target):
        for op, calls in CALLS.items():
            rows = {}
            for dtype in DTYPES:
                for call in calls(tuning.table(target), dtype):
                    with Launches() as seen:
                        call.run()
                    name = f"{str(dtype).removeprefix('torch.')} {call.label}"
                    rows.setdefault(name, set()).add(" + ".join(seen.names))
            found[op] = {name: sorted(ways) for name, ways in rows.items()}
    return found


def differences(before, now):
    """Sentences on what two tables of one target do not share."""
    return [
        f"{op}, {name}: {before.get(op, {}).get(name)} -> {now.get(op, {}).get(name)}"
        for op in sorted(before.keys() | now.keys())
        for name in sorted(before.get(op, {}).keys() | now.get(op, {}).keys())
        if before.get(op, {}).get(name) != now.get(op, {}).get(name)
    ]


def main():
    """Write the table, or compare with it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if the table differs")
    args = parser.parse_args()
    now = {target: launches(target) for target in TARGETS}
    if not args.check:
        RESULTS.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
        return 0
    before = json.loads(RESULTS.read_text())
    changed = [
        f"{target} {text}"
        for target in TARGETS
        for text in differences(before.get(target, {}), now[target])
    ]
    count = sum(len(rows) for ops in now.values() for rows in ops.values())
    print(f"launches of {count} kinds of call: {len(changed)} differ from the table")
    print("\n".join(changed), end="\n" if changed else "")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
