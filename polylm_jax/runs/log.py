"""What a run has logged: the records of its alive branch, thinned and summed up."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polylm_jax.data.languages import in_order
from polylm_jax.errors import UserError
from polylm_jax.train.log import COUNTS, Record, alive, logs

Metrics = list[Record]
Bits = dict[str, float]

MOST = 1000  # records of a kind that are kept of a log: a figure has no more columns to draw in


class Rows(NamedTuple):
    """Rows read since the start of a run, from nothing (index 0) to its last logged count.

    tokens: [counts + 1]. measured, scheduled: [counts + 1, sources], cumulative.
    """

    tokens: np.ndarray
    sources: list[str]
    measured: np.ndarray
    scheduled: np.ndarray


def read_metrics(folder: str | Path) -> Metrics:
    """The records of a run's alive branch, by step: all of a short log, and of a long one, however
    long, at most MOST of each kind and the one at step 0.

    folder: the run's, local or on a path that fsspec knows. UserError if there is no log or it is
    damaged. A record of "train" that stands for several steps has their number in "steps", that
    of those whose loss was no number in "unsound", the mean of the other losses in "loss" and
    their extremes in "lowest" and "highest", and the largest of "deviation". The rest is that of
    one step, of one with counts where there is one. Of other kinds the last record stays.
    """
    if not logs(str(folder))[1]:
        raise UserError(f"{folder} has no metrics.jsonl: give the folder of a run that trained.")
    steps, others, width = dict[int, _Steps](), dict[tuple[str, int], Record](), 0
    for record in alive(str(folder)):
        kind, step = record["kind"], record["step"]
        width = width or max(1, -(-step // MOST))  # the first to come is of the last step
        place = -(-step // width)
        if kind == "train":
            steps.setdefault(place, _Steps(record)).add(record)
        else:
            others.setdefault((kind, place), record)
    newest_first = [*others.values(), *(one.summed_up() for one in steps.values())]
    newest_first.reverse()
    return sorted(newest_first, key=lambda record: record["step"])


@dataclass
class _Steps:
    """Steps that one record is to stand for."""

    record: Record
    steps: int = 0
    sound: int = 0
    total: float = 0.0
    lowest: float = np.inf
    highest: float = -np.inf
    worst: float | None = None

    def add(self, record: Record) -> None:
        """Adds the step before those that are there."""
        self.steps += 1
        if (loss := record["loss"]) is not None:
            self.sound, self.total = self.sound + 1, self.total + loss
            self.lowest, self.highest = min(self.lowest, loss), max(self.highest, loss)
        if (off := deviation(record)) is not None:
            self.worst = off if self.worst is None else max(self.worst, off)
        if COUNTS[0] in record and COUNTS[0] not in self.record:
            self.record = record

    def summed_up(self) -> Record:
        if self.steps == 1:
            return self.record
        sound: Record = {"loss": None}
        if self.sound:
            sound = {"loss": self.total / self.sound}
            sound |= {"lowest": self.lowest, "highest": self.highest}
        counted = {"steps": self.steps, "unsound": self.steps - self.sound}
        return self.record | counted | sound | {"deviation": self.worst}


def of_kind(metrics: Metrics, kind: str) -> Metrics:
    """The records of one kind, "train" or "valid"."""
    return [record for record in metrics if record["kind"] == kind]


def history(metrics: Metrics) -> Metrics:
    """What a run began with and where its data changed, if so; "said" follows "The run"."""
    return [*of_kind(metrics, "origin"), *of_kind(metrics, "change")]


def untrained_and_trained(metrics: Metrics) -> tuple[Bits, Bits] | None:
    """Bits per byte of each source at step 0 and at the last validation, None before both exist.

    What was no number is NaN.
    """
    valid = of_kind(metrics, "valid")
    if len(valid) < 2 or valid[0]["step"] != 0:
        return None
    before, after = valid[0]["bits_per_byte"], valid[-1]["bits_per_byte"]
    order = in_order(before.keys() & after.keys())
    first, last = (
        {name: np.nan if table[name] is None else table[name] for name in order}
        for table in (before, after)
    )
    return first, last


def counts_of(metrics: Metrics) -> Metrics:
    """The records of steps after which the rows of each source were counted."""
    return [record for record in of_kind(metrics, "train") if COUNTS[0] in record]


def rows_read(metrics: Metrics) -> Rows:
    """The rows of each source in the batches, and what the schedule asked for, where counted."""
    counted = counts_of(metrics)
    names = {name for record in counted for table in COUNTS for name in record[table]}
    sources = in_order(names)
    measured, scheduled = (
        np.array([[counts.get(name, 0.0) for name in sources] for counts in ({}, *tables)], float)
        for tables in ([record[table] for record in counted] for table in COUNTS)
    )
    return Rows(np.array([0, *(r["tokens"] for r in counted)], float), sources, measured, scheduled)


def deviation(record: Record) -> float | None:
    """How many rows the source furthest from its schedule was off, the worst of the record's
    steps; None where it was not logged."""
    if "deviation" in record:
        return record["deviation"]
    if COUNTS[0] not in record:
        return None
    # a log from before the trainer kept this has the counts of each step
    read, due = (record[table] for table in COUNTS)
    return max((abs(read.get(s, 0) - due.get(s, 0)) for s in read | due), default=None)


def steps_of(train: Metrics) -> tuple[int, int]:
    """How many steps these records stand for, and for how many whose loss was no number."""
    return (
        sum(record.get("steps", 1) for record in train),
        sum(record.get("unsound", record["loss"] is None) for record in train),
    )
