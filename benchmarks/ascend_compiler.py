"""Compiles Triton kernels for an Ascend NPU, on a machine without one.

triton-ascend lowers a kernel to linalg ("ttadapter"), and BiShengIR (bishengir-compile) that to
HIVM, with every buffer at its address on the chip. Both come as Python packages. The last step,
from HIVM to a binary, is a program of CANN's and is not run: ``install`` puts HIVM in its place.
"""

import collections
import re
import subprocess
import tempfile
from pathlib import Path

import ascendnpuir
from triton.backends import backends
from triton.backends.ascend import compiler
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TOOLS = Path(ascendnpuir.__file__).parent / "bin"
CHIP = "Ascend910B3"
#: Bytes of a core's memories: the unified buffer, L1, and the results of the matrix unit.
LIMITS = {"ub": 192 * 1024, "l1": 512 * 1024, "l0c": 128 * 1024}
COLUMNS = [*LIMITS, "cube", "vector", "scalar_gm", "scalar_ub"]

_SPACES = {"ub": "ub", "cbuf": "l1", "cc": "l0c"}
_BITS = {"i1": 1, "i8": 8, "i16": 16, "f16": 16, "bf16": 16, "i32": 32, "f32": 32, "i64": 64}
_SECONDS = 300


class Driver:
    """Names the chip and can do nothing."""

    def get_current_target(self):
        return GPUTarget("npu", CHIP, 0)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


def install(to_hivm=True):
    """From here on a compile ends with HIVM as its binary, ``kernel.asm["npubin"]``.

    to_hivm: if not, there is no binary, and the last text is ``kernel.asm["ttadapter"]``.
    """

    last = hivm if to_hivm else _without_binary

    def add_stages(self, stages, options):
        stages["ttir"] = lambda src, metadata: compiler.make_ttir(src, metadata, options)
        stages["ttadapter"] = lambda src, metadata: compiler.ttir_to_linalg(
            src, metadata, options, named_ops=True
        )
        stages["npubin"] = lambda src, metadata: last(src, metadata, options)

    # Triton loads the backend by its path: a class other than compiler.AscendBackend
    backends["ascend"].compiler.add_stages = add_stages
    driver.set_active(Driver())


def patiently(compile_kernel):
    """What compile_kernel() returns; tried twice more, for the adapter crashes now and then.

    Memory that overflows does so every time, and is not tried again.
    """
    for last in (False, False, True):
        try:
            return compile_kernel()
        except Exception as error:
            if last or "overflow" in str(error):
                raise


def bishengir(text, *options):
    """Run bishengir-compile: (its messages, the files that it left as {name: text})."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ttadapter.mlir")
        source.write_text(text)
        command = [TOOLS / "bishengir-compile", source, f"--target={CHIP}"]
        command += ["--enable-hfusion-compile=true", "--enable-hivm-compile=true"]
        command += ["--enable-triton-kernel-compile=true", *options, "-o", f"{folder}/kernel"]
        command += [f"--save-temps={folder}"]
        run = subprocess.run(command, capture_output=True, timeout=_SECONDS)
        messages = (run.stdout + run.stderr).decode(errors="replace")
        files = {p.name: p.read_text(errors="replace") for p in Path(folder).glob("*.mlir")}
    return messages, files


def hivm(linalg, metadata, options):
    """The HIVM of a kernel, as bytes; raises RuntimeError with what the compiler said."""
    linalg, _ = compiler._parse_linalg_metadata(linalg, metadata)
    messages, files = bishengir(
        linalg,
        f"--enable-auto-multi-buffer={str(options.multibuffer).lower()}",
        f"--enable-auto-bind-sub-block={str(options.enable_auto_bind_sub_block).lower()}",
    )
    done = "External hivmc run fails" in messages
    if not done or "module.hivm.opt.mlir" not in files:
        raise RuntimeError(_cause(messages))
    return files["module.hivm.opt.mlir"].encode()


def _without_binary(linalg, metadata, options):
    compiler._parse_linalg_metadata(linalg, metadata)
    return b""


def _cause(messages):
    overflows = re.findall(r"(\w+) overflow, requires (\d+) bits while (\d+) bits", messages)
    if overflows:
        memory, needed, there = overflows[-1]
        return f"{memory} overflow: {int(needed) // 8} bytes of {int(there) // 8}"
    telling = re.compile(r"error|Assert|unsupported|Failed")
    lines = [line.strip()[-200:] for line in messages.splitlines()
             if telling.search(line) and "hivmc" not in line]  # fmt: skip
    return " | ".join(lines[:3]) or messages[-300:]


def figures(text):
    """COLUMNS of a compiled kernel: bytes of each memory, and operations in the text."""
    constants = dict(re.findall(r"(%c-?\w+) = arith\.constant (-?\d+) : i64", text))
    peak = dict.fromkeys(LIMITS, 0)
    for addresses, type_ in re.findall(r"pointer_cast\(([^)]*)\) : memref<([^>]*>)", text):
        match = re.match(r"((?:\d+x)*)(\w+), (?:strided<.*>, )?.*address_space<(\w+)>", type_)
        space = match and _SPACES.get(match[3])
        if space is None:
            continue
        size = _BITS[match[2]]
        for n in filter(None, match[1].split("x")):
            size *= int(n)
        for address in addresses.split(","):
            if address.strip() in constants:
                end = int(constants[address.strip()]) + -(-size // 8)
                peak[space] = max(peak[space], end)
    calls = collections.Counter(re.findall(r"call @(\w+)", text))

    def called(pattern):
        return sum(n for name, n in calls.items() if re.match(pattern, name))

    def scalar(space):
        # int32 is the bounds of packed sequences, a few a program
        found = re.findall(rf"memref\.(?:load|store) [^\n]*address_space<{space}>", text)
        return sum("xi32," not in line for line in found)

    return [
        *peak.values(), called(r"mma|mmad|batch_?mma"),
        called(r"v[a-z]+|broadcast|reduce|enablevc|brc|transpose|select|gather"),
        scalar("gm"), scalar("ub"),
    ]  # fmt: skip
