"""Each rule of the AscendC twin's checker finds the kernel that breaks it, and no clean one."""

import re

import numpy as np
import pytest
from twin_run import ROOT, TWIN, aligned, copied, library, prepare

prepare("rules")

#: a kernel of tests/twin/rules.cpp, what it runs on, and the rule that must be found
BROKEN = [
    ("misaligned", "aiv", "misaligned"),
    ("beyond_tensor", "aiv", "out-of-range"),
    ("beyond_memory", "aiv", "out-of-range"),
    ("beyond_global", "aiv", "out-of-range"),
    ("foreign_pointer", "aiv", "out-of-range"),
    ("partial_block", "aiv", "not-whole-blocks"),
    ("over_capacity", "aiv", "over-capacity"),
    ("over_l0a", "aic", "over-capacity"),
    ("static_overlap", "aiv", "tensors-overlap"),
    ("wrong_position", "aiv", "wrong-position"),
    ("vector_on_cube", "aic", "wrong-position"),
    ("queue_without_enque", "aiv", "race"),
    ("queue_without_deque", "aiv", "queue-order"),
    ("queue_deque_empty", "aiv", "queue-order"),
    ("queue_never_freed", "aiv", "never-freed"),
    ("queue_freed_twice", "aiv", "queue-order"),
    ("queue_used_after_free", "aiv", "use-after-free"),
    ("queue_full", "aiv", "queue-full"),
    ("queue_too_deep", "aiv", "queue-depth"),
    ("event_left_set", "aiv", "event-left-set"),
    ("event_not_set", "aiv", "event-not-set"),
    ("event_set_twice", "aiv", "event-set-twice"),
    ("event_id", "aiv", "event-id"),
    ("event_pipe", "aiv", "event-pipe"),
    ("cross_left_set", "mix12", "cross-flag-left-set"),
    ("cross_deadlock", "mix12", "deadlock"),
    ("cross_overflow", "mix12", "cross-flag-overflow"),
    ("cross_id", "mix12", "cross-flag-id"),
    ("cross_mode", "mix12", "cross-flag-mode"),
    ("cross_nobody", "aiv", "cross-flag-mode"),
    ("cross_pipe", "mix12", "cross-flag-pipe"),
    ("polls_in_vain", "aiv", "deadlock"),
    ("events_exhausted", "aiv", "event-ids-exhausted"),
    ("no_buffer", "aiv", "no-buffer"),
    ("empty_buffer", "aiv", "empty-buffer"),
    ("too_many_buffers", "aiv", "too-many-buffers"),
    ("reserved_ub", "aiv", "reserved-ub"),
    ("atomic_of_another_type", "aiv", "atomic-type"),
    ("shared_line", "aiv", "shared-cache-line"),
    ("stale_line", "aiv", "stale-cache-line"),
    ("wrong_quant", "aic", "fixpipe-quant"),
    ("not_modelled", "aiv", "unsupported"),
    ("assertion", "aiv", "assert"),
    ("too_long", "aiv", "too-long"),
    ("sync_missed", "aiv", "deadlock"),
    ("uninitialised", "aiv", "uninitialised-read"),
    ("uninitialised_pad", "aiv", "uninitialised-read"),
    ("uninitialised_fractal", "aic", "uninitialised-read"),
    ("output_unwritten", "aiv", "output-not-written"),
    ("race_write_read", "aiv", "race"),
    ("race_read_write", "aiv", "race"),
    ("race_write_write", "aiv", "race"),
    ("race_wrong_pair", "aiv", "race"),
    ("race_global", "aiv", "race"),
    ("two_writers", "aiv", "gm-two-writers"),
    ("two_posters", "aiv", "gm-two-writers"),
    ("atomic_left_on", "aiv", "atomic-left-on"),
    ("scalar_writes", "aiv", "dirty-cache-line"),
    ("repeat_cut", "aiv", "field-range"),
    ("stride_cut", "aiv", "field-range"),
    ("blocks_of_pad", "aiv", "field-range"),
    ("mask_too_wide", "aiv", "field-range"),
    ("wrong_type", "aiv", "dtype"),
    ("wrong_round", "aiv", "round-mode"),
    ("overflow", "aiv", "non-finite"),
    ("divides_by_zero", "aiv", "non-finite"),
    ("partial_overlap", "aiv", "operands-overlap"),
]
TWO_CORES = ("two_writers", "sync_missed", "two_adders", "sync_clean", "shared_line")
TWO_CORES += ("two_posters", "posters_in_turn")
HEADERS = sorted(TWIN.glob("*/*.h"))


def arguments(text: str, start: int) -> list[str]:
    """Those of a call whose opening parenthesis is before `start`, at their own depth."""
    found, depth, quoted = [""], 0, False
    for at, letter in enumerate(text[start:], start):
        quoted ^= letter == '"' and text[at - 1] != "\\"
        if not quoted:
            depth += letter in "([{"
            depth -= letter in ")]}"
            if depth < 0:
                break
            if letter == "," and depth == 0:
                found.append("")
                continue
        found[-1] += letter
    return [one.strip() for one in found]


def rules_of_the_twin() -> set[str]:
    """The rules that its sources report: the first argument after the place, if there is one."""
    rules = set()
    for path in HEADERS:
        text = path.read_text()
        rules.update(*re.findall(r'\brule =\s[^;]*\? "([a-z-]+)"\s*: "([a-z-]+)";', text))
        for call in re.finditer(r"\b(?:Report|Refuse)\(", text):
            given = arguments(text, call.end())
            places = [i for i, one in enumerate(given) if re.search(r"\bloc_?$|\bLoc\{", one)]
            rule = given[places[0] + 1 if places else 0]
            if rule.startswith('"'):
                rules.add(rule.strip('"'))
    return rules


def run(kernel: str, type: str, lazy: bool = False):
    a, b = copied(np.ones(256, np.float32)), aligned(256, np.float32)
    role = "out" if kernel == "output_unwritten" else "inout"
    blocks = 2 if kernel in TWO_CORES else 1
    limit = 100 if kernel == "too_long" else 0
    return library("rules").run(
        kernel, ("in", a), (role, b), type=type, blocks=blocks, lazy=lazy, limit=limit
    )


@pytest.mark.parametrize("lazy", [False, True], ids=["early", "late"])
@pytest.mark.parametrize(("kernel", "type", "rule"), BROKEN, ids=[b[0] for b in BROKEN])
def test_rule(kernel, type, rule, lazy):
    report = run(kernel, type, lazy)
    assert rule in report.rules, report["lines"]
    assert report["deadlock"] == (rule in ("deadlock", "too-long"))


def test_every_rule_has_a_kernel_that_breaks_it():
    rules = rules_of_the_twin()
    assert len(rules) > 40 and {"race", "gm-two-writers", "field-range", "assert"} <= rules
    assert rules == {rule for _, _, rule in BROKEN}


def test_every_rule_is_documented():
    page = (ROOT / "docs/ascend_twin.md").read_text()
    families = tuple(found.removesuffix("*") for found in re.findall(r"`([a-z-]+-\*)`", page))
    named = set(re.findall(r"`([a-z-]+)`", page))
    assert not {r for r in rules_of_the_twin() - named if not r.startswith(families)}


@pytest.mark.parametrize(
    ("kernel", "type"),
    [
        ("clean", "aiv"),
        ("static_apart", "aiv"),
        ("queue_clean", "aiv"),
        ("cross_clean", "mix12"),
        ("sync_clean", "aiv"),
        ("two_adders", "aiv"),
        ("posters_in_turn", "aiv"),
    ],
)
def test_nothing_is_found_in_sound_kernels(kernel, type):
    assert not run(kernel, type)["findings"]


def test_a_line_names_kernel_core_call_place_and_rule():
    (line,) = run("partial_block", "aiv")["lines"]
    kernel, core, call, rule, _ = line.split(": ", 4)
    assert (kernel, core, rule) == ("partial_block", "aiv0", "not-whole-blocks")
    assert call.startswith("DataCopy (") and "rules.cpp:" in call


def test_late_pipes_show_what_a_race_does():
    """With a missing flag the late mode reads other bytes: another result, the same finding."""
    results = []
    for lazy in (False, True):
        a, b = copied(np.ones(256, np.float32)), aligned(256, np.float32)
        report = library("rules").run("race_read_write", ("in", a), ("inout", b), lazy=lazy)
        assert "race" in report.rules
        results.append(b.copy())
    assert not np.array_equal(*results)


def test_unknown_kernels_and_arguments_are_named():
    with pytest.raises(ValueError, match="no kernel named nothing"):
        library("rules").run("nothing")
    with pytest.raises(ValueError, match="takes 2 arguments, not 1"):
        library("rules").run("clean", None)
