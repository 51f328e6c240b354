"""The figure of runs side by side: loss and bits per byte over tokens, and each language."""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from polylm_jax.data.languages import is_language
from polylm_jax.runs import figures
from polylm_jax.runs.compare import Comparison, Run
from polylm_jax.runs.figures import BLUE, COLOURS, GRID, INK, MUTED, PURPLE, RED
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
    for _, colour, run in _coloured(found):
        train = of_kind(run.metrics, "train")
        tokens = [record["tokens"] for record in train]
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
    ax.set(title="Training loss, nats per token", xlabel="tokens")


def _two_means(ax: Axes, found: Comparison) -> None:
    """English as a thin line, the mean of the others as a thick one."""
    for _, colour, run in _coloured(found):
        tokens = sorted(run.bits)
        for line, width, chosen in (
            ("--", 1.2, lambda source: source == "en"),
            ("-", 2.0, lambda source: source != "en"),
        ):
            means = [
                np.mean([b for s, b in run.bits[t].items() if is_language(s) and chosen(s)] or
                        [np.nan])
                for t in tokens
            ]  # fmt: skip
            ax.plot(tokens, means, line, color=colour, lw=width, marker="o", ms=3)
    ax.axvline(found.tokens, color=GRID, lw=4, zorder=0)
    ax.set(title="Bits per byte: others (full), English (dashed)", xlabel="tokens")


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
