"""Talking with a model: how turns become a prompt, and how ids become text as they come."""

import codecs
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, TypeVar

from polylm_jax.data.tokenizer import EOS, Tokenizer
from polylm_jax.decode.sampling import NewTokens, Penalty, Sampling, Temperature, TopP
from polylm_jax.ranges import OneOf, Range

USER, ASSISTANT = "<|user|>", "<|assistant|>"

NO_SEARCH = "an answer is shown as it is made, so that no beams are searched"


@dataclass(frozen=True)
class Turn:
    """A question and its answer, which is None while it is awaited."""

    question: str
    answer: str | None = None


@dataclass(frozen=True)
class Segment:
    """A part of a conversation's text.

    answer: it is the model's, and `</s>` follows, by its id. answers: places in another's text, in
    characters, where an answer begins that is a part of it.
    """

    text: str
    answer: bool = False
    answers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Format:
    """What stands around the questions; an answer follows its question at once.

    before, after: text around a question. between: text between an answer and the next question.
    one_line_breaks: line breaks around a question go, and several inside it become one.
    marks: texts of the format that nobody may say.
    """

    before: str = ""
    after: str = ""
    between: str = ""
    one_line_breaks: bool = False
    marks: tuple[str, ...] = ()


# "base": the text as it is. "multialpaca": the release's command-line demo. "chat": the template
# in Chat-13B's model card.
FORMATS = {
    "base": Format(),
    "multialpaca": Format(after="\n\n", between="\n", one_line_breaks=True),
    "chat": Format(f"{USER}\n", f"\n{ASSISTANT}\n", "\n", marks=(USER, ASSISTANT)),
}

# SentencePiece never reads these in a text, but the exported tokenizer does.
CONTROLS = ("<unk>", "<s>", "</s>")


def inert(text: str, form: Format) -> str:
    """The text with a space in what an exported tokenizer or the format takes for a mark."""
    for mark in (*CONTROLS, *form.marks):
        text = text.replace(mark, _broken(mark))
    return text


def _broken(mark: str) -> str:
    return f"{mark[0]} {mark[1:]}"


def render(turns: Sequence[Turn], form: Format, keep_ends: bool) -> list[Segment]:
    """A conversation's text, the same for chat, tuning and `template`.

    keep_ends: each answer is a segment of its own, so that its `</s>` stays in what follows.
        Otherwise only the last one is: what went before it is one text without any `</s>`, which
        is how the release is served.
    What stands before an answer is the prompt with which it is asked for.
    """
    segments: list[Segment] = []
    prompt, answers = "", list[int]()
    for number, turn in enumerate(turns):
        question = turn.question
        if form.one_line_breaks:
            question = "\n".join(filter(None, question.split("\n")))
        between = form.between if number else ""
        prompt += between + form.before + inert(question, form) + form.after
        if turn.answer is None:
            continue
        answer = inert(turn.answer, form)
        if keep_ends or number == len(turns) - 1:
            segments += [Segment(prompt, answers=(*answers,)), Segment(answer, answer=True)]
            prompt, answers = "", []
        else:
            answers.append(len(prompt))
            prompt += answer.strip("\n")
    last = Segment(prompt, answers=(*answers,))
    return [*segments, last] if prompt or not segments else segments


def encode(tokenizer: Tokenizer, texts: Sequence[Sequence[Segment]]) -> list[list[list[int]]]:
    """Ids of each segment of each text, each encoded apart; an answer's end with `</s>`."""
    firsts = tokenizer.encode([segments[0].text for segments in texts])
    others = [segment for segments in texts for segment in segments[1:]]
    inside = iter(tokenizer.encode_inside([segment.text for segment in others]))

    def ids_of(segments: Sequence[Segment], first: list[int]) -> list[list[int]]:
        apart = [first, *itertools.islice(inside, len(segments) - 1)]
        return [
            [*ids, EOS] if segment.answer else ids
            for ids, segment in zip(apart, segments, strict=True)
        ]

    return [ids_of(segments, first) for segments, first in zip(texts, firsts, strict=True)]


def prompt_ids(tokenizer: Tokenizer, prompt: Sequence[Segment]) -> list[int]:
    """The ids that are sent for a conversation whose last answer is awaited; never none."""
    [parts] = encode(tokenizer, [prompt])
    return list(itertools.chain(*parts)) or [EOS]  # some tokenizers leave nothing of a character


def template(form: Format, keep_ends: bool) -> str:
    """`render` as a chat template in Jinja, as Hugging Face's tokenizers have one.

    `{% generation %}` surrounds what is learned. Messages that have no place in the format raise
    an error there.
    """
    question = "text"
    if form.one_line_breaks:
        question = r"(text.split('\n') | select | join('\n'))"
    broken = "".join(
        f".replace({_quoted(mark)}, {_quoted(_broken(mark))})" for mark in (*CONTROLS, *form.marks)
    )
    learned = "{% generation %}{{ text + eos_token }}{% endgeneration %}"
    if not keep_ends:
        learned = (
            f"{{% if loop.last %}}{learned}{{% else %}}{{{{ text.strip('\\n') }}}}{{% endif %}}"
        )
    return (
        "{% for message in messages %}"
        "{% if message['role'] != ['user', 'assistant'][loop.index0 % 2] %}"
        "{{ raise_exception('Roles must alternate: user, assistant, user and so on.') }}"
        "{% elif message['content'] is not string %}"
        "{{ raise_exception('A message must be one text.') }}{% endif %}"
        f"{{% set text = message['content']{broken} %}}"
        "{% if message['role'] == 'user' %}"
        f"{{% if not loop.first %}}{{{{ {_quoted(form.between)} }}}}{{% endif %}}"
        f"{{{{ {_quoted(form.before)} + {question} + {_quoted(form.after)} }}}}"
        f"{{% else %}}{learned}{{% endif %}}"
        "{% endfor %}"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("\n", "\\n") + "'"


@dataclass(frozen=True)
class ChatSettings(Sampling):
    """Sampling with the values of the release's demo, and the format of the turns.

    format: "base" (the text as it is), "multialpaca" (question and two newlines) or "chat"
        (<|user|> and <|assistant|>), after the three kinds of models that were released.
    keep_ends: `</s>` stays behind the answers that went before, as models tuned here learn it;
        the release's do not.
    """

    block: ClassVar[str] = "chat"

    new_tokens: NewTokens = 512
    temperature: Temperature = 0.7
    top_p: TopP = 0.8
    repetition_penalty: Penalty = 1.02
    format: Annotated[str, OneOf(*FORMATS)] = "multialpaca"
    keep_ends: bool = False
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

    @property
    def whole(self) -> bool:
        """Whether no character is held back."""
        return not self._decoder.getstate()[0]

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


class Until:
    """Text up to the first of several marks, as it comes; what may be a mark's begin is held back.

    The mark that begins first counts, wherever the text is cut into parts. done: it was there.
    """

    def __init__(self, marks: Iterable[str]) -> None:
        self._marks = tuple(marks)
        self._longest = max(map(len, self._marks), default=0)
        self._held = ""
        self.done = False

    def push(self, text: str) -> str:
        """What can be said now that this text has come."""
        if self.done:
            return ""
        held = self._held + text
        cut = self._cut(held)
        # a mark that begins before the one that is whole may still be on its way
        begins = (
            at
            for at in range(max(0, len(held) - self._longest + 1), min(cut, len(held)))
            if any(mark.startswith(held[at:]) for mark in self._marks)
        )
        safe = next(begins, None)
        self.done = safe is None and cut < len(held)
        safe = cut if safe is None else safe
        self._held = "" if self.done else held[safe:]
        return held[:safe]

    def close(self) -> str:
        """What is left when no more text comes."""
        cut = self._cut(self._held)
        self.done = self.done or cut < len(self._held)
        said, self._held = self._held[:cut], ""
        return said

    def _cut(self, text: str) -> int:
        return min((at for mark in self._marks if (at := text.find(mark)) >= 0), default=len(text))


def until(marks: Iterable[str], texts: Iterable[str]) -> Iterator[str]:
    """The texts up to the first of the marks, which may be cut over several of them."""
    cut = Until(marks)
    for text in texts:
        yield cut.push(text)
        if cut.done:
            return
    yield cut.close()


Prompt = TypeVar("Prompt")


def converse(
    questions: Iterable[str],
    answer: Callable[[Prompt], Iterator[str]],
    fits: Callable[[Prompt], bool],
    prompt_of: Callable[[Sequence[Turn]], Prompt],
    say: Callable[[str], None],
    marks: Sequence[str] = (),
) -> None:
    """Answers each question, remembering the turns before it, until /stop.

    answer: function (prompt) -> parts of the answer, as they come. fits: whether a prompt
    leaves room for an answer; the oldest turns are forgotten until it does. prompt_of: makes
    the prompt of turns. say: shows text. marks: before which an answer is cut. /clear forgets all
    turns.
    """
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
        while not fits(prompt := prompt_of(turns)) and len(turns) > 1:
            turns = turns[1:]
        if not fits(prompt):
            say("That is longer than the model's context; shorten it.\n")
            turns = []
            continue
        parts: list[str] = []
        try:
            for part in until(marks, answer(prompt)):
                parts.append(part)
                say(part)
        except KeyboardInterrupt:
            pass  # ends this answer, not the conversation
        say("\n")
        turns[-1] = replace(turns[-1], answer="".join(parts))
