"""The table of tasks. One file in `benchmarks/` is one task: its data's form, and its items.

    TASK = Task(
        name="xcopa", kind="choice", languages=("it", …), key="xcopa_{}", chance=0.5,
        files=both("xcopa/test.{}.jsonl"), origin="…", form={"premise": str, …}, items=function,
    )

The kinds:
- "choice": `items` gives Items; the most likely choice is the answer.
- "text": `items` gives Items of one choice; bits per byte of the whole text.
- "generated": `items` gives Prompts; `answers.answer` continues them, and `measure`, a function
  (prompts, texts, language) -> list[Measure], the headline first, says how good the texts are.
  Each kind is one function in `evaluate.KINDS`.
"""

import contextlib
import csv
import importlib
import io
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from polylm_jax.errors import UserError
from polylm_jax.evaluation import benchmarks
from polylm_jax.evaluation.items import Choice, Item, Measure, Prompt
from polylm_jax.files import opened
from polylm_jax.jsonl import has_form, parse_json

PROTOCOLS = ("paper", "lm_eval")

Row = dict[str, Any]


def plain(file: str, content: bytes, code: str) -> list[Row]:
    """The rows of a JSONL file, or of tab-separated lines under a line of names."""
    text = decoded(file, content)
    if file.endswith(".tsv"):
        return columned(file, text)
    lines = text.split("\n")
    wanted = "a record of JSON; mend that line"
    return [
        parse_json(line, {}, f"{file}:{number}", wanted)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def columned(file: str, text: str, quoted: bool = True) -> list[Row]:
    """The rows of tab-separated lines under a line of names.

    quoted: fields may stand in quotation marks, as in CSV. Where one begins with such a mark and
    is no field of CSV, they are part of the text in the whole file.
    """
    ways: list[dict[str, Any]] = [{"strict": True}] if quoted else []
    for how in [*ways, {"quoting": csv.QUOTE_NONE}]:
        with contextlib.suppress(csv.Error):
            return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", **how))
    raise UserError(
        f"{file} has a field of more than {csv.field_size_limit():,} characters; take the file as "
        "the benchmark has it."
    )


def decoded(file: str, content: bytes) -> str:
    """A benchmark's text. UserError where it is not UTF-8: other letters would be scored."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{line} is not UTF-8; save the file as UTF-8.") from None


def lines(file: str, content: bytes, code: str) -> list[Row]:
    """A row {"text": …} for each line of a text file."""
    text = decoded(file, content).removesuffix("\n")
    return [{"text": line.removesuffix("\r")} for line in text.split("\n")]


def each(
    context: Callable[[Row], str],
    choices: Callable[[Row], Sequence[str]],
    gold: Callable[[Row], int],
) -> Callable[[list[Row], str, str], list[Item]]:
    """`items` of a task in which every row is a question: functions of the row for its context,
    its choices, which a space joins to it, and the right one's place."""

    def items(rows: list[Row], language: str, protocol: str) -> list[Item]:
        return [
            Item(
                number,
                tuple(Choice(context(row), f" {choice}") for choice in choices(row)),
                gold(row),
                row,
            )
            for number, row in enumerate(rows)
        ]

    return items


def letter(answer: str | int, first: int = 0) -> int:
    """The place of a choice that is named "A" or "a" and so on, or by its number from `first`; -1
    for what names none."""
    name = str(answer).strip().upper()
    if name.isdecimal():
        return int(name) - first
    return ord(name) - ord("A") if len(name) == 1 else -1


def both(*files: str) -> dict[str, tuple[str, ...]]:
    """The same files under both protocols."""
    return dict.fromkeys(PROTOCOLS, files)


@dataclass(frozen=True)
class Task:
    """A benchmark.

    languages: codes as in `data.languages`, in the order of the table.
    key: lm-eval's name of the task, {} for the language.
    files: under each protocol, the names that a language's file may have within
        evaluation.folder, {} for the language; the first that is there is read.
    origin: one sentence, where a file that is missing comes from.
    form: what each row must be, as `jsonl.has_form` has it.
    items: function (rows, language, protocol) -> Items or Prompts, of which some may be taken.
    read: function (file, content, the language's code) -> rows.
    codes: what the benchmark calls a language, where that is another code.
    chance: accuracy of guessing; None for what is not chosen.
    translated: whether item n is the same in all languages.
    notes: function (rows, language, protocol) -> sentences on what is odd there.
    measure: of kind "generated".
    shots: examples before each item under a protocol, none where it is not named.
    of_corpus: whether its files lie in the run's corpus, which has held them out of training.
    """

    name: str
    kind: str
    languages: tuple[str, ...]
    key: str
    files: dict[str, tuple[str, ...]]
    origin: str
    form: Any
    items: Callable[[list[Row], str, str], Iterable[Item] | Iterable[Prompt]]
    read: Callable[[str, bytes, str], list[Row]] = plain
    codes: dict[str, str] = field(default_factory=dict)
    chance: float | None = None
    translated: bool = False
    notes: Callable[[list[Row], str, str], list[str]] = lambda rows, language, protocol: []
    measure: Callable[[Sequence[Prompt], Sequence[str], str], list[Measure]] | None = None
    shots: dict[str, int] = field(default_factory=dict)
    of_corpus: bool = False

    def code(self, language: str) -> str:
        return self.codes.get(language, language)

    def lm_eval_name(self, language: str) -> str:
        return self.key.format(self.code(language))


@dataclass(frozen=True)
class Asked:
    """A task in one language, read. missing: why there is nothing, or ""."""

    task: Task
    language: str
    items: Sequence[Any]
    notes: tuple[str, ...] = ()
    missing: str = ""


def table() -> dict[str, Task]:
    """All tasks by their names."""
    modules = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    found = (importlib.import_module(f"{benchmarks.__name__}.{name}") for name in sorted(modules))
    tasks = [task for module in found for task in vars(module).get("TASKS") or [module.TASK]]
    return {task.name: task for task in tasks}


def ask(task: Task, language: str, protocol: str, folder: str, limit: int = 0) -> Asked:
    """The items of a task in a language from its file; none, and why, if that is not there.

    limit: takes only the first so many, 0 all. UserError if a row is not as it should be.
    """
    names = [name.format(task.code(language)) for name in task.files[protocol]]
    for name in names:
        files, file = opened(f"{folder}/{name}")
        if files.isfile(file):
            rows = task.read(f"{folder}/{name}", files.cat_file(file), task.code(language))
            break
    else:
        return Asked(
            task,
            language,
            (),
            missing=f"no {' or '.join(names)} in {folder or 'any corpus'}: {task.origin}",
        )
    for number, row in enumerate(rows, 1):
        if not has_form(row, task.form):
            raise UserError(
                f"row {number} of {folder}/{name} is not one of {task.name}; take the file as the "
                f"benchmark has it: {task.origin}"
            )
    items = list(islice(task.items(rows, language, protocol), limit or None))
    notes = *task.notes(rows, language, protocol), *_without_gold(items, f"{folder}/{name}", task)
    if not items:
        missing = f"no item of {language} in {folder}/{name}: {task.origin}"
        return Asked(task, language, (), notes, missing)
    return Asked(task, language, items, notes)


def _without_gold(items: Sequence[Any], file: str, task: Task) -> list[str]:
    """A sentence if the right answer of some items is none of their choices; UserError if of all.

    lm-eval counts such an item as wrong, and so does `choices`.
    """
    none = [
        one.number + 1
        for one in items
        if isinstance(one, Item) and one.gold not in range(len(one.choices))
    ]
    if none and len(none) == len(items):
        raise UserError(
            f"no item of {file} has its right answer among its choices; take the file as the "
            f"benchmark has it: {task.origin}"
        )
    some = f"{len(none)} items, number {none[0] if none else 0} the first, count as wrong"
    return [f"{some}: their right answer is none of their choices"] if none else []
