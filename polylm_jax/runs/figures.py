"""Figures of a training run and of the tokenizer: PNG files drawn from logged numbers alone.

A picture is made of panels, functions that draw one idea on one Axes; the overview is composed
of the same panels as the single figures.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from polylm_jax.data.languages import (
    CODE,
    LANGUAGES,
    is_bilingual,
    is_language,
    is_mixed,
    name_of,
    non_english_share,
)
from polylm_jax.errors import UserError
from polylm_jax.runs.log import (
    Metrics,
    Rows,
    counts_of,
    deviation,
    of_kind,
    rows_read,
    untrained_and_trained,
)

INK, MUTED, GRID, PALE, BLUE, RED = "#22303c", "#6b7a88", "#e3e8ec", "#bccfdc", "#1f6f9f", "#d1495b"
PAIRED, PURPLE = "bilingual", "#8a6fb3"
COLOURS = (RED, BLUE, "#2f9c8a", "#d9982b", "#7d9b3c")  # of languages, or of groups of them
REGIONS = {  # of the paper's languages, from the bottom of the stack
    "Chinese": ("zh",),
    "European": ("ru", "es", "de", "fr", "it", "pt", "pl", "nl"),
    "East Asian": ("ja", "vi", "id", "th", "ko"),
    "West Asian": ("ar", "tr", "he"),
}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlepad": 10, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": GRID,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "text.parse_math": False,  # names of sources are no formulas
    "figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.1,
}  # fmt: skip
Panel = Callable[[Axes], None]


def bytes_per_token(table: dict[str, float], path: str | Path) -> Path:
    """Bars of UTF-8 bytes per token of each source, the best compressed on top."""
    return picture(path, (8.3, 1.4 + 0.235 * len(table)), [partial(_bytes_panel, table=table)])


def curriculum(metrics: Metrics, path: str | Path) -> Path:
    """The schedule against what the batches held: non-English share, sources, deviation.

    There is no panel of the non-English share where there is no English, or nothing else.
    """
    heights = {_share_panel: 3, _stack_panel: 3, _deviation_panel: 1}
    if not is_mixed(rows_read(metrics).sources):
        del heights[_share_panel]
    panels, ratios = [partial(panel, metrics=metrics) for panel in heights], [*heights.values()]
    size = (8.3, 0.9 + 0.986 * sum(ratios))
    return picture(path, size, panels, nrows=len(panels), sharex=True, height_ratios=ratios)


def schedule(rows: Rows, path: str | Path) -> Path:
    """Stacked areas of each source's share, a band from each point of `rows.scheduled` on."""
    draw = partial(_draw_stack, rows.tokens, rows.sources, rows.scheduled)
    panel = partial(draw, title="Share of each source in the schedule")
    return picture(path, (8.3, 4.2), [panel])


def loss(metrics: Metrics, path: str | Path) -> Path:
    """Training loss of each step and its running mean, with the validation loss.

    Steps whose loss is no number leave gaps.
    """
    return picture(path, (8.3, 4.2), [partial(_loss_panel, metrics=metrics)])


def bits_per_byte(before: dict[str, float], after: dict[str, float], path: str | Path) -> Path:
    """A dumbbell for each source (the keys of both tables), the lowest after training on top."""
    panel = partial(_dumbbell_panel, before=before, after=after)
    return picture(path, (8.3, 1.1 + 0.25 * len(after)), [panel])


def evaluation(metrics: Metrics, path: str | Path) -> Path:
    """The mean score of each task at each evaluation, with 95% bars: of those that choose, as per
    cent beside chance, and in bits per byte."""
    records = of_kind(metrics, "evaluation")
    chosen = [name for name in records[-1]["score"] if name in records[-1]["chance"]]
    others = [name for name in records[-1]["score"] if name not in chosen]
    panels = [
        partial(_scores_panel, records=records, names=names, title=title, scale=scale)
        for names, title, scale in (
            (chosen, "Right choices, per cent", 100),
            (others, "Bits per byte, whole texts", 1),
        )
        if names
    ]
    return picture(path, (8.3, 0.6 + 3 * len(panels)), panels, nrows=len(panels), sharex=True)


def run_figures(run: str | Path, metrics: Metrics) -> list[Path]:
    """Draws all that a run's metrics allow into `<run>/figures/`; overview.png comes last.

    Before rows were counted there is no picture of the curriculum, before the first validation of
    a trained model none of bits per byte. UserError if the metrics hold no training step.
    """
    folder, train = Path(run) / "figures", of_kind(metrics, "train")
    if not train:
        raise UserError(f"{run}/metrics.jsonl holds no training step: train for one step first.")
    drawn, panels = list[Path](), list[Panel]()
    if sources := rows_read(metrics).sources:
        drawn.append(curriculum(metrics, folder / "curriculum.png"))
        first = _share_panel if is_mixed(sources) else _stack_panel
        panels.append(partial(first, metrics=metrics))
    drawn.append(loss(metrics, folder / "loss.png"))
    panels.append(partial(_loss_panel, metrics=metrics))
    before, after = untrained_and_trained(metrics) or ({}, {})
    names = [
        name for name in before if np.isfinite(np.array([before[name], after[name]], float)).all()
    ]
    if names := [name for name in names if not is_bilingual(name)] or names:
        before, after = ({name: table[name] for name in names} for table in (before, after))
        drawn.append(bits_per_byte(before, after, folder / "bits_per_byte.png"))
        panels.append(partial(_dumbbell_panel, before=before, after=after))
    if of_kind(metrics, "evaluation"):
        drawn.append(evaluation(metrics, folder / "evaluation.png"))
    size = (3.9 * len(panels), 4.7)
    return [*drawn, picture(folder / "overview.png", size, panels, ncols=len(panels))]


def _share_panel(ax: Axes, metrics: Metrics) -> None:
    rows, train = rows_read(metrics), of_kind(metrics, "train")
    shares, edges = partial(non_english_share, rows.sources), _edges(rows.tokens)
    scheduled = shares(np.diff(rows.scheduled, axis=0))
    middles = (rows.tokens[1:] + rows.tokens[:-1]) / 2
    line = [0, *middles, rows.tokens[-1]], [scheduled[0], *scheduled, scheduled[-1]]
    ax.plot(*line, color=PALE, lw=6, solid_capstyle="butt")
    tokens, steps, batches = (_series(train, n) for n in ("tokens", "step", "non_english"))
    ax.plot(tokens * (1 - 0.5 / steps), batches, ".", color=BLUE, ms=2.5, alpha=0.35)
    centres = (rows.tokens[edges][1:] + rows.tokens[edges][:-1]) / 2
    ax.plot(centres, shares(np.diff(rows.measured[edges], axis=0)), "o", color=BLUE, ms=4.5)
    highest = np.nanmax([*scheduled, *batches])
    _mark_changes(ax, metrics)
    ax.set(title="Non-English share of rows", ylim=(0, 1.25 * highest or 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    token_axis(ax, rows.tokens[-1])
    sizes = np.diff(np.array([0, *_series(counts_of(metrics), "step")], int)[edges])
    same = sizes.min() == sizes.max()
    number = f"{sizes[0]:,}" if same else f"some {float(f'{sizes.mean():.2g}'):,.0f}"
    words = "batches" if sizes.max() == 1 else f"batches (faint), means of {number}"
    _key(ax, "left", [("schedule", "#86a8bf"), (words, BLUE)])


def _stack_panel(ax: Axes, metrics: Metrics) -> None:
    rows = rows_read(metrics)
    edges = _edges(rows.tokens)
    title = "Share of each source in the batches"
    _mark_changes(ax, metrics)
    _draw_stack(rows.tokens[edges], rows.sources, rows.measured[edges], ax, title)


def _draw_stack(
    tokens: np.ndarray, sources: list[str], counts: np.ndarray, ax: Axes, title: str
) -> None:
    bands_of = groups(sources, counts[-1])
    counts = np.diff(counts, axis=0)
    sums, top, labels = counts.sum(-1, keepdims=True), np.zeros(len(counts)), []
    shares = counts / np.where(sums == 0, 1, sums)
    for name, (colour, members) in bands_of.items():
        bands = shares[:, [sources.index(source) for source in members]].T
        for rank, band in enumerate(bands):
            alpha = 1 - 0.45 * rank / len(bands)
            band_top = top + band
            ax.stairs(band_top, tokens, baseline=top, fill=True, fc=colour, alpha=alpha)
            top = band_top
        if len(bands):
            share = bands[:, -1].sum()
            labels.append((top[-1] - share / 2, f"{name} {share:.0%}", colour))
    ceiling = 1.0
    for middle, words, colour in reversed(labels):
        height = min(middle, ceiling)
        ceiling = height - 0.075  # labels keep a line's distance
        ax.annotate(words, (1.01, height), xycoords="axes fraction", va="center", color=colour)
    ax.set(title=title, ylim=(0, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    token_axis(ax, tokens[-1])


def _deviation_panel(ax: Axes, metrics: Metrics) -> None:
    train = of_kind(metrics, "train")
    pairs = [(record["tokens"], off) for record in train if (off := deviation(record)) is not None]
    tokens, worst = np.array(pairs or [(0, 0)], float).T
    ax.fill_between(tokens, worst, color=PALE, lw=0)
    ax.axhline(1, color=RED, lw=1.2)
    ax.annotate("one row", (1.01, 1), xycoords=("axes fraction", "data"), va="center", color=RED)
    ax.set_title(f"Largest deviation of any source from its schedule: {worst.max():.3f} rows")
    ax.set_ylim(0, 1.2 * max(1, worst.max()))
    ax.yaxis.set_major_locator(MaxNLocator(2, steps=(1, 2, 5, 10)))
    token_axis(ax, train[-1]["tokens"])


def _loss_panel(ax: Axes, metrics: Metrics) -> None:
    train, valid = of_kind(metrics, "train"), of_kind(metrics, "valid")
    tokens, losses = _series(train, "tokens"), _series(train, "loss")
    # a record may stand for some steps: the faint line goes through their lowest and highest
    ends = [
        [record.get(name, record["loss"]) for name in ("lowest", "highest")] for record in train
    ]
    ax.plot(np.repeat(tokens, 2), np.array(ends, float).ravel(), color=BLUE, lw=0.8, alpha=0.3)
    ax.plot(tokens, _smooth(losses), color=BLUE, lw=2)
    _mark_changes(ax, metrics)
    words = [("training", BLUE)]
    if valid:
        tables = [{n: nats for n, nats in r["loss"].items() if nats is not None} for r in valid]
        numbers = [[t[n] for n in t if is_language(n)] or [*t.values()] for t in tables]
        means = [np.mean(table) if table else np.nan for table in numbers]
        line = "o-" if len(valid) <= 60 else "-"  # more dots would hide one another
        ax.plot([r["tokens"] for r in valid], means, line, color=RED, ms=4.5, clip_on=False)
        words.append(("validation, mean of languages", RED))
    ax.set(title="Loss, nats per token", yscale="log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda nats, _: f"{nats:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    token_axis(ax, tokens[-1])
    _key(ax, "right", words)


def _scores_panel(
    ax: Axes, records: Metrics, names: Sequence[str], title: str, scale: float
) -> None:
    tokens, words = _series(records, "tokens"), []
    for name, colour in zip(names, cycle(COLOURS)):
        scores, errors = (
            scale * np.array([record.get(table, {}).get(name) for record in records], float)
            for table in ("score", "error")
        )
        bars = 1.96 * np.nan_to_num(errors)
        ax.errorbar(tokens, scores, bars, fmt="o-", color=colour, ms=4, lw=1.5, elinewidth=1)
        words.append((name, colour))
    chances = {records[-1]["chance"][name] for name in names if name in records[-1]["chance"]}
    for chance in chances:
        ax.axhline(scale * chance, color=INK, lw=1, ls=":")
    ax.set_title(title)
    token_axis(ax, tokens[-1] or 1)
    _key(ax, "left", [*words, *([("dotted: chance", MUTED)] if chances else [])])


def _bytes_panel(ax: Axes, table: dict[str, float]) -> None:
    sources = sorted(table, key=lambda source: table[source])
    colours = [PURPLE if is_bilingual(source) else BLUE for source in sources]
    names, widths = [name_of(source) for source in sources], [table[source] for source in sources]
    bars = ax.barh(names, widths, color=colours, height=0.72)
    ax.bar_label(bars, fmt="%.2f", padding=4, fontsize=9)
    ax.set(title="UTF-8 bytes per token", ylim=(-0.6, len(sources) + 1.4), xmargin=0.1)
    _bare(ax)
    kinds = (("one language", BLUE), (PAIRED, PURPLE))
    _key(ax, "right", [kind for kind in kinds if kind[1] in colours])


def _dumbbell_panel(ax: Axes, before: dict[str, float], after: dict[str, float]) -> None:
    sources = sorted(after, key=lambda source: after[source])
    places = range(len(sources))
    starts, ends = ([table[source] for source in sources] for table in (before, after))
    ax.hlines(places, starts, ends, color=PALE, lw=3)
    sides = ((starts, MUTED, "left", 7, "untrained"), (ends, BLUE, "right", -7, "trained"))
    for values, colour, side, shift, word in sides:
        ax.plot(values, places, "o", color=colour, ms=5.5)
        labels = [(word, values[0], -1), *((f"{v:.2f}", v, at) for at, v in enumerate(values))]
        for label, x, y in labels:
            ax.annotate(label, (x, y), (shift, 0), textcoords="offset points", color=colour,
                        ha=side, va="center", fontsize=8.5)  # fmt: skip
    ax.set_yticks(places, [name_of(source) for source in sources], fontsize=9)
    ax.set(title="Bits per byte, validation", ylim=(len(sources) - 0.4, -1.5), xmargin=0.18)
    _bare(ax)


def groups(sources: Sequence[str], rows: np.ndarray) -> dict[str, tuple[str, list[str]]]:
    """The bands of a stack from the bottom: name -> (colour, the sources in it).

    A few languages have a band each. Many are grouped: the paper's by region, of others those
    that are not among the largest, by rows [sources].
    """
    languages = [source for source in sources if is_language(source) and source != "en"]
    named = {name_of(source): [source] for source in languages}
    if len(languages) > len(COLOURS):
        if set(languages) <= LANGUAGES.keys():
            named = {name: [s for s in languages if s in REGIONS[name]] for name in REGIONS}
        else:
            size = dict(zip(sources, rows, strict=True))
            largest = sorted(languages, key=lambda source: -size[source])[: len(COLOURS)]
            named = {name_of(source): [source] for source in languages if source in largest}
    groups = {"English": ("#98a4af", [source for source in sources if source == "en"])}
    groups |= {name: (COLOURS[at], members) for at, (name, members) in enumerate(named.items())}
    groups[CODE] = ("#3b4a58", [source for source in sources if source == CODE])
    pairs = [source for source in sources if is_bilingual(source)]
    grouped = {*pairs, *(source for _, members in groups.values() for source in members)}
    groups["others"] = ("#5d6975", [source for source in sources if source not in grouped])
    return groups | {PAIRED: (PURPLE, pairs)}


def _edges(tokens: np.ndarray) -> np.ndarray:
    """Indices of the counts at which the windows of a run end, or that come next after that."""
    steps = np.linspace(0, tokens[-1], min(len(tokens) - 1, 30) + 1)
    return np.unique(np.searchsorted(tokens, steps))


def _series(records: Metrics, name: str) -> np.ndarray:
    """A number of each record, NaN where there is none: [records]."""
    return np.array([record.get(name) for record in records], float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a thirtieth of the run; what is not finite does not count."""
    window, finite = np.ones(max(1, len(values) // 30)), np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0), window, "same")
    with np.errstate(invalid="ignore"):
        return sums / np.convolve(finite, window, "same")


def _key(ax: Axes, side: str, words: Sequence[tuple[str, str]]) -> None:
    """Words in the colours of what they name, under one another: a legend without its box."""
    for line, (word, colour) in enumerate(words):
        shift = (8 if side == "left" else -8, -8 - 15 * line)
        ax.annotate(word, (side == "right", 1), shift, xycoords="axes fraction", ha=side, va="top",
                    textcoords="offset points", color=colour,
                    bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip


def _mark_changes(ax: Axes, metrics: Metrics) -> None:
    """A dotted line from where on the run has another curriculum or other rows."""
    for change in of_kind(metrics, "change"):
        ax.axvline(change["tokens"], color=INK, lw=1, ls=":", gid="change")


def token_axis(ax: Axes, last: float) -> None:
    sizes = ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1, ""))
    size, letter = next((pair for pair in sizes if last >= pair[0]), sizes[-1])
    spec = ax.get_subplotspec()
    ax.set(xlim=(0, last), xlabel="tokens" if spec and spec.is_last_row() else "")
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.xaxis.set_major_formatter(lambda tokens, _: f"{tokens / size:g}{letter if tokens else ''}")


def _bare(ax: Axes) -> None:
    """Takes away the axes of a panel whose values stand beside their marks."""
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks([])
    ax.grid(False)


def picture(
    path: str | Path, size: tuple[float, float], panels: Sequence[Panel], **grid: Any
) -> Path:
    """Draws the panels on one figure of that size in inches and moves it to `path` when whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        for draw, ax in zip(panels, figure.subplots(squeeze=False, **grid).flat, strict=True):
            draw(ax)
        figure.savefig(unfinished, format="png")
    os.replace(unfinished, path)
    return path
