"""Faults of a run, each in a process of its own, and that what comes after is what had come.

FAULT_ROUNDS=N (make faults) tries each fault N times or in more forms; the default is a sample.
"""

import random
import shutil

import numpy as np
import pytest

from polylm_jax.runs.log import of_kind, read_metrics
from polylm_jax.train.optimizer import OptimizerSettings
from tests.faults.runs import MANY, ROUNDS, STEPS, Run, same, wait_for


@pytest.fixture
def run(tiny, tmp_path):
    return Run(tiny, tmp_path / "run")


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    run = Run(tiny, tmp_path_factory.mktemp("undisturbed") / "run")
    run.finish()
    run.final, run.all_losses = run.state(), run.losses()
    assert len(run.all_losses) == STEPS
    return run


@pytest.fixture(scope="module")
def half(tiny, tmp_path_factory):
    """A run that has come to step 12."""
    run = Run(tiny, tmp_path_factory.mktemp("half") / "run")
    run.finish(train__steps=12)
    assert run.steps() == [6, 9, 12]
    return run


@pytest.fixture
def resumed(half, run):
    shutil.copytree(half.folder, run.folder)
    return run


def announced(run):
    return run.log.exists() and "Writing checkpoints" in run.log.read_text()


def moments(dice):
    """For each stage: function (run, steps logged before) -> condition, then seconds to wait."""
    return {
        "start": (lambda run, before: run.log.exists(), dice.uniform(0, 2)),
        "restore": (lambda run, before: announced(run), dice.uniform(0, 1)),
        "step": (lambda run, before: run.logged() > before + dice.randrange(3), 0),
        "save": (lambda run, before: run.saving() and run.logged() > before, dice.random() / 10),
    }


def test_killed_at_random_moments_the_run_ends_bitwise_the_same(
    undisturbed, tiny, tmp_path, outcome
):
    dice = random.Random(5)
    kills, unfinished, finished = [], 0, 0
    run = Run(tiny, tmp_path / "0")

    def check():
        assert not run.saving()  # what a killed save left is gone
        same(run.state(), undisturbed.final)
        assert run.losses() == undisturbed.all_losses

    while len(kills) < ROUNDS:
        stage = ["save", "restore", "step", "start"][len(kills) % 4]
        condition, seconds = moments(dice)[stage]
        before = run.logged()
        process = run.start()
        wait_for(lambda c=condition, r=run, b=before: c(r, b), process)
        process.join(seconds)
        process.kill()
        process.join()
        if process.exitcode == 0:
            check()
            finished += 1
            run = Run(tiny, tmp_path / str(finished))
        else:
            kills.append(stage)
            unfinished += run.saving() and stage != "start"  # a start may find an older one
    run.finish()
    check()
    counts = ", ".join(f"{kills.count(stage)} {stage}" for stage in sorted(set(kills)))
    outcome(
        f"SIGKILL ({counts})", len(kills), f"bitwise the same; {unfinished} left half a checkpoint"
    )


def test_sigterm_with_any_grace_ends_bitwise_the_same(undisturbed, tiny, tmp_path, outcome):
    dice = random.Random(6)
    graces = [2.0, *(dice.uniform(0, 1) for _ in range(ROUNDS // 4))]
    saved = 0
    for number, grace in enumerate(graces):
        run = Run(tiny, tmp_path / str(number))
        process = run.start()
        wait_for(lambda run=run: run.logged() >= 4, process)
        process.terminate()
        process.join(grace)
        process.kill()
        process.join()
        assert process.exitcode in (75, -9)
        saved += process.exitcode == 75
        run.finish()
        same(run.state(), undisturbed.final)
        assert run.losses() == undisturbed.all_losses
    outcome(
        "SIGTERM, SIGKILL 0 to 2 s later", len(graces), f"bitwise the same; {saved} saved in time"
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest(step):
    return max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGE = {
    "a bit of the arrays flipped": lambda step: flip(largest(step)),
    "the arrays cut off": lambda step: cut(largest(step)),
    "a file gone": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "the state gone": lambda step: shutil.rmtree(step / "state"),
    "the meta cut off": lambda step: cut(step / "meta" / "metadata"),
    "a bit of the meta flipped": lambda step: flip(step / "meta" / "metadata"),
    "an index altered": lambda step: flip(step / "state" / "manifest.ocdbt"),
    "a description cut off": lambda step: cut(step / "state" / "_METADATA"),
}


@pytest.mark.parametrize("damage", DAMAGE if MANY else list(DAMAGE)[:2])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    undisturbed, resumed, outcome, damage
):
    DAMAGE[damage](resumed.folder / "checkpoints" / "12")
    said = resumed.finish()
    assert "The checkpoint of step 12 is damaged (" in said
    assert "Going on from step 9" in said
    assert (resumed.folder / "damaged" / "12").is_dir()
    same(resumed.state(), undisturbed.final)
    assert resumed.losses() == undisturbed.all_losses
    outcome(f"newest checkpoint: {damage}", 1, "told, set aside; bitwise the same from step 9")


def test_where_every_checkpoint_is_damaged_nothing_is_moved(resumed):
    before = resumed.steps()
    for step in before:
        flip(largest(resumed.folder / "checkpoints" / str(step)))
    status, said = resumed.ends()
    assert status == 1
    assert "can be read (step 12: the state was altered after it was saved; step 9:" in said
    assert resumed.steps() == before


def test_a_full_disk_is_told_and_loses_nothing(undisturbed, half, tiny, tmp_path, outcome):
    log_size = half.metrics.stat().st_size
    sizes = [log_size + 30_000, *range(1_000, log_size + 20_000, 9_000)][: None if MANY else 1]
    for number, size in enumerate(sizes):
        run = Run(tiny, tmp_path / str(number))
        shutil.copytree(half.folder, run.folder)
        status, said = run.ends("full_disk", size)
        assert status == 73, said
        assert "Traceback" not in said
        assert "run the same command again" in said
        run.finish()
        same(run.state(), undisturbed.final)
        assert run.losses() == undisturbed.all_losses
    outcome("disk full while saving or logging", len(sizes), "one sentence; bitwise the same")


@pytest.mark.parametrize(
    ("fault", "factors"),
    [
        ("NaN in a gradient", {9: np.nan}),
        ("infinite gradient", {17: np.inf}),
        ("spike: gradient x 10,000", {15: 1e4}),
    ][:: 1 if MANY else 2],
)
def test_a_bad_step_is_skipped_counted_and_leaves_no_trace(run, outcome, fault, factors):
    run.finish("times_gradient", factors)
    without = Run(run.settings, run.folder.with_name("without"))
    without.settings["train.folder"] = without.folder
    without.finish("leave_out", list(factors), train__steps=STEPS - 1)
    same(run.state(), without.state(), "params", "optimizer", "usual")
    counted = [record["skipped"] for record in of_kind(read_metrics(run.folder), "train")]
    (bad,) = factors
    assert counted == [0] * bad + [1] * (STEPS - bad)
    outcome(fault, 1, f"step {bad + 1} skipped; bitwise the run that never read its rows")


def test_spikes_in_a_row_stop_the_run_with_advice_and_it_can_go_on(run, outcome):
    factors = dict.fromkeys((12, 13, 14), 1e4)
    status, said = run.ends("times_gradient", factors)
    assert status == 65
    assert "3 steps in a row were skipped up to step 15" in said
    assert "lower optimizer.peak_learning_rate" in said
    assert run.steps()[-1] == 15
    run.finish("times_gradient", factors)
    without = Run(run.settings, run.folder.with_name("without"))
    without.settings["train.folder"] = without.folder
    without.finish("leave_out", list(factors), train__steps=STEPS - 3)
    same(run.state(), without.state(), "params", "optimizer", "usual")
    outcome("3 spikes in a row", 1, "stopped with advice, all saved; the same command went on")


def test_a_step_of_the_curriculum_is_followed_even_over_a_restart(run, outcome):
    batch, at, skips = 64, 60, OptimizerSettings().spike_most
    tokens = at * batch * run.settings["rows.length"]
    run.settings |= {
        "curriculum.non_english": ((0, 0.1), (tokens, 0.1), (tokens, 0.9)),
        "train.batch": batch,
        "train.checkpoint_every": 1000,
        # the loss is flat when the step comes
        "optimizer.decay_steps": at // 2,
        "optimizer.final_share": 0.01,
        "optimizer.spike_sigmas": 6,
        "optimizer.spike_patience": skips + 1,
    }
    run.finish(train__steps=at + 3)
    run.finish(train__steps=at + skips + 6)
    train = of_kind(read_metrics(run.folder), "train")
    counted = [record["skipped"] for record in train]
    assert counted == [0] * at + [*range(1, skips + 1)] + [skips] * 6
    assert train[-1]["levels"] == 1
    outcome("a step of the curriculum", 1, f"followed after {skips} skipped steps")


def test_a_stalled_read_is_named_and_the_run_goes_on(undisturbed, run, outcome):
    status, said = run.ends("stalled_read", "zh", 12, train__data_timeout=3)
    assert status == 74
    assert "no rows came from" in said
    assert "rows/zh/train-* within 3 s" in said
    run.finish()
    same(run.state(), undisturbed.final)
    assert run.losses() == undisturbed.all_losses
    outcome("data read that never ends", 1, "stopped, naming the file; bitwise the same after")


def test_a_jumping_clock_changes_nothing(undisturbed, run, outcome):
    seeds = range(1 + ROUNDS // 8)
    for seed in seeds:
        shutil.rmtree(run.folder, ignore_errors=True)
        run.finish("jumping_clock", seed, train__steps=15)
        run.finish("jumping_clock", -seed)
        same(run.state(), undisturbed.final)
        speeds = [r["tokens_per_second"] for r in of_kind(read_metrics(run.folder), "train")]
        assert min(speed for speed in speeds if speed is not None) > 0
    outcome("wall clock jumps, up to a year", len(seeds), "bitwise the same; speeds stay sane")
