"""Learn to answer from conversations (tune.data): make their rows, then train, or go on."""

import argparse
from dataclasses import fields

import jax
from jax.experimental import multihost_utils
from rich.console import Console
from rich.table import Table

from polylm_jax import config
from polylm_jax.data import tokenizer
from polylm_jax.data.languages import name_of
from polylm_jax.data.rows import open_store
from polylm_jax.errors import UserError
from polylm_jax.runs.log import read_metrics, untrained_and_trained
from polylm_jax.runs.report import mean_lines
from polylm_jax.tune.instruct import build, schedule_of, steps_of
from polylm_jax.verbs import train


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("--rows_only", action="store_true", help="make the rows and stop")
    train.flags(parser)


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    if given.rows_only:
        make_rows()
        return

    def prepare() -> None:
        if jax.process_index() == 0:
            make_rows()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("rows to tune on are made")
        config.parse(given.gin_file, [*given.overrides, *following()])

    train.train_as(given, prepare)
    if jax.process_index() == 0:
        show_gain(config.get("train").folder)


def make_rows() -> None:
    """Makes the store at rows.path unless it is there."""
    rows, chat = config.get("rows"), config.get("chat")
    files = config.get("tune").data
    print(
        f'Reading {len(files)} files of conversations, format "{chat.format}", into rows of '
        f"{rows.length} tokens in {rows.path}.",
        flush=True,
    )
    vocabulary = tokenizer.load(config.get("tokenizer").path)
    build(config.get("tune"), config.get("examples"), chat, rows, vocabulary)


def following() -> list[str]:
    """The settings that follow from the rows, as gin: steps, learning rate, order of rows."""
    settings, training = config.get("tune"), config.get("train")
    store = open_store(config.get("rows").path)
    if not store.marked:
        raise UserError(
            f"{store.path} has rows of plain text; give rows.path another folder for those of "
            "conversations."
        )
    counts = {source: store.rows(source) for source in store.sources}
    steps = steps_of(sum(counts.values()), settings.epochs, training.batch)
    schedule = schedule_of(counts, settings.seed)
    return [
        f"train.steps = {steps}",
        f"optimizer.decay_steps = {steps}",
        f"optimizer.warmup_steps = {min(round(settings.warmup * steps), steps - 1)}",
        *(f"curriculum.{f.name} = {getattr(schedule, f.name)!r}" for f in fields(schedule)),
    ]


def show_gain(folder: str) -> None:
    """Prints what held-out answers cost before and after, in bits per byte."""
    bits = untrained_and_trained(read_metrics(folder))
    if bits is None:
        return
    table = Table("language", title="Held-out answers, bits per byte", title_justify="left")
    for head in ("before", "after", "change"):
        table.add_column(head, justify="right")
    for source, before in bits[0].items():
        after = bits[1][source]
        table.add_row(
            name_of(source), f"{before:.3f}", f"{after:.3f}", f"{after / before - 1:+.1%}"
        )
    Console().print(table)
    for line in mean_lines(*bits):
        print(line)
