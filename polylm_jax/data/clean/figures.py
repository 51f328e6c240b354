"""Figures of a report: what became of each language, and scores with their thresholds."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polylm_jax.data.clean.thresholds import BINS, Histograms, Limits, lower_edges, of

_COLOURS = ("#1f6f9f", "#d1495b", "#8a6fb3", "#22303c", "#bccfdc")
_PANELS = 12  # rules whose histograms are drawn
_LARGEST = 5  # languages in each
_JOINED = 16  # bins that are drawn as one


def languages(
    kinds: Mapping[str, Mapping[str, int]], here: Mapping[str, float], paper: Mapping[str, float]
) -> bytes:
    """A PNG of what became of the documents of each language, by kind; and percents beside the
    paper's."""
    figure = _figure(9, 2.2 + 0.22 * len(kinds))
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    places = np.arange(len(kinds))[::-1]
    before = np.zeros(len(kinds))
    for kind, colour in zip(next(iter(kinds.values())), _COLOURS, strict=True):
        shares = np.array([100 * of[kind] / max(sum(of.values()), 1) for of in kinds.values()])
        left.barh(places, shares, left=before, color=colour, label=kind, height=0.8)
        before += shares
    left.set_yticks(places, list(kinds), fontsize=7)
    left.set_xlim(0, 100)
    left.set_xlabel("% of documents")
    left.legend(ncols=5, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    at = np.arange(len(paper))
    right.bar(at - 0.2, np.nan_to_num(list(here.values())), 0.4, color=_COLOURS[0])
    right.bar(at + 0.2, list(paper.values()), 0.4, color=_COLOURS[4])
    names = [name.replace(", ", ",\n").replace(" and", "\nand") for name in paper]
    right.set_xticks(at, names, fontsize=7)
    right.set_title("% dropped; PolyLM's pale", fontsize=8)
    return _png(figure)


def histograms(names: Sequence[str], limits: Limits, histograms: Histograms) -> bytes:
    """A PNG of the scores of the first of these features, with thresholds, by language."""
    measured = [name for name in names if any(name in of for of in histograms.values())][:_PANELS]
    largest = sorted(histograms, key=lambda one: -max(of.sum() for of in histograms[one].values()))
    rows = max(1, -(-len(measured) // 3))
    figure = _figure(11, 2.1 * rows)
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for ax, name in zip(axes, measured, strict=False):
        ax.set_title(name, fontsize=8)
        _panel(ax, name, largest[:_LARGEST], limits, histograms)
    for ax in axes[len(measured) :]:
        ax.set_axis_off()
    if axes[0].lines:
        axes[0].legend(fontsize=6, frameon=False)
    return _png(figure)


def _panel(ax: Any, name: str, shown: list[str], limits: Limits, histograms: Histograms) -> None:
    edges = np.maximum(lower_edges()[::_JOINED], 1e-4)
    for number, language in enumerate(shown):
        counts = histograms[language].get(name)
        if counts is None or not counts.sum():
            continue
        some = counts.reshape(BINS // _JOINED, _JOINED).sum(1)
        there = np.flatnonzero(some)
        span = slice(there[0], there[-1] + 2)
        colour = f"C{number}"
        ax.step(edges[span], some[span] / some.sum(), color=colour, lw=0.8, label=language)
        for edge in of(limits, language).get(name, ()):
            if edge is not None:
                ax.axvline(max(edge, 1e-4), color=colour, lw=0.8, ls=":")
    ax.set_xscale("log")
    ax.tick_params(labelsize=6)
    ax.set_yticks([])


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="tight")


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    # without the version that matplotlib would put in
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
