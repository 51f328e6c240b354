"""Starting again: from a state that is poisoned, beside another run, and from further back."""

import random
import shutil

import pytest

from polylm_jax.__main__ import main
from polylm_jax.train.heartbeat import read_heartbeat
from tests.faults.runs import MANY, Run, same, wait_for

# a rate at which one step, which no rule refuses, leaves parameters that give no loss any more
POISON = {"optimizer__peak_learning_rate": 1e38, "optimizer__decay_steps": 10_000}


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    run = Run(tiny, tmp_path_factory.mktemp("undisturbed") / "run")
    run.finish(train__steps=15)
    run.final = run.state()
    return run


@pytest.fixture
def run(tiny, tmp_path):
    return Run(tiny, tmp_path / "run")


@pytest.fixture
def nine(undisturbed, run):
    """The same run at step 9."""
    shutil.copytree(undisturbed.folder, run.folder)
    for step in (12, 15):
        shutil.rmtree(run.folder / "checkpoints" / str(step))
    return run


# with every step saved, the step that poisons is itself followed by a checkpoint
@pytest.mark.parametrize("every", [3, 1] if MANY else [3])
def test_starts_in_a_poisoned_run_leave_what_was_good(undisturbed, nine, outcome, capsys, every):
    dice, starts, before = random.Random(7), 20 if MANY else 3, nine.state()
    for number in range(starts):
        process = nine.start(**POISON, train__checkpoint_every=every)
        if number % 2:
            # killed at any moment
            wait_for(lambda: nine.log.exists() and "Going on" in nine.log.read_text(), process)
            process.join(dice.uniform(0, 1))
            process.kill()
        process.join()
        assert process.exitcode in (65, -9), nine.log.read_text()
    assert 9 in nine.steps()
    capsys.readouterr()
    assert main(["generate", f"--run={nine.folder}", "--prompt=a"]) == 0
    assert "with step 9 of" in capsys.readouterr().out
    # with the right rate it goes back by itself
    said = nine.finish(train__steps=15)
    assert "going back to the newest sound checkpoint" in said
    assert "Going on from step 9" in said
    same(nine.state(), undisturbed.final)
    assert before.keys() == nine.state().keys()
    outcome(
        f"started again in a poisoned run, every other time killed; a save every {every} steps",
        starts,
        "the last good state stays, `generate` takes it, the right rate goes on from it, bitwise",
    )


def test_a_second_run_in_the_same_folder_is_refused(undisturbed, run, outcome):
    first = run.start("slow_steps", 0.4, train__steps=15)
    wait_for(lambda: run.logged() > 1, first)
    other = Run(run.settings, run.folder)
    other.log = run.log.with_suffix(".other")
    status, said = other.ends()
    assert status == 69, said
    assert f"is being written by process {first.pid} on " in said.splitlines()[-1]
    assert read_heartbeat(str(run.folder))["state"] == "running"
    first.join()
    assert first.exitcode == 0
    same(run.state(), undisturbed.final)
    outcome("two runs in one folder", 1, "the second ends as `busy`; the first as if alone")


def test_going_back_by_hand_gives_the_same_run_once_more(undisturbed, nine, outcome):
    nine.finish(train__steps=15)
    same(nine.state(), undisturbed.final)
    assert nine.losses() == undisturbed.losses()
    outcome("the newest checkpoints deleted by hand", 1, "bitwise the same; each step logged once")
