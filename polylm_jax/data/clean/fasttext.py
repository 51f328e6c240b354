"""fastText's models of labels, asked about many lines at once: what fastText says, to the bit.

A line is the mean of the vectors of its words and of their pieces of a few letters, and a tree of
decisions tells from that how likely each label is (Joulin and others, arXiv 1607.01759; vectors
made small, arXiv 1612.03651). fastText reads a line at a time. Here each different word is cut up
once, all of them at once, and a sparse product sums the vectors of a line in fastText's order,
for in another order a sum of float32 is another.
"""

import ctypes
import mmap
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, repeat
from typing import Any

import numpy as np

_MAGIC, _VERSION = 793712314, 12
_HIERARCHY, _SUPERVISED = 1, 3  # a loss, a kind of model
_END, _LABEL = "</s>", "__label__"  # of a line, which all have; what no text's word begins with
_CENTROIDS = 256
_OFFSET, _PRIME = np.uint32(2166136261), np.uint32(16777619)  # of FNV-1a, by which pieces hash
_LITTLE = 1e-5  # fastText adds it to what it takes the logarithm of
_LINES = 1024  # whose decisions are held at once
_SURE = np.log(0.51)
_ROUGH = 0.05  # more than by what a rough logarithm of a likely label is wrong
_NOWHERE = np.int32(-1)


class OtherKind(Exception):
    """A model whose kind is not read here."""


@dataclass(frozen=True)
class Model:
    """Vectors of words and pieces, and what labels them.

    labels: their names. words: the row of each word, an int below the number of words.
    vectors: float32 [rows, dim], first of words. buckets: the row of a piece by its hash, int32,
    -1 for those that have none. shortest, longest: letters of a piece.
    branches: float32 [labels - 1, dim], what each decision looks for. below: int64 [labels - 1, 2],
    the label that each leads to without and with that, or the branch, counted after the labels.
    """

    labels: tuple[str, ...]
    words: dict[str, int]
    vectors: np.ndarray
    buckets: np.ndarray
    shortest: int
    longest: int
    branches: np.ndarray
    below: np.ndarray

    @cached_property
    def paths(self) -> tuple[np.ndarray, np.ndarray]:
        """The branches from the root to each label, int64 [labels, depth], -1 behind them, and
        which way each goes, int64."""
        labels = len(self.labels)
        ways: list[list[tuple[int, int]]] = [[] for _ in range(labels + len(self.below))]
        for branch in reversed(range(len(self.below))):
            for side, one in enumerate(self.below[branch]):
                ways[one] = [*ways[labels + branch], (branch, side)]
        depth = max(map(len, ways))
        padded = np.array([way + [(-1, 0)] * (depth - len(way)) for way in ways[:labels]])
        return padded[:, :, 0], padded[:, :, 1]

    def predict(self, lines: Sequence[str]) -> list[tuple[str, float]]:
        """The likeliest label of each line and its probability; "" and 0 where nothing is known.

        Of white space in ASCII a line has spaces alone; it has no half of a surrogate pair.
        """
        means, counts = self._means(lines)
        best, scores = self._descended(means)
        unsure = np.flatnonzero(scores < _SURE)
        for at in range(0, len(unsure), _LINES):
            some = unsure[at : at + _LINES]
            best[some], scores[some] = self._best(means[some])
        names = [self.labels[one] for one in best.tolist()]
        found = zip(names, map(_exp, scores.tolist()), strict=True)
        return [one if count else ("", 0.0) for one, count in zip(found, counts, strict=True)]

    def chances(self, lines: Sequence[str]) -> np.ndarray:
        """The logarithm of each label's probability, float32 [labels, lines], not summed in
        fastText's order. Lines are those that `predict` takes."""
        means, _ = self._means(lines)
        found = np.zeros((len(self.labels), len(lines)), np.float32)
        for at in range(0, len(lines), _LINES):
            found[:, at : at + _LINES] = self._roughly(self._yes(means[at : at + _LINES]))
        return found

    def _means(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The mean of the vectors of each line, float32 [lines, dim], and how many they are."""
        from scipy.sparse import csr_array

        rows, offsets = self._rows(lines)
        summed = csr_array(
            (np.ones(len(rows), np.float32), rows, offsets),
            shape=(len(lines), len(self.vectors)),
        )
        counts = np.diff(offsets)
        means = summed @ self.vectors
        means *= (1 / np.maximum(counts, 1)).astype(np.float32)[:, None]
        return means, counts

    def _rows(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The rows of all lines in fastText's order and where each line's begin, both int32."""
        lines = [_until_end(line) if _END in line else line for line in lines]
        numbers = defaultdict[str, int](count().__next__)
        end = numbers[_END]
        tokens = f" {_END} ".join([*lines, ""]).split(" ")[:-1]
        order = np.fromiter(map(numbers.__getitem__, tokens), np.int64, len(tokens))
        rows, starts = self._pieces([*numbers])
        counts = np.diff(starts)[order]
        offsets = np.append(0, np.cumsum(counts))
        places = np.repeat(starts[order] - offsets[:-1], counts)
        places += np.arange(len(places))
        ends = offsets[1:][order == end]
        return rows[places], np.append(0, ends).astype(np.int32)

    def _pieces(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The rows of words, int32, each word's own before its pieces', and where each's begin."""
        joined = f"<{'><'.join(words)}>"
        text = np.frombuffer(joined.encode(), np.int8)
        starts = np.flatnonzero(text >= -64)  # of letters: what is no inner byte of UTF-8
        lengths = np.fromiter(map(len, words), np.int64, len(words)) + 2
        first = np.append(0, np.cumsum(lengths))
        # letters from each to its word's end; what has no pieces has none
        left = np.repeat(first[1:], lengths) - np.arange(len(starts))
        outer = (left == 1) | np.append(True, left[:-1] == 1)
        known = np.fromiter(map(self.words.get, words, repeat(-1)), np.int32, len(words))
        without = [at for at, word in enumerate(words) if not word or word == _END]
        if f"<{_LABEL}" in joined:
            without += [
                at for at in np.flatnonzero(known < 0).tolist() if words[at].startswith(_LABEL)
            ]
        for at in without:
            left[first[at] : first[at + 1]] = 0
        sizes = np.diff(np.append(starts, len(text)))
        signed = text.astype(np.int32).view(np.uint32)  # fastText's bytes have a sign
        table = np.full((len(starts), max(self.longest, 0) + 1), _NOWHERE)
        table[first[:-1], 0] = known
        hashes = np.full(len(starts), _OFFSET)
        for size in range(1, self.longest + 1):
            some = hashes[: len(starts) - size + 1]
            some ^= signed[starts[size - 1 :]]
            some *= _PRIME
            for byte in range(1, int(sizes.max(initial=0))):
                more = np.flatnonzero(sizes[size - 1 :] > byte)
                some[more] = (some[more] ^ signed[starts[size - 1 :][more] + byte]) * _PRIME
            if size >= self.shortest:
                whole = np.flatnonzero((left >= size) & ((size > 1) | ~outer))
                table[whole, size] = self.buckets[hashes[whole] % len(self.buckets)]
        rows = table.ravel()
        there = np.flatnonzero(rows != _NOWHERE)
        return rows[there], np.searchsorted(there, first * table.shape[1])

    def _descended(self, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `_best`, where at each branch the likelier way leads to it: surely so where the
        probability is above a half."""
        from scipy.special import expit

        labels = len(self.labels)
        at = np.full(len(means), labels + len(self.branches) - 1)
        score = np.zeros(len(means), np.float32)
        columns, own = np.ascontiguousarray(self.branches.T), np.arange(len(means))
        while len(own):
            branch = at[own] - labels
            looked = np.zeros(len(own), np.float32)
            for column, mean in zip(columns, means[own].T, strict=True):
                looked += column[branch] * mean
            yes = expit(looked)
            way = (yes > 0.5).astype(np.int64)
            score[own] += _log(np.where(way, yes, 1 - yes))
            at[own] = self.below[branch, way]
            own = own[at[own] >= labels]
        return at, score

    def _best(self, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest label of each mean, int64, and the logarithm of its probability, float32.

        Which labels may be is found roughly; of those each sum is made as fastText makes it.
        """
        yes = self._yes(means)
        no, rough = 1 - yes, self._roughly(yes)
        label, mean = np.nonzero(rough >= rough.max(0) - _ROUGH)
        paths, ways = (some[label] for some in self.paths)
        ways = np.where(ways == 1, yes[paths, mean[:, None]], no[paths, mean[:, None]])
        score = np.zeros(len(label), np.float32)
        for step in np.where(paths < 0, 0, _log(ways)).T:
            score += step
        order = np.lexsort((-label, score, mean))
        last = order[np.append(np.flatnonzero(np.diff(mean[order])), len(order) - 1)]
        return label[last], score[last]

    def _yes(self, means: np.ndarray) -> np.ndarray:
        """How likely each branch finds what it looks for, float32 [branches, means]."""
        from scipy.special import expit

        looked = np.zeros((len(self.branches), len(means)), np.float32)
        one = np.empty_like(looked)
        for branch, mean in zip(self.branches.T, means.T, strict=True):
            looked += np.multiply.outer(branch, mean, out=one)
        return expit(looked)

    def _roughly(self, yes: np.ndarray) -> np.ndarray:
        """Logarithms of the labels' probabilities, float32 [labels, means]. yes: of `_yes`."""
        labels = len(self.labels)
        rough = np.zeros((labels + len(yes), yes.shape[1]), np.float32)
        logs = [np.log(some + np.float32(_LITTLE)) for some in (1 - yes, yes)]
        for branch, sides in reversed([*enumerate(self.below.tolist())]):
            for side, log in zip(sides, logs, strict=True):
                np.add(rough[labels + branch], log[branch], out=rough[side])
        return rough[:labels]


def _until_end(line: str) -> str:
    words = line.split(" ")
    return " ".join(words[: words.index(_END)]) if _END in words else line


def _log(chances: np.ndarray) -> np.ndarray:
    return np.log(chances.astype(np.float64) + _LITTLE).astype(np.float32)


# numpy's of float32 is faster and rounds otherwise
_exp: Any = ctypes.CDLL(None).expf
_exp.restype, _exp.argtypes = ctypes.c_float, [ctypes.c_float]


def load(path: str) -> Model:
    """The model in a file. ValueError where it is none, OtherKind where it is none of these."""
    with open(path, "rb") as file:
        try:
            return _model(_Content(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        except (struct.error, IndexError, ValueError) as error:
            raise ValueError(f"it is cut short or no such file: {error}") from error


class _Content:
    """What stands in a file, one after the other."""

    def __init__(self, content: mmap.mmap):
        self._content, self._at = content, 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self._content, self._at)
        self._at += struct.calcsize(f"<{form}")
        return found

    def name(self) -> str:
        end = self._content.find(b"\0", self._at)
        if end < 0:
            raise IndexError("a word has no end")
        found = self._content[self._at : end].decode("utf-8", "replace")
        self._at = end + 1
        return found

    def array(self, kind: str, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        found = np.frombuffer(self._content, kind, count, self._at)
        self._at += found.nbytes
        return np.require(found, requirements="A").reshape(shape)

    def matrix(self, small: bool) -> np.ndarray:
        """float32 [rows, dim]. small: whether a row is codes of parts, each one of 256."""
        if not small:
            return self.array("<f4", *self.numbers("qq"))
        normed, rows, dim, size = self.numbers("?qqi")
        codes = self.array("u1", rows, size // max(rows, 1))
        found = self._parts(codes, dim)
        if normed:
            found *= self._parts(self.array("u1", rows, 1), 1)
        return found

    def _parts(self, codes: np.ndarray, dim: int) -> np.ndarray:
        _, parts, width, last = self.numbers("4i")
        centroids = self.array("<f4", dim * _CENTROIDS)
        found = np.empty((len(codes), dim), np.float32)
        for part in range(parts):
            own = last if part == parts - 1 else width
            begin = part * _CENTROIDS * width
            some = centroids[begin : begin + _CENTROIDS * own].reshape(_CENTROIDS, own)
            found[:, part * width : part * width + own] = some[codes[:, part]]
        return found


def _model(content: _Content) -> Model:
    if content.numbers("ii") != (_MAGIC, _VERSION):
        raise ValueError("other bytes begin it")
    *_, ngrams, loss, kind, buckets, shortest, longest, _ = content.numbers("12i")
    content.numbers("d")
    if (kind, loss, ngrams) != (_SUPERVISED, _HIERARCHY, 1):
        raise OtherKind
    size, count, _, _, pruned = content.numbers("iiiqq")
    entries = [(content.name(), *content.numbers("qb")) for _ in range(size)]
    words, labels = entries[:count], entries[count:]
    rows = np.arange(count, count + buckets, dtype=np.int32)
    if pruned >= 0:
        pairs = content.array("<i4", pruned, 2)
        rows[:] = _NOWHERE
        rows[pairs[:, 0]] = pairs[:, 1] + count
    (small,) = content.numbers("?")
    vectors = content.matrix(small)
    (small_too,) = content.numbers("?")
    branches = content.matrix(small and small_too)
    return Model(
        tuple(name for name, *_ in labels),
        {name: row for row, (name, *_) in enumerate(words)},
        vectors,
        rows,
        shortest,
        longest,
        branches[: len(labels) - 1],
        _tree([count for _, count, _ in labels]),
    )


def _tree(counts: list[int]) -> np.ndarray:
    """The two below each branch of the Huffman tree of labels, of which the most frequent is first.

    The two rarest that have no branch yet get the next one; of equals a branch before a label.
    """
    labels = len(counts)
    weights = [*counts, *[10**15] * (labels - 1)]
    below = np.zeros((labels - 1, 2), np.int64)
    label, branch = labels - 1, labels
    for new in range(labels - 1):
        for side in (0, 1):
            if label >= 0 and weights[label] < weights[branch]:
                below[new, side], label = label, label - 1
            else:
                below[new, side], branch = branch, branch + 1
        weights[labels + new] = sum(weights[one] for one in below[new])
    return below
