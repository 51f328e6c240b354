"""Score continuations: the log-likelihood of each (context, continuation) of a file."""

import argparse
import json
import time
from dataclasses import asdict
from functools import partial

from polylm_jax.console import LiveLine, format_duration
from polylm_jax.evaluation.score import encode_pair, score
from polylm_jax.files import destination, existing, output, place
from polylm_jax.jsonl import read_records
from polylm_jax.sizes import Count
from polylm_jax.verbs import number
from polylm_jax.verbs.model_of import model_of


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run", required=True, type=partial(existing, name="--run"), help="folder of a run"
    )
    parser.add_argument(
        "--pairs",
        required=True,
        type=partial(place, name="--pairs"),
        help='JSONL file of {"context": TEXT, "continuation": TEXT}',
    )
    parser.add_argument(
        "--out",
        required=True,
        type=partial(destination, name="--out"),
        help="JSONL file for the scores",
    )
    parser.add_argument(
        "--batch", type=number("--batch", Count), default=8, help="pairs computed at once"
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    records = read_records(given.pairs, ("context", "continuation"))
    with model_of(given) as model:
        print(f"Scoring {len(records)} pairs with step {model.step} of {given.run}.")
        pairs = [
            encode_pair(model.tokenizer, record["context"], record["continuation"])
            for record in records
        ]
        line, started = LiveLine(seconds=10), time.monotonic()

        def done(count: int) -> None:
            left = (time.monotonic() - started) / count * (len(pairs) - count)
            line.show(
                f"{count} of {len(pairs)} pairs, ETA {format_duration(left)}",
                last=count == len(pairs),
            )

        batch = -(-min(given.batch, len(pairs)) // model.rows) * model.rows
        scores = score(model.decoder, model.params, pairs, batch, done)
    seconds = time.monotonic() - started
    with output(given.out) as file:
        for record, result in zip(records, scores, strict=True):
            file.write((json.dumps(record | asdict(result), ensure_ascii=False) + "\n").encode())
    tokens = sum(len(head) + len(tail) for head, tail in pairs)
    print(
        f"{len(pairs) / seconds:,.1f} pairs/s, {tokens / seconds:,.0f} tokens/s, compilation "
        f"included. The scores are in {given.out}."
    )
