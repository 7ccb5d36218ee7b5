"""Plants each fault of twin_mutants.py in its kernel and says what caught it.

A fault is caught by the twin when a run has a finding, and by the numbers when an output differs
from the sound kernel's in any bit, with pipes early or late. Whether the sound kernels are right is
what `make twin-check` holds against the reference. Exits with 1 where a fault escaped.

To compile the twin once for many faults, the copies of a kernel share a translation unit, each in a
namespace of its own.
"""

import argparse
import hashlib
import multiprocessing
import os
import re
import resource
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twin_cases import CASES
from twin_mutants import MUTANTS
from twin_run import ROOT, Library, compiled

KERNELS = ROOT / "kernels" / "ascendc"
RUNS = ({}, {"lazy": True, "order": 3})
CPU_S, WALL_S = 120, 900  # a loaded machine may keep a run waiting for long
LEAST = 130  # faults, or some were dropped
COPIES = 12  # of a kernel in one translation unit
SOUND = "sound"


def flattened(file: str, sources: dict[str, str], seen: set[str]) -> str:
    """A source with the project's includes in their places, each once, under their own names."""
    if file in seen:
        return ""
    seen.add(file)
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate(sources[file].split("\n"), 1):
        include = re.match(r'#include "([^"]+)"', line)
        if include and include[1] in sources:
            lines += [flattened(include[1], sources, seen), f'#line {number + 1} "{file}"']
        elif line != "#pragma once" and "bfloat16_t, bfloat16)" not in line:
            lines.append(line)
    return "\n".join(lines)


def copy_of(case: str, name: str, sources: dict[str, str]) -> str:
    """A kernel whose names are its own: mmkern in them becomes `name`."""
    text = flattened(CASES[case].source, sources, set())
    text = text.replace("mmkern", name).replace("MMKERN", name.upper())
    return f"{text}\nASCENDC_TWIN_KERNEL({CASES[case].kernel.replace('mmkern', name)})\n"


def planted(at: int, sources: dict[str, str]) -> dict[str, str]:
    file, _, text, replacement = MUTANTS[at]
    if text not in sources[file]:
        raise ValueError(f"{file} has no text {text!r}: bring twin_mutants.py up to date")
    return {**sources, file: sources[file].replace(text, replacement, 1)}


def build(case: str, numbers: list[int], sources: dict[str, str], folder: Path) -> Path:
    copies = [copy_of(case, SOUND, sources)]
    copies += [copy_of(case, f"fault{i}", planted(i, sources)) for i in numbers]
    file = folder / f"{case}_{numbers[0]}.cpp"
    file.write_text('#include "export.h"\n' + "\n".join(copies))
    return compiled(file)


def run_here(path: Path, case: str, name: str, answer) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    library, entry = Library(path), CASES[case]
    rules, digest = set(), hashlib.sha256()
    for options in RUNS:
        found, outputs = entry.run(library, kernel=entry.kernel.replace("mmkern", name), **options)
        rules |= found
        for output in outputs:
            digest.update(output)
    answer.send((rules, digest.hexdigest()))


def run_apart(path: Path, case: str, name: str) -> tuple[set[str], str]:
    """In a process of its own: a fault may crash it, or keep it busy for ever."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_here, args=(path, case, name, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(WALL_S) else ({"no end"}, "")
    except EOFError:
        return {"crash or no end"}, ""
    finally:
        process.kill()
        process.join()


def shown(at: int) -> str:
    file, _, text, replacement = MUTANTS[at]
    return f"{file}: {' '.join(text.split())[:60]} -> {replacement[:40] or 'nothing'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=sorted(CASES), help="the faults of one case")
    only = parser.parse_args().case
    if not KERNELS.is_dir():
        print(f"skipped: no {KERNELS.relative_to(ROOT)}")
        return 0
    sources = {path.name: path.read_text() for path in KERNELS.iterdir()}
    groups = []
    for case in sorted({mutant[1] for mutant in MUTANTS if only in (None, mutant[1])}):
        numbers = [i for i, mutant in enumerate(MUTANTS) if mutant[1] == case]
        groups += [(case, numbers[i : i + COPIES]) for i in range(0, len(numbers), COPIES)]
    caught = {}
    with tempfile.TemporaryDirectory(prefix="twin_mutants_") as folder:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            paths = list(pool.map(lambda g: build(*g, sources, Path(folder)), groups))
        for (case, numbers), path in zip(groups, paths, strict=True):
            rules, sound = run_apart(path, case, SOUND)
            if rules:
                print(f"the sound {case} has findings: {', '.join(sorted(rules))}")
                return 1
            for at in numbers:
                rules, outputs = run_apart(path, case, f"fault{at}")
                by_numbers = "" if outputs == sound else "numbers"
                caught[at] = f"twin ({', '.join(sorted(rules))})" if rules else by_numbers
                print(f"{shown(at)}: {caught[at] or 'ESCAPED'}", flush=True)
    by_twin = sum(what.startswith("twin") for what in caught.values())
    by_numbers = sum(what == "numbers" for what in caught.values())
    print(
        f"{by_twin + by_numbers} of {len(caught)} planted faults caught: "
        f"{by_twin} by the twin, {by_numbers} by the numbers"
    )
    return 0 if all(caught.values()) and (only or len(caught) >= LEAST) else 1


if __name__ == "__main__":
    sys.exit(main())
