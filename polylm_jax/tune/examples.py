"""Conversations from JSONL files; what is not fit to learn from is dropped and counted.

A row has one of these shapes; other keys are passed over:

    {"instruction": …, "input": …, "output": …}              MultiAlpaca; the input may be missing
    {"prompt": …, "completion": …}
    {"messages": [{"role": "user", "content": …}, …]}
    {"conversations": [{"from": "human", "value": …}, …]}    ShareGPT
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from polylm_jax.data.languages import source_named
from polylm_jax.decode.chat import Turn
from polylm_jax.errors import UserError
from polylm_jax.ranges import OneOf, check

# Names of a shape's columns that must be there, and all that it reads.
SHAPES = {
    ("instruction", "output"): ("instruction", "input", "output"),
    ("prompt", "completion"): ("prompt", "completion"),
    ("messages",): ("messages", "role", "content"),
    ("conversations",): ("conversations", "from", "value"),
}
COLUMNS = tuple(dict.fromkeys(name for names in SHAPES.values() for name in names))

ROLES = {"user": "user", "human": "user", "system": "system"}
ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant")

# Keys that, unless empty, make a row another thing than a conversation in text.
REFUSED = dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), "calls of tools")
REFUSED |= dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), "media")
REFUSED |= dict.fromkeys(("chosen", "rejected"), "a pair of answers to prefer from")
REFUSED |= {"history": "turns that went before"}

# What generators write for an input that is not there: "<noinput>", "(No input required)", "None".
NO_INPUT = re.compile(r"\W*(\w+\W+)?no\s?input( required)?\W*|none\W*", re.IGNORECASE)
# The header of a later task, which a parser of numbered replies left inside: "11. Input:".
# Lines before it are no part of it, or a thousand empty ones would be tried a million times.
HEADER = re.compile(r"^[^\S\n]*\d+\s*[.)]\s*(Instruction|Input|Output)\s*[:：]", re.MULTILINE)


@dataclass(frozen=True)
class ExampleSettings:
    """How rows of JSONL are read.

    columns: names of a file's columns where they are others, {"instruction": "pregunta"}.
    languages: of files that are not named by one, {"multialpaca_es.jsonl": "es"}.
    group: a column, "" for none: rows that have the same there, in whatever language, are held out
        together, as translations of one sentence must be.
    system: what becomes of a system message, for which the formats have no place: "refuse" the
        file, "join" it to the first question, or "drop" it.
    drop_none: rows with the word None for an answer. drop_empty: rows with an empty answer.
    drop_merged: rows that have a later task's header inside. drop_duplicates: rows that say
        what an earlier one of their language says.
    """

    columns: dict[str, str] = field(default_factory=dict)
    languages: dict[str, str] = field(default_factory=dict)
    group: str = ""
    system: Annotated[str, OneOf("refuse", "join", "drop")] = "refuse"
    drop_none: bool = True
    drop_empty: bool = True
    drop_merged: bool = True
    drop_duplicates: bool = True

    def __post_init__(self) -> None:
        check(self, "examples")
        if unknown := [name for name in self.columns if name not in COLUMNS]:
            raise UserError(
                f'examples.columns has no "{unknown[0]}"; it renames {", ".join(COLUMNS)}.'
            )


# Switch, what is said of a row, and whether a turn makes it so.
DEFECTS: tuple[tuple[str, str, Callable[[Turn], bool]], ...] = (
    ("", "empty question", lambda turn: not turn.question.strip()),
    ("drop_none", "answer None", lambda turn: (turn.answer or "").strip() == "None"),
    ("drop_empty", "empty answer", lambda turn: not (turn.answer or "").strip()),
    (
        "drop_merged",
        "later task inside",
        lambda turn: bool(HEADER.search(turn.question) or HEADER.search(turn.answer or "")),
    ),
)


@dataclass(frozen=True)
class Example:
    """A conversation whose every question is answered.

    file, line: where it is from, from 1. group: of examples that are held out together, or "".
    """

    turns: tuple[Turn, ...]
    source: str
    file: str
    line: int
    group: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass
class Found:
    """How many rows have something, and where the first three are."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        self.places = [*self.places, place][:3]


@dataclass
class Account:
    """What became of a language's rows: those read are those kept and those dropped."""

    read: int = 0
    dropped: dict[str, Found] = field(default_factory=dict)
    cleaned: dict[str, Found] = field(default_factory=dict)

    def drop(self, reason: str, place: str) -> None:
        self.dropped.setdefault(reason, Found()).add(place)

    def clean(self, reason: str, place: str) -> None:
        self.cleaned.setdefault(reason, Found()).add(place)

    @property
    def kept(self) -> int:
        return self.read - sum(found.count for found in self.dropped.values())


def read(
    files: Sequence[str], settings: ExampleSettings
) -> tuple[list[Example], dict[str, Account]]:
    """The examples of all files, in order, and an account of each source's rows.

    UserError with the file and line of what is no conversation in text, for a file of which
    nothing is left, and for a column of groups that is nowhere.
    """
    if not files:
        raise UserError("there is nothing to learn from; name JSONL files in tune.data.")
    kept: list[Example] = []
    accounts: dict[str, Account] = {}
    said: set[tuple[str, tuple[Turn, ...]]] = set()
    for file in files:
        source = source_of(file, settings)
        account = accounts.setdefault(source, Account())
        before = len(kept)
        for line, record in _records(file):
            turns = _turns(record, f"{file}:{line}", settings, account)
            example = Example(turns, source, file, line, _group(record, settings))
            account.read += 1
            if reason := _defect(example, settings, said):
                account.drop(reason, example.place)
            else:
                said.add((source, example.turns))
                kept.append(example)
        if len(kept) == before:
            why = "; ".join(f"{r} ({', '.join(f.places)})" for r, f in account.dropped.items())
            raise UserError(f"{file} has nothing to learn from: {why or 'it is empty'}.")
    if settings.group and not any(example.group for example in kept):
        raise UserError(f'no row has "{settings.group}"; set examples.group to a column or to "".')
    return kept, accounts


def source_of(file: str, settings: ExampleSettings) -> str:
    """The source that a file's rows are of. UserError where its name does not tell."""
    name = Path(file).name
    source = source_named(settings.languages.get(name, name.partition(".")[0]))
    if source is None:
        raise UserError(
            f"{file} does not say its language; call it xx.jsonl, or set "
            f'examples.languages = {{"{name}": "xx"}}.'
        )
    return source


def _records(file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of a file; blank lines are no rows."""
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{file} of tune.data cannot be read: {error.strerror}.") from None
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{file}:{number} is not a JSON object; give one object a line.")
        yield number, record


def _turns(
    record: dict[str, Any], place: str, settings: ExampleSettings, account: Account
) -> tuple[Turn, ...]:
    ours = {theirs: name for name, theirs in settings.columns.items()}
    row = {ours.get(name, name): value for name, value in record.items()}
    _refuse(row, place)
    found = [needed for needed in SHAPES if all(name in row for name in needed)]
    if len(found) != 1:
        shapes = ", ".join(" and ".join(needed) for needed in SHAPES)
        what = "several of the shapes" if found else "none of the columns"
        raise UserError(
            f"{place} has {what} {shapes}; set examples.columns to what yours are called."
        )
    [needed] = found
    if needed == ("instruction", "output"):
        given = _text(row.get("input"), place, "input")
        if given.strip() and NO_INPUT.fullmatch(given.strip()):
            account.clean("no input, in words", place)
            given = ""
        parts = (_text(row["instruction"], place, "instruction"), given)
        question = "\n".join(part for part in parts if part.strip())
        return (Turn(question, _text(row["output"], place, "output")),)
    if needed == ("prompt", "completion"):
        question, answer = (_text(row[name], place, name) for name in needed)
        return (Turn(question, answer),)
    [key] = needed
    return _of_messages(row[key], SHAPES[needed][1:], place, settings, account)


def _of_messages(
    messages: Any,
    keys: tuple[str, ...],
    place: str,
    settings: ExampleSettings,
    account: Account,
) -> tuple[Turn, ...]:
    """Turns of a list of messages. keys: of a message's role and text."""
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise UserError(f"{place} has messages that are no list of objects; mend that line.")
    role_key, text_key = (settings.columns.get(key, key) for key in keys)
    said: list[tuple[str, str]] = []
    for message in messages:
        _refuse(message, place)
        role = ROLES.get(str(message.get(role_key)))
        if role is None:
            raise UserError(
                f'{place} has the role "{message.get(role_key)}"; only user, assistant and system '
                "can be learned from: take such rows out."
            )
        said.append((role, _text(message.get(text_key), place, text_key)))
    system = ""
    if said and said[0][0] == "system":
        if settings.system == "refuse":
            raise UserError(
                f"{place} has a system message, for which the formats have no place; set "
                'examples.system = "join" to put it before the first question, or "drop".'
            )
        account.clean(f"system message: {settings.system}", place)
        system = f"{said[0][1]}\n" if settings.system == "join" else ""
        said = said[1:]
    wanted = [("user", "assistant")[number % 2] for number in range(len(said))]
    if [role for role, _ in said] != wanted:
        raise UserError(
            f"{place} has its roles out of order; user and assistant must alternate, user first."
        )
    if len(said) % 2 and len(said) > 1:
        account.clean("last question unanswered", place)
    texts = [text for _, text in said]
    pairs = list(zip(texts[::2], texts[1::2], strict=False))
    return tuple(
        Turn(question if number else system + question, answer)
        for number, (question, answer) in enumerate(pairs)
    )


def _group(record: dict[str, Any], settings: ExampleSettings) -> str:
    value = record.get(settings.group) if settings.group else None
    return "" if value is None else json.dumps(value)


def _refuse(row: dict[str, Any], place: str) -> None:
    for key, what in REFUSED.items():
        if row.get(key):
            raise UserError(
                f'{place} has {what} ("{key}"), which cannot be learned from; take such rows out.'
            )


def _text(value: Any, place: str, name: str) -> str:
    """A column's text, "" for null."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f'{place} has under "{name}" what is no text; give a string.')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f'{place} has half a character under "{name}"; mend that line.') from None
    return value


def _defect(
    example: Example, settings: ExampleSettings, said: set[tuple[str, tuple[Turn, ...]]]
) -> str | None:
    """Why an example is dropped, or None."""
    if not example.turns:
        return "no answer"
    for switch, reason, has in DEFECTS:
        if (not switch or getattr(settings, switch)) and any(map(has, example.turns)):
            return reason
    if settings.drop_duplicates and (example.source, example.turns) in said:
        return "duplicate"
    return None
