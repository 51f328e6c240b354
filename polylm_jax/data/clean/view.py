"""A batch of documents, and what several features need of it, found once.

Words are those of `text.tokens`, so a value differs somewhat from that of a program with a word
splitter.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from polylm_jax.data.clean.text import (
    BLANKS,
    LETTERS,
    Batch,
    Kind,
    Spans,
    among,
    chunks,
    count,
    lines,
    paragraphs,
    prefix_hashes,
    span_hashes,
    tokens,
    total,
)


@dataclass(frozen=True)
class View:
    """A batch, and what several features need of it."""

    batch: Batch

    @cached_property
    def tokens(self) -> Spans:
        """Words."""
        return tokens(self.batch)

    @cached_property
    def chunks(self) -> Spans:
        """What stands between white space."""
        return chunks(self.batch)

    @cached_property
    def lines(self) -> Spans:
        """Lines that are not blank."""
        return lines(self.batch)

    @cached_property
    def paragraphs(self) -> Spans:
        """What stands between blank lines."""
        return paragraphs(self.batch)

    @cached_property
    def lines_before(self) -> np.ndarray:
        """Which lines have been before, bool."""
        return before(self.batch, self.lines)

    @cached_property
    def paragraphs_before(self) -> np.ndarray:
        """Which paragraphs have been before, bool."""
        return before(self.batch, self.paragraphs)

    @cached_property
    def letters(self) -> np.ndarray:
        """How many letters stand before each code point, int32 [code points + 1]."""
        sums = np.zeros(len(self.batch.codes) + 1, np.int32)
        np.cumsum(among(self.batch.kinds, LETTERS), out=sums[1:], dtype=np.int32)
        return sums

    @cached_property
    def words(self) -> np.ndarray:
        """Words of each document."""
        return self.tokens.counts

    @cached_property
    def word_characters(self) -> np.ndarray:
        """Characters in words."""
        return total(self.tokens.lengths, self.tokens.offsets)

    @cached_property
    def visible(self) -> np.ndarray:
        """Characters that are not white space."""
        return self.batch.lengths - self.of(*BLANKS)

    @cached_property
    def low(self) -> np.ndarray:
        """The code points, uint16; those that do not fit are the last one."""
        return np.minimum(self.batch.codes, _LAST).astype(np.uint16)

    @cached_property
    def hashes(self) -> np.ndarray:
        """Hashes of the words, uint64."""
        return span_hashes(self.batch.prefix, self.tokens.starts, self.tokens.ends)

    @cached_property
    def repeated(self) -> dict[int, "Repeated"]:
        """The n-grams of words that a document repeats, n from 1 to 10.

        The first n words of a repeated (n+1)-gram are a repeated n-gram, so that each list is
        found in the one before it, and only the first is of all words.
        """
        spans, prefix, found = self.tokens, prefix_hashes(self.hashes), {}
        ends = spans.offsets[1:][spans.documents]
        at = np.arange(len(spans))
        for size in range(1, 11):
            at = at[at + size <= ends[at]]
            hashes = span_hashes(prefix, at, at + size)
            found[size] = repeated(hashes, at, spans.documents[at])
            at = found[size].all
        return found

    def of(self, *kinds: Kind) -> np.ndarray:
        """Characters of some kinds in each document."""
        return self.batch.counts[:, list(kinds)].sum(1)

    def characters(self, wanted: str) -> np.ndarray:
        """How often the wanted characters stand in each document."""
        return count(self.are(wanted), self.batch.offsets)

    def are(self, wanted: str) -> np.ndarray:
        """Which characters are among the wanted, bool."""
        if len(wanted) > _COMPARED:
            return table(wanted).take(self.low)
        found = np.zeros(len(self.low), bool)
        for character in wanted:
            found |= self.low == ord(character)
        return found

    def follow(self, first: str, *then: str) -> np.ndarray:
        """Where one of `first` is followed by one of each `then` in the same document, int64."""
        begins = self.batch.first
        at = np.flatnonzero(self.are(first))
        for step, wanted in enumerate(then, 1):
            at = at[at + step < len(begins)]
            after = at + step
            at = at[table(wanted)[self.low[after]] & ~begins[after]]
        return at

    def located(self, *places: np.ndarray) -> np.ndarray:
        """How many of the places lie in each document."""
        at = np.sort(np.concatenate(places))
        return np.diff(np.searchsorted(at, self.batch.offsets))


_LAST = 0xFFFF  # characters that are asked for lie below
_COMPARED = 16  # so many are faster compared one by one than looked up


@lru_cache(maxsize=64)
def table(wanted: str) -> np.ndarray:
    found = np.zeros(_LAST + 1, bool)
    found[[ord(character) for character in wanted]] = True
    return found


# Hash and place share 64 bits so that numbers, not pairs, are sorted.
_PLACE = np.uint64(2**24 - 1)


@dataclass(frozen=True)
class Repeated:
    """What occurs more than once in its document.

    all: places of all that do, ascending. later: of those that are not the first, ascending.
    groups: the number of the group of equals, of all, in order of `members`, which are places.
    documents: of each group. sizes: of each group.
    """

    all: np.ndarray
    later: np.ndarray
    members: np.ndarray
    groups: np.ndarray
    documents: np.ndarray
    sizes: np.ndarray


def repeated(hashes: np.ndarray, places: np.ndarray, documents: np.ndarray) -> Repeated:
    """What is equal within a document, given hashes, uint64 [n], and ascending places of each.

    Equal hashes of one document are found next to each other, whatever the other documents hold.
    """
    if len(hashes) <= int(_PLACE):
        keys = hashes & ~_PLACE
        keys |= np.arange(len(hashes), dtype=np.uint64)
        keys.sort()
        # few are like a neighbour in the bits that were sorted, and only those can be equal
        like = np.zeros(len(keys) + 1, bool)
        like[1:-1] = keys[1:] ^ keys[:-1] <= _PLACE
        order = (keys[like[1:] | like[:-1]] & _PLACE).astype(np.int64)
    else:
        order = np.argsort(hashes, kind="stable")
    hashes, documents = hashes[order], documents[order]
    same = np.zeros(len(order) + 1, bool)
    same[1:-1] = (hashes[1:] == hashes[:-1]) & (documents[1:] == documents[:-1])
    member = same[1:] | same[:-1]
    begins = member & ~same[:-1]
    groups = np.cumsum(begins)[member] - 1
    members = places[order[member]]
    later = places[order[same[:-1]]]
    sizes = np.bincount(groups, minlength=int(begins.sum()))
    return Repeated(np.sort(members), np.sort(later), members, groups, documents[begins], sizes)


def before(batch: Batch, spans: Spans) -> np.ndarray:
    """Which spans have been before in their document, bool."""
    hashes = span_hashes(batch.prefix, spans.starts, spans.ends)
    found = np.zeros(len(spans), bool)
    found[repeated(hashes, np.arange(len(spans)), spans.documents).later] = True
    return found
