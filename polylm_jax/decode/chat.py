"""Talking with a model: how turns become a prompt, and how ids become text as they come."""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.decode.sampling import NewTokens, Penalty, Sampling, Temperature, TopP
from polylm_jax.ranges import OneOf

USER, ASSISTANT = "<|user|>", "<|assistant|>"


@dataclass(frozen=True)
class Turn:
    """A question and its answer; the answer is empty while it is awaited."""

    question: str
    answer: str = ""


def _base(turns: Sequence[Turn]) -> str:
    return "".join(turn.question + turn.answer for turn in turns)


def _multialpaca(turns: Sequence[Turn]) -> str:
    """The release's command-line demo: no marks, one newline at a time inside a question."""
    parts = []
    for turn in turns:
        parts.append(re.sub(r"\n+", "\n", turn.question.strip("\n")) + "\n\n")
        parts.append(turn.answer + "\n" if turn.answer else "")
    return "".join(parts)


def _chat(turns: Sequence[Turn]) -> str:
    """The template in Chat-13B's model card."""
    asked = (f"{USER}\n{turn.question}\n{ASSISTANT}\n{turn.answer}" for turn in turns)
    return "\n".join(asked)


FORMATS: dict[str, Callable[[Sequence[Turn]], str]] = {
    "base": _base,
    "multialpaca": _multialpaca,
    "chat": _chat,
}


@dataclass(frozen=True)
class ChatSettings(Sampling):
    """Sampling with the values of the release's demo, and the format of the turns.

    format: "base" (the text as it is), "multialpaca" (question and two newlines) or "chat"
        (<|user|> and <|assistant|>), after the three kinds of models that were released.
    """

    block: ClassVar[str] = "chat"

    new_tokens: NewTokens = 512
    temperature: Temperature = 0.7
    top_p: TopP = 0.8
    repetition_penalty: Penalty = 1.02
    format: Annotated[str, OneOf(*FORMATS)] = "multialpaca"


class TextStream:
    """Ids in, text out, as soon as its characters are whole.

    A character of several bytes may come in several ids; it is held back until the last one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._pieces = tokenizer.pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._extra = " " if tokenizer.adds_space else ""

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete."""
        text = self._decoder.decode(b"".join(self._pieces[i] for i in ids))
        if text:
            text, self._extra = text.removeprefix(self._extra), ""
        return text

    def close(self) -> str:
        """What is left: a mark for a character that was never finished, or nothing."""
        return self._decoder.decode(b"", final=True)


def until(mark: str, texts: Iterable[str]) -> Iterator[str]:
    """The texts up to the mark, which may be cut over several of them."""
    held = ""
    for text in texts:
        held += text
        if mark in held:
            yield held.partition(mark)[0]
            return
        safe = len(held) - next(n for n in range(len(mark) - 1, -1, -1) if held.endswith(mark[:n]))
        yield held[:safe]
        held = held[safe:]
    yield held


def converse(
    questions: Iterable[str],
    answer: Callable[[str], Iterator[str]],
    fits: Callable[[str], bool],
    settings: ChatSettings,
    say: Callable[[str], None],
) -> None:
    """Answers each question, remembering the turns before it, until /stop.

    answer: function (prompt) -> parts of the answer, as they come. fits: whether a prompt
    leaves room for an answer; the oldest turns are forgotten until it does. say: shows text.
    /clear forgets all turns.
    """
    form = FORMATS[settings.format]
    turns: list[Turn] = []
    for question in questions:
        if question.strip() == "/stop":
            return
        if question.strip() == "/clear":
            turns = []
            say("Forgotten; a new conversation.\n")
            continue
        if not question.strip():
            continue
        turns.append(Turn(question))
        while not fits(prompt := form(turns)) and len(turns) > 1:
            turns = turns[1:]
        if not fits(prompt):
            say("That is longer than the model's context; shorten it.\n")
            turns = []
            continue
        parts: list[str] = []
        try:
            for part in until(USER, answer(prompt)):
                parts.append(part)
                say(part)
        except KeyboardInterrupt:
            pass  # ends this answer, not the conversation
        say("\n")
        turns[-1] = replace(turns[-1], answer="".join(parts).strip("\n"))
