"""Figures are real pictures that change with the numbers; the metrics they read survive a kill."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from polylm_jax import figures
from polylm_jax.data.languages import LANGUAGES, NON_ENGLISH
from polylm_jax.errors import UserError

ROWS, LENGTH = 32, 128


def shares_at(progress, last=0.6):
    """The share of each source: non-English 30% of the monolingual rows, then a ramp to `last`."""
    foreign = 0.3 + (last - 0.3) * min(1, max(0, 2 * progress - 0.5))
    weights = {code: LANGUAGES[code].tokens ** (1 - 0.5 * progress) for code in NON_ENGLISH}
    total = sum(weights.values())
    shares = {"en": 0.9 * (1 - foreign)}
    shares |= {code: 0.9 * foreign * weights[code] / total for code in NON_ENGLISH}
    return shares | {f"en-{code}": 0.1 / len(NON_ENGLISH) for code in NON_ENGLISH}


def synthetic_metrics(steps=40, last=0.6, seed=0):
    """What a run of `steps` steps logs, each row going to the source furthest behind."""
    random = np.random.default_rng(seed)
    sources = list(shares_at(0))
    due, read = np.zeros(len(sources)), np.zeros(len(sources), int)

    def valid(step, scale):
        bits = {s: scale * (1 + 0.3 * random.random()) for s in sources}
        loss = {s: 3.5 * value for s, value in bits.items()}
        return {"kind": "valid", "step": step, "tokens": step * ROWS * LENGTH,
                "bits_per_byte": bits, "loss": loss}

    records = [valid(0, 2.8)]
    for step in range(1, steps + 1):
        for row in range(ROWS):
            progress = ((step - 1) * ROWS + row + 0.5) / (steps * ROWS)
            due += np.array(list(shares_at(progress, last).values()))
            read[np.argmax(due - read)] += 1
        loss = 4 + 5 * np.exp(-5 * step / steps) + 0.15 * random.normal()
        records.append({
            "kind": "train", "step": step, "tokens": step * ROWS * LENGTH, "rows": step * ROWS,
            "loss": loss, "skipped": 0, "mfu": None,
            "row_counts": dict(zip(sources, read.tolist(), strict=True)),
            "schedule_counts": dict(zip(sources, due.tolist(), strict=True)),
        })
        if step % max(1, steps // 5) == 0:
            records.append(valid(step, 1.3 + 1.5 * np.exp(-4 * step / steps)))
    return records


def write_run(folder, records, tail=""):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")
    return folder
