"""Sound checkpoints stay, whatever is saved after them."""

import random

import pytest

from polylm_jax.train.retention import Retention, Skipped, kept, skipped_of, sound

GOOD = Skipped(0, False)


def run_of(skips, patience=3, every=1, keep=2):
    """The checkpoints of a run, when steps are skipped as told, and of all that ever were sound."""
    saved, ever, in_a_row = {}, [], 0
    for step, skip in enumerate(skips, 1):
        in_a_row = in_a_row + 1 if skip else 0
        if step % every == 0:
            saved[step] = Skipped(in_a_row, in_a_row >= patience)
            ever += [step] * (not in_a_row)
            stay = kept(saved, keep)
            saved = {step: skipped for step, skipped in saved.items() if step in stay}
    return saved, ever


def test_steps_that_are_skipped_for_ever_push_nothing_out():
    saved, _ = run_of([0] * 10 + [1] * 500, every=4, keep=3)
    assert sorted(saved) == [4, 8, 508]
    assert sound(saved) == [4, 8]


def test_a_state_that_made_no_step_any_more_is_not_sound_however_it_came_about():
    # the step before the save of step 10 was accepted, and no step after it
    saved, _ = run_of([0] * 10 + [1] * 3)
    assert sorted(saved) == [9, 13]
    assert sound(saved) == [9]
    # two skipped steps say nothing yet
    assert sound(run_of([0] * 10 + [1] * 2)[0]) == [9, 10]


@pytest.mark.parametrize("keep", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_the_newest_sound_ones_stay_and_at_most_one_other(seed, keep):
    dice = random.Random(seed)
    skips = [dice.random() < 0.3 for _ in range(200)]
    for steps in range(3, 200):
        saved, ever = run_of(skips[:steps], patience=1000, every=3, keep=keep)
        assert sound(saved) == ever[-max(keep, 2) :]
        unsound = set(saved) - set(sound(saved))
        assert unsound <= {max(saved)}


def test_orbax_is_told_what_stays_and_a_former_version_says_nothing():
    class Info:
        def __init__(self, step):
            self.step = step

    retention = Retention(2, {5: Skipped(3, False)})
    stay = retention.should_preserve([Info(step) for step in range(1, 6)], context=None)
    assert stay == [False, False, True, True, True]
    assert skipped_of({}) == GOOD
    assert skipped_of({"skipped": [2, True]}) == Skipped(2, True)
