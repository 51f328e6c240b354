"""Score continuations: the log-likelihood of each (context, continuation) of a file."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from polylm_jax.evaluation.score import Score, encode_pair, score
from polylm_jax.files import destination, existing, place
from polylm_jax.jsonl import Record, faulty, read_records
from polylm_jax.records import results
from polylm_jax.sizes import Count
from polylm_jax.verbs import number
from polylm_jax.verbs.model_of import Model, model_of

RESULTS = ("log_likelihood", "tokens", "greedy", "error")


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run", required=True, type=partial(existing, name="--run"), help="folder of a run"
    )
    parser.add_argument(
        "--pairs",
        required=True,
        type=partial(place, name="--pairs"),
        help='JSONL file of {"context": TEXT, "continuation": TEXT}; other fields are kept',
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
    parser.add_argument(
        "--skip", action="store_true", help='give records that cannot be used an "error" and go on'
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    records = read_records(given.pairs, ("context", "continuation"), RESULTS, given.skip)
    with model_of(given) as model:
        records, pairs = _pairs(model, records, given.skip)
        compute = model.decoder.compute
        made_from = {"verb": "score", **model.identity, "dtype": compute.dtype}
        print(f"Scoring {len(records)} pairs with step {model.step} of {given.run}.")
        with results(records, given.out, made_from, "pairs") as kept:
            chosen, started = [pairs[i] for i in kept.left], time.monotonic()

            def keep(scores: dict[int, Score]) -> None:
                kept.add({kept.left[i]: asdict(one) for i, one in scores.items()})

            batch = -(-max(1, min(given.batch, len(chosen))) // model.rows) * model.rows
            score(model.decoder, model.params, chosen, batch, keep)
            seconds = time.monotonic() - started
    tokens = sum(len(head) + len(tail) for head, tail in chosen)
    print(
        f"{len(chosen) / seconds:,.1f} pairs/s, {tokens / seconds:,.0f} tokens/s, compilation "
        "included."
    )


def _pairs(
    model: Model, records: Sequence[Record], skip: bool
) -> tuple[list[Record], list[tuple[list[int], list[int]]]]:
    """The records, and the ids of their contexts and continuations."""
    context = model.decoder.size.context
    checked, pairs = [], []
    for record in records:
        head: list[int] = []
        tail: list[int] = []
        if not record.fault:
            content = record.content
            head, tail = encode_pair(model.tokenizer, content["context"], content["continuation"])
            if not tail:
                record = faulty(record, "has an empty continuation; give some text", skip)
            elif len(tail) > context:
                fault = (
                    f"has a continuation of {len(tail)} tokens but the model's context is "
                    f"{context}; shorten it"
                )
                record = faulty(record, fault, skip)
        checked.append(record)
        pairs.append((head, tail))
    return checked, pairs
