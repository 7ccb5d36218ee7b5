"""Compiles kernels for the AscendC twin and runs them: what the tests of the twin stand on."""

import ctypes
import json
import os
import subprocess
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TWIN = ROOT / "csrc" / "ascendc" / "twin"
TYPES = {"aiv": 0, "aic": 1, "mix11": 2, "mix12": 3}
ROLES = {"in": 0, "out": 1, "inout": 2, "workspace": 3}


class _Argument(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("role", ctypes.c_int32),
        ("name", ctypes.c_char_p),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("blocks", ctypes.c_int32),
        ("lazy", ctypes.c_int32),
        ("order", ctypes.c_uint32),
        ("auto_sync", ctypes.c_int32),
        ("instruction_limit", ctypes.c_uint32),
    )


_once = threading.Lock()
#: compilers at a time, as for setup.py
JOBS = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
_pool = ThreadPoolExecutor(JOBS)


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="ascendc_twin_")


def _compile(source: Path, target: Path, *flags: str) -> Path:
    command = [os.environ.get("CXX", "g++"), "-std=c++17", "-O0", "-fPIC", "-pthread", "-w"]
    command += [f"-I{TWIN}", *flags, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{source} does not compile:\n{done.stderr[-4000:]}")
    return target


def _twin() -> Path:
    """The twin's headers, compiled once for all libraries of this process."""
    with _once:
        header = Path(_folder().name) / "twin.h"
        if not header.exists():
            header.write_text('#include "export.h"\n')
            _compile(header, Path(f"{header}.gch"), "-x", "c++-header")
    return header


def compiled(source: Path) -> Path:
    """Compiles one file to a shared library and returns its path; raises what g++ said."""
    header = _twin()
    target = header.with_name(f"{source.stem}.so")
    return _compile(source, target, "-shared", "-include", str(header))


class Report(dict):
    """What one run found and counted, as launcher.h's ToJson writes it."""

    @property
    def rules(self) -> set[str]:
        return {finding["rule"] for finding in self["findings"]}


class Library:
    """The kernels of one compiled file."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)
        self._library.ascendc_twin_run.restype = ctypes.c_void_p
        self._library.ascendc_twin_free.argtypes = (ctypes.c_void_p,)

    def run(
        self,
        kernel: str,
        *arguments,
        type="aiv",
        blocks=1,
        lazy=False,
        order=0,
        auto=True,
        limit=0,
    ):
        """Arguments are (role, array), None for a null pointer, or bytes for a value."""
        given = (_Argument * len(arguments))()
        keep = []
        for at, argument in enumerate(arguments):
            name = f"argument {at}".encode()
            if argument is None:
                given[at] = _Argument(None, 0, -1, name)
            elif isinstance(argument, bytes):
                value = ctypes.create_string_buffer(argument, len(argument))
                keep.append(value)
                given[at] = _Argument(ctypes.addressof(value), len(argument), -1, name)
            else:
                role, array = argument
                assert array.flags.c_contiguous
                given[at] = _Argument(array.ctypes.data, array.nbytes, ROLES[role], name)
        options = _Options(TYPES[type], blocks, lazy, order, auto, limit)
        pointer = self._library.ascendc_twin_run(
            kernel.encode(), ctypes.byref(options), given, len(arguments)
        )
        text = ctypes.string_at(pointer).decode()
        self._library.ascendc_twin_free(pointer)
        if text.startswith("!"):
            raise ValueError(text[1:])
        return Report(json.loads(text))

    def run_early_and_late(self, kernel: str, *arguments, **options) -> Report:
        """run() with pipes early and late, which must find and write the same; the early report."""
        again = [
            a if a is None or isinstance(a, bytes) else (a[0], copied(a[1])) for a in arguments
        ]
        early = self.run(kernel, *arguments, **options)
        late = self.run(kernel, *again, lazy=True, **options)
        assert early.rules == late.rules, early["lines"] + late["lines"]
        for one, other in zip(arguments, again, strict=True):
            if isinstance(one, tuple):
                assert one[1].tobytes() == other[1].tobytes(), f"{kernel} depends on when pipes run"
        return early


@cache
def prepare(name: str) -> Future:
    """Starts to compile tests/twin/NAME.cpp; a test module does as it is collected."""
    return _pool.submit(compiled, ROOT / "tests" / "twin" / f"{name}.cpp")


@cache
def library(name: str) -> Library:
    """The kernels of tests/twin/NAME.cpp."""
    return Library(prepare(name).result())


def aligned(shape, dtype) -> np.ndarray:
    """An array at a multiple of 512 bytes, as a device's allocator gives it."""
    count = int(np.prod(shape))
    raw = np.zeros(count * np.dtype(dtype).itemsize + 512, np.uint8)
    start = -raw.ctypes.data % 512
    return raw[start : start + count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)


def copied(values: np.ndarray) -> np.ndarray:
    array = aligned(values.shape, values.dtype)
    array[...] = values
    return array
