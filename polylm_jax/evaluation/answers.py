"""Answers: prompts continued until a stop string, `</s>`, or as many tokens as each may have."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from polylm_jax.data.tokenizer import EOS, Tokenizer
from polylm_jax.decode.sampling import Sampling
from polylm_jax.decode.search import generate, why_ended
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Decoder


@dataclass(frozen=True)
class Question:
    """A prompt's ids, the strings before any of which its answer ends, and its most new tokens.

    repeat: how often it was asked before, which makes it another draw where tokens are drawn.
    """

    ids: Sequence[int]
    stops: tuple[str, ...]
    new_tokens: int
    repeat: int = 0


@dataclass(frozen=True)
class Answer:
    """text: see `decode`, cut before a stop string.

    tokens: how many the model wrote. ended: "stop", "eos" or "length". lost: tokens of the prompt
    for which there was no room, from its beginning on.
    """

    text: str
    tokens: int
    ended: str
    lost: int


def answer(
    decoder: Decoder,
    params: Any,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    batch: int,
    sampling: Sampling = Sampling(),  # noqa: B008, a frozen dataclass
    done: Callable[[dict[int, Answer]], None] = lambda answers: None,
) -> list[Answer]:
    """The questions' answers, in their order; greedy unless `sampling` says otherwise.

    params: those of `weights.for_decoding`. batch: questions at once, a multiple of the ways in
    which the mesh splits a batch. done: told each batch's answers by their questions' places.
    UserError where a question leaves no room for itself in the model's context.
    """
    context = decoder.size.context
    for asked in questions:
        if not 0 < asked.new_tokens < context:
            raise UserError(
                f"answers of {asked.new_tokens} tokens leave no room for a prompt in the model's "
                f"context of {context}; ask for 1 to {context - 1}."
            )
    # like lengths and limits together, and the largest first, so that too large a batch fails
    # at once
    order = sorted(
        range(len(questions)), key=lambda i: (-questions[i].new_tokens, -len(questions[i].ids))
    )
    answers: dict[int, Answer] = {}
    for first in range(0, len(order), batch):
        chosen = [questions[i] for i in order[first : first + batch]]
        found = _batch(decoder, params, tokenizer, chosen, batch, sampling)
        added = dict(zip(order[first : first + batch], found, strict=True))
        answers |= added
        done(added)
    return [answers[i] for i in range(len(questions))]


def _batch(
    decoder: Decoder,
    params: Any,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    batch: int,
    sampling: Sampling,
) -> list[Answer]:
    context = decoder.size.context
    prompts = [list(asked.ids[asked.new_tokens - context :]) or [EOS] for asked in questions]
    found = generate(
        decoder,
        params,
        prompts,
        sampling,
        rows=batch,
        limits=[asked.new_tokens for asked in questions],
        repeats=[asked.repeat for asked in questions],
        ended=lambda row, new: until(tokenizer, new, questions[row].stops)[1],
    )
    answers = []
    for asked, prompt, new in zip(questions, prompts, found, strict=True):
        text, stopped = until(tokenizer, new, asked.stops)
        why = why_ended(len(prompt), len(new), asked.new_tokens, context)
        lost = max(0, len(asked.ids) - len(prompt))
        answers.append(Answer(text, len(new), "stop" if stopped else why, lost))
    return answers


def until(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str]) -> tuple[str, bool]:
    """The text of ids before a stop string, and whether there is one.

    It is looked for after each id, for bytes that follow may make those before no text.
    """
    pieces = tokenizer.pieces
    raw = b"".join(pieces[i] for i in ids)
    if any(stop.encode() in raw for stop in stops if stop):
        for count in range(1, len(ids) + 1):
            text = decode(tokenizer, ids[:count])
            if any(stop in text for stop in stops if stop):
                return before_stops(text, stops), True
    return decode(tokenizer, ids), False


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids by themselves, as the exported tokenizer has it.

    So pieces of one byte that together are no UTF-8 are U+FFFD each.
    """
    parts = [(tokenizer.processor.is_byte(i), tokenizer.pieces[i]) for i in ids]
    texts = []
    for of_bytes, some in itertools.groupby((p for p in parts if p[1]), key=lambda p: p[0]):
        raw = b"".join(piece for _, piece in some)
        try:
            texts.append(raw.decode())
        except UnicodeDecodeError:
            assert of_bytes, "a piece is no UTF-8"
            texts.append("\ufffd" * len(raw))
    text = "".join(texts)
    spaces = min(len(text) - len(text.lstrip(" ")), tokenizer.drops_spaces)
    return text[int(spaces) :]


def before_stops(text: str, stops: Sequence[str]) -> str:
    """The text before whichever of the strings comes first in it."""
    for stop in stops:
        if stop:
            text = text.partition(stop)[0]
    return text
