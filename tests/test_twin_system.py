"""The AscendC twin's indices, atomics, cache and waiting blocks; and that nothing is untested."""

import importlib.util
import re
import struct

import numpy as np
import pytest
from twin_run import ROOT, TWIN, aligned, copied, library, prepare

prepare("system")

N = 64
#: functions that kernels do not call, or that have nothing to be compared with a loop
INTERNAL = {"AtomicType", "AxpyOp", "GetPhyType", "QueueEvent", "QueueSource", "QueueTarget"}
INTERNAL |= {"SetAtomic", "DataCachePreload"}
late = pytest.mark.parametrize("lazy", [False, True], ids=["early", "late"])


def run(kernel, out, x, *, blocks=1, type="aiv", lazy=False, role="inout", flags=None):
    flags = copied(np.zeros(256, np.int32)) if flags is None else flags
    return library("system").run(
        kernel,
        (role, out),
        ("in", x),
        ("inout", flags),
        blocks=blocks,
        type=type,
        lazy=lazy,
        order=1,
    )


def integers(seed: int, count: int) -> np.ndarray:
    return copied(np.random.default_rng(seed).integers(-99, 99, count).astype(np.int32))


def functions_of_the_twin() -> set[str]:
    """What stands in namespace AscendC, with the names that macros make."""
    names = set()
    for path in TWIN.glob("api/*.h"):
        text = path.read_text()
        inside = r"^namespace AscendC \{\n(.*?)^\}  // namespace AscendC"
        for part in re.findall(inside, text, re.M | re.S):
            names.update(re.findall(r"^(?:inline |constexpr )*[\w:<>*&]+ ([A-Z]\w+)\(", part, re.M))
            for made in re.findall(r"^ASCENDC_TWIN_\w+\((\w+), ", part, re.M):
                names.add(
                    f"BlockReduce{made}"
                    if made in ("Sum", "Max", "Min")
                    and "BlockReduce##NAME" in part
                    and f"ASCENDC_TWIN_REDUCE({made}, " in part
                    else made
                )
    return names


def test_every_function_is_called_by_a_kernel_of_these_tests():
    kernels = "".join(path.read_text() for path in (ROOT / "tests/twin").glob("*.cpp"))
    kernels = re.sub(r"//[^\n]*|/\*.*?\*/", "", kernels, flags=re.S)
    names = functions_of_the_twin()
    assert {"Add", "DataCopyPad", "BlockReduceMin", "SetFlag", "Mmad", "Fixpipe"} <= names
    called = {name for name in names if re.search(rf"\b{name}\b", kernels)}
    assert names - called == INTERNAL


@pytest.mark.parametrize(("type", "ratio"), [("aiv", 1), ("mix12", 2)])
def test_indices_and_sizes(type, ratio):
    out = copied(np.zeros(3 * ratio * 32, np.int32))
    report = run("indices", out, integers(1, N), blocks=3, type=type)
    assert not report["findings"], report["lines"]
    for core in range(3 * ratio):
        ub = 192 * 1024
        want = [core, 3, core % ratio, ratio, ratio, ratio, 32, ub, ub, 3, 3, 24, 1, 0, 0, 0]
        assert list(out[core * 32 : core * 32 + 16]) == want


@late
def test_atomics_combine_what_is_there(lazy):
    out, x = integers(1, 6 * N), integers(2, 3 * N)
    parts = [out[:N].copy(), *x.reshape(3, N)]
    larger, smaller = [out[N : 2 * N].copy(), *parts[1:]], [out[2 * N : 3 * N].copy(), *parts[1:]]
    report = run("combine", out, x, blocks=3, lazy=lazy)
    assert not report["findings"], report["lines"]
    want = [np.sum(parts, 0), np.max(larger, 0), np.min(smaller, 0), x.reshape(3, N)]
    assert np.array_equal(out, np.concatenate([w.reshape(-1) for w in want]))


@late
def test_blocks_in_turn(lazy):
    out = integers(1, N)
    want = out.copy()
    for _ in range(2):
        for block in range(4):
            want = want * 2 + block
    report = run("in_turn", out, integers(2, N), blocks=4, lazy=lazy)
    assert not report["findings"], report["lines"]
    assert np.array_equal(out, want)


@late
def test_a_block_waits_for_another(lazy):
    out, x = aligned(2 * N, np.int32), integers(2, N)
    report = run("handed_on", out, x, blocks=2, lazy=lazy, role="out")
    assert not report["findings"], report["lines"]
    assert np.array_equal(out, np.concatenate([x + 1, x + 2]))


@late
def test_a_number_that_is_polled_for(lazy):
    out = copied(np.zeros(8, np.int32))
    report = run("posted", out, integers(1, N), blocks=2, lazy=lazy)
    assert not report["findings"], report["lines"]
    assert out[0] == 42


@late
def test_a_number_posted_before_the_data_is_a_race(lazy):
    report = run("posted_too_soon", aligned(N, np.int32), integers(1, N), blocks=2, lazy=lazy)
    assert report.rules == {"race"}


@late
def test_scalar_writes_are_there_after_the_cache_is_cleaned(lazy):
    out = integers(1, 2 * N)
    want = out[:N].copy()
    want[3] = 77
    report = run("written_back", out, integers(2, N), lazy=lazy)
    assert not report["findings"], report["lines"]
    assert np.array_equal(out, np.concatenate([want, want]))


def test_a_list_of_tensors():
    tensors, out = [integers(seed, N) for seed in (1, 2)], aligned(N, np.int32)
    addresses = [tensor.ctypes.data for tensor in tensors]
    # the pointers' place, then a description of each (dimensions, index, shape), then the pointers
    words = struct.pack("<QIIQIIQQQ", 5 * 8, 1, 0, N, 1, 1, N, *addresses)
    report = library("system").run(
        "listed",
        ("out", out),
        ("in", copied(np.frombuffer(words, np.uint8))),
        ("in", tensors[1]),
    )
    assert not report["findings"], report["lines"]
    assert np.array_equal(out, tensors[1])


def test_calls_that_do_nothing_are_counted():
    out = aligned(N, np.int32)
    report = run("unchecked", out, integers(1, N), role="out")
    assert not report["findings"] and (out == 5).all()
    wanted = {"SetNextTaskStart", "WaitPreTaskEnd", "DumpTensor", "SetSysWorkspace"}
    wanted |= {"SetHF32Mode", "SetHF32TransMode", "SetMMLayoutTransform"}
    assert set(report["unchecked"]) == wanted


def test_the_page_counts_the_public_examples():
    path = ROOT / "benchmarks/twin_examples.py"
    spec = importlib.util.spec_from_file_location("twin_examples", path)
    examples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(examples)
    page = " ".join((ROOT / "docs/ascend_twin.md").read_text().split())
    passing = sum(len(scenarios) for scenarios in examples.CHOSEN.values())
    faulty = sum(len(scenarios) for scenarios, _ in examples.FAULTY.values())
    assert f"{passing} give their expected output without a finding" in page
    assert f"{faulty} more give it with a finding" in page
    for name in {*examples.CHOSEN, *examples.FAULTY}:
        assert name.split("/")[-1] in page
