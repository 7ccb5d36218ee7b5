"""Memory of large CPU outputs: lent again when they are freed, never while they are used."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import mmkern

ROWS = (1024, 2048)  # 8 MiB in float32
PAGE = 2 << 20

pytestmark = pytest.mark.usefixtures("native", "unpoisoned")


@pytest.fixture
def unpoisoned(poisoned_memory):
    """What is to be filled comes from torch's own allocator."""
    torch.use_deterministic_algorithms(False)
    mmkern.empty_cache()
    yield
    mmkern.empty_cache()


def norm(value=1.0, shape=ROWS):
    return mmkern.rms_norm(torch.full(shape, value), torch.full(shape[1:], value))


def kept():
    from mmkern import _C

    return _C.cached_bytes() / PAGE


def test_a_freed_output_is_lent_again():
    y = norm()
    address = y.data_ptr()
    assert address % PAGE == 0
    assert kept() == 0
    del y
    assert kept() == 4
    y = norm()
    assert kept() == 0
    assert y.data_ptr() == address
    del y
    mmkern.empty_cache()
    assert kept() == 0


def test_a_little_smaller_output_takes_the_same_memory_and_a_much_smaller_one_does_not():
    y = norm(shape=(1280, 2048))
    del y
    assert kept() == 5
    y = norm(shape=(1024, 2048))
    assert kept() == 0
    del y
    y = norm(shape=(768, 2048))
    assert kept() == 5
    del y
    assert kept() == 5 + 3


def test_outputs_in_use_share_nothing():
    first = [norm(float(value)) for value in range(1, 9)]
    views = [y[-1] for y in first]
    addresses = {y.data_ptr() for y in first}
    assert len(addresses) == len(first)
    del first
    more = [norm(9.0) for _ in range(8)]
    assert addresses.isdisjoint(y.data_ptr() for y in more)
    for value, row in enumerate(views, 1):
        torch.testing.assert_close(row, torch.full_like(row, float(value)))


def test_no_more_is_kept_than_the_limit(resident):
    outputs = [norm() for _ in range(64)]  # 512 MiB
    before = resident()
    del outputs
    freed = before - resident()
    assert (230 << 20) < freed < (282 << 20)
    mmkern.empty_cache()
    assert before - resident() > (480 << 20)


@pytest.fixture
def resident():
    status = "/proc/self/status"
    if not os.path.exists(status):
        pytest.skip("no /proc")

    def read():
        with open(status) as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))

    return read


def test_an_output_can_be_resized_saved_and_shared(tmp_path):
    y = norm(2.0)
    torch.save(y, tmp_path / "y.pt")
    assert torch.equal(torch.load(tmp_path / "y.pt"), y)
    y.resize_(2048, 2048)
    torch.testing.assert_close(y[:1024], torch.full(ROWS, 2.0))
    z = norm(3.0).share_memory_()
    torch.testing.assert_close(z, torch.full(ROWS, 3.0))


def test_threads_never_see_each_others_outputs():
    wrong = []

    def work(value):
        for _ in range(30):
            y = norm(value, (512, 2048))
            if not torch.equal(y, norm(value, (512, 2048))):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i + 1),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_lent_again_holds_no_part_of_the_result():
    norm().fill_(torch.nan)
    x = torch.randn(ROWS)
    expected = mmkern.reference.rms_norm(x, None)
    torch.testing.assert_close(mmkern.rms_norm(x, None), expected)


SCRIPT = """
import torch, mmkern
from mmkern import _C
y = mmkern.rms_norm(torch.ones(1024, 2048), None)
del y
print(_C.cached_bytes() >> 20)
"""


def in_a_process(limit):
    environment = {**os.environ, "MMKERN_CACHE_MB": limit}
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_limit_is_an_environment_variable():
    assert in_a_process("8").stdout == "8\n"
    assert in_a_process("7").stdout == "0\n"
    assert in_a_process("0").stdout == "0\n"
    for wrong in ("-1", "some", "1.5", ""):
        found = in_a_process(wrong)
        assert found.returncode != 0
        assert f"ValueError: MMKERN_CACHE_MB is '{wrong}'; wanted a number of MiB" in found.stderr


def test_what_is_kept_is_given_up_for_an_output_that_does_not_fit():
    script = """
import resource, torch, mmkern
x, large = torch.ones(8192, 2048), torch.ones(3, 8192, 1024)
y = mmkern.rms_norm(x, None)
del y
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (60 << 20),) * 2)
print(mmkern.rms_norm(large, None).shape[0])
try:
    mmkern.rms_norm(large.expand(2, 3, 8192, 1024).reshape(6, 8192, 1024), None)
except RuntimeError as error:
    print("memory" in str(error))
"""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("no /proc")
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout == "3\nTrue\n", found.stderr


def test_a_forked_process_goes_on():
    script = """
import os, torch, mmkern
torch.set_num_threads(1)
x = torch.ones(1024, 2048)
y = mmkern.rms_norm(x, None)
del y
child = os.fork()
y = mmkern.rms_norm(x * 2, None)
if child == 0:
    os._exit(0 if bool((y - 1).abs().max() < 1e-5) else 1)
print(os.waitpid(child, 0)[1])
"""
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "0\n"
