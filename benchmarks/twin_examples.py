"""Runs AscendC examples that others wrote on the twin: those of a checkout of CANN's asc-devkit.

Each example's own host code runs, with ACL replaced by tests/twin/acl/acl.h and its launches by
calls of the twin; the inputs and the verdict come from the example's own scripts, or its own host
code. An example runs twice, with pipes early and late. Nothing of the checkout is copied into the
project.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = "examples/01_simd_cpp_api"
FLAGS = ("-std=c++17", "-O0", "-w", "-pthread")

#: folder: its scenarios (None: it has one) that give their expected output without a finding
CHOSEN = {
    "00_introduction/01_add/add_tpipe_tque": (None,),
    "00_introduction/02_matrix/matmul_basic_api": (None,),
    "00_introduction/03_fusion_operation/matmul_leakyrelu_basic_api": (None,),
    "03_basic_api/00_data_movement/copy_ub2ub": (1, 2, 3),
    "03_basic_api/00_data_movement/data_copy_gm2l1": (1, 2, 4, 5),
    "03_basic_api/00_data_movement/data_copy_gm2ub_slice": (None,),
    "03_basic_api/00_data_movement/data_copy_l0c2gm": (1, 3, 5),
    "03_basic_api/00_data_movement/data_copy_pad_gm2ub_ub2gm": (1, 2),
    "03_basic_api/01_memory_vector_compute/brcb": (None,),
    "03_basic_api/01_memory_vector_compute/cast": (0, 1),
    "03_basic_api/01_memory_vector_compute/compare": (1, 2, 3),
    "03_basic_api/01_memory_vector_compute/duplicate": (None,),
    "03_basic_api/01_memory_vector_compute/element_wise_arithmetic": (None,),
    "03_basic_api/01_memory_vector_compute/element_wise_compound_compute": (1, 2),
    "03_basic_api/01_memory_vector_compute/element_wise_logic": (1, 4),
    "03_basic_api/01_memory_vector_compute/gather": (1, 2, 3, 4),
    "03_basic_api/01_memory_vector_compute/mrg_sort": (1, 2, 3),
    "03_basic_api/01_memory_vector_compute/reduce": (None,),
    "03_basic_api/01_memory_vector_compute/reduce_data_block": (1, 2, 3),
    "03_basic_api/01_memory_vector_compute/reduce_pair_elem": (None,),
    "03_basic_api/01_memory_vector_compute/reduce_repeat": (1, 2, 3, 4),
    "03_basic_api/01_memory_vector_compute/select": (1, 2, 3),
    "03_basic_api/01_memory_vector_compute/transpose": (1, 2, 3),
    "03_basic_api/03_matrix_compute/fixpipe_l0c2gm": (1, 2, 4, 5, 6, 7),
    "03_basic_api/03_matrix_compute/fixpipe_l0c2l1": (1, 2, 3, 4),
    "03_basic_api/03_matrix_compute/load_data_l12l0": (3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
    "03_basic_api/03_matrix_compute/mmad_gemv": (None,),
    "03_basic_api/03_matrix_compute/mmad_load3dv2": (1, 2),
    "03_basic_api/03_matrix_compute/mmad_unitflag": (None,),
    "03_basic_api/04_memory_management/list_tensor_desc_input": (None,),
    "03_basic_api/04_memory_management/tensor_allocation": (1, 2, 3),
    "03_basic_api/05_sync_control/ib_set_wait": (None,),
    "03_basic_api/05_sync_control/sequential_block_sync": (None,),
    "03_basic_api/05_sync_control/sync_all": (None,),
    "03_basic_api/05_sync_control/task_sync": (None,),
    "03_basic_api/06_atomic/data_movement_with_atomic_operations": (1, 2),
    "03_basic_api/06_atomic/set_atomic_deterministic_computation": (1, 2, 3),
    "03_basic_api/07_tpipe_tque/get_tpipe_ptr": (None,),
    "03_basic_api/07_tpipe_tque/tpipe_reuse": (None,),
}
#: those that give it with findings, which are right: what they do, and the rules that say so
FAULTY = {
    # all blocks store the same numbers to one place
    "03_basic_api/01_memory_vector_compute/create_vec_index": ((None,), {"gm-two-writers"}),
    # of the block that goes out the result is the first few bytes
    "03_basic_api/01_memory_vector_compute/reduce_computation": (
        (1, 2, 3, 4, 5, 6),
        {"uninitialised-read"},
    ),
    # no barrier between the scales' copy into the fixpipe buffer and their use
    "03_basic_api/00_data_movement/data_copy_l0c2gm": ((2, 4, 6), {"race"}),
    # addresses in elements where they are in bytes, so that two copies write one place in L1
    "03_basic_api/05_sync_control/cross_core_set_wait_flag": ((2,), {"tensors-overlap", "race"}),
    # L0B's tensor of floats is declared too short; and columns beyond the product go to L1
    "03_basic_api/03_matrix_compute/load_data_l12l0": ((13,), {"out-of-range"}),
    "03_basic_api/03_matrix_compute/mmad_load3dv2": ((3, 4), {"out-of-range"}),
    "03_basic_api/03_matrix_compute/batch_matmul": (
        (None,),
        {"out-of-range", "uninitialised-read"},
    ),
}

LAUNCH = re.compile(r"([\w:]+)\s*(<[^<>;]*>)?\s*<<<([^,>]+),[^>]*>>>\s*\(([^;]*)\);")
QUALIFIERS = r'((?:(?:__\w+__(?:\([^)]*\))?|extern "C"|inline)\s+)+)'
KINDS = {"vector": "kAiv", "cube": "kAic", "AIV_ONLY": "kAiv", "AIC_ONLY": "kAic"}


def kind_of(source: str, kernel: str) -> str:
    """The KernelType that a kernel's qualifiers, or the statement in its body, ask for."""
    head = re.search(rf"{QUALIFIERS}void\s+{kernel}\s*\(", source)
    qualifiers = head[1] if head else ""
    if mixed := re.search(r"__mix__\(\s*1\s*,\s*(\d)\s*\)", qualifiers):
        return {"0": "kAic", "1": "kMix11"}.get(mixed[1], "kMix12")
    for word in ("vector", "cube"):
        if f"__{word}__" in qualifiers:
            return KINDS[word]
    stated = re.search(r"KERNEL_TYPE_(\w+)", source[head.end() :] if head else source)
    if stated and stated[1].startswith("MIX_AIC_1_"):
        return "kMix12" if stated[1].endswith("2") else "kMix11"
    return KINDS.get(stated[1] if stated else "", "kAiv")


def on_twin(source: str) -> str:
    """The source with every launch turned into a call of the twin."""

    def call(match: re.Match) -> str:
        name, template, blocks, arguments = match.groups()
        kernel = name + (template or "")
        kind = kind_of(source, name.split("::")[-1])
        return (
            f'twin_acl::Run("{name}", ascendc_twin::KernelType::{kind}, {blocks}, '
            f"[=] {{ {kernel}({arguments}); }});"
        )

    return LAUNCH.sub(call, source)


def script_lines(readme: str, script: str, scenario: int | None) -> list[str] | None:
    """The arguments that the README gives a script."""
    found = re.search(rf"python3 [^\s]*{script}([^\n#`;]*)", readme)
    if not found:
        return None
    number = "" if scenario is None else str(scenario)
    return found[1].replace("$SCENARIO_NUM", number).split()


def step(command: list[str], folder: Path, what: str, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        message = (done.stderr or done.stdout).strip().split("\n")
        errors = [line for line in message if "error" in line.lower()] or message[-1:]
        raise RuntimeError(f"{what}: {errors[0].strip()[:200]}")
    return done.stdout


def compiler(*more: str) -> list[str]:
    includes = (ROOT / "tests/twin", ROOT / "csrc/ascendc/twin")
    return [os.environ.get("CXX", "g++"), *FLAGS, *(f"-I{i}" for i in includes), *more]


def precompile(root: Path) -> Path:
    """The twin and its ACL, compiled once for all examples."""
    header = root / "twin.h"
    header.write_text('#include "acl/acl.h"\n')
    step(compiler("-x", "c++-header", str(header), "-o", f"{header}.gch"), root, "the twin")
    return header


def verify(folder: Path, readme: str, scenario: int | None, work: Path, printed: str) -> None:
    """Raises where neither the example's script nor its host code says that its output is right."""
    arguments = script_lines(readme, "verify_result.py", scenario)
    if arguments is not None:
        script = str(folder / "scripts/verify_result.py")
        printed = step([sys.executable, script, *arguments], work, "verify")
    if not re.search(r"\bpass", printed, re.I) or re.search(r"\bfail", printed, re.I):
        raise RuntimeError(f"no verdict that it passed: {printed.strip()[-100:]}")


def run(devkit: Path, name: str, scenario: int | None, root: Path, header: Path) -> list[str]:
    """Runs one example; returns the twin's findings, and raises what went wrong."""
    folder = devkit / EXAMPLES / name
    (source,) = folder.glob("*.asc")
    readme = (folder / "README.md").read_text()
    work = root / f"{name.replace('/', '_')}_{scenario}"
    for part in ("input", "output"):
        (work / part).mkdir(parents=True)
    arguments = script_lines(readme, "gen_data.py", scenario)
    if arguments is not None:
        step([sys.executable, str(folder / "scripts/gen_data.py"), *arguments], work, "gen_data")
    rewritten = work / "example.cpp"
    rewritten.write_text(on_twin(source.read_text()))
    defines = ["-DASC_ARCHITECTURES=2201"]
    if scenario is not None:
        defines += [f"-DSCENARIO_NUM={scenario}", f"-DSCENARIO={scenario}"]
    build = ["-include", str(header), *defines, f"-I{folder}", str(rewritten), "-o", "example"]
    step(compiler(*build), work, "compile")
    findings = []
    for environment in ({}, {"TWIN_LATE": "1"}):
        (work / "output/output.bin").unlink(missing_ok=True)
        printed = step(["./example"], work, "run", **environment)
        findings += [line for line in printed.split("\n") if line.startswith("twin: ")]
        try:
            verify(folder, readme, scenario, work, printed)
        except RuntimeError as error:
            raise RuntimeError("\n    ".join([str(error), *findings[:4]])) from None
    return findings


def scenarios_of(folder: Path) -> list[int | None]:
    """The numbers in the README's table of options, or None for the only one."""
    if "SCENARIO_NUM" not in (folder / "CMakeLists.txt").read_text():
        return [None]
    row = re.search(r"\| *`?SCENARIO_NUM`? *\|([^|]*)\|", (folder / "README.md").read_text())
    numbers = sorted({int(n) for n in re.findall(r"\d+", row[1])}) if row else []
    if len(numbers) == 2:  # from the first to the last
        return list(range(numbers[0], numbers[1] + 1))
    return numbers or list(range(8))


def tried(devkit: Path, parts: list[str]) -> list[tuple[str, int | None]]:
    """Every scenario of every example for Atlas A2 that has one of `parts` in its folder's name."""
    found = []
    for folder in sorted({p.parent for p in (devkit / EXAMPLES).glob("**/*.asc")}):
        name = str(folder.relative_to(devkit / EXAMPLES))
        ours = "Atlas A2" in (folder / "README.md").read_text()
        if ours and any(part in name for part in parts):
            found += [(name, scenario) for scenario in scenarios_of(folder)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("devkit", nargs="?", help="a checkout of asc-devkit")
    parser.add_argument(
        "--try", dest="parts", nargs="+", help="examples with one of these in their folder's name"
    )
    arguments = parser.parse_args()
    if not arguments.devkit or not (Path(arguments.devkit) / EXAMPLES).is_dir():
        print(f"skipped: no checkout of asc-devkit with {EXAMPLES} was given")
        return 0
    devkit = Path(arguments.devkit).resolve()
    known = {(name, scenario): None for name, numbers in CHOSEN.items() for scenario in numbers}
    known.update({(name, n): rules for name, (numbers, rules) in FAULTY.items() for n in numbers})
    chosen = list(known)
    if arguments.parts:
        chosen = tried(devkit, arguments.parts)

    def one(at: tuple[str, int | None]) -> str:
        name, scenario = at
        shown = name if scenario is None else f"{name} ({scenario})"
        try:
            findings = run(devkit, name, scenario, Path(root), header)
        except (RuntimeError, ValueError, OSError, subprocess.TimeoutExpired) as error:
            print(f"FAILED  {shown}: {error}", flush=True)
            return "failed"
        rules = {rule[1] for line in findings if (rule := re.search(r"\): ([a-z-]+): ", line))}
        if not findings and not known.get(at):
            verdict = "passed"
        else:
            verdict = "faulty" if rules == known.get(at) else "failed"
        told = findings[:4] if verdict == "failed" else sorted(rules)
        print("\n    ".join([f"{verdict}  {shown}", *told]), flush=True)
        return verdict

    with (
        tempfile.TemporaryDirectory(prefix="twin_examples_") as root,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        header = precompile(Path(root))
        verdicts = list(pool.map(one, chosen))
    clean, faulty = verdicts.count("passed"), verdicts.count("faulty")
    print(
        f"{clean} examples gave their expected output without a finding, {faulty} with the one "
        f"that is in them; {len(chosen) - clean - faulty} failed"
    )
    return 0 if clean + faulty == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
