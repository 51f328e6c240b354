"""Score continuations: the log-likelihood of each (context, continuation) of a file."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from polylm_jax import config
from polylm_jax.evaluation.likelihood import Score, likelihoods
from polylm_jax.evaluation.packing import Pair
from polylm_jax.evaluation.score import Subject, encode_pairs
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
        "--batch",
        type=number("--batch", Count),
        default=8,
        help="rows of pairs computed at once",
    )
    parser.add_argument(
        "--skip", action="store_true", help='give records that cannot be used an "error" and go on'
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    records = read_records(given.pairs, ("context", "continuation"), RESULTS, given.skip)
    with model_of(given) as model:
        records, pairs = _pairs(model, records, given.skip)
        length, compute = config.get("evaluation").row_length, model.decoder.compute
        made_from = {"verb": "score", **model.identity, "dtype": compute.dtype}
        print(f"Scoring {len(records)} pairs with step {model.step} of {given.run}.")
        with results(records, given.out, made_from, "pairs") as kept:
            started, known = time.monotonic(), set(kept.done)

            def keep(scores: dict[int, Score]) -> None:
                if scores:
                    kept.add({place: asdict(one) for place, one in scores.items()})

            subject = Subject(model.decoder, model.params, model.tokenizer, model.rows)
            likelihoods(subject, pairs, length, given.batch, keep, known)
            seconds = time.monotonic() - started
    chosen = [pairs[place] for place in kept.left]
    tokens = sum(len(head) + len(tail) for head, tail in chosen)
    print(
        f"{len(chosen) / seconds:,.1f} pairs/s, {tokens / seconds:,.0f} tokens/s, compilation "
        "included."
    )


def _pairs(model: Model, records: Sequence[Record], skip: bool) -> tuple[list[Record], list[Pair]]:
    """The records, and the ids of their contexts and continuations; of a faulty one none."""
    context, texts = model.decoder.size.context, [record.content for record in records]
    asked = [
        ("", "") if record.fault else (text["context"], text["continuation"])
        for record, text in zip(records, texts, strict=True)
    ]
    checked: list[Record] = []
    pairs: list[Pair] = []
    for record, (head, tail) in zip(records, encode_pairs(model.tokenizer, asked), strict=True):
        if not record.fault and not tail:
            record = faulty(record, "has an empty continuation; give some text", skip)
        elif len(tail) > context:
            fault = (
                f"has a continuation of {len(tail)} tokens but the model's context is "
                f"{context}; shorten it"
            )
            record = faulty(record, fault, skip)
        checked.append(record)
        pairs.append((head, [] if record.fault else tail))
    return checked, pairs
