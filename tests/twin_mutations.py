"""Plants each fault of twin_mutants.py in its kernel and says what caught it.

A fault is caught by the twin when a run has a finding, and by the numbers when an output differs
from the sound kernel's in any bit, with pipes early or late. Whether the sound kernels are right is
what `make twin-check` holds against the reference. Exits with 1 where a fault escaped.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twin_cases import CASES
from twin_mutants import MUTANTS
from twin_run import ROOT, Library, compiled, precompiled

KERNELS = ROOT / "kernels" / "ascendc"
RUNS = ({}, {"lazy": True, "order": 3})
TIMEOUT_S = 120


def run_here(case: str, path: str) -> dict:
    library = Library(Path(path))
    rules, digest = {}, hashlib.sha256()
    for options in RUNS:
        report, outputs = CASES[case].run(library, **options)
        rules |= {
            finding["rule"]: line
            for finding, line in zip(report["findings"], report["lines"], strict=True)
        }
        for output in outputs:
            digest.update(output)
    return {"rules": rules, "outputs": digest.hexdigest()}


def build(case: str, folder: Path) -> Path:
    """Compiles the float16 entry of a case's kernel, from the copies of the sources in `folder`."""
    entry = CASES[case]
    text = (folder / entry.source).read_text()
    text = "\n".join(line for line in text.split("\n") if "bfloat16_t, bfloat16)" not in line)
    wrapped = folder / f"{case}_entry.cpp"
    wrapped.write_text(f'#include "export.h"\n{text}\nASCENDC_TWIN_KERNEL({entry.kernel})\n')
    return compiled(wrapped, f"-I{precompiled()}", f"-I{folder}", name=f"{folder.name}_{case}")


def run_apart(case: str, path: Path) -> dict:
    """In a process of its own: a fault may crash it, or keep it busy for ever."""
    command = [sys.executable, __file__, "--run", case, str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"rules": {"timeout": f"no end after {TIMEOUT_S} s"}, "outputs": ""}
    if done.returncode:
        return {"rules": {"crash": done.stderr.strip()[-300:]}, "outputs": ""}
    return json.loads(done.stdout)


def caught_by(at: int, sound: dict, root: Path) -> str:
    """What caught a fault; empty where nothing did."""
    file, case, text, replacement = MUTANTS[at]
    folder = root / f"mutant{at}"
    shutil.copytree(KERNELS, folder)
    source = (folder / file).read_text()
    if text not in source:
        raise ValueError(f"{file} has no text {text!r}: bring twin_mutants.py up to date")
    (folder / file).write_text(source.replace(text, replacement, 1))
    found = run_apart(case, build(case, folder))
    if found["rules"]:
        return "twin: " + ", ".join(sorted(found["rules"]))
    return "" if found["outputs"] == sound[case]["outputs"] else "numbers"


def shown(at: int) -> str:
    file, _, text, replacement = MUTANTS[at]
    lines = " ".join(text.split())
    return f"{file}: {lines[:60]} -> {replacement[:40] or 'nothing'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--only", help="faults of the files whose name has this in it")
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run_here(*arguments.run)))
        return 0
    chosen = [i for i, m in enumerate(MUTANTS) if (arguments.only or "") in m[0]]
    with tempfile.TemporaryDirectory(prefix="twin_mutants_") as name:
        root = Path(name)
        shutil.copytree(KERNELS, root / "sound")
        sound = {}
        for case in sorted({MUTANTS[i][1] for i in chosen}):
            sound[case] = run_apart(case, build(case, root / "sound"))
            if sound[case]["rules"]:
                print(f"the sound {case} has findings: {sound[case]['rules']}")
                return 1
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(lambda i: caught_by(i, sound, root), chosen))
    for at, caught in zip(chosen, results, strict=True):
        print(f"{shown(at)}: {caught or 'ESCAPED'}")
    by_twin = sum(caught.startswith("twin") for caught in results)
    by_numbers = sum(caught == "numbers" for caught in results)
    print(
        f"{by_twin + by_numbers} of {len(chosen)} planted faults caught: "
        f"{by_twin} by the twin, {by_numbers} by the numbers"
    )
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
