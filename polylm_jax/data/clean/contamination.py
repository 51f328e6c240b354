"""Text that models are measured with: which documents hold an item of a benchmark.

Items are cut into all their windows of 50 letters, 25 in scripts without spaces, and so is the
text; folded, so that case, marks and line ends do not matter. A document holds an item when it has
most of its windows. Matches are of 64-bit hashes, so one in a hundred thousand million is wrong.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from polylm_jax.data.clean.documents import File, table_of
from polylm_jax.data.clean.text import SHINGLE, Batch, fold, mix, ngram_hashes, shingle_sizes
from polylm_jax.data.compressed import Damaged
from polylm_jax.data.compressed import opened as decompressed
from polylm_jax.errors import UserError, first_line
from polylm_jax.files import nearest, opened

WIDTHS = (50, 25)  # letters of a window: of most scripts, of those without spaces
HELD = 0.7  # share of an item's windows from which a document holds it
STOCK = 100  # documents; a window in more is a phrase that everybody writes
_KIND = re.compile(
    r".+(?:\.(txt|tsv|csv|jsonl|json)(?:\.gz|\.zst)?|\.(parquet))", re.IGNORECASE | re.DOTALL
)
_BITS = 24  # a bitmap of 2 MiB is looked at first


@dataclass(frozen=True)
class Index:
    """The windows of all items.

    names: of the items, FILE:LINE. hashes: the different windows, sorted, uint64 [windows].
    widths: letters of each window, int64 [windows]. starts, items: the items that window w is in
    are items[starts[w]:starts[w + 1]].
    """

    names: tuple[str, ...]
    hashes: np.ndarray
    widths: np.ndarray
    starts: np.ndarray
    items: np.ndarray

    @property
    def short(self) -> int:
        """Items without a window, too short to be looked for."""
        return len(self.names) - len(np.unique(self.items))


def read(folders: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The items of folders of plain text, tables, JSON or Parquet: their names and texts.

    A line is one item, or in a .json a record of its list, in a .parquet a row; of a record all
    that is text, one after the other. UserError where a folder has none or a file is damaged.
    """
    for folder in folders:
        files, root = opened(folder)
        names = [
            (name, found) for name in sorted(files.find(root)) if (found := _KIND.fullmatch(name))
        ]
        if not names:
            raise UserError(
                f"clean.evaluation={folder} has no .txt, .tsv, .csv, .jsonl, .json or .parquet"
                f"{nearest(folder)}; name a folder of benchmarks."
            )
        for name, kind in names:
            # a name may hold bytes that are no text
            shown = (name.removeprefix(root) or name.rpartition("/")[2]).lstrip("/")
            shown = shown.encode("utf-8", "replace").decode()
            ending, content = (kind[1] or kind[2]).lower(), files.cat_file(name)
            try:
                items = [*_items(ending, content, name)]
            except Damaged as error:
                raise UserError(f"{name} {error}; mend it, or take it out.") from None
            for number, item in enumerate(items, 1):
                if item.strip():
                    yield f"{shown}:{number}", item


def _items(ending: str, content: bytes, name: str) -> Iterator[str]:
    """The items of a file of this ending. Damaged is raised where it is so."""
    if ending == "parquet":
        table = table_of(BytesIO(content), File(name, name, len(content)))
        try:
            rows = table.read().to_pylist()
        except Exception as error:  # Arrow's are of many kinds, and all of what these bytes say
            raise Damaged(f"is damaged ({first_line(error)})") from None
        yield from ("\n".join(_strings(row)) for row in rows)
        return
    text = decompressed(BytesIO(content), name).read().decode("utf-8-sig", "replace")
    if ending == "json":
        with suppress(ValueError, RecursionError):
            yield from ("\n".join(_strings(one)) for one in _records(json.loads(text)))
            return
    for line in text.rstrip("\n").split("\n"):
        yield _text(line) if ending.startswith("json") else line.replace("\t", "\n")


def _records(value: Any) -> list:
    """The records of a whole file of JSON: those of a list, or of lists that an object has."""
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    lists = {name: some for name, some in value.items() if isinstance(some, list)}
    lists = {name: some for name, some in lists.items() if any(isinstance(s, dict) for s in some)}
    rest = {name: part for name, part in value.items() if name not in lists}
    return [rest, *(one for some in lists.values() for one in some)]


def _text(line: str) -> str:
    try:
        return "\n".join(_strings(json.loads(line)))
    except (ValueError, RecursionError):
        return line


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def index(items: Iterable[tuple[str, str]]) -> Index:
    """The index of named texts."""
    items = [*items]
    names, texts = zip(*items, strict=True) if items else ((), ())
    folded = fold(Batch.of(texts))
    widths = np.where(shingle_sizes(folded) < SHINGLE, WIDTHS[1], WIDTHS[0])
    found, owners = [], []
    for width in WIDTHS:
        hashes, documents = _windows(folded, width)
        own = widths[documents] == width
        found.append(hashes[own])
        owners.append(documents[own])
    hashes, items_of = np.concatenate(found), np.concatenate(owners)
    rows = np.unique(np.stack([hashes, items_of.astype(np.uint64)], 1), axis=0)
    different, starts = np.unique(rows[:, 0], return_index=True)
    items_of = rows[:, 1].astype(np.int64)
    return Index(
        names,
        different,
        widths[items_of[starts]],
        np.append(starts, len(rows)),
        items_of,
    )


def _windows(folded: Batch, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all windows that lie in one document, uint64, and the document of each."""
    hashes = mix(ngram_hashes(folded.prefix, width) + np.uint64(width))
    counts = np.maximum(folded.lengths - width + 1, 0)
    documents = np.repeat(np.arange(len(folded)), counts)
    before = np.cumsum(counts) - counts
    places = np.arange(len(documents)) + (folded.offsets[:-1] - before)[documents]
    return hashes[places], documents


def hits(index: Index, folded: Batch) -> np.ndarray:
    """Which windows of the index stand in which folded documents: different (document, window),
    int64 [n, 2], sorted."""
    bitmap = np.zeros(2**_BITS, bool)
    bitmap[(index.hashes >> np.uint64(64 - _BITS)).astype(np.int64)] = True
    found = [np.empty((0, 2), np.int64)]
    for width in np.unique(index.widths):
        hashes, documents = _windows(folded, int(width))
        may = bitmap[(hashes >> np.uint64(64 - _BITS)).astype(np.int64)]
        hashes, documents = hashes[may], documents[may]
        at = np.minimum(np.searchsorted(index.hashes, hashes), len(index.hashes) - 1)
        there = index.hashes[at] == hashes
        found.append(np.column_stack([documents[there], at[there]]))
    return np.unique(np.concatenate(found), axis=0)


def held(index: Index, hits: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Which items stand in which documents: (document, item, share in thousandths), int64 [n, 3].

    hits: as `hits` gives them. documents: how many have each window of the index, of which a
    cluster of copies is one; stock phrases do not count.
    """
    counts = documents <= STOCK
    owners = np.repeat(np.arange(len(index.hashes)), np.diff(index.starts))
    total = np.bincount(index.items[counts[owners]], minlength=len(index.names))
    hits = hits[counts[hits[:, 1]]]
    several = index.starts[hits[:, 1] + 1] - index.starts[hits[:, 1]]
    first = np.repeat(index.starts[hits[:, 1]] - (np.cumsum(several) - several), several)
    items = index.items[np.arange(several.sum()) + first]
    pairs, number = np.unique(
        np.column_stack([np.repeat(hits[:, 0], several), items]), axis=0, return_counts=True
    )
    share = number / np.maximum(total[pairs[:, 1]], 1)
    most = share >= HELD
    return np.column_stack([pairs, (1000 * share).astype(np.int64)])[most]
