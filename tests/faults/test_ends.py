"""Each end of a run, at a step where nothing else is due, with one process and with two.

The end is the exit status, the word in the heartbeat and in the last line of the log, and what
`polylm status` says; and where the state is sound it is saved, and what comes after is what had
come.
"""

import numpy as np
import pytest

from polylm_jax.runs.log import of_kind, read_metrics
from polylm_jax.runs.status import status_of
from polylm_jax.train.ends import ENDS
from tests.faults.runs import MANY, Run

ALONE = {"train__checkpoint_every": 1000, "train__validate_every": 1000}
NO_REPEAT = {"curriculum__on_end": "refuse", "train__steps": 400}
NAN = dict.fromkeys(range(10, 100), np.nan)
# what happens, the settings that it needs, the word, and the step that is saved
CASES = {
    "SIGTERM": (("asked_to_stop", 11), {}, "stopped", 13),
    "3 steps of NaN": (("times_gradient", NAN), {}, "stuck", 14),
    "no more rows": (
        (),
        NO_REPEAT,
        "out of data",
        None,
    ),
    "a read that never ends": (
        ("stalled_read", "zh", 12),
        {"train__data_timeout": 3},
        "data stalled",
        None,
    ),
    "a full log": (("full_log", 11), {}, "storage full", 13),
    "a report that fails": (("failing_report", 11), {}, "failed", 12),
    "a validation that fails": (
        ("failing_validation", 1),
        {"train__validate_every": 11},
        "failed",
        11,
    ),
}


@pytest.fixture
def run(tiny, tmp_path):
    return Run(tiny, tmp_path / "run")


def check(run, word, ends):
    """All that speaks of the run has the same word; returns the heartbeat's state."""
    for status, said in ends:
        assert status == ENDS[word].status, said
        last = said.splitlines()[-1]
        assert last.startswith("finished: " if word == "finished" else f"polylm train: {word}: ")
    state = status_of(str(run.folder))
    assert state.state == word
    assert ENDS[word].meaning in state.lines[-1]


@pytest.mark.parametrize("case", CASES)
def test_one_process_ends_with_its_word_and_has_saved(run, outcome, case):
    fault, changes, word, saved = CASES[case]
    end = run.ends(*fault, **ALONE | changes)
    check(run, word, [end])
    (step,) = run.steps()
    assert saved in (None, step)
    assert f"tep {step} " in end[1].splitlines()[-1]
    if MANY or case == "a full log":
        run.finish(**ALONE, train__steps=step + 1)
        check(run, "finished", [(0, "finished: ")])
        step += 1
    # no step lies behind the checkpoint without a record, but the one whose report failed
    steps = [record["step"] for record in of_kind(read_metrics(run.folder), "train")]
    failed = {11} if case == "a report that fails" else set()
    assert set(range(1, step + 1)) - set(steps) == failed
    outcome(f"end of a run: {case}", 1, f"`{word}`, status {end[0]}, its last step saved")


TWO = {
    "SIGTERM to one": ([("asked_to_stop", 11), ()], {}, ["stopped", "stopped"], 13),
    "3 steps of NaN": ([("times_gradient", NAN)] * 2, {}, ["stuck", "stuck"], 14),
    "no more rows": (
        [(), ()],
        NO_REPEAT,
        ["out of data", "out of data"],
        None,
    ),
    "a full log": ([("full_log", 11), ()], {}, ["storage full", "storage full"], 13),
    "a read that never ends, of one": (
        [(), ("stalled_read", "zh", 4)],
        {"train__data_timeout": 3},
        ["data stalled", "data stalled"],
        0,
    ),
    "a disk that is full at the save": (
        [("full_disk", 20_000), ("full_disk", 20_000)],
        {"train__steps": 12},
        ["storage full", "storage full"],
        0,
    ),
    "SIGKILL of the second": ([(), ("killed", 11)], {}, ["lost", None], 0),
    "SIGKILL of the first": ([("killed", 11), ()], {}, [None, "lost"], 0),
}


# each takes half a minute, compiling for two
FEW = ["SIGKILL of the second"]


@pytest.mark.parametrize("case", TWO if MANY else FEW)
def test_two_processes_end_with_one_word(run, outcome, case):
    faults, changes, words, saved = TWO[case]
    ends = run.both_end(*[(fault, {}) for fault in faults], **ALONE | changes)
    word = next(word for word in words if word)
    check(run, word, [end for end, word in zip(ends, words, strict=True) if word])
    assert saved in (None, *(run.steps() or [0]))
    outcome(f"end of a run of two: {case}", 1, f"`{word}`, status {ENDS[word].status}")


DIFFERENT = {
    "a setting": ({"optimizer.peak_learning_rate": 2e-2}, "optimizer.peak_learning_rate = 0.02"),
    "devices": ({"mesh.cpu_devices": 2}, "mesh.cpu_devices = 2 where process 0 has 1"),
}


@pytest.mark.parametrize("what", DIFFERENT if MANY else ["a setting"])
def test_processes_that_differ_are_told_before_the_first_step(run, outcome, what):
    own, sentence = DIFFERENT[what]
    ends = run.both_end(((), {}), ((), own), **ALONE)
    check(run, "unequal", ends)
    for _, said in ends:
        assert f"process 1 has {sentence}" in said
    assert not run.steps()
    assert not run.metrics.exists()
    outcome(f"processes that differ in {what}", 1, "both end as `unequal`, naming it")
