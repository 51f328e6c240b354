"""Makes the table and the figure of spikes.md: the rule beside three others, on made-up losses.

python docs/spikes.py: prints the table and writes spikes.png beside this file.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from polylm_jax.runs.figures import BLUE, INK, MUTED, PALE, RED, STYLE
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.spikes import Usual, highest_level, judge, nothing_seen

SEEDS, BEFORE, STEPS = 256, 1000, 2000  # runs of a case; the step where something happens; all
LOSS, NOISE, NORM, NORM_NOISE = 2.2, 0.01, 0.3, 0.03
CHOSEN = OptimizerSettings()
NEVER = OptimizerSettings(spike_most=10**6)
HIGHEST = highest_level(256_000)


def followed(settings, values, usual, spikes, seen):
    """The program's rule; with NEVER, what it was before levels were followed."""
    return *judge(values, usual, spikes, seen, settings, HIGHEST), seen


def forgotten(values, usual, spikes, seen):
    """A level makes the rule forget all and learn anew for a window."""
    accepted, learned, after = judge(values, usual, spikes, seen, CHOSEN, HIGHEST)
    level = after.levels > spikes.levels
    anew = jax.tree.map(partial(jnp.where, level), Usual(values, jnp.zeros(2)), learned)
    return accepted, anew, after, jnp.where(level, 0, seen)


def bent(values, usual, spikes, seen):
    """Nothing is counted: a spike is skipped, and learned as though it lay at the border."""
    accepted, learned, _ = judge(values, usual, spikes, seen, NEVER, HIGHEST)
    away = jnp.minimum(values - usual.mean, CHOSEN.spike_sigmas * jnp.sqrt(usual.variance))
    away = jnp.where(jnp.isfinite(values).all(), away, 0)
    border = Usual(usual.mean + away / 16, (usual.variance + away**2 / 16) * 15 / 16)
    return accepted, jax.tree.map(partial(jnp.where, accepted), learned, border), spikes, seen


def scanned(rule: Callable) -> Callable:
    """Function from values [seeds, steps, 2] to which steps the rule accepts, and its border."""

    def step(state, value):
        usual, spikes, seen = state
        border = usual.mean[0] + CHOSEN.spike_sigmas * jnp.sqrt(usual.variance[0])
        accepted, usual, spikes, seen = rule(value, usual, spikes, seen)
        return (usual, spikes, seen + accepted), (accepted, border)

    start = (*nothing_seen(), jnp.zeros((), jnp.int32))
    return jax.jit(jax.vmap(lambda values: jax.lax.scan(step, start, values)[1]))


RULES = {
    "never followed": scanned(partial(followed, NEVER)),
    "bent": scanned(bent),
    "forgotten": scanned(forgotten),
    "followed": scanned(partial(followed, CHOSEN)),
}


def flat(dice: np.random.Generator, seeds: int = SEEDS, steps: int = STEPS) -> np.ndarray:
    """Flat losses and gradient norms with their noise: [seeds, steps, 2]."""
    return dice.normal([LOSS, NORM], [NOISE, NORM_NOISE], (seeds, steps, 2))


def risen(deviations: float, noise: float = 1, at: slice = np.s_[BEFORE:]) -> Callable:
    """The loss rises by so many deviations at some steps; its noise becomes so much larger."""

    def change(values, dice):
        loss = values[:, at, 0]
        values[:, at, 0] = LOSS + deviations * NOISE + (loss - LOSS) * noise

    return change


def small_noise(values, dice):
    values[..., 0] = LOSS + (values[..., 0] - LOSS) / 11
    values[:, BEFORE:, 0] += 0.19


def norm_twice(values, dice):
    values[:, BEFORE:, 1] *= 2


def constant_norm(values, dice):
    values[..., 1] = NORM
    values[:, BEFORE:, 1] = 2 * NORM


def constant(values, dice):
    values[..., 0] = LOSS
    values[:, BEFORE:, 0] += 1e-6


def drift(values, dice):
    values[:, BEFORE : BEFORE + 300, 0] += np.linspace(0, 50 * NOISE, 300)
    values[:, BEFORE + 300 :, 0] += 50 * NOISE


def falling(values, dice):
    values[..., 0] += 10 / np.sqrt(1 + np.arange(STEPS) / 5)
    values[..., 1] *= 1 + 10 / np.sqrt(1 + np.arange(STEPS) / 5)


def not_finite(values, dice):
    values[:, BEFORE : BEFORE + 9] = np.nan


def giant_then_level(values, dice):
    values[:, BEFORE : BEFORE + 3] *= 1e4
    values[:, BEFORE + 3 :, 0] += 30 * NOISE


def spike_on_level(values, dice):
    values[:, BEFORE:, 0] += 30 * NOISE
    values[:, BEFORE + 30 : BEFORE + 35, 0] += 30 * NOISE


def heavy(values, dice):
    values[..., 0] = LOSS + NOISE * dice.standard_t(3, values.shape[:2])
    values[..., 1] = NORM * np.exp(0.3 * dice.normal(size=values.shape[:2]))


CASES: dict[str, Callable] = {
    **{f"loss rises by {n} deviations for good": risen(n) for n in (3, 7, 10, 30, 100)},
    "the same at 4M tokens a step: by 0.19, noise 0.0009": small_noise,
    "gradient norm doubles for good": norm_twice,
    "gradient norm is constant, then doubles": constant_norm,
    "loss is constant, then rises by 0.000001": constant,
    "loss rises by 30, its noise threefold": risen(30, 3),
    "noise of the loss tenfold": risen(0, 10),
    "loss drifts up by 50 deviations in 300 steps": drift,
    "every second step 50 higher, for good": risen(50, at=np.s_[BEFORE::2]),
    "loss and norm fall as in a run's first 2,000 steps": falling,
    "1 spike of 50 deviations": risen(50, at=np.s_[BEFORE : BEFORE + 1]),
    "5 spikes of 20 in a row": risen(20, at=np.s_[BEFORE : BEFORE + 5]),
    "9 steps that are NaN": not_finite,
    "3 spikes of 10,000 times the loss, then 30 higher for good": giant_then_level,
    "30 higher for good, 30 steps on 5 spikes of 30": spike_on_level,
    "heavy tails (Student's t of 3, log-normal norm), nothing happens": heavy,
}


def table() -> str:
    """For each case and rule: steps skipped from BEFORE on (or at all, where nothing happens)."""
    head = ["case: steps skipped, mean (most) of 256 runs", *RULES]
    lines = [head, ["---"] * len(head)]
    for number, (case, change) in enumerate(CASES.items()):
        dice = np.random.default_rng(number)
        values = flat(dice)
        change(values, dice)
        cells = [case]
        for rule in RULES.values():
            skipped = ~rule(np.float32(values))[0]
            endless = skipped[:, -100:].mean(axis=1) > 0.4
            count = skipped.sum(axis=1)
            share = f"; {endless.mean():.0%} for ever" if endless.any() else ""
            cells.append(f"{count.mean():.1f} ({count.max()}){share}")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def figure() -> Figure:
    """Left: one run under two rules. Right: steps skipped by the size of a rise."""
    drawn = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=(3, 2))
    dice = np.random.default_rng(0)
    values = flat(dice, 1)
    risen(30, at=np.s_[BEFORE : BEFORE + 5])(values, dice)
    values[:, BEFORE + 60 :, 0] += 11 * NOISE
    steps = np.arange(BEFORE - 40, BEFORE + 160)
    for name, colour in (("never followed", RED), ("followed", BLUE)):
        accepted, border = (np.asarray(x)[0] for x in RULES[name](np.float32(values)))
        skipped = steps[~accepted[steps]]
        left.plot(steps, border[steps], color=colour, lw=1.2, label=f"border, {name}")
        if name == "followed":
            left.plot(skipped, values[0, skipped, 0], "x", color=INK, ms=5, label="skipped by it")
    left.plot(steps, values[0, steps, 0], color=MUTED, lw=0.8, zorder=0, label="loss")
    left.set(title="5 spikes, then a rise of 11 deviations", xlabel="step", ylabel="loss")
    left.set_ylim(2.12, 2.52)
    left.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    sizes = [3, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 50, 100]
    colours = {"never followed": RED, "bent": PALE, "forgotten": MUTED, "followed": BLUE}
    means = {name: [] for name in RULES}
    for size in sizes:
        values = flat(dice)
        risen(size)(values, dice)
        for name, rule in RULES.items():
            means[name].append((~np.asarray(rule(np.float32(values))[0])).sum(axis=1).mean())
    for name in ("never followed", "bent", "followed"):
        right.plot(sizes, means[name], "o-", color=colours[name], ms=3, label=name)
    right.set(title="Steps skipped of the next 1,000", xlabel="rise, deviations")
    right.set(xscale="log", yscale="symlog", ylim=(0, 1300))
    right.legend(fontsize=8, frameon=False)
    return drawn


if __name__ == "__main__":
    print(table())
    with rc_context(STYLE):
        figure().savefig(Path(__file__).with_suffix(".png"), dpi=110)
