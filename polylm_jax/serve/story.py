"""What the page tells of a run: where it stands, bits per byte, the schedule, the loss; read anew
while it trains, from the run's folder alone."""

import json
import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np

from polylm_jax.data import curriculum
from polylm_jax.data.languages import in_order, is_bilingual, is_language, name_of
from polylm_jax.errors import UserError
from polylm_jax.files import opened, reading
from polylm_jax.runs.figures import groups
from polylm_jax.runs.log import Metrics, history, of_kind, read_metrics, rows_read
from polylm_jax.runs.status import checkpoints, status_of
from polylm_jax.train.course import course_of
from polylm_jax.train.heartbeat import read_heartbeat
from polylm_jax.train.log import logs

POINTS = 240  # of a curve: more than that no screen shows beside the rest
OFTEN, SHARE = 2.0, 0.1  # seconds between two readings at least, and how much of the time they take

JSON = dict[str, Any]


def story(folder: str) -> JSON:
    """All of it, in numbers and names that a page can draw. folder: local, or as fsspec knows."""
    try:
        with reading(folder):
            return _story(folder)
    except UserError as fault:
        return {"state": "out of reach", "healthy": False, "note": str(fault)}


def _story(folder: str) -> JSON:
    status, beat = status_of(folder), read_heartbeat(folder) or {}
    told: JSON = {"state": status.state, "healthy": status.healthy, "lines": status.lines}
    told |= {name: beat.get(name) for name in ("step", "steps", "tokens")}
    try:
        metrics = read_metrics(folder)
    except UserError as error:
        just_begun = status.state == "running" and not logs(folder)[1]
        return told | ({} if just_begun else {"note": str(error)})
    told["history"] = [f"The run {one['said']}." for one in history(metrics)]
    return told | {
        "languages": _languages(metrics),
        "loss": _loss(metrics),
        "schedule": _schedule(folder, metrics, beat),
    }


def told_often(folder: str) -> Callable[[], JSON]:
    """Function () -> the story, which is not read anew at every call; for one thread."""
    kept, until = JSON(), 0.0

    def told() -> JSON:
        nonlocal kept, until
        began = time.monotonic()
        if began >= until:
            kept = story(folder)
            now = time.monotonic()
            until = now + max(OFTEN, (now - began) / SHARE)
        return kept

    return told


def _languages(metrics: Metrics) -> list[JSON]:
    """Bits per byte of each source that is no pair, at the first validation and the last."""
    valid = of_kind(metrics, "valid")
    if not valid:
        return []
    before, after = valid[0]["bits_per_byte"], valid[-1]["bits_per_byte"]
    return [
        {
            "name": name_of(source),
            "code": source,
            "before": before.get(source) if valid[0]["step"] == 0 else None,
            "after": after[source] if len(valid) > 1 or valid[0]["step"] else None,
        }
        for source in in_order(after)
        if not is_bilingual(source)
    ]


def _loss(metrics: Metrics) -> JSON:
    """Training loss, and the mean of the languages at validations: pairs of tokens and nats."""
    train = [(r["tokens"], r["loss"]) for r in of_kind(metrics, "train") if r["loss"] is not None]
    valid = []
    for record in of_kind(metrics, "valid"):
        known = {name: nats for name, nats in record["loss"].items() if nats is not None}
        means = [known[name] for name in known if is_language(name)] or [*known.values()]
        if means:
            valid.append((record["tokens"], fmean(means)))
    return {"train": _thinned(train), "valid": _thinned(valid)}


def _thinned(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS, each the mean of its neighbours."""
    width = -(-len(pairs) // POINTS) or 1
    parts = (pairs[start : start + width] for start in range(0, len(pairs), width))
    return [(part[-1][0], fmean(value for _, value in part)) for part in parts]


def _schedule(folder: str, metrics: Metrics, beat: JSON) -> JSON | None:
    """The share of each band of sources over the whole run, as its checkpoints note it; before the
    first checkpoint of what is logged. None where neither is known."""
    step, tokens = beat.get("step"), beat.get("tokens")
    total = tokens / step * beat["steps"] if step and tokens and beat.get("steps") else None
    plan = _plan(folder)
    if plan and total:
        edges = np.unique(np.linspace(0, total / plan.length, POINTS + 1).astype(np.int64))
        counts, sources = curriculum.integral(plan, edges), list(plan.sources)
        ends = edges * float(plan.length)
    else:
        rows = rows_read(metrics)
        if not rows.sources:
            return None
        thin = np.unique(np.linspace(0, len(rows.tokens) - 1, POINTS + 1).astype(np.int64))
        counts, sources, ends = rows.scheduled[thin], rows.sources, rows.tokens[thin]
    shares = np.diff(counts, axis=0)
    shares = shares / np.maximum(shares.sum(-1, keepdims=True), 1e-9)
    bands = [
        {
            "name": name,
            "colour": colour,
            "shares": shares[:, [sources.index(one) for one in members]].sum(-1).round(5).tolist(),
        }
        for name, (colour, members) in groups(sources, counts[-1]).items()
        if members
    ]
    return {"tokens": ends.tolist(), "bands": bands, "now": tokens}


def _plan(folder: str) -> curriculum.Curriculum | None:
    """What the newest checkpoint notes of the run's order; None where none does that can be read.

    What it draws decides nothing, so that no checksum is asked for.
    """
    files, place = opened(folder)
    for step in reversed(checkpoints(folder)):
        try:
            meta = json.loads(files.cat_file(f"{place}/checkpoints/{step}/meta/metadata"))
            return course_of(meta)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, UserError):
            continue
    return None
