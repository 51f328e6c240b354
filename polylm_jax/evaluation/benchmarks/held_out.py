"""What a run's own corpus held out: bits per byte of documents, and word order in their lines."""

from functools import partial
from itertools import chain, zip_longest

from polylm_jax.data.languages import LANGUAGES
from polylm_jax.evaluation.benchmarks.word_order import swapped
from polylm_jax.evaluation.items import Choice, Item
from polylm_jax.evaluation.tasks import Row, Task, both


def _documents(rows: list[Row], language: str, protocol: str) -> list[Item]:
    return [Item(number, (Choice("", row["text"]),)) for number, row in enumerate(rows)]


def _order(rows: list[Row], language: str, protocol: str) -> list[Item]:
    """The lines in which two neighbours can be swapped, the longest of each document first."""
    lines = [sorted(row["text"].split("\n"), key=len, reverse=True) for row in rows]
    items: list[Item] = []
    for line in filter(None, chain.from_iterable(zip_longest(*lines))):
        number = len(items)
        other = swapped(line, language, number)
        if other is not None:
            pair, gold = (Choice("", line), Choice("", other)), number % 2
            items.append(Item(number, pair[::-1] if gold else pair, gold, {"text": line}))
    return items


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
