"""The instruction gate: what the CPU kernels execute, counted by callgrind, on any machine.

    python benchmarks/instructions.py --check    # fail where a count grew by 1 %
    python benchmarks/instructions.py            # count, and write the table

Counts do not depend on what else the machine does. They are those of functions in mmkern::avx2,
on one thread: valgrind does not know AVX-512. They say nothing about memory or threads, and a
compiler of another version gives others: then the check says so, and passes.
"""

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "instructions.json"
SCHEMA = "mmkern-instructions/1"
ISA = "avx2"
LIMIT = 0.01
DTYPES = ("float32", "bfloat16")
#: torch carries the header, for its own use
HEADERS = "utils/benchmark/utils/valgrind_wrapper"
CLIENT = """
#include "callgrind.h"
extern "C" void start() { CALLGRIND_START_INSTRUMENTATION; }
extern "C" void zero() { CALLGRIND_ZERO_STATS; }
extern "C" void dump(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
"""


def cases():
    """Every op at true widths and few tokens, forward and with its backward."""
    from mmkern.bench import shapes

    where = ("", "")
    made = []
    for passes in ({}, {"backward": True}):
        made += [
            shapes.patch("vit", (1, 3, 64, 64), (256, 3, 16, 16), (16, 256), *where, **passes),
            shapes.square("d72", 1, 96, 4, 72, *where, layout="qkv", **passes),
            shapes.square("causal_gqa", 1, 128, 8, 128, *where, heads_k=2, causal=True, **passes),
            shapes.modulation("gated_modulate", "dit", (2, 32, 1152), (2, 1152), *where, **passes),
            shapes.mlp("gelu", (32, 256), 1024, 256, *where, **passes),
            shapes.rms("qwen3", (32, 4096), *where, residual=True, **passes),
            shapes.rope("qk_norm", (1, 64, 8, 128), 2, *where, norm=True, **passes),
            shapes.glu("swiglu", (32, 3072), *where, **passes),
        ]
    made.append(shapes.attention("decode", (1, 1, 8, 128), (1, 512, 2, 128), *where, causal=True))
    return made


def work(folder):
    """Run every case under callgrind, and let it write a file for each to ``folder``."""
    import torch

    import mmkern
    from mmkern.bench import contest, eager

    client = ctypes.CDLL(str(folder / "client.so"))
    torch.set_num_threads(1)
    for dtype in DTYPES:
        for workload in cases():
            case = workload.case
            kwargs = case.make(getattr(torch, dtype))
            with torch.no_grad():
                outs = contest.as_tuple(getattr(eager, case.function)(**kwargs))
            bind = contest.binder(case, kwargs, workload.passes, outs, 0)
            call = bind(getattr(mmkern, case.function))
            with torch.set_grad_enabled(workload.backward), mmkern.use("cpu"):
                call()
                client.start()
                client.zero()
                call()
                client.dump(f"{workload.id} {dtype}".encode())


def count(folder):
    """{case: instructions} of the files that callgrind wrote to ``folder``."""
    counts = {}
    for path in folder.glob("callgrind.out.*"):
        text = path.read_text()
        name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
        if name:
            counts[name[1]] = own_instructions(text)
    return dict(sorted(counts.items()))


def own_instructions(profile):
    """The instructions that functions of the kernels executed themselves, of a callgrind file."""
    names, current, total, callee = {}, "", 0, False
    for line in profile.splitlines():
        found = re.match(r"fn=\((\d+)\)(?: (.*))?$", line)
        if found:
            names.setdefault(found[1], found[2])
            current = names[found[1]]
        elif match := re.match(r"cfn=\((\d+)\) (.*)$", line):
            names.setdefault(match[1], match[2])
        elif line.startswith("calls="):
            callee = True
        elif re.match(r"[+\-*\d]", line):
            if not callee and f"mmkern::{ISA}::" in current:
                total += int(line.split()[1])
            callee = False
    return total


def measure():
    """The table: counts, and what they depend on."""
    import torch

    headers = Path(torch.__file__).parent / HEADERS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "client.cpp"
        source.write_text(CLIENT)
        compiler = [os.environ.get("CXX", "g++"), "-shared", "-fPIC", "-I", str(headers)]
        subprocess.run([*compiler, str(source), "-o", str(folder / "client.so")], check=True)
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--quiet"]
        command += [f"--callgrind-out-file={folder}/callgrind.out"]
        command += [sys.executable, __file__, "--worker", name]
        limits = {"MMKERN_CPU_ISA": ISA, "ATEN_CPU_CAPABILITY": ISA, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=os.environ | limits)
        counts = count(folder)
    wanted = {f"{w.id} {d}" for w in cases() for d in DTYPES}
    if set(counts) != wanted or not all(counts.values()):
        raise RuntimeError(f"no counts of {sorted(wanted - {n for n, c in counts.items() if c})}")
    return {"schema": SCHEMA, "isa": ISA, **depends_on(), "counts": counts}


def depends_on():
    """What other counts than the kernels' source may come from."""
    from mmkern import _C

    info = _C.build_info()
    return {"compiler": info["compiler"], "flags": info["kernel_flags"]}


def compare(found, committed):
    """(lines about what differs, whether it is a regression)."""
    old, new = committed["counts"], found["counts"]
    lines, worse = [], False
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            lines.append(f"{name}: {'not in the table' if name in new else 'only in the table'}")
            worse = True
        elif abs(change := new[name] / old[name] - 1) > LIMIT:
            lines.append(f"{name}: {old[name]} -> {new[name]} ({100 * change:+.1f} %)")
            worse |= change > 0
    return lines, worse


def check(committed):
    """Count again and compare; returns the exit code."""
    differs = [k for k, v in depends_on().items() if committed.get(k) != v]
    if differs:
        was, now = ([table[k] for k in differs] for table in (committed, depends_on()))
        print(f"skipped: the table was made with {was}, and here it is {now}")
        return 0
    lines, worse = compare(measure(), committed)
    print("\n".join(lines) or f"{len(committed['counts'])} counts are within {LIMIT:.0%}")
    if worse:
        print(f"more instructions than {RESULTS} allows; where that is meant, write it again")
    return int(worse)


def main(argv=None):
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed table")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        work(args.worker)
        return 0
    if shutil.which("valgrind") is None or not _has_kernels():
        print(f"skipped: the counts need valgrind and the built extension, with {ISA} in it")
        return 0
    if args.check and not RESULTS.is_file():
        print(f"skipped: there is no {RESULTS}; benchmarks/instructions.py writes it")
        return 0
    if args.check:
        return check(json.loads(RESULTS.read_text()))
    from mmkern.bench import results

    results.write_text(RESULTS, json.dumps(measure(), indent=1) + "\n")
    print(f"written: {RESULTS}")
    return 0


def _has_kernels():
    try:
        from mmkern import _C
    except ImportError:
        return False
    return ISA in _C.build_info()["isas"]


if __name__ == "__main__":
    sys.exit(main())
