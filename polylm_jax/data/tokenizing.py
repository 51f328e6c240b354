"""Tokenizing a part of a source: the documents that begin in one stretch of a file of it.

    a part's file    a HEAD, the lines as in the store but with tokens counted from the part's
                     first, and the ids, with </s> after each document

What is in it depends on the text and the tokenizer alone, not on what other parts hold.
"""

from collections.abc import Iterable, Iterator
from struct import pack
from typing import NamedTuple

import numpy as np

from polylm_jax.data.documents import batches, stretches
from polylm_jax.data.making import written
from polylm_jax.data.rows import LINE
from polylm_jax.data.shards import Text, lines_of, record_of
from polylm_jax.data.tokenizer import AT_ONCE, BATCH_CHARACTERS, EOS, Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.files import opened

# of a part's file: its numbers of lines, of documents, of their texts' bytes, and of tokens
HEAD = np.dtype([("lines", "<i8"), ("documents", "<i8"), ("bytes", "<i8"), ("tokens", "<i8")])


class Part(NamedTuple):
    """The documents of a file that begin at these bytes of its lines.

    number: among the parts of its split.
    first: the byte of the whole split's lines that is the file's first.
    """

    source: str
    split: str
    number: int
    text: Text
    begin: int
    end: int
    first: int

    @property
    def name(self) -> str:
        return f"{self.source}.{self.split}.{self.number:06d}.part"


class _Stretch(NamedTuple):
    """Text of a line. place: the line's first byte, or None in a stretch that does not begin it.

    begins, ends: whether the document does; what does not begin one goes on with the one before.
    """

    text: str
    place: int | None
    begins: bool
    ends: bool


def head(place: str) -> np.void:
    """The HEAD of a part's file. FileNotFoundError where there is none."""
    files, path = opened(place)
    return np.frombuffer(files.cat_file(path, 0, HEAD.itemsize), HEAD)[0]


def write(part: Part, tokenizer: Tokenizer, dtype: np.dtype, place: str, scratch: str) -> int:
    """Tokenize a part into a file, as `making.written` does; return how many tokens it has.

    dtype: of the ids, little-endian. UserError where the text is damaged.
    """
    packed, places, begun, size, tokens = [], [], 0, 0, 0
    for batch in batches(_stretches(_lines(part)), lambda one: len(one.text), BATCH_CHARACTERS):
        texts = [stretch.text.encode() for stretch in batch]
        size += sum(map(len, texts))
        for stretch, ids in zip(batch, _encoded(tokenizer, batch, texts), strict=True):
            begun += stretch.begins
            if stretch.place is not None:
                places.append((tokens, stretch.place))
            if stretch.ends:
                ids.append(EOS)
            tokens += len(ids)
            # half as dear again through NumPy, an integer at a time
            packed.append(pack(f"{len(ids)}{dtype.char}", *ids))
    counts = np.array((len(places), begun, size, tokens), HEAD)
    with written(place, scratch) as file:
        file.write(counts.tobytes() + np.array(places, LINE).tobytes())
        file.write(b"".join(packed))
    return tokens


def _encoded(tokenizer: Tokenizer, batch: list[_Stretch], texts: list[bytes]) -> list[list[int]]:
    """Ids of each stretch, in UTF-8 in `texts`, as they are inside its document."""
    if not tokenizer.adds_space:
        return tokenizer.processor.encode(texts, num_threads=1)
    # the space that is added before a text stands for one that is there, or goes again
    lacks = [not stretch.begins and not stretch.text.startswith(" ") for stretch in batch]
    texts = [
        text if stretch.begins else text.removeprefix(b" ")
        for text, stretch in zip(texts, batch, strict=True)
    ]
    space = tokenizer.processor.piece_to_id("▁")
    return [
        ids[1:] if lack and ids[:1] == [space] else ids
        for ids, lack in zip(tokenizer.processor.encode(texts, num_threads=1), lacks, strict=True)
    ]


def _stretches(lines: Iterable[_Stretch]) -> Iterator[_Stretch]:
    """The lines in stretches that are tokenized at once."""
    for line in lines:
        if len(line.text) <= AT_ONCE:
            yield line
            continue
        *some, last = stretches(line.text, AT_ONCE)
        for text in some:
            yield line._replace(text=text, ends=False)
            line = line._replace(place=None, begins=False)
        yield line._replace(text=last)


def _lines(part: Part) -> Iterator[_Stretch]:
    """The lines that begin in a part."""
    # the line that the part's first byte may lie in belongs to the part before
    place = max(0, part.begin - 1)
    with lines_of(part.text, place) as lines:
        if part.begin:
            place += len(lines.readline())
        for line in lines:
            if place >= part.end:
                return
            record = record_of(line)
            if record is None:
                raise UserError(
                    f"{part.text.place} is damaged at its byte {place:,}; run polylm corpus again."
                )
            begins, ends = record.get("part", 1) == 1, not record.get("more")
            yield _Stretch(record["text"], part.first + place, begins, ends)
            place += len(line)
    if place < part.end:
        raise UserError(f"{part.text.place} is cut short; make the corpus again.")
