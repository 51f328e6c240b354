"""Which steps are skipped: what is no number, and spikes, until a spike has become the level.

A spike is rare by definition. What keeps coming back is what the loss or the gradient norm now is
(a step of the curriculum, other data, another batch or rate), and a run that goes on skipping it
would never learn again. `docs/spikes.md` has the figures behind each choice.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polylm_jax.train.optimizer import OptimizerSettings

FORGIVEN = 8  # accepted steps that make up for a skipped one
FLOOR = 1e-5  # of a mean: its deviation is never taken for less, or rounding would spike
DIVERGED = 4  # times the loss of a guess; no text costs so much, only a model that is broken


class Usual(NamedTuple):
    """Running mean and variance of the loss and the gradient norm of accepted steps, [2] each."""

    mean: jax.Array
    variance: jax.Array


class Spikes(NamedTuple):
    """recent: spikes skipped of late, less 1/FORGIVEN for each step accepted since, float32 [].

    levels: how often a spike was taken for the new level, int32 [].
    """

    recent: jax.Array
    levels: jax.Array


def nothing_seen() -> tuple[Usual, Spikes]:
    """What is usual, and the spikes, before the first step."""
    return (
        Usual(jnp.zeros(2), jnp.zeros(2)),
        Spikes(jnp.zeros(()), jnp.zeros((), jnp.int32)),
    )


def highest_level(vocabulary: int) -> float:
    """The loss, in nats a token, above which no spike is ever taken for a level."""
    return DIVERGED * math.log(vocabulary)


def judge(
    values: jax.Array,
    usual: Usual,
    spikes: Spikes,
    seen: jax.Array,
    optimizer: OptimizerSettings,
    highest: float,
) -> tuple[jax.Array, Usual, Spikes]:
    """Whether a step is accepted, bool [], and what is usual and the spikes after it.

    values: its loss and gradient norm, float32 [2]. seen: accepted steps so far; the mean weighs
    all alike until spike_window are seen, then forgets exponentially. highest: loss of a level.

    A spike lies more than spike_sigmas deviations above the mean. It is skipped and changes
    nothing of what is usual, unless it would be more than the spike_most-th of late: then it is
    the level, is accepted, and becomes the mean. One value is a rough mean, so the deviation
    counts double until the window has seen more. What is not finite is always skipped and
    changes neither.
    """
    finite = jnp.isfinite(values**2).all()
    deviation = jnp.maximum(jnp.sqrt(usual.variance), FLOOR * jnp.abs(usual.mean))
    away = values - usual.mean
    spike = finite & (away > optimizer.spike_sigmas * deviation).any()
    spike &= (seen >= optimizer.spike_window) & (optimizer.spike_sigmas > 0)
    level = spike & (spikes.recent > optimizer.spike_most - 1) & (values[0] <= highest)
    skipped, quiet = spike & ~level, finite & ~spike

    weight = 1 / jnp.minimum(seen + 1, optimizer.spike_window)
    learned = Usual(usual.mean + weight * away, (1 - weight) * (usual.variance + weight * away**2))
    moved = Usual(values, 4 * deviation**2)

    def choose(if_quiet: jax.Array, if_level: jax.Array, otherwise: jax.Array) -> jax.Array:
        return jnp.where(quiet, if_quiet, jnp.where(level, if_level, otherwise))

    recent = jnp.where(skipped, jnp.minimum(spikes.recent + 1, optimizer.spike_most), spikes.recent)
    recent = choose(jnp.maximum(recent - 1 / FORGIVEN, 0), jnp.zeros(()), recent)
    return (
        quiet | level,
        jax.tree.map(choose, learned, moved, usual),
        Spikes(recent, spikes.levels + level),
    )
