"""Figures of a training run and of the tokenizer: PNG files drawn from logged numbers alone.

Every picture is made of panels, functions that draw one idea on one Axes; the overview is
composed of the same panels as the single figures.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from polylm_jax.data.languages import LANGUAGES, is_bilingual
from polylm_jax.errors import UserError

Metrics = list[dict]

INK, MUTED, GRID = "#22303c", "#6b7a88", "#e3e8ec"
BLUE, RED, PALE = "#1f6f9f", "#d1495b", "#bccfdc"
PAIRED = "paired with English"
GROUPS = {  # colour and members; the order is that of the stack, from the bottom
    "English": ("#c9d0d6", ("en",)),
    "Chinese": (RED, ("zh",)),
    "European": (BLUE, ("ru", "es", "de", "fr", "it", "pt", "pl", "nl")),
    "East Asian": ("#2f9c8a", ("ja", "vi", "id", "th", "ko")),
    "West Asian": ("#e2a336", ("ar", "tr", "he")),
    "other": ("#5d6975", ()),
    PAIRED: ("#8a6fb3", ()),
}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
NEEDED = {
    "train": ("tokens", "loss", "row_counts", "schedule_counts"),
    "valid": ("tokens", "loss", "bits_per_byte"),
}


def read_metrics(path: str | Path) -> Metrics:
    """The records of a `metrics.jsonl`, the last one of each (kind, step), ordered by step.

    A resumed run logs some steps twice, and a killed one may leave its last line half written;
    both are expected. Raises UserError if the file is missing or another line is not a record.
    """
    try:
        *lines, unfinished = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give the folder of a run that has trained."
        ) from None
    records = {}
    for number, line in enumerate([*lines, unfinished], start=1):
        try:
            record = json.loads(line)
            missing = [key for key in NEEDED.get(record["kind"], ()) if key not in record]
            if missing:
                raise KeyError(*missing)
            records[record["kind"], record["step"]] = record
        except (ValueError, TypeError, KeyError):
            if number <= len(lines):
                raise UserError(
                    f"{path}:{number} is not a whole record of a run: delete that line."
                ) from None
    return sorted(records.values(), key=lambda record: record["step"])


def of_kind(metrics: Metrics, kind: str) -> Metrics:
    """The records of one kind, "train" or "valid"."""
    return [record for record in metrics if record["kind"] == kind]


class Rows(NamedTuple):
    """Rows read since the start of a run, from nothing (index 0) to its last logged step.

    tokens: [steps + 1]. measured, scheduled: [steps + 1, sources], cumulative.
    """

    tokens: np.ndarray
    sources: list[str]
    measured: np.ndarray
    scheduled: np.ndarray


def rows_read(metrics: Metrics) -> Rows:
    """The rows of each source in the batches, and what the schedule asked for."""
    train = of_kind(metrics, "train")
    names = {name for record in train for name in record["row_counts"] | record["schedule_counts"]}
    sources = in_order(names)

    def counts(field: str) -> np.ndarray:
        table = [[record[field].get(source, 0) for source in sources] for record in train]
        return np.array([[0] * len(sources), *table], float)

    tokens = np.array([0, *(record["tokens"] for record in train)], float)
    return Rows(tokens, sources, counts("row_counts"), counts("schedule_counts"))


def in_order(names: set[str]) -> list[str]:
    """Sources in the order of the language table, then the others, then the bilingual ones."""
    places = {code: place for place, code in enumerate(LANGUAGES)}
    return sorted(
        names,
        key=lambda name: (is_bilingual(name), places.get(name.split("-")[-1], len(places)), name),
    )


def non_english_share(sources: list[str], counts: np.ndarray) -> np.ndarray:
    """The non-English share, 0 to 1, of the monolingual rows in counts [..., sources]."""
    languages = [source in LANGUAGES for source in sources]
    foreign = [source in LANGUAGES and source != "en" for source in sources]
    return counts[..., foreign].sum(-1) / np.maximum(counts[..., languages].sum(-1), 1e-9)


def deviation(rows: Rows) -> np.ndarray:
    """After each step, how many rows the source furthest from its schedule is off: [steps]."""
    return np.abs(rows.measured - rows.scheduled).max(-1)[1:]


def name_of(source: str) -> str:
    """What a figure calls a source: "German (de)", "English–German", "code"."""
    if is_bilingual(source):
        return "–".join(
            LANGUAGES[code].name if code in LANGUAGES else code for code in source.split("-")
        )
    return f"{LANGUAGES[source].name} ({source})" if source in LANGUAGES else source


def bytes_per_token(table: dict[str, float], path: str | Path) -> Path:
    """Bars of UTF-8 bytes per token of each source, the best compressed on top."""
    sources = sorted(table, key=lambda source: table[source])
    colours = [GROUPS[PAIRED][0] if is_bilingual(source) else BLUE for source in sources]
    with _figure(path, 8.3, 1.1 + 0.235 * len(sources)) as figure:
        ax = figure.add_subplot()
        bars = ax.barh([name_of(source) for source in sources],
                       [table[source] for source in sources], color=colours, height=0.72)
        ax.bar_label(bars, fmt="%.2f", padding=4, fontsize=9, color=INK)
        ax.set_title("UTF-8 bytes per token")
        ax.set(ylim=(-0.6, len(sources) - 0.4), xticks=[])
        ax.spines[["bottom", "left"]].set_visible(False)
        ax.tick_params(length=0)
        ax.grid(False)
        kinds = [("one language", BLUE), (PAIRED, GROUPS[PAIRED][0])]
        _key(ax, "lower right", [kind for kind in kinds if kind[1] in colours])
    return Path(path)


def curriculum(metrics: Metrics, path: str | Path) -> Path:
    """The schedule against what the batches held: non-English share, sources, deviation."""
    rows = rows_read(metrics)
    with _figure(path, 8.3, 7.6) as figure:
        top, middle, bottom = figure.subplots(
            3, sharex=True, gridspec_kw={"height_ratios": (3, 3, 1)}
        )
        _draw_share(top, rows)
        _draw_sources(middle, rows)
        _draw_deviation(bottom, rows)
        for ax in (top, middle):
            ax.set_xlabel("")
    return Path(path)


def loss(metrics: Metrics, path: str | Path) -> Path:
    """Training loss of each step and its running mean, with the validation loss."""
    with _figure(path, 8.3, 4.2) as figure:
        _draw_loss(figure.add_subplot(), metrics)
    return Path(path)


def bits_per_byte(before: dict[str, float], after: dict[str, float], path: str | Path) -> Path:
    """A dumbbell for each source that both tables hold, the lowest after training on top."""
    with _figure(path, 8.3, 1.3 + 0.25 * len(after)) as figure:
        _draw_bits_per_byte(figure.add_subplot(), before, after)
    return Path(path)


def run_figures(run: str | Path) -> list[Path]:
    """Draws all that a run's metrics allow into `<run>/figures/`; overview.png comes last.

    Without two validations there is no picture of bits per byte. Raises UserError if the
    metrics are missing, broken or hold no training step.
    """
    metrics = read_metrics(Path(run) / "metrics.jsonl")
    if not of_kind(metrics, "train"):
        raise UserError(f"{run}/metrics.jsonl holds no training step: train for one step first.")
    folder = Path(run) / "figures"
    drawn = [curriculum(metrics, folder / "curriculum.png"), loss(metrics, folder / "loss.png")]
    panels: list[Callable[[Axes], None]] = [
        partial(_draw_share, rows=rows_read(metrics)),
        partial(_draw_loss, metrics=metrics),
    ]
    valid = of_kind(metrics, "valid")
    if len(valid) > 1:
        before, after = (
            {code: bits for code, bits in record["bits_per_byte"].items() if code in LANGUAGES}
            for record in (valid[0], valid[-1])
        )
        drawn.append(bits_per_byte(before, after, folder / "bits_per_byte.png"))
        panels.append(partial(_draw_bits_per_byte, before=before, after=after))
    with _figure(folder / "overview.png", 4.2 * len(panels), 4.8) as figure:
        for draw, ax in zip(panels, figure.subplots(1, len(panels)), strict=True):
            draw(ax)
    return [*drawn, folder / "overview.png"]


def _draw_share(ax: Axes, rows: Rows) -> None:
    shares = partial(non_english_share, rows.sources)
    steps, edges = np.diff(rows.tokens), _windows(len(rows.tokens) - 1)
    middles = rows.tokens[1:] - steps / 2
    ax.plot(middles, shares(np.diff(rows.scheduled, axis=0)), color=PALE, lw=6,
            solid_capstyle="butt")
    ax.plot(middles, shares(np.diff(rows.measured, axis=0)), ".", color=BLUE, ms=2.5, alpha=0.3)
    ax.plot((rows.tokens[edges][1:] + rows.tokens[edges][:-1]) / 2,
            shares(np.diff(rows.measured[edges], axis=0)), "o", color=BLUE, ms=4)
    ax.set_title("Non-English share of rows")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_ylim(0, None)
    _token_axis(ax, rows.tokens[-1])
    _key(ax, "upper left", [("schedule", "#8fafc4"), ("measured in the batches", BLUE)])


def _draw_sources(ax: Axes, rows: Rows) -> None:
    edges = _windows(len(rows.tokens) - 1)
    counts = np.diff(rows.measured[edges], axis=0)
    shares = counts / counts.sum(-1, keepdims=True)
    bottom = np.zeros(len(shares))
    places, labels = [], []
    for name, (colour, _) in GROUPS.items():
        members = [place for place, source in enumerate(rows.sources) if _group(source) == name]
        start = bottom
        for rank, member in enumerate(members):
            tint = _lighter(colour, 0.45 * rank / max(1, len(members) - 1))
            ax.stairs(bottom + shares[:, member], rows.tokens[edges], baseline=bottom, fill=True,
                      color=tint)
            bottom = bottom + shares[:, member]
        if members:
            places.append((start[-1] + bottom[-1]) / 2)
            labels.append((f"{name} {bottom[-1] - start[-1]:.0%}", colour))
    for height, (label, colour) in zip(_apart(places, 0.075), labels, strict=True):
        ax.annotate(label, (1.01, height), xycoords="axes fraction", va="center", fontsize=9,
                    color=_lighter(colour, -0.25))
    ax.set_title("Share of each source in the batches")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_ylim(0, 1)
    ax.grid(False)
    _token_axis(ax, rows.tokens[-1])


def _draw_deviation(ax: Axes, rows: Rows) -> None:
    worst = deviation(rows)
    ax.fill_between(rows.tokens[1:], worst, color=BLUE, alpha=0.35, lw=0)
    ax.axhline(1, color=RED, lw=1.2)
    ax.annotate("one row", (1.01, 1), xycoords=("axes fraction", "data"), va="center",
                fontsize=9, color=RED)
    ax.set_title(f"Largest deviation of any source from its schedule: {worst.max():.2f} rows")
    ax.set_ylim(0, max(1.15, worst.max() * 1.1))
    ax.yaxis.set_major_locator(MaxNLocator(2))
    _token_axis(ax, rows.tokens[-1])


def _draw_loss(ax: Axes, metrics: Metrics) -> None:
    train, valid = of_kind(metrics, "train"), of_kind(metrics, "valid")
    tokens = np.array([record["tokens"] for record in train])
    losses = np.array([record["loss"] for record in train], float)
    ax.plot(tokens, losses, color=BLUE, lw=0.8, alpha=0.3)
    ax.plot(tokens, _smooth(losses), color=BLUE, lw=2)
    key = [("training", BLUE)]
    if valid:
        means = [_language_mean(record["loss"]) for record in valid]
        ax.plot([record["tokens"] for record in valid], means, "o-", color=RED, lw=1.2, ms=4.5)
        key.append(("validation, mean of languages", RED))
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda nats, _: f"{nats:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_title("Loss, nats per token")
    _token_axis(ax, tokens[-1])
    _key(ax, "upper right", key)


def _draw_bits_per_byte(ax: Axes, before: dict[str, float], after: dict[str, float]) -> None:
    sources = sorted(before.keys() & after.keys(), key=lambda source: (after[source], source))
    starts, ends = ([table[source] for source in sources] for table in (before, after))
    places = np.arange(len(sources))
    ax.hlines(places, starts, ends, color=PALE, lw=3)
    for values, colour, side, word in ((starts, MUTED, 1, "untrained"), (ends, BLUE, -1, "trained")):
        ax.plot(values, places, "o", color=colour, ms=5.5)
        align = "left" if side > 0 else "right"
        for value, place in zip(values, places, strict=True):
            ax.annotate(f"{value:.2f}", (value, place), (6 * side, 0), textcoords="offset points",
                        ha=align, va="center", fontsize=8, color=colour)
        ax.annotate(word, (values[0], -0.9), ha="center", va="center", fontsize=9, color=colour)
    ax.set_yticks(places, [name_of(source) for source in sources], fontsize=9)
    ax.set_ylim(len(sources) - 0.4, -1.5)
    ax.margins(x=0.15)
    ax.set_title("Bits per byte, validation")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks([])
    ax.grid(False)


def _group(source: str) -> str:
    if is_bilingual(source):
        return PAIRED
    return next((name for name, (_, members) in GROUPS.items() if source in members), "other")


def _language_mean(table: dict[str, float]) -> float:
    return float(np.mean([value for source, value in table.items() if source in LANGUAGES]))


def _windows(steps: int, count: int = 40) -> np.ndarray:
    """Step indices that cut a run into equal windows."""
    return np.unique(np.linspace(0, steps, count + 1).round().astype(int))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a thirtieth of the run; skipped steps (not finite) do not count."""
    window, finite = np.ones(max(1, len(values) // 30)), np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0), window, "same")
    counts = np.convolve(finite, window, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _lighter(colour: str, amount: float) -> tuple[float, ...]:
    """The colour mixed with white, or with black for a negative amount."""
    target = 1.0 if amount > 0 else 0.0
    return tuple(part + (target - part) * abs(amount) for part in to_rgb(colour))


def _apart(places: list[float], gap: float) -> list[float]:
    """Rising places moved down, just enough that labels put there keep a gap."""
    ceiling, moved = 1.0, []
    for place in reversed(places):
        moved.append(min(place, ceiling))
        ceiling = moved[-1] - gap
    return moved[::-1]


def _key(ax: Axes, corner: str, words: list[tuple[str, str]]) -> None:
    """Words in the colours of what they name, stacked in a corner: a legend without a box."""
    vertical, side = corner.split()
    for line, (word, colour) in enumerate(words):
        height = 0.96 - 0.075 * line if vertical == "upper" else 0.04 + 0.03 * line
        ax.text(0.02 if side == "left" else 0.98, height, word, transform=ax.transAxes,
                ha=side, va="top" if vertical == "upper" else "bottom", color=colour)


def _token_axis(ax: Axes, last: float) -> None:
    unit, letter = next(
        (size, letter) for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1, ""))
        if last >= 2 * size or size == 1
    )
    ax.set_xlim(0, last)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens / unit:g}{letter}"))
    ax.set_xlabel("tokens")


@contextmanager
def _figure(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of that size in inches, written to `path` in one move once it is drawn."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(unfinished, format="png")
    os.replace(unfinished, path)
