"""How well the words of pairs of texts go together: IBM's model 1 (Brown and others, 1993).

It is trained on the pairs that it measures, each without what it has taught itself: so a wrong
pair's rare words do not speak for it. A word is the first letters of a word, or two characters in
a row where no spaces are.

A cell is a word of the first text of a pair with one of the second. Cells of the same two words
stand in a row, so that a round of training is two sparse products each way.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from polylm_jax.data.clean.text import ALONE, Batch, Spans, among, span_hashes

_LETTERS = 4  # of a word; what comes after is its ending
_ARTICLE = ("ا", "ل")  # which Arabic writes together with its word
_WORDS = 60  # most words of a text
_ROUNDS = 6
_LEAST = 1e-300  # by which is divided
_UNRELATED = 0.3  # of a word's chance comes from how frequent it is


@dataclass(frozen=True)
class Words:
    """The different words of each text.

    words: their numbers from 0 on. counts: how often each is in its text. texts: the text that
    each is in, ascending. size: how many texts. All int64.
    """

    words: np.ndarray
    counts: np.ndarray
    texts: np.ndarray
    size: int

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where the words of each text begin and the last end, int64 [texts + 1]."""
        return np.searchsorted(self.texts, np.arange(self.size + 1))

    @cached_property
    def sizes(self) -> np.ndarray:
        """How many words each text has, equal ones counted, float64 [texts]."""
        return np.bincount(self.texts, self.counts, self.size)

    @property
    def vocabulary(self) -> int:
        return int(self.words.max(initial=-1)) + 1


@dataclass(frozen=True)
class _Cells:
    """Cells in the order of their two words, then of their pairs.

    first, second: the place of each cell's words among those of its side, int32 [cells].
    rows: where the cells of the same two words begin and the last end, int64 [rows + 1].
    """

    first: np.ndarray
    second: np.ndarray
    rows: np.ndarray


def words(side: Batch, spans: Spans) -> Words:
    """The words of folded texts. spans: their `tokens`."""
    article = spans.lengths > _LETTERS
    for step, letter in enumerate(_ARTICLE):
        article[article] = side.codes[spans.starts[article] + step] == ord(letter)
    starts = spans.starts + len(_ARTICLE) * article
    ends = np.minimum(spans.ends, starts + _LETTERS)
    alone = among(side.kinds[spans.starts], ALONE)
    follows = np.zeros(len(spans), bool)
    follows[:-1] = alone[:-1] & alone[1:] & (spans.starts[1:] == spans.ends[:-1])
    follows[spans.offsets[1:][spans.counts > 0] - 1] = False
    ends[follows] = spans.ends[np.flatnonzero(follows) + 1]
    kept = np.arange(len(spans)) - spans.offsets[spans.documents] < _WORDS
    hashes = span_hashes(side.prefix, starts[kept], ends[kept])
    different, numbers = np.unique(hashes, return_inverse=True)
    size = max(len(different), 1)
    keys, counts = np.unique(spans.documents[kept] * size + numbers, return_counts=True)
    return Words(keys % size, counts, keys // size, len(side))


def alignment(first: Words, second: Words, learned: int) -> np.ndarray:
    """How much likelier words are beside each other than alone, in nats a word, the mean of both
    ways, float64 [pairs].

    learned: how many pairs, the first ones, teach; all are measured.
    """
    cells = _cells(first, second)
    there = _aligned(first, second, cells.first, cells.second, cells.rows, learned)
    back = _aligned(second, first, cells.second, cells.first, cells.rows, learned)
    return (there + back) / 2


def _cells(first: Words, second: Words) -> _Cells:
    from scipy.sparse import csr_array

    # by the second's words, then by the first's: a sparse matrix that is turned sorts by counting
    order = np.argsort(second.words, kind="stable")
    pairs = second.texts[order]
    counts = np.diff(first.offsets)[pairs]
    ends = np.cumsum(counts)
    place = np.repeat(first.offsets[pairs] - ends + counts, counts)
    place += np.arange(len(place))
    turned = csr_array(
        (place.astype(np.int32), first.words[place], np.append(0, ends)),
        shape=(len(order), first.vocabulary),
    ).tocsc()
    at = order.astype(np.int32)[turned.indices]
    word = second.words[at]
    begins = np.append(True, word[1:] != word[:-1])[: len(word)]
    begins[turned.indptr[:-1][np.diff(turned.indptr) > 0]] = True
    return _Cells(turned.data, at, np.append(np.flatnonzero(begins), len(at)).astype(np.int32))


def _aligned(
    given: Words,
    told: Words,
    source: np.ndarray,
    target: np.ndarray,
    rows: np.ndarray,
    learned: int,
) -> np.ndarray:
    """Nats a told word by which the given ones make it likelier, float64 [pairs].

    source, target, rows: as of `_Cells`, of the given and the told words.
    """
    from scipy.sparse import csr_array

    weight = given.counts.astype(np.float64)
    table = csr_array((weight[source], target, rows), shape=(len(rows) - 1, len(told.words)))
    owner = given.words[source[rows[:-1]]]
    taught = told.counts * (told.texts < learned)
    # chances of rows, and beside no word, which stands in each text
    chance, chance_0 = np.ones(len(owner)), np.ones(told.vocabulary)
    for _ in range(_ROUNDS):
        before, before_0 = chance, chance_0[told.words]
        once = taught / np.maximum(table.T @ before + before_0, _LEAST)
        counted = before * (table @ once)
        counted_0 = np.bincount(told.words, before_0 * once, told.vocabulary)
        totals, total_0 = np.bincount(owner, counted, given.vocabulary), counted_0.sum()
        chance = counted / np.maximum(totals, _LEAST)[owner]
        chance_0 = counted_0 / max(total_0, _LEAST)
    # without the pair itself: what it gave to a cell, and to all cells of the given word
    gave = csr_array((once[target], source, rows), shape=(len(rows) - 1, len(weight))).T @ before
    left = weight / np.maximum(totals[given.words] - weight * gave, 1)
    table.data = left[source]
    beside = table.T @ counted
    table.data *= weight[source]
    beside -= once * (table.T @ before)
    own_0 = before_0 * once
    left_0 = np.maximum(total_0 - np.bincount(told.texts, own_0, told.size), 1)
    beside += (counted_0[told.words] - own_0) / left_0[told.texts]
    beside /= (given.sizes + 1)[told.texts]
    frequent = np.bincount(told.words, taught, told.vocabulary)
    alone = ((frequent + 1) / (taught.sum() + told.vocabulary + 1))[told.words]
    better = np.log(beside * (1 - _UNRELATED) + alone * _UNRELATED) - np.log(alone)
    return np.bincount(told.texts, better * told.counts, told.size) / np.maximum(told.sizes, 1)
