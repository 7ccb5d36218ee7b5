"""What counts as a planted fault caught, and what as an error of the tools that plant it."""

import faulthandler
import os
import signal

import pytest
import twin_mutations


def answer_of(monkeypatch, run):
    monkeypatch.setattr(twin_mutations, "run_here", lambda *_: run())
    return twin_mutations.run_apart("path", "case", "fault")


def killed_by(number):
    def run():
        faulthandler.disable()  # pytest's, whose traceback nobody wants to read here
        os.kill(os.getpid(), number)

    return run


def out_of_memory():
    raise MemoryError("none left")


@pytest.mark.parametrize(
    ("run", "rules", "caught"),
    [
        (lambda: ({"race"}, ""), {"race"}, "twin (race)"),
        (lambda: (set(), "bits"), set(), "numbers"),
        (killed_by(signal.SIGSEGV), {"SIGSEGV"}, "system (SIGSEGV)"),
        (killed_by(signal.SIGXCPU), {"no end"}, "system (no end)"),
    ],
    ids=["finding", "bits", "crash", "no_end"],
)
def test_what_catches_a_fault(monkeypatch, run, rules, caught):
    found, _ = answer_of(monkeypatch, run)
    assert found == rules
    assert twin_mutations.what_caught(found, differs=True) == caught


def test_the_same_bits_without_a_finding_catch_nothing():
    assert not twin_mutations.what_caught(set(), differs=False)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (out_of_memory, "MemoryError: none left"),
        (killed_by(signal.SIGKILL), "exit code -9"),
        (lambda: os._exit(0), "exit code 0"),
    ],
    ids=["exception", "sigkill", "exit"],
)
def test_an_error_of_the_tools_catches_nothing(monkeypatch, run, said):
    with pytest.raises(RuntimeError, match=said):
        answer_of(monkeypatch, run)
