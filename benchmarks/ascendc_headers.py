"""Type-check the AscendC kernels against CANN's public headers, with a host compiler.

    git clone https://gitee.com/ascend/asc-devkit
    python benchmarks/ascendc_headers.py asc-devkit [kernels/ascendc/modulate.cpp ...]

For Atlas A2 (__NPU_ARCH__ 2201), each kernel once as the vector core's and once as the cube core's
program, as Ascend's compiler does. The compiler's built-in functions, which the headers call and do
not declare, are found by compiling and declared to take anything; so every call of a kernel is held
against the public API, templates instantiated, and what lies below that API is not looked at.
Errors that the headers have without a kernel (functions that differ in address space alone) are
not counted. Exits with 1 where a kernel has an error.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TYPES = ROOT / "tests/ascendc/compiler_types.h"
CORES = {"vector": "__DAV_VEC__", "cube": "__DAV_CUBE__"}
#: the basic API: the umbrella header also asks for files that only an installed CANN has
INTERFACE = '#pragma once\n#include "basic_api/kernel_basic_intf.h"\n'
_UNDECLARED = re.compile(
    r"error: '(\w+)' was not declared in this scope|error: there are no arguments to '(\w+)'"
)


def _declarations(names):
    functions = "".join(
        f"template <class... A> int64_t {name}(A&&...);\n"
        for name in sorted(names - _values(names))
    )
    return functions + "".join(f"constexpr int {name} = 0;\n" for name in sorted(_values(names)))


def _values(names):
    return {name for name in names if name.isupper()}


class Headers:
    """The public headers of one asc-devkit checkout, for one core."""

    def __init__(self, checkout, core, folder, compiler):
        paths = ("include", "include/basic_api", "impl", "impl/basic_api", ".")
        include = [f"-I{folder}", *(f"-I{checkout / p}" for p in paths)]
        self.folder = folder
        self.command = [compiler, "-std=c++17", "-fsyntax-only", "-fpermissive", "-w"]
        self.command += ["-D__NPU_ARCH__=2201", f"-D{CORES[core]}", *include]
        self.command += ["-include", str(TYPES), "-include", str(folder / "builtins.h")]
        self.builtins = set()
        (folder / "kernel_operator.h").write_text(INTERFACE, encoding="utf-8")

    def errors(self, source):
        """The error messages for one source, once every built-in function is declared."""
        while True:
            text = _declarations(self.builtins)
            (self.folder / "builtins.h").write_text(text, encoding="utf-8")
            run = subprocess.run(
                [*self.command, str(source)],
                capture_output=True,
                text=True,
                env={**os.environ, "LC_ALL": "C"},
            )
            lines = [line for line in run.stderr.splitlines() if "error:" in line]
            found = {
                match[1] or match[2]
                for line in lines
                if not line.startswith(str(ROOT)) and (match := _UNDECLARED.search(line))
            }
            if found <= self.builtins:
                return lines
            self.builtins |= found


def check(checkout, sources, compiler):
    """{(source, core): [messages]} of the sources that have errors."""
    bad = {}
    for core in CORES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            headers = Headers(checkout, core, folder, compiler)
            empty = folder / "empty.cpp"
            empty.write_text('#include "kernel_operator.h"\n', encoding="utf-8")
            known = set(headers.errors(empty))
            for source in sources:
                new = [line for line in headers.errors(source) if line not in known]
                if new:
                    bad[source, core] = new
                print(f"{source.name} on the {core} core: {len(new)} errors", flush=True)
            print(f"{len(headers.builtins)} built-in functions of the {core} core were not checked")
    return bad


def main(argv=None):
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkout", type=Path, help="a checkout of CANN's asc-devkit")
    parser.add_argument("sources", type=Path, nargs="*", help="kernels; default: all")
    parser.add_argument("--compiler", default="g++")
    args = parser.parse_args(argv)
    if not (args.checkout / "include/basic_api").is_dir():
        parser.error(f"{args.checkout} has no include/basic_api; wanted a checkout of asc-devkit")
    sources = [s.resolve() for s in args.sources] or sorted(ROOT.glob("kernels/ascendc/*.cpp"))
    bad = check(args.checkout.resolve(), sources, args.compiler)
    for messages in bad.values():
        print("\n".join(messages))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
