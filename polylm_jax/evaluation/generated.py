"""Tasks whose answers are written: prompts to batches, batches to texts, texts to figures."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from polylm_jax.decode import weights
from polylm_jax.evaluation.answers import Answer, Question, answer
from polylm_jax.evaluation.items import Measure, Prompt
from polylm_jax.evaluation.results import Store
from polylm_jax.evaluation.score import Subject
from polylm_jax.evaluation.settings import Evaluation
from polylm_jax.evaluation.tasks import Asked
from polylm_jax.evaluation.work import Result, Work, agreed

Batch = list[tuple[str, Question]]  # with their keys in the store


def prepare(subject: Subject, asked: Sequence[Asked], settings: Evaluation, kept: Store) -> Work:
    """Tasks of kind "generated" in some languages."""
    questions = [_questions(subject, one.items, settings.too_long) for one in asked]
    keys = [[_key(kept, one) if one else None for one in some] for some in questions]
    named = {
        key: one
        for some, names in zip(questions, keys, strict=True)
        for key, one in zip(names, some, strict=True)
        if key and one
    }
    rows = -(-settings.rows // subject.ways) * subject.ways
    batches = list(_batches(named, rows))
    unknown = [n for n, batch in enumerate(batches) if any(key not in kept for key, _ in batch)]
    left = [batches[number] for number in agreed("generated", unknown, list(named))]

    def ask(done: Callable[[int], None]) -> None:
        params = weights.for_decoding(
            subject.params, subject.decoder.size, subject.decoder.compute.dtype
        )
        for batch in left:
            found = answer(
                subject.decoder, params, subject.tokenizer, [one for _, one in batch], rows
            )
            kept.add({key: _kept(one) for (key, _), one in zip(batch, found, strict=True)})
            done(_positions(batch))

    return Work(
        sum(len(one.items) for one in asked),
        sum(map(_positions, left)),
        ask,
        lambda: [
            _result(subject, one, names, kept) for one, names in zip(asked, keys, strict=True)
        ],
    )


def _questions(subject: Subject, items: Sequence[Prompt], too_long: str) -> list[Question | None]:
    """None for an item that has no room in the model's context and is to be left out."""
    context = subject.decoder.size.context
    encoded = subject.tokenizer.encode([one.text for one in items])
    found: list[Question | None] = []
    for one, ids in zip(items, encoded, strict=True):
        new_tokens = _most(one, context)
        long = len(ids) + new_tokens > context
        left_out = long and too_long == "leave_out"
        found.append(None if left_out else Question(ids, one.stops, new_tokens))
    return found


def _most(one: Prompt, context: int) -> int:
    """New tokens of an answer: half of a small model's context is left to the prompt."""
    return min(one.new_tokens, context // 2)


def _key(kept: Store, one: Question) -> str:
    stops = "\0".join(one.stops).encode()
    numbers = np.array([*one.ids], np.int32), np.array([one.new_tokens], np.int32)
    return kept.key("generated", *numbers, np.frombuffer(stops, np.uint8))


def _batches(questions: dict[str, Question], rows: int) -> Iterator[Batch]:
    """Like lengths together, the longest first. The plan is of all, whatever is in store."""
    order = sorted(
        questions.items(), key=lambda pair: (-pair[1].new_tokens, -len(pair[1].ids), pair[0])
    )
    for first in range(0, len(order), rows):
        yield order[first : first + rows]


def _positions(batch: Batch) -> int:
    longest = max(len(one.ids) + one.new_tokens for _, one in batch)
    return len(batch) * longest


def _kept(one: Answer) -> list[Any]:
    return [one.text, one.tokens, one.ended, one.lost]


def _result(subject: Subject, asked: Asked, keys: Sequence[str | None], kept: Store) -> Result:
    pairs = [(one, Answer(*kept[key])) for one, key in zip(asked.items, keys, strict=True) if key]
    prompts, texts = [one for one, _ in pairs], [found.text for _, found in pairs]
    assert asked.task.measure, f"{asked.task.name} says of no answer how good it is"
    measures = tuple(asked.task.measure(prompts, texts, asked.language)) if pairs else _none(asked)
    each = {one.name: one.each for one in measures if one.each is not None}
    samples = [
        _sample(one, found)
        | {"metrics": list(each)}
        | {name: float(values[place]) for name, values in each.items()}
        for place, (one, found) in enumerate(pairs)
    ]
    context = subject.decoder.size.context
    if any(_most(one, context) < one.new_tokens for one in prompts):
        said = f"answers have {context // 2} tokens at most, half of the model's context"
        asked = replace(asked, notes=(*asked.notes, said))
    cut = sum(found.lost > 0 for _, found in pairs)
    return Result(asked, measures, samples, cut, len(asked.items) - len(pairs))


def _none(asked: Asked) -> tuple[Measure, ...]:
    """The task's figures where no item is left, which have no values."""
    assert asked.task.measure
    some = asked.task.measure(asked.items[:1], [""], asked.language)
    return tuple(
        Measure(one.name, math.nan, math.nan, None if one.each is None else np.zeros(0))
        for one in some
    )


def _sample(one: Prompt, found: Answer) -> dict[str, Any]:
    """A line as lm-eval writes it."""
    settings = {"until": list(one.stops), "max_gen_toks": one.new_tokens, "do_sample": False}
    return {
        "doc_id": one.number,
        "doc": one.document,
        "target": one.answers[0],
        "arguments": {"gen_args_0": {"arg_0": one.text, "arg_1": settings}},
        "resps": [[found.text]],
        "filtered_resps": [found.text],
        "filter": "none",
        "ended": found.ended,
        "truncated": found.lost > 0,
    }
