"""Runs on the CPU what triton-ascend makes of a Triton kernel.

The linalg that BiShengIR would get goes through MLIR's own passes to LLVM and clang instead, and a
launch calls the result once per program, one after another. Needs Debian's mlir-19-tools,
libmlir-19 and clang-19: the LLVM that triton-ascend 3.2 was built from.
"""

import ctypes
import functools
import itertools
import os
import re
import subprocess
import tempfile
from pathlib import Path

import torch
from ascend_compiler import patiently

LLVM = Path(os.environ.get("LLVM19", "/usr/lib/llvm-19"))
PACKAGES = "mlir-19-tools libmlir-19 clang-19"
#: has memrefCopy, a copy between strided buffers
RUNTIME = "libmlir_c_runner_utils.so.19.1"

_PASSES = """\
    convert-elementwise-to-linalg eliminate-empty-tensors empty-tensor-to-alloc-tensor
    one-shot-bufferize=allow-return-allocs-from-loops=true canonicalize
    buffer-deallocation-pipeline convert-bufferization-to-memref convert-linalg-to-loops
    lower-affine convert-scf-to-cf expand-strided-metadata memref-expand lower-affine
    arith-expand=include-bf16=true convert-math-to-llvm convert-math-to-libm convert-arith-to-llvm
    finalize-memref-to-llvm convert-func-to-llvm convert-cf-to-llvm convert-index-to-llvm
    reconcile-unrealized-casts
"""
_SCALARS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "f32": ctypes.c_float}


def missing():
    """Why nothing can run here, as a sentence that says what to install; None if it can."""
    tools = [LLVM / "bin" / name for name in ("mlir-opt", "mlir-translate", "clang")]
    lost = [str(path) for path in (*tools, LLVM / "lib" / RUNTIME) if not path.exists()]
    return f"no {lost[0]}: apt-get install {PACKAGES}, or set LLVM19" if lost else None


def _run(name, *arguments):
    command = [LLVM / "bin" / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[:1000]}")


class Program:
    """A kernel as a function of this process."""

    def __init__(self, linalg):
        name = re.search(r"func\.func @(\w+)\(", linalg)[1]
        signature = re.search(r"func\.func @\w+\((.*?)\) attributes", linalg, re.S)[1]
        types = re.findall(r"%arg\d+: (\w+)", signature)
        self.types = [_SCALARS.get(t) for t in types]  # None: a memref
        with tempfile.TemporaryDirectory() as folder:
            text, lowered, llvm, library = (
                Path(folder, f) for f in ("k.mlir", "k.llvm.mlir", "k.ll", "k.so")
            )
            text.write_text(linalg)
            unknown = "--allow-unregistered-dialect"
            _run("mlir-opt", unknown, text, *(f"--{p}" for p in _PASSES.split()), "-o", lowered)
            _run("mlir-translate", unknown, "--mlir-to-llvmir", lowered, "-o", llvm)
            _run(
                "clang", "-O2", "-march=native", "-Wno-override-module", "-fPIC", "-shared", llvm,
                LLVM / "lib" / RUNTIME, f"-Wl,-rpath,{LLVM / 'lib'}", "-lm", "-o", library,
            )  # fmt: skip
            self.function = getattr(ctypes.CDLL(str(library)), name)
        self.function.restype = None

    def __call__(self, grid, arguments):
        """One call per program; tensors are passed by address."""
        grid = (*grid, 1, 1)[:3]
        # before the kernel's own arguments: the address of a lock and of workspace, and where
        # there is a matrix product that of the synchronisation flags
        hidden = [0] * (len(self.types) - len(arguments) - 6)
        types, values = [], []
        for kind, value in zip(self.types, (*hidden, *arguments, *grid, 0, 0, 0), strict=True):
            if kind is None:
                address = value.data_ptr() if isinstance(value, torch.Tensor) else value
                # a one-dimensional memref: allocated, aligned, offset, size, stride
                types += [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3
                values += [address, address, 0, 0, 1]
            else:
                types.append(kind)
                values.append(value)
        self.function.argtypes = types
        for z, y, x in itertools.product(*(range(n) for n in reversed(grid))):
            values[-3:] = x, y, z
            self.function(*values)


@functools.cache
def _program(linalg):
    return Program(linalg)


def launcher(run):
    """A JITFunction.run, given the stock one, that compiles and then runs on the CPU."""

    def on_cpu(self, *args, grid, warmup=False, **meta):
        kernel = patiently(lambda: run(self, *args, grid=grid, warmup=True, **meta))
        values = self.binder(*args, **meta)[3]
        names = (self.params[i].name for i in self.non_constexpr_indices)
        # None, and a number that the kernel is compiled for, is no argument any more
        passed = [v for n, v in zip(names, values, strict=True) if n not in kernel.src.constants]
        _program(kernel.asm["ttadapter"])(grid, passed)
        return kernel

    return on_cpu
