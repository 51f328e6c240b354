"""What is skipped, what is followed, and that no run can skip for ever."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polylm_jax.errors import UserError
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.spikes import FORGIVEN, highest_level, judge, nothing_seen

SETTINGS = OptimizerSettings()
MOST, WINDOW = SETTINGS.spike_most, SETTINGS.spike_window
HIGHEST = highest_level(256_000)
BEFORE, AFTER = 3 * WINDOW, 2 * WINDOW
STEPS = BEFORE + AFTER


@jax.jit
@jax.vmap
def judged(values):
    """Over [runs, STEPS, 2]: accepted [runs, STEPS], usual and spikes at the end."""

    def step(state, value):
        accepted, usual, spikes = judge(value, *state, SETTINGS, HIGHEST)
        return (usual, spikes, state[2] + accepted), accepted

    (usual, spikes, _), accepted = jax.lax.scan(
        step, (*nothing_seen(), jnp.zeros((), jnp.int32)), values
    )
    return accepted, usual, spikes


def judge_all(values):
    return jax.device_get(judged(np.float32(values)))


def flat(dice, noise=0.01, runs=64):
    return dice.normal([2.2, 0.3], [noise, noise], (runs, STEPS, 2))


def longest(skipped):
    """The longest row of skipped steps of each run."""
    length = most = np.zeros(len(skipped), int)
    for step in skipped.T:
        length = (length + 1) * step
        most = np.maximum(most, length)
    return most


def test_the_rule_is_the_formula_over_a_forgetting_window():
    settings = OptimizerSettings(spike_sigmas=3, spike_window=10)
    dice = np.random.default_rng(7)
    values = dice.normal([2.0, 5.0], [0.1, 0.5], (60, 2)).astype(np.float32)
    values[5] *= 3  # too early for the rule
    values[30, 0] = values[41, 1] = 30
    values[50] = np.nan
    values[55] = -30  # falling is welcome
    rule = jax.jit(lambda *x: judge(*x, settings, HIGHEST))
    (usual, spikes), kept = jax.device_get(nothing_seen()), []
    for value in values:
        seen = len(kept)
        accepted, new, spikes = rule(value, usual, spikes, np.int32(seen))
        known = np.array(kept)
        if seen == 10:
            np.testing.assert_allclose(usual.mean, known.mean(0), rtol=1e-5)
            np.testing.assert_allclose(usual.variance, known.var(0), rtol=1e-4)
        spike = seen >= 10 and (value > usual.mean + 3 * np.sqrt(usual.variance)).any()
        assert bool(accepted) == (np.isfinite(value).all() and not spike)
        if accepted:
            kept.append(value)
        else:
            jax.tree.map(np.testing.assert_array_equal, new, usual)
        usual = jax.device_get(new)
    assert len(kept) <= 57
    assert not any(value.max() == 30 for value in kept)
    off = OptimizerSettings(spike_sigmas=0, spike_window=1)
    assert judge(np.float32([1e9, 1e9]), usual, spikes, np.int32(99), off, HIGHEST)[0]


@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.003, 0.03])
@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
def test_a_level_is_followed_after_the_stated_number_of_skips(noise, which):
    for jump in (3, 5, 7, 8, 10, 15, 30, 100):
        values = flat(np.random.default_rng(jump), noise)
        values[:, BEFORE:, which] += jump * (noise or 0.01)
        accepted, usual, spikes = judge_all(values)
        skipped = ~accepted
        assert not skipped[:, :BEFORE].any()
        # the stated number, and a stray step while a deviation or a mean is a rough one
        assert skipped.sum(axis=1).max() <= MOST + 1
        assert longest(skipped).max() <= MOST < SETTINGS.spike_patience
        assert accepted[:, -100:].all()
        if jump >= 15:
            assert (skipped[:, BEFORE : BEFORE + MOST]).all()
            assert (spikes.levels == 1).all()
            new = values[:, BEFORE:].mean(axis=1)
            np.testing.assert_allclose(usual.mean, new, atol=3 * noise + 1e-5)


def test_spikes_and_no_numbers_leave_no_trace():
    values = flat(np.random.default_rng(0))
    bad = np.full(values.shape, False)
    bad[:, BEFORE : BEFORE + 5, 0] = True  # five spikes in a row
    bad[:, BEFORE + 60, 1] = True
    bad[:, BEFORE + 90 : BEFORE + 110] = True  # no numbers
    worse = np.where(bad, 3 * values, values)
    worse[:, BEFORE + 90 : BEFORE + 110] = np.repeat([[np.nan], [np.inf], [-np.inf], [1e30]], 5, 0)
    accepted, usual, spikes = judge_all(worse)
    np.testing.assert_array_equal(accepted, ~bad.any(axis=2))
    assert (spikes.levels == 0).all()
    # what is left of the same run without those steps, shorter by as many
    short = np.array([run[~gone] for run, gone in zip(values, bad.any(axis=2), strict=True)])
    same = jax.device_get(judged(np.float32(short)))[1]
    jax.tree.map(np.testing.assert_array_equal, usual, same)


def test_no_run_skips_more_than_its_share():
    dice = np.random.default_rng(1)
    for rate in (0.01, 0.05, 0.1, 0.2, 0.5, 0.9):
        values = flat(dice)
        struck = dice.random((64, AFTER)) < rate
        values[:, BEFORE:, 0] *= 1 + struck * dice.exponential(0.5, struck.shape)
        values[:, BEFORE:, 1] *= 1 + struck * dice.exponential(50, struck.shape)
        accepted, _, spikes = judge_all(values)
        most = MOST * (spikes.levels + 1) + accepted.sum(axis=1) / FORGIVEN
        assert ((~accepted).sum(axis=1) <= most).all()
        assert longest(~accepted).max() <= MOST


def test_a_second_level_a_fall_and_other_noise_are_followed():
    dice = np.random.default_rng(2)
    for first, second, noise in ((30, 60, 1), (60, 0, 1), (100, 300, 3), (0, 0, 10)):
        values = flat(dice)
        values[:, BEFORE:] += 0.01 * first
        values[:, BEFORE + WINDOW :] += 0.01 * (second - first)
        values[:, BEFORE:] += dice.normal(0, 0.01 * (noise - 1), (64, AFTER, 2))
        accepted, *_ = judge_all(values)
        assert accepted[:, -WINDOW // 2 :].mean() > 0.999
        assert longest(~accepted).max() <= MOST


def test_a_slow_drift_and_a_falling_loss_skip_nothing():
    values = flat(np.random.default_rng(3))
    rising, falling = values.copy(), values.copy()
    rising[..., 0] += np.linspace(0, 0.5, STEPS)
    falling += 10 / np.sqrt(1 + np.arange(STEPS) / 5)[:, None]
    assert judge_all(rising)[0].mean() > 0.999
    assert judge_all(falling)[0].all()


def test_a_loss_that_no_text_costs_is_never_followed_but_left_at_once():
    values = flat(np.random.default_rng(4))
    values[:, BEFORE:-5, 0] = HIGHEST + 1
    accepted, _, spikes = judge_all(values)
    assert not accepted[:, BEFORE:-5].any()
    assert accepted[:, -5:].all()
    assert (spikes.levels == 0).all()
    values[:, BEFORE:-5, 0] = HIGHEST - 1
    accepted, _, spikes = judge_all(values)
    assert (~accepted).sum(axis=1).max() <= MOST
    assert (spikes.levels == 1).all()


def test_a_number_of_spikes_below_one_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.spike_most"):
        OptimizerSettings(spike_most=0)
