"""From a writer's reply to tasks: numbered blocks of three fields, whatever digits number them.

A header is a number, a dot or the like, the field's name and a colon, at a line's beginning; the
name is English or the language's own. Digits of any script count (4 ４ ٤ ๔). Nothing else ends a
field: "20." and "###" inside an answer are parts of it.
"""

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache

from polylm_jax.tune.lexicon import ENGLISH, Headers

INSTRUCTION, INPUT, OUTPUT = range(3)
SPACE = r"[ \t\u3000\u00a0\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
DRESS = rf"(?:{SPACE}|[#*_>])*"  # what Markdown puts before a header
NUMBER = rf"(?P<number>\d{{1,4}}){SPACE}*[.)．。、:：）-]+"
THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)  # where a server leaves it in the text
RULE = re.compile(r"\n[^\S\n]*(?:#{2,}|-{3,}|\*{3,}|={3,})$")  # a line between two tasks


@dataclass(frozen=True)
class Task:
    """A task as it is written to the file. input: None where it needs none."""

    instruction: str
    input: str | None
    output: str


@dataclass(frozen=True)
class Block:
    """A task as it came. None stands for a field that is not there.

    cut: the reply ended in it. cut_there: a field of it went on into a header that had no place
    there, such as the next task's input, and was cut at it.
    """

    instruction: str | None = None
    input: str | None = None
    output: str | None = None
    cut: bool = False
    cut_there: bool = False


@dataclass(frozen=True)
class _Mark:
    start: int
    end: int
    number: int | None
    field: int


def parse(text: str, finished: bool, headers: Headers) -> list[Block]:
    """The tasks in a reply, in order; what stands before the first one is dropped.

    finished: the writer ended the reply by itself; otherwise its last task is marked as cut.
    headers: names of the fields in the reply's language; the English ones are known as well.
    """
    thought = THOUGHT.match(text)
    text = text[thought.end() if thought else 0 :].replace("\r\n", "\n")
    marks = _marks(text, headers)
    firsts = [i for i, mark in enumerate(marks) if mark.field == INSTRUCTION]
    numbered = any(marks[i].number is not None for i in firsts)
    firsts = [i for i in firsts if marks[i].number is not None or not numbered]
    blocks = [
        _block(text[: marks[last].start if last < len(marks) else None], marks[first:last])
        for first, last in itertools.pairwise([*firsts, len(marks)])
    ]
    if blocks and not finished:
        last = blocks[-1]
        blocks[-1] = Block(last.instruction, last.input, last.output, True, last.cut_there)
    return blocks


def says(text: str, words: Collection[str]) -> bool:
    """Whether a field holds one of these and no more, whatever stands around it."""
    return text.strip(" \t\n<>()[].*\"'").casefold() in words


def _block(text: str, marks: list[_Mark]) -> Block:
    """One task. text: up to the next one. marks: its headers, the first that of its instruction."""
    number = marks[0].number
    own = [mark for mark in marks[1:] if mark.number is not None]
    # a block that numbers its fields may hold unnumbered ones as text
    numbers_fields = any(mark.number == number for mark in own)
    fields: list[str | None] = [None, None, None]
    field, start, cut_there = INSTRUCTION, marks[0].end, False
    for mark in marks[1:]:
        if mark.number is None and (numbers_fields or mark.field <= field):
            continue
        fields[field] = _cleaned(text[start : mark.start])
        if mark.field <= field or mark.number not in (None, number):
            cut_there = True
            break
        field, start = mark.field, mark.end
    else:
        fields[field] = _cleaned(text[start:])
    return Block(fields[INSTRUCTION], fields[INPUT], fields[OUTPUT], False, cut_there)


def _cleaned(text: str) -> str:
    return RULE.sub("", "\n" + text.rstrip()).strip()


def _marks(text: str, headers: Headers) -> list[_Mark]:
    found = sorted(_found(text, headers), key=lambda mark: (mark.start, -mark.end))
    marks: list[_Mark] = []
    for mark in found:
        if not marks or mark.start >= marks[-1].end:
            marks.append(mark)
    return marks


def _found(text: str, headers: Headers) -> Iterator[_Mark]:
    for field in (INSTRUCTION, INPUT, OUTPUT):
        for match in _pattern(field, headers).finditer(text):
            number = match["number"]
            yield _Mark(match.start(), match.end(), int(number) if number else None, field)


@cache
def _pattern(field: int, headers: Headers) -> re.Pattern[str]:
    names = sorted({*ENGLISH[field], *headers[field]} - {""}, key=len, reverse=True)
    # a number on a line of its own belongs to the instruction that follows
    gap = rf"{SPACE}*\n?" if field == INSTRUCTION else ""
    return re.compile(
        rf"^{DRESS}(?:{NUMBER}{gap}{DRESS})?(?:{'|'.join(map(re.escape, names))})"
        rf"{SPACE}*[*_]*{SPACE}*[:：]{SPACE}*(?:\*\*|__)?",
        re.MULTILINE | re.IGNORECASE,
    )
