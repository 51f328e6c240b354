"""Cutting shards of rows from tokenized parts, each shard by itself.

The ids of a source, one part after another, are a stream. Where each part's begin is known before
anything is cut, so a shard is ranges of bytes of a few files, and whoever cuts it reads no more.
"""

import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from polylm_jax.data.making import written
from polylm_jax.data.rows import LINE
from polylm_jax.errors import UserError
from polylm_jax.files import opened

# of a part's file: its numbers of lines, of documents, of their texts' bytes, and of tokens
HEAD = np.dtype([("lines", "<i8"), ("documents", "<i8"), ("bytes", "<i8"), ("tokens", "<i8")])
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


def of_part(place: str, head: np.void, first: int, size: int) -> tuple[Lines, Span]:
    """The lines and the ids, of `size` bytes, in a part's file."""
    begin = HEAD.itemsize + int(head["lines"]) * LINE.itemsize
    ids = Span(place, begin, begin + int(head["tokens"]) * size)
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
