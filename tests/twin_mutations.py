"""Plants each fault of twin_mutants.py in its kernel and says what caught it.

A fault is caught by the twin when a run has a finding, by the numbers when an output differs from
the sound kernel's in any bit, with pipes early or late, and by the system when a run crashes or has
no end. An error of these tools catches nothing: it ends them. Whether the sound kernels are right
is what `make twin-check` holds against the reference. Exits with 1 where a fault escaped.

To compile the twin once for many faults, the copies of a source share a translation unit, each in a
namespace of its own, with no kernel but that of its case.
"""

import argparse
import hashlib
import multiprocessing
import re
import resource
import signal
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twin_cases import CASES
from twin_mutants import MUTANTS
from twin_run import JOBS, ROOT, Library, compiled

KERNELS = ROOT / "kernels" / "ascendc"
RUNS = ({}, {"lazy": True, "order": 3})
CPU_S, WALL_S = 120, 900  # a loaded machine may keep a run waiting for long
COUNT = 180  # faults, or some were dropped
CATCHERS = ("twin", "numbers", "system")
COPIES = 16  # of a source in one translation unit
NAMES = {case.kernel for case in CASES.values()}


def is_of_another(line: str, kernel: str) -> bool:
    """Whether the line makes a kernel other than this one, of another name or type."""
    made = re.match(r"MMKERN_(\w+)\(\w+, (\w+)\)$", line)
    if not made:
        return False
    name = f"mmkern_{made[1].lower()}_{made[2]}"
    return made[2] != "float16" or (name in NAMES and name != kernel)


def flattened(file: str, kernel: str, sources: dict[str, str], seen: set[str]) -> str:
    """A source with the project's includes in their places, each once, under their own names."""
    if file in seen:
        return ""
    seen.add(file)
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate(sources[file].split("\n"), 1):
        include = re.match(r'#include "([^"]+)"', line)
        if include and include[1] in sources:
            lines.append(flattened(include[1], kernel, sources, seen))
            lines.append(f'#line {number + 1} "{file}"')
        elif line != "#pragma once" and not is_of_another(line, kernel):
            lines.append(line)
    return "\n".join(lines)


def copy_of(case: str, name: str, sources: dict[str, str]) -> str:
    """A kernel whose names are its own: mmkern in them becomes `name`."""
    kernel = CASES[case].kernel
    text = flattened(CASES[case].source, kernel, sources, set())
    text = text.replace("mmkern", name).replace("MMKERN", name.upper())
    return f"{text}\nASCENDC_TWIN_KERNEL({kernel.replace('mmkern', name)})\n"


def planted(at: int, sources: dict[str, str]) -> dict[str, str]:
    file, _, text, replacement = MUTANTS[at]
    if text not in sources[file]:
        raise ValueError(f"{file} has no text {text!r}: bring twin_mutants.py up to date")
    return {**sources, file: sources[file].replace(text, replacement, 1)}


def case_of(at: int) -> str:
    return MUTANTS[at][1]


def sound(case: str) -> str:
    return CASES[case].kernel.replace("mmkern", "sound")


def build(numbers: list[int], sources: dict[str, str], folder: Path) -> Path:
    """Compiles these faults, and the sound kernels of their cases."""
    cases = {case_of(at) for at in numbers}
    copies = {sound(case): copy_of(case, sound(case), sources) for case in sorted(cases)}
    copies |= {
        f"fault{at}": copy_of(case_of(at), f"fault{at}", planted(at, sources)) for at in numbers
    }
    file = folder / f"faults_{numbers[0]}.cpp"
    file.write_text('#include "export.h"\n' + "\n".join(copies.values()))
    return compiled(file)


def run_here(path: Path, case: str, name: str) -> tuple[set[str], str]:
    library, entry = Library(path), CASES[case]
    rules, digest = set(), hashlib.sha256()
    for options in RUNS:
        found, outputs = entry.run(library, kernel=entry.kernel.replace("mmkern", name), **options)
        rules |= found
        for output in outputs:
            digest.update(output)
    return rules, digest.hexdigest()


def answer_for(answer, *run) -> None:
    """Sends what run_here gives, or the text of its exception."""
    # SIGXCPU comes at the first limit; at the second SIGKILL, which may have another sender
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 60))
    try:
        answer.send(run_here(*run))
    except Exception:
        answer.send(traceback.format_exc())


def run_apart(path: Path, case: str, name: str) -> tuple[set[str], str]:
    """In a process of its own: a fault may crash it, or keep it busy for ever.

    Raises RuntimeError for what is no answer about the kernel: an exception in Python, an exit, or
    a SIGKILL, as of a system that is out of memory.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=answer_for, args=(sender, path, case, name))
    process.start()
    sender.close()
    try:
        if not receiver.poll(WALL_S):
            return {"no end"}, ""
        got = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode
        if code >= 0 or code == -signal.SIGKILL:
            raise RuntimeError(f"{case}, {name}: exit code {code} without an answer") from None
        return {"no end" if code == -signal.SIGXCPU else signal.Signals(-code).name}, ""
    finally:
        process.kill()
        process.join()
    if isinstance(got, str):
        raise RuntimeError(f"{case}, {name}: {got}")
    return got


def what_caught(rules: set[str], differs: bool) -> str:
    """By whom a fault was caught; nothing if it was not."""
    names = ", ".join(sorted(rules))
    if any(rule == "no end" or rule.startswith("SIG") for rule in rules):
        return f"system ({names})"
    return f"twin ({names})" if rules else "numbers" if differs else ""


def shown(at: int) -> str:
    file, _, text, replacement = MUTANTS[at]
    one_line, other = (" ".join(part.split()) for part in (text, replacement))
    return f"{file}: {one_line[:60]} -> {other[:40] or 'nothing'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=sorted(CASES), help="the faults of one case")
    only = parser.parse_args().case
    if not KERNELS.is_dir():
        print(f"skipped: no {KERNELS.relative_to(ROOT)}")
        return 0
    sources = {path.name: path.read_text() for path in KERNELS.iterdir()}
    groups = []
    for source in sorted({case.source for case in CASES.values()}):
        cases = {name for name, case in CASES.items() if case.source == source}
        numbers = [i for i in range(len(MUTANTS)) if case_of(i) in cases & {only or case_of(i)}]
        groups += [numbers[i : i + COPIES] for i in range(0, len(numbers), COPIES)]
    caught = {}
    with tempfile.TemporaryDirectory(prefix="twin_mutants_") as folder:
        with ThreadPoolExecutor(JOBS) as pool:
            paths = list(pool.map(lambda g: build(g, sources, Path(folder)), groups))
        for numbers, path in zip(groups, paths, strict=True):
            cases = {case_of(at) for at in numbers}
            wanted = {case: run_apart(path, case, sound(case)) for case in sorted(cases)}
            for case, (rules, _) in wanted.items():
                if rules:
                    print(f"the sound {case} has findings: {', '.join(sorted(rules))}")
                    return 1
            for at in numbers:
                rules, outputs = run_apart(path, case_of(at), f"fault{at}")
                caught[at] = what_caught(rules, outputs != wanted[case_of(at)][1])
                print(f"{shown(at)}: {caught[at] or 'ESCAPED'}", flush=True)
    by = {who: sum(w.startswith(who) for w in caught.values()) for who in CATCHERS}
    print(
        f"{sum(by.values())} of {len(caught)} planted faults caught: "
        + ", ".join(f"{count} by the {who}" for who, count in by.items())
    )
    if not only and len(caught) != COUNT:
        print(f"there were {COUNT}: bring the count up to date")
        return 1
    return 0 if all(caught.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
