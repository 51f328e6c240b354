"""The figure of runs side by side: loss and bits per byte over tokens, and each language."""

import math
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes

from polylm_jax.data.languages import is_language
from polylm_jax.runs import figures
from polylm_jax.runs.compare import Comparison, Run, spread_of
from polylm_jax.runs.figures import BLUE, COLOURS, GRID, INK, MUTED, PURPLE, RED, token_axis
from polylm_jax.runs.log import of_kind

PALETTE = (BLUE, RED, *COLOURS[2:], PURPLE, INK, MUTED)


def draw(found: Comparison, path: Path) -> Path:
    """Three panels, a colour a group and a line a run."""
    panels = [partial(panel, found=found) for panel in (_loss, _two_means, _languages)]
    height = max(4.7, 1.6 + 0.2 * len(found.rows))
    return figures.picture(path, (13.2, height), panels, ncols=3)


def _coloured(found: Comparison) -> list[tuple[str, str, Run]]:
    return [
        (name, PALETTE[at % len(PALETTE)], run)
        for at, (name, runs) in enumerate(found.groups.items())
        for run in runs
    ]


def _loss(ax: Axes, found: Comparison) -> None:
    last = found.tokens
    for _, colour, run in _coloured(found):
        train = of_kind(run.metrics, "train")
        tokens = [record["tokens"] for record in train]
        last = max([last, *tokens])
        losses = np.array([record["loss"] for record in train], float)
        width = max(1, len(losses) // 50)
        # a mean of some steps, since single ones hide one another
        ends = range(width, len(losses) + 1, width)
        means = [np.nanmean(losses[end - width : end]) for end in ends]
        ax.plot([tokens[end - 1] for end in ends], means, color=colour, lw=1.4, alpha=0.85)
    for at, name in enumerate(found.groups):
        ax.annotate(name, (1, 1), (-4, -6 - 14 * at), xycoords="axes fraction", ha="right",
                    va="top", textcoords="offset points", color=PALETTE[at % len(PALETTE)],
                    fontsize=9)  # fmt: skip
    token_axis(ax, last)
    ax.set(title="Training loss, nats per token", xlabel="tokens")


def _two_means(ax: Axes, found: Comparison) -> None:
    """English as a thin line, the mean of the others as a thick one; of several runs their mean,
    with their standard deviation around it."""
    for at, runs in enumerate(found.groups.values()):
        colour = PALETTE[at % len(PALETTE)]
        tokens = sorted(set.intersection(*(set(run.bits) for run in runs)))
        for line, width, english in (("--", 1.2, True), ("-", 2.0, False)):
            spreads = [spread_of([_mean(run.bits[t], english) for run in runs]) for t in tokens]
            means = np.array([spread.mean for spread in spreads])
            deviations = np.array([spread.deviation or 0.0 for spread in spreads])
            ax.plot(tokens, means, line, color=colour, lw=width, marker="o", ms=3)
            ax.fill_between(tokens, means - deviations, means + deviations, color=colour, alpha=0.2,
                            lw=0)  # fmt: skip
    ax.axvline(found.tokens, color=GRID, lw=4, zorder=0)
    token_axis(ax, max(t for _, _, run in _coloured(found) for t in run.bits))
    ax.set(title="Bits per byte: others (full), English (dashed)", xlabel="tokens")


def _mean(bits: dict[str, float], english: bool) -> float:
    """Of English, or of the other languages; NaN where there is none."""
    chosen = [
        b for source, b in bits.items() if is_language(source) and (source == "en") == english
    ]
    return fmean(chosen) if chosen else math.nan


def _languages(ax: Axes, found: Comparison) -> None:
    names = list(found.rows)[::-1]
    for at, colour in enumerate(PALETTE[i % len(PALETTE)] for i in range(len(found.groups))):
        spreads = [found.rows[name][at] for name in names]
        errors = [spread.deviation or 0.0 for spread in spreads]
        ax.errorbar([s.mean for s in spreads], range(len(names)), xerr=errors, fmt="o",
                    color=colour, ms=4.5, lw=1)  # fmt: skip
    ax.set_yticks(range(len(names)), names, fontsize=8.5)
    ax.grid(axis="x", color=GRID)
    ax.set(title=f"Bits per byte after {found.tokens:,} tokens")
