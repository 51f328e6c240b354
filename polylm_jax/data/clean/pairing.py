"""Pairs of translations, one by one: which of a document's do not belong together.

A document of a source such as "en-de" is pairs of lines, with blank lines between. Which words go
together is learned from the pairs themselves, by groups of them: from some hundred on it shows.
"""

from collections.abc import Collection, Mapping
from itertools import chain, pairwise

import numpy as np

from polylm_jax.data.clean import bilingual
from polylm_jax.data.clean.language import Identification
from polylm_jax.data.clean.text import BATCH
from polylm_jax.data.clean.thresholds import Limit, outside
from polylm_jax.data.languages import languages_of

MISALIGNED = "misaligned"  # share of a document's pairs that break a rule
ALIGNMENT = "alignment"
BY_CHANCE = "alignment_by_chance"  # that of pairs whose sides are from two others
# what a pair is dropped for: least and most, of any two languages
RULES: dict[str, Limit] = {
    ALIGNMENT: (1.0, None),  # how much likelier words are beside the other side's than alone
    "lengths": (None, 4.0),  # deviations from the usual ratio of lengths
    "copied": (None, 0.8),  # share of the second side's words that are in the first
    "swapped": (None, 0.5),  # 1 where the sides stand the other way round than in its document
    "foreign": (None, 0.5),  # 1 where a side is in another language, or both are in one
}
# document and place: the document's number in its shard, the pair's in the document
PAIR = np.dtype([("document", "<i8"), ("place", "<i8"), *((name, "<f4") for name in RULES)])

_STRANGE = 4  # of so many pairs one is put together by chance
_GROUP = BATCH // 2  # characters of the pairs that are measured together; fewer than twice that,
_LARGEST = 8 * _GROUP  # or, where they are long, more, until there are enough of them to learn from


class Pairs:
    """The pairs of a shard as they come."""

    def __init__(self, settings: Identification, least: int) -> None:
        """least: pairs from which on it shows which words go together."""
        self._settings, self._least = settings, least
        self.by_chance: dict[str, list[np.ndarray]] = {}  # BY_CHANCE of each source
        self._rows = [np.zeros(0, PAIR)]
        self._waiting: dict[str, list[tuple[np.ndarray, str, str]]] = {}
        self._size: dict[str, int] = {}  # characters of those that wait

    def add(self, source: str, documents: Mapping[int, str]) -> None:
        """Takes the pairs of documents, by number; of many at once it is faster."""
        pairs = {number: bilingual.pairs(text) for number, text in documents.items()}
        found = [*chain.from_iterable(pairs.values())]
        if not found:
            return
        firsts, seconds = ([*side] for side in zip(*found, strict=True))
        first, second = languages_of(source)
        counts = np.array([*map(len, pairs.values())])
        document = np.repeat(np.arange(len(counts)), counts)
        ways = bilingual.directions(firsts, seconds, (first, second), self._settings, document)
        most = np.where(np.bincount(document, ways) >= 0, 1, -1)[document]
        rows = np.zeros(len(found), PAIR)
        rows["document"] = np.array([*pairs])[document]
        rows["place"] = np.arange(len(found)) - (np.cumsum(counts) - counts)[document]
        rows["swapped"], rows["foreign"] = ways == -most, ways == 0
        rows[ALIGNMENT] = rows["lengths"] = np.nan
        self._rows.append(rows)
        waiting = self._waiting.setdefault(source, [])
        for at, way in enumerate(np.where(ways, ways, most)):
            # of its row a view, into which goes what is measured later
            one, other = found[at] if way > 0 else found[at][::-1]
            waiting.append((rows[at : at + 1], one, other))
        size = sum(map(len, firsts)) + sum(map(len, seconds))
        self._size[source] = self._size.get(source, 0) + size
        while self._are_enough(source):
            self._measure(source, _GROUP)

    def _are_enough(self, source: str) -> bool:
        """Whether those that wait are two groups."""
        size, count = self._size[source], len(self._waiting[source])
        return size >= _LARGEST or (size >= 2 * _GROUP and count >= 2 * self._least)

    def rows(self) -> np.ndarray:
        """All pairs, PAIR, in the order of their documents."""
        for source, size in self._size.items():
            self._measure(source, size)
        rows = np.concatenate(self._rows)
        return rows[np.argsort(rows["document"], kind="stable")]

    def _measure(self, source: str, most: int) -> None:
        """Measures those that have been waiting longest, of so many characters and as many as
        tell which words go together."""
        waiting, count, size = self._waiting[source], 0, 0
        while count < len(waiting) and (size < most or (count < self._least and size < _LARGEST)):
            size += sum(map(len, waiting[count][1:]))
            count += 1
        self._waiting[source], self._size[source] = waiting[count:], self._size[source] - size
        if not count:
            return
        rows, firsts, seconds = map(list, zip(*waiting[:count], strict=True))
        # beside them some of like length that do not belong together, and teach nothing
        order = sorted(range(0, count, _STRANGE), key=lambda at: (len(seconds[at]), at))
        strange = [(firsts[a], seconds[b]) for a, b in pairwise(order)]
        found = bilingual.measure(
            firsts + [one for one, _ in strange], seconds + [other for _, other in strange], count
        )
        told = {"copied": found["copied"]}
        if count >= self._least:
            alignment = np.exp(found["fit"])
            self.by_chance.setdefault(source, []).append(alignment[count:])
            told |= {ALIGNMENT: alignment, "lengths": found["length"]}
        for name, values in told.items():
            for row, value in zip(rows, values[:count], strict=True):
                row[name] = value


def failures(pairs: np.ndarray, limits: Mapping[str, Limit], off: Collection[str]) -> np.ndarray:
    """Which of RULES each pair breaks, bool [pairs, rules]; what could not be measured breaks none.

    limits: of their two languages, which go before those of RULES. off: rules that drop nothing.
    """
    failed = np.zeros((len(pairs), len(RULES)), bool)
    for rule, name in enumerate(RULES):
        if name not in off:
            failed[:, rule] = outside(pairs[name], limits.get(name, RULES[name]))
    return failed
