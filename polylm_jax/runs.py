"""What a run has logged: its metrics.jsonl, read back and summed up."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from polylm_jax.data.languages import LANGUAGES
from polylm_jax.errors import UserError

Metrics = list[dict]

FIELDS = {
    "train": {"tokens", "loss", "row_counts", "schedule_counts"},
    "valid": {"tokens", "loss", "bits_per_byte"},
}


class Rows(NamedTuple):
    """Rows read since the start of a run, from nothing (index 0) to its last logged step.

    tokens: [steps + 1]. measured, scheduled: [steps + 1, sources], cumulative.
    """

    tokens: np.ndarray
    sources: list[str]
    measured: np.ndarray
    scheduled: np.ndarray


def read_metrics(folder: str | Path) -> Metrics:
    """The records that a run has logged, the last one of each (kind, step), ordered by step.

    folder: the run's, local or on a path that fsspec knows. A resumed run logs some steps twice
    and a killed one may leave its last line half written; both are expected. Raises UserError if
    there is no log or another line is not a record.
    """
    files, paths = logs(folder)
    if not paths:
        raise UserError(f"{folder} has no metrics.jsonl: give the folder of a run that trained.")
    records = {}
    for path in paths:
        lines = files.cat_file(path).split(b"\n")
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


def logs(folder: str | Path) -> tuple[AbstractFileSystem, list[str]]:
    """The file system of a run's folder and the logs there, oldest first; perhaps none."""
    files, place = url_to_fs(str(folder))
    return files, sorted(files.glob(f"{place}/metrics*.jsonl"))


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
