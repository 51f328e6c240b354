"""Figures of a training run and of the tokenizer: PNG files drawn from logged numbers alone.

A picture is made of panels, functions that draw one idea on one Axes; the overview is composed
of the same panels as the single figures.
"""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from polylm_jax.data.languages import LANGUAGES, is_bilingual
from polylm_jax.errors import UserError

INK, MUTED, GRID, PALE, BLUE, RED = "#22303c", "#6b7a88", "#e3e8ec", "#bccfdc", "#1f6f9f", "#d1495b"
PAIRED, PURPLE = "paired with English", "#8a6fb3"
GROUPS = {  # name: colour, members; from the bottom of the stack
    "English": ("#a9b4be", ("en",)),
    "Chinese": (RED, ("zh",)),
    "European": (BLUE, ("ru", "es", "de", "fr", "it", "pt", "pl", "nl")),
    "East Asian": ("#2f9c8a", ("ja", "vi", "id", "th", "ko")),
    "West Asian": ("#d9982b", ("ar", "tr", "he")),
    "other": ("#5d6975", ()),
    PAIRED: (PURPLE, ()),
}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlepad": 10, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": GRID,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.1,
}  # fmt: skip
FIELDS = {
    "train": {"tokens", "loss", "row_counts", "schedule_counts"},
    "valid": {"tokens", "loss", "bits_per_byte"},
}
Metrics = list[dict]
Panel = Callable[[Axes], None]


class Rows(NamedTuple):
    """Rows read since the start of a run, from nothing (index 0) to its last logged step.

    tokens: [steps + 1]. measured, scheduled: [steps + 1, sources], cumulative.
    """

    tokens: np.ndarray
    sources: list[str]
    measured: np.ndarray
    scheduled: np.ndarray


def read_metrics(path: str | Path) -> Metrics:
    """The records of a `metrics.jsonl`, the last one of each (kind, step), ordered by step.

    A resumed run logs some steps twice and a killed one may leave its last line half written;
    both are expected. Raises UserError if the file is missing or another line is not a record.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError:
        raise UserError(f"{path} cannot be read: give the folder of a run that trained.") from None
    records = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            key = record["kind"], int(record["step"])
            whole = FIELDS.get(record["kind"], set()) <= record.keys()
        except (ValueError, TypeError, KeyError):
            whole = False
        if whole:
            records[key] = record
        elif number < len(lines):
            raise UserError(f"{path}:{number} is not a record of a run: delete that line.")
    return [records[key] for key in sorted(records, key=lambda key: key[1])]


def of_kind(metrics: Metrics, kind: str) -> Metrics:
    """The records of one kind, "train" or "valid"."""
    return [record for record in metrics if record["kind"] == kind]


def untrained_and_trained(metrics: Metrics) -> tuple[dict[str, float], dict[str, float]] | None:
    """Bits per byte of each source at step 0 and at the last validation, None before both exist."""
    valid = of_kind(metrics, "valid")
    if len(valid) < 2 or valid[0]["step"] != 0:
        return None
    before, after = valid[0]["bits_per_byte"], valid[-1]["bits_per_byte"]
    shared = before.keys() & after.keys()
    order = [*(code for code in LANGUAGES if code in shared), *sorted(shared - LANGUAGES.keys())]
    return {name: before[name] for name in order}, {name: after[name] for name in order}


def rows_read(metrics: Metrics) -> Rows:
    """The rows of each source in the batches, and what the schedule asked for."""
    train = of_kind(metrics, "train")
    names = {name for record in train for name in record["schedule_counts"] | record["row_counts"]}
    sources = [*(code for code in LANGUAGES if code in names), *sorted(names - LANGUAGES.keys())]
    measured, scheduled = (
        np.array([[record.get(name, 0.0) for name in sources] for record in [{}, *counts]], float)
        for counts in ([r["row_counts"] for r in train], [r["schedule_counts"] for r in train])
    )
    return Rows(np.array([0, *(r["tokens"] for r in train)], float), sources, measured, scheduled)


def non_english_share(sources: list[str], counts: np.ndarray) -> np.ndarray:
    """The non-English share, 0 to 1, of the monolingual rows in counts [..., sources]."""
    foreign = counts[..., [name in LANGUAGES and name != "en" for name in sources]].sum(-1)
    return foreign / np.maximum(counts[..., [name in LANGUAGES for name in sources]].sum(-1), 1e-9)


def deviation(rows: Rows) -> np.ndarray:
    """After each step, how many rows the source furthest from its schedule is off: [steps]."""
    return np.abs(rows.measured - rows.scheduled).max(-1)[1:]


def bytes_per_token(table: dict[str, float], path: str | Path) -> Path:
    """Bars of UTF-8 bytes per token of each source, the best compressed on top."""
    return _picture(path, (8.3, 1 + 0.235 * len(table)), [partial(_bytes_panel, table=table)])


def curriculum(metrics: Metrics, path: str | Path) -> Path:
    """The schedule against what the batches held: non-English share, sources, deviation."""
    rows = rows_read(metrics)
    panels = [partial(panel, rows=rows) for panel in (_share_panel, _stack_panel, _deviation_panel)]
    return _picture(path, (8.3, 7.8), panels, nrows=3, sharex=True, height_ratios=(3, 3, 1))


def loss(metrics: Metrics, path: str | Path) -> Path:
    """Training loss of each step and its running mean, with the validation loss."""
    return _picture(path, (8.3, 4.2), [partial(_loss_panel, metrics=metrics)])


def bits_per_byte(before: dict[str, float], after: dict[str, float], path: str | Path) -> Path:
    """A dumbbell for each source (the keys of both tables), the lowest after training on top."""
    panel = partial(_dumbbell_panel, before=before, after=after)
    return _picture(path, (8.3, 1.1 + 0.25 * len(after)), [panel])


def run_figures(run: str | Path) -> list[Path]:
    """Draws all that a run's metrics allow into `<run>/figures/`; overview.png comes last.

    Before the first validation of a trained model there is no picture of bits per byte. Raises
    UserError if the metrics are missing, broken or hold no training step.
    """
    metrics, folder = read_metrics(Path(run) / "metrics.jsonl"), Path(run) / "figures"
    if not of_kind(metrics, "train"):
        raise UserError(f"{run}/metrics.jsonl holds no training step: train for one step first.")
    drawn = [curriculum(metrics, folder / "curriculum.png"), loss(metrics, folder / "loss.png")]
    panels: list[Panel] = [
        partial(_share_panel, rows=rows_read(metrics)), partial(_loss_panel, metrics=metrics)
    ]  # fmt: skip
    if pair := untrained_and_trained(metrics):
        before, after = ({code: t[code] for code in t if code in LANGUAGES} for t in pair)
        drawn.append(bits_per_byte(before, after, folder / "bits_per_byte.png"))
        panels.append(partial(_dumbbell_panel, before=before, after=after))
    size = (4.3 * len(panels), 4.8)
    return [*drawn, _picture(folder / "overview.png", size, panels, ncols=len(panels))]


def _share_panel(ax: Axes, rows: Rows) -> None:
    shares, edges = partial(non_english_share, rows.sources), _windows(len(rows.tokens) - 1)
    middles = (rows.tokens[1:] + rows.tokens[:-1]) / 2
    scheduled, single = (
        shares(np.diff(counts, axis=0)) for counts in (rows.scheduled, rows.measured)
    )
    ax.plot(middles, scheduled, color=PALE, lw=6, solid_capstyle="butt")
    ax.plot(middles, single, ".", color=BLUE, ms=2.5, alpha=0.35)
    centres = (rows.tokens[edges][1:] + rows.tokens[edges][:-1]) / 2
    ax.plot(centres, shares(np.diff(rows.measured[edges], axis=0)), "o", color=BLUE, ms=4.5)
    ax.set(title="Non-English share of rows", ylim=(0, 1.25 * max(scheduled.max(), single.max())))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _token_axis(ax, rows.tokens[-1])
    steps = max(np.diff(edges))
    words = ("schedule", f"batches, windows of {steps} steps", "batches, single steps")
    _key(ax, "left", zip(words, ("#86a8bf", BLUE, "#79a9c5"), strict=True))


def _stack_panel(ax: Axes, rows: Rows) -> None:
    edges = _windows(len(rows.tokens) - 1)
    counts = np.diff(rows.measured[edges], axis=0)
    ends = np.cumsum(counts / counts.sum(-1, keepdims=True), axis=-1)
    groups = [_group(source) for source in rows.sources]
    order = sorted(range(len(groups)), key=lambda place: list(GROUPS).index(groups[place]))
