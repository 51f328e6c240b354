"""Answers: prompts continued until a stop string, `</s>`, or as many tokens as each may have."""

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
    """text: the ids by themselves, as others decode them, cut before a stop string.

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

    def text_of(row: int, new: list[int]) -> tuple[str, bool]:
        """The text before the first stop string, and whether there is one."""
        [whole] = tokenizer.decode([new])
        text = before_stops(whole, questions[row].stops)
        return text, len(text) < len(whole)

    found = generate(
        decoder,
        params,
        prompts,
        sampling,
        rows=batch,
        limits=[asked.new_tokens for asked in questions],
        repeats=[asked.repeat for asked in questions],
        ended=lambda row, new: text_of(row, new)[1],
    )
    answers = []
    for row, (asked, prompt, new) in enumerate(zip(questions, prompts, found, strict=True)):
        text, stopped = text_of(row, new)
        why = why_ended(len(prompt), len(new), asked.new_tokens, context)
        lost = max(0, len(asked.ids) - len(prompt))
        answers.append(Answer(text, len(new), "stop" if stopped else why, lost))
    return answers


def before_stops(text: str, stops: Sequence[str]) -> str:
    """The text before whichever of the strings comes first in it."""
    for stop in stops:
        if stop:
            text = text.partition(stop)[0]
    return text
