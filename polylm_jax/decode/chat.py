"""Talking with a model: how turns become a prompt, and how ids become text as they come."""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.decode.sampling import NewTokens, Penalty, Sampling, Temperature, TopP
from polylm_jax.ranges import OneOf, Range

USER, ASSISTANT = "<|user|>", "<|assistant|>"

NO_SEARCH = "an answer is shown as it is made, so that no beams are searched"


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
    # what a search would heed
    beams: Annotated[int, Range(1, 1, note=NO_SEARCH)] = 1
    length_penalty: Annotated[float, Range(1, 1, note=NO_SEARCH)] = 1.0
    early_stopping: Annotated[str, OneOf("no")] = "no"


class TextStream:
    """Ids in, text out, as soon as its characters are whole.

    A character of several bytes may come in several ids; it is held back until the last one.
    before: the ids that these go on from, so that a space at the join is kept.
    """

    def __init__(self, tokenizer: Tokenizer, before: Iterable[int] = ()) -> None:
        self._pieces = tokenizer.pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("polylm_bytes")
        self._drops = tokenizer.drops_spaces
        self.push(before)

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete."""
        text = self._decoder.decode(b"".join(self._pieces[i] for i in ids))
        if text and self._drops:
            spaces = min(len(text) - len(text.lstrip(" ")), self._drops)
            text = text[int(spaces) :]
            self._drops = 0 if text else self._drops - spaces
        return text

    def close(self) -> str:
        """What is left: a mark for each byte of a character that was never finished."""
        return self._decoder.decode(b"", final=True)


def _mark_each_byte(error: UnicodeError) -> tuple[str, int]:
    """As SentencePiece does; Python has one mark for the bytes of a character's begin."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("polylm_bytes", _mark_each_byte)


def decode_after(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text of ids that go on from others: what both together have more than those before."""
    stream = TextStream(tokenizer, before)
    return stream.push(ids) + stream.close()


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
