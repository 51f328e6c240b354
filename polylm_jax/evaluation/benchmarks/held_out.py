"""What a run's own corpus held out: bits per byte of documents, and word order in their lines."""

from collections.abc import Iterator
from functools import partial

from polylm_jax.data.languages import LANGUAGES
from polylm_jax.evaluation.benchmarks.word_order import swapped
from polylm_jax.evaluation.items import Choice, Item
from polylm_jax.evaluation.tasks import Row, Task, both


def _documents(rows: list[Row], language: str, protocol: str) -> list[Item]:
    return [Item(number, (Choice("", row["text"]),)) for number, row in enumerate(rows)]


def _order(rows: list[Row], language: str, protocol: str) -> Iterator[Item]:
    """The lines in which two neighbours can be swapped, the longest of each document first.

    One after another, as of many megabytes only the first may be wanted.
    """
    number = 0
    for line in filter(None, _longest_first(rows)):
        other = swapped(line, language, number)
        if other is not None:
            pair, gold = (Choice("", line), Choice("", other)), number % 2
            yield Item(number, pair[::-1] if gold else pair, gold, {"text": line})
            number += 1


def _longest_first(rows: list[Row]) -> Iterator[str]:
    """The longest line of each document, then the next one of each that has more, and so on."""
    documents = []
    for row in rows:
        documents.append(sorted(row["text"].split("\n"), key=len, reverse=True))
        yield documents[-1][0]
    for place in range(1, max(map(len, documents), default=0)):
        documents = [lines for lines in documents if len(lines) > place]
        yield from (lines[place] for lines in documents)


_task = partial(
    Task,
    languages=tuple(LANGUAGES),
    files=both("{}/valid.jsonl"),
    origin="`polylm corpus` makes it; corpus.path says where.",
    form={"text": str},
    of_corpus=True,
)
TASKS = [
    _task("held_out", "text", key="held_out_{}", items=_documents),
    _task("held_out_order", "choice", key="held_out_order_{}", items=_order, chance=1 / 2),
]
