"""See which items of a benchmark stand in the rows that a run has read, and what it scores on
those and on the others."""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Column, Table

from polylm_jax import config
from polylm_jax.console import LiveLine
from polylm_jax.data.rows import open_store
from polylm_jax.errors import UserError
from polylm_jax.evaluation import table
from polylm_jax.evaluation.evaluate import missing
from polylm_jax.evaluation.overlap import Found, overlap
from polylm_jax.evaluation.tasks import Asked
from polylm_jax.files import existing, local, put
from polylm_jax.jsonl import dumps
from polylm_jax.sizes import Count
from polylm_jax.train.course import going_on
from polylm_jax.train.door import open_run
from polylm_jax.verbs import number

WRITTEN = "overlap.json"


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run", required=True, type=partial(existing, name="--run"), help="folder of a run"
    )
    parser.add_argument(
        "--tokens",
        type=number("--tokens", Count),
        default=13,
        help="tokens in a row that count as read",
    )
    parser.add_argument(
        "--out",
        type=partial(local, name="--out"),
        help="folder of the run's results; RUN/evaluation/STEP by default",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    if "://" in given.run and not given.out:
        raise UserError("--run is not on this machine; give --out=FOLDER for the results.")
    model = open_run(given.run)
    config.parse(given.gin_file, given.overrides, model.meta["gin"])
    settings, store = config.get("evaluation"), open_store(config.get("rows").path)
    if "curriculum" not in model.meta["fingerprints"]:
        raise UserError(f"{given.run} was imported and has read no rows, so none can overlap.")
    course, _ = going_on(model.meta, model.step, 0, config.get("curriculum"), store, given.run)
    every = settings.asked(config.get("corpus").path)
    asked = [one for some in every.values() for one in some]
    there = [one for one in asked if not one.missing]
    rows, folder = model.meta["rows"], Path(given.out or f"{given.run}/evaluation/{model.step}")
    print(
        f"Looking for {sum(len(one.items) for one in there):,} items of {len(there)} tables in the "
        f"{rows:,} rows that {given.run} has read up to step {model.step}."
    )
    for said in missing(every):
        print(said)
    line = LiveLine(seconds=10)
    found = iter(
        overlap(
            store,
            course.curriculum,
            rows,
            model.tokenizer,
            [item for one in there for item in one.items],
            given.tokens,
            lambda read, of: line.show(f"{read:,} of {of:,} different rows", last=read >= of),
        )
    )
    of_each = [(one, [next(found) for _ in one.items]) for one in there]
    _show(of_each, folder, given.tokens)
    content = {
        "tokens": given.tokens,
        "step": model.step,
        "rows": rows,
        "longest": {
            one.task.lm_eval_name(one.language): [
                None if item.short else item.longest for item in items
            ]
            for one, items in of_each
        },
    }
    put(str(folder / WRITTEN), dumps(content).encode() + b"\n")
    print(f"Written: {folder / WRITTEN}: the longest run of each item, null where it is too short.")


def _show(of_each: list[tuple[Asked, list[Found]]], folder: Path, tokens: int) -> None:
    heads = ("items", "short", "read", "longest", "score of others", "score of read")
    columns = [Column(head, justify="right", no_wrap=True) for head in heads]
    shown = Table("task", "", *columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for one, items in of_each:
        hit = np.array([item.longest >= tokens for item in items])
        counts = [len(items), sum(item.short for item in items), int(hit.sum())]
        longest = max((item.longest for item in items), default=0)
        values = table.headline(folder, one)
        scores = ["-", "-"]
        if values is not None and len(values) == len(hit):
            scores = [_mean(values[~hit]), _mean(values[hit])]
        cells = [f"{count:,}" for count in counts]
        shown.add_row(one.task.name, one.language, *cells, f"{longest:,}", *scores)
    Console().print(shown)
    if not (folder / table.RESULTS).is_file():
        print(f"No scores of this step are in {folder}: `polylm evaluate` makes them.")


def _mean(values: np.ndarray) -> str:
    """A mean with its standard error, and of how many."""
    if not len(values):
        return "- (0)"
    spread = f" ± {values.std(ddof=1) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread} ({len(values):,})"
