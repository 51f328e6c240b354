"""XWinograd: whom does a pronoun mean (Tikhonov and Ryabinin, 2021)."""

import json

from polylm_jax.errors import UserError
from polylm_jax.evaluation.items import Choice, Item
from polylm_jax.evaluation.tasks import Row, Task, both, lines, plain

GAP = "_"
# what the file's tokens have for a quotation mark
MARKS = {"``": '"', "''": '"'}


def _read(file: str, content: bytes, code: str) -> list[Row]:
    """Rows with a gap for the pronoun; the original file has all languages and tokens instead."""
    if not file.endswith(".tsv"):
        return plain(file, content, code)
    rows = []
    for number, line in enumerate(lines(file, content, code), 1):
        try:
            language, *_, sentence, tokens, pronoun, options = line["text"].split("\t")
            if language == code:
                rows.append(_with_gap(sentence, *map(json.loads, (tokens, pronoun, options))))
        except (ValueError, TypeError, LookupError):
            raise UserError(
                f"{file}:{number} is not a line of XWinograd's dataset.tsv; take the file as it is."
            ) from None
    return rows


def _with_gap(sentence: str, tokens: list[str], pronoun: list, options: list[list]) -> Row:
    at, begins = 0, []
    start, stop = pronoun[1]
    for token in tokens[:stop]:
        at = sentence.index(MARKS.get(token, token), at)
        begins.append(at)
        at += len(MARKS.get(token, token))
    first, second = options
    return {
        "sentence": sentence[: begins[start]] + GAP + sentence[at:],
        "option1": first[0],
        "option2": second[0],
        "answer": "1" if first[3] else "2",
    }


def _items(rows: list[Row], language: str, protocol: str) -> list[Item]:
    items = []
    for number, row in enumerate(rows):
        before, _, after = row["sentence"].partition(GAP)
        choices = (
            Choice(before + row[name], f" {after.strip()}") for name in ("option1", "option2")
        )
        items.append(Item(number, tuple(choices), int(row["answer"]) - 1, row))
    return items


def _notes(rows: list[Row], language: str, protocol: str) -> list[str]:
    if language != "zh" or len(rows) >= 504:
        return []
    return [f"{len(rows)} items; the paper's 504 are only in the copy Muennighoff/xwinograd"]


TASK = Task(
    name="xwinograd",
    kind="choice",
    languages=("en", "zh", "ja", "pt", "ru", "fr"),
    key="xwinograd_{}",
    files=both("xwinograd/test.{}.jsonl", "xwinograd/dataset.tsv"),
    origin="take dataset.tsv of github.com/yandex-research/crosslingual_winograd.",
    form={
        "sentence": str,
        "option1": str,
        "option2": str,
        "answer": frozenset({"1", "2"}),
    },
    items=_items,
    read=_read,
    codes={"ja": "jp"},
    chance=1 / 2,
    notes=_notes,
)
