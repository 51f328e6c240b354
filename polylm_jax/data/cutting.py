"""Cutting shards of rows from tokenized parts, each shard by itself.

The ids of a source, one part after another, are a stream. Where each part's begin is known before
anything is cut, so a shard is ranges of bytes of a few files, and whoever cuts it reads no more.
"""

import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from polylm_jax.data.making import written
from polylm_jax.data.rows import LINE, RowSettings, Store
from polylm_jax.data.tokenizing import HEAD, head
from polylm_jax.errors import UserError
from polylm_jax.files import opened

COUNTED = ("documents", "bytes", "tokens")  # of a split, beside its rows
_READ = 2**24  # bytes that are held at once


class Span(NamedTuple):
    """Bytes of a file, from begin to end. place: path or URL."""

    place: str
    begin: int
    end: int


class Lines(NamedTuple):
    """The lines of a part, as in the store but for `token`, which counts from the part's first.

    first: the stream's token that is the part's first.
    """

    span: Span
    first: int


class Cut(NamedTuple):
    """A shard of rows to be cut, or, of number -1, the index of a split and its ids' hash."""

    source: str
    split: str
    number: int
    ids: list[Span]
    lines: list[Lines]


@dataclass(frozen=True)
class Split:
    """What is to be cut of a split, and what has been, by its number.

    totals: what its entry in the manifest counts. former: what that says of the store that it
    extends.
    """

    cuts: list[Cut]
    totals: dict[str, int]
    former: dict
    made: dict[int, dict] = field(default_factory=dict)

    def entry(self) -> dict:
        """What the manifest says of it, once all is cut."""
        shards = [self.made[number] for number in range(len(self.cuts) - 1)]
        return self.totals | self.made[-1] | {"shards": shards} | self.former


def laid_out(
    source: str,
    split: str,
    places: Sequence[str],
    settings: RowSettings,
    size: int,
    old: Store | None,
) -> Split:
    """Where a split's shards lie in its tokenized parts, and in the store that it extends.

    places: of the parts' files. size: bytes of an id. old: the store that is extended.
    """
    former = old.manifest["sources"][source][split] if old and source in old.sources else None
    ids: list[Span] = []
    totals = dict.fromkeys(COUNTED, 0)
    if old and former:
        ids = of_store(f"{old.path}/{source}", former["shards"], size)
        totals = {
            "documents": former["documents"],
            "bytes": former["bytes"],
            "tokens": sum(span.end - span.begin for span in ids) // size,
        }
    lines = []
    for place in places:
        counts = head(place)
        of_lines, of_ids = _of_part(place, counts, totals["tokens"], size)
        lines.append(of_lines)
        ids.append(of_ids)
        for name in COUNTED:
            totals[name] += int(counts[name])
    rows = max(0, totals["tokens"] - 1) // settings.length
    cuts = [Cut(source, split, -1, ids, lines)]
    for number, first in enumerate(range(0, rows, settings.shard_rows)):
        last = min(first + settings.shard_rows, rows)
        begin, end = first * settings.length * size, (last * settings.length + 1) * size
        cuts.append(Cut(source, split, number, parts_of(ids, begin, end), []))
    kept = rows * settings.length + 1 if rows else 0
    totals |= {"rows": rows, "dropped_tokens": totals["tokens"] - kept}
    if not former:
        return Split(cuts, totals, {})
    begun = {"rows": former["rows"], "sha256": former["sha256"]}
    return Split(cuts, totals, {"extends": [*former.get("extends", []), begun]})


def _of_part(place: str, counts: np.void, first: int, size: int) -> tuple[Lines, Span]:
    """The lines and the ids, of `size` bytes, in a part's file with this HEAD."""
    begin = HEAD.itemsize + int(counts["lines"]) * LINE.itemsize
    ids = Span(place, begin, begin + int(counts["tokens"]) * size)
    return Lines(Span(place, HEAD.itemsize, begin), first), ids


def of_store(place: str, shards: Sequence[dict], size: int) -> list[Span]:
    """The ids of a store's shards in `place`; each but the first begins with the last one's end."""
    return [
        Span(f"{place}/{shard['file']}", size * (number > 0), shard["bytes"])
        for number, shard in enumerate(shards)
    ]


def parts_of(stream: Sequence[Span], begin: int, end: int) -> list[Span]:
    """Those of a stream's bytes that are from begin to end."""
    ends = list(accumulate(span.end - span.begin for span in stream))
    found = []
    for number in range(bisect_right(ends, begin), len(stream)):
        span = stream[number]
        start = ends[number] - (span.end - span.begin)
        if start >= end:
            break
        found.append(
            Span(
                span.place,
                span.begin + max(0, begin - start),
                span.end - max(0, ends[number] - end),
            )
        )
    return found


def counted(lines: Sequence[Lines]) -> Iterator[bytes]:
    """The lines of all parts, with tokens as the stream counts them."""
    for span, first in lines:
        found = np.frombuffer(b"".join(read([span])), LINE).copy()
        found["token"] += first
        yield found.tobytes()


def digest(stream: Sequence[Span]) -> str:
    """sha256 of a stream's bytes."""
    value = sha256()
    for content in read(stream):
        value.update(content)
    return value.hexdigest()


def write(place: str, contents: Iterator[bytes], scratch: str) -> dict:
    """Writes a file of a store, as `making.written` does; returns what the manifest says of it."""
    size = crc = 0
    with written(place, scratch) as file:
        for content in contents:
            file.write(content)
            size, crc = size + len(content), zlib.crc32(content, crc)
    return {"file": place.rpartition("/")[2], "bytes": size, "crc32": crc}


def read(spans: Sequence[Span]) -> Iterator[bytes]:
    """Bytes of files, one after another."""
    for place, first, last in spans:
        files, path = opened(place)
        for begin in range(first, last, _READ):
            end = min(begin + _READ, last)
            content = files.cat_file(path, begin, end)
            if len(content) != end - begin:
                raise UserError(f"{place} is cut short; delete it and run polylm rows again.")
            yield content
