"""NTREX-128: bits per byte of news, the same documents in every language (Federmann, 2022)."""

from itertools import groupby

from polylm_jax.data.languages import LANGUAGES
from polylm_jax.errors import UserError
from polylm_jax.evaluation.items import Choice, Item
from polylm_jax.evaluation.tasks import Row, Task, both, lines
from polylm_jax.files import opened

DOCUMENTS = "DOCUMENT_IDS.tsv"
ORIGIN = "take newstest2019-ref.LANGUAGE.txt of github.com/MicrosoftTranslator/NTREX, renamed."


def _read(file: str, content: bytes, code: str) -> list[Row]:
    """A row for each line, with its document."""
    files, ids = opened(f"{file.rpartition('/')[0]}/{DOCUMENTS}")
    if not files.isfile(ids):
        raise UserError(f"{file} lacks {DOCUMENTS} beside it; take it from the same repository.")
    rows = lines(file, content, code)
    documents = [row["text"] for row in lines(ids, files.cat_file(ids), code)]
    if len(documents) != len(rows):
        raise UserError(
            f"{file} has {len(rows)} lines but {DOCUMENTS} {len(documents)}; take both as they are."
        )
    return [row | {"document": name} for row, name in zip(rows, documents, strict=True)]


def _items(rows: list[Row], language: str, protocol: str) -> list[Item]:
    grouped = groupby(rows, lambda row: row["document"])
    texts = [(name, "\n".join(row["text"] for row in some)) for name, some in grouped]
    return [
        Item(number, (Choice("", text),), document={"document": name})
        for number, (name, text) in enumerate(texts)
    ]


TASK = Task(
    name="ntrex",
    kind="text",
    languages=tuple(LANGUAGES),
    key="ntrex_{}",
    files=both("ntrex/{}.txt"),
    origin=ORIGIN,
    form={"text": str, "document": str},
    items=_items,
    read=_read,
    translated=True,
)
