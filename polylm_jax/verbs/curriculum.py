"""Show what a schedule reads over a run: tokens and epochs of each source, and a figure."""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from polylm_jax import config
from polylm_jax.data import curriculum, rows
from polylm_jax.data.schedule import every_source, make_curriculum
from polylm_jax.files import MANIFEST, opened
from polylm_jax.runs import figures
from polylm_jax.runs.log import Rows
from polylm_jax.train.course import planned


def flags(parser: argparse.ArgumentParser) -> None:
    """This verb has no flags of its own."""


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    training, schedule, settings = (config.get(name) for name in ("train", "curriculum", "rows"))
    total = training.steps * training.batch
    files, root = opened(settings.path)
    if stored := files.isfile(f"{root}/{MANIFEST}"):
        store = rows.open_store(settings.path)
        plan, length = (
            planned(training.folder, training.accept_changes, schedule, store),
            store.length,
        )
    else:
        print(f"There are no rows at {settings.path}: all sources are taken, without epochs.")
        sizes, length = dict.fromkeys(every_source(schedule), 1), settings.length
        plan = make_curriculum(schedule, sizes, length)
    print(f"Reading {total * length:,} tokens, {total:,} rows of {length}.")
    shown = Table("source", *(Column(name, justify="right") for name in ("tokens", "share")))
    if stored:
        shown.add_column("epochs", justify="right")
    read, epochs = curriculum.consumed(plan, total), curriculum.epochs(plan, total)
    for source, count, times in zip(plan.sources, read.tolist(), epochs, strict=True):
        cells = [f"{count * length:,}", f"{count / total:.2%}"]
        shown.add_row(source, *cells, *([f"{times:.2f}"] if stored else []))
    Console().print(shown)
    often = ", ".join(np.array(plan.sources)[epochs > curriculum.MOST_EPOCHS])
    if stored and often:
        print(
            f"Warning: {often} repeat more than {curriculum.MOST_EPOCHS} times, after which "
            "reading again helps little (Muennighoff et al. 2023); add text or lower the share."
        )
    if stored and schedule.on_end == "refuse" and (epochs > 1).any():
        short = ", ".join(np.array(plan.sources)[epochs > 1])
        print(f'Warning: the run will stop early, out of {short} (curriculum.on_end = "refuse").')
    if "://" in training.folder:
        print("No figure is drawn, as train.folder is not on this machine.")
        return
    edges = np.unique(np.linspace(0, total, 1001).astype(np.int64))
    due = curriculum.integral(plan, edges)
    drawn = figures.schedule(
        Rows(edges * float(length), list(plan.sources), due, due),
        Path(training.folder) / "figures" / "schedule.png",
    )
    print(f"The figure is {drawn}.")
