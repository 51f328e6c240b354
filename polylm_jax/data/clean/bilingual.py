"""What tells good pairs of translations from bad ones, learned from the pairs themselves.

Which words go together is IBM's model 1 (Brown and others 1993), trained on the pairs that are
measured, each without what it has taught itself: so a wrong pair's rare words do not speak for it.
A word is the first letters of a word, or two characters in a row where no spaces are.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from polylm_jax.data.clean.language import Identification, identify
from polylm_jax.data.clean.text import (
    ALONE,
    Batch,
    Spans,
    among,
    document_hashes,
    fold,
    share,
    span_hashes,
    tokens,
)

_LETTERS = 4  # of a word; what comes after is its ending
_ARTICLE = ("ا", "ل")  # which Arabic writes together with its word
_WORDS = 60  # most words of a side
_ROUNDS = 6
_UNRELATED = 0.3  # of a word's chance comes from how frequent it is
_BLANK = re.compile(r"(\n\s*\n)")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Words:
    """Words of texts as numbers from 1 on; 0 stands for no word.

    words: int64. offsets: where each text's begin, int64 [texts + 1].
    """

    words: np.ndarray
    offsets: np.ndarray


def pairs(text: str) -> list[tuple[str, str]]:
    """The pairs of lines of a bilingual document, between which blank lines stand."""
    found = map(_lines, _BLANK.split(text)[::2])
    return [(lines[0], lines[1]) for lines in found if len(lines) == 2]


def without(text: str, places: Collection[int]) -> str:
    """A bilingual document without those of its `pairs` that have these numbers."""
    parts = _BLANK.split(text)
    kept, place = "", 0
    for block, gap in zip(parts[::2], [*parts[1::2], ""], strict=True):
        is_pair = len(_lines(block)) == 2
        if not (is_pair and place in places):
            kept += block + gap
        place += is_pair
    return kept.rstrip() if places else text


def _lines(block: str) -> list[str]:
    return block.strip().split("\n")


def measure(
    firsts: Sequence[str], seconds: Sequence[str], learned: int | None = None
) -> dict[str, np.ndarray]:
    """Features of pairs, float64 [pairs]; what is high is bad, but for `aligned` and `fit`.

    learned: how many of the pairs, the first ones, are learned from; None for all.

    copied: share of the words of the second text that are in the first. length: by how many
    deviations the lengths differ from what they do as a rule. numbers: share of the numbers on
    both sides that only one has. aligned: how much likelier words are beside each other than
    alone, by IBM's model 1, in nats a word, the mean of both ways. fit: `aligned` less `numbers`,
    by which to drop pairs.
    """
    sides = [fold(Batch.of(some)) for some in (firsts, seconds)]
    first, second = (_words(side) for side in sides)
    counts = np.array([_numbers(a, b) for a, b in zip(firsts, seconds, strict=True)], np.int64)
    counts = counts.reshape(-1, 2)
    learned = len(firsts) if learned is None else learned
    aligned = (_aligned(first, second, learned) + _aligned(second, first, learned)) / 2
    numbers = share(counts[:, 0], counts[:, 1])
    # of what stands there many times one is enough, or all others would be unusual beside it
    hashes = [document_hashes(side)[:learned] for side in sides]
    different = np.unique(np.column_stack(hashes), axis=0, return_index=True)[1]
    return {
        "copied": _copied(*sides),
        "length": _unusual(sides[0].lengths, sides[1].lengths, different),
        "numbers": numbers,
        "aligned": aligned,
        "fit": aligned - numbers,
    }


def directions(
    firsts: Sequence[str],
    seconds: Sequence[str],
    languages: tuple[str, str],
    settings: Identification | None = None,
) -> np.ndarray:
    """1 where the sides are in the two languages, -1 where they are swapped, 0 else, int8 [pairs].

    A side that is too short to be told by itself is in the language that the other leaves to it.
    """
    sure = 0.5
    found = [identify(some, settings) for some in (firsts, seconds)]
    told = [
        [code if score >= sure else "" for code, score in zip(one.codes, one.scores, strict=True)]
        for one in found
    ]

    def way(first: str, second: str) -> int:
        for sign, (a, b) in ((1, languages), (-1, languages[::-1])):
            if (first, second) in ((a, b), (a, ""), ("", b)):
                return sign
        return 1 if first == second == "" else 0

    codes = tuple(language.split("-")[0] for language in languages)
    languages = (codes[0], codes[1])
    return np.array([way(a, b) for a, b in zip(*told, strict=True)], np.int8)


def limits(scores: dict[str, np.ndarray], loss: float = 0.05) -> dict[str, float]:
    """The limit of each feature that drops this share of the pairs."""
    return {
        name: float(np.quantile(some, loss if name in ("aligned", "fit") else 1 - loss))
        for name, some in scores.items()
        if len(some)
    }


def _words(side: Batch) -> Words:
    spans = tokens(side)
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
    kept = _first(spans, _WORDS)
    hashes = span_hashes(side.prefix, starts[kept], ends[kept])
    words = np.unique(hashes, return_inverse=True)[1].reshape(-1) + 1
    counts = np.minimum(spans.counts, _WORDS)
    return Words(words, np.append(0, np.cumsum(counts)))


def _first(spans: Spans, most: int) -> np.ndarray:
    return np.arange(len(spans)) - spans.offsets[spans.documents] < most


def _aligned(given: Words, told: Words, learned: int) -> np.ndarray:
    """Nats a told word by which the given ones make it likelier, float64 [pairs].

    The first `learned` pairs teach, and all are measured.
    """
    counts = np.diff(told.offsets)
    pair = np.repeat(np.arange(len(counts)), counts)
    # each told word with each of the given ones and with no word: a line of candidates
    sizes = np.diff(given.offsets)[pair] + 1
    starts = np.append(0, np.cumsum(sizes))
    line = np.repeat(np.arange(len(pair)), sizes)
    step = np.arange(starts[-1]) - starts[line]
    # step 0 is no word, the others are the words of the side
    at = given.offsets[pair][line] + np.maximum(step - 1, 0)
    source = np.where(step > 0, np.append(given.words, 0)[at], 0)
    target = told.words[line]
    vocabulary = int(told.words.max(initial=0)) + 1
    key, index = np.unique(source * vocabulary + target, return_inverse=True)
    index = index.reshape(-1)
    owner = key // vocabulary
    chance = np.ones(len(key))
    teaches = pair[line] < learned
    part = np.zeros(len(line))
    counted: np.ndarray = np.zeros(0)
    totals = counted
    for _ in range(_ROUNDS):
        part = chance[index]
        part = part / np.bincount(line, part, len(pair))[line] * teaches
        counted = np.bincount(index, part, len(key))
        totals = np.bincount(owner, counted)
        chance = counted / np.maximum(totals[owner], 1e-300)
    if not len(line):
        return np.zeros(len(counts))
    # without the pair itself: what it gave to a candidate, and to all of the same given word
    same = pair[line] * (int(source.max()) + 1) + source
    group = np.unique(same, return_inverse=True)[1].reshape(-1)
    both = np.unique(group * vocabulary + target, return_inverse=True)[1].reshape(-1)
    own, own_all = np.bincount(both, part)[both], np.bincount(group, part)[group]
    left = np.maximum(counted[index] - own, 0)
    rest = left / np.maximum(totals[source] - own_all, 1)
    taught = told.words[: told.offsets[learned]]
    frequent = np.bincount(taught, minlength=vocabulary)
    alone = (frequent[told.words] + 1) / (len(taught) + vocabulary)
    beside = np.bincount(line, rest, len(pair)) / sizes
    better = np.log(beside * (1 - _UNRELATED) + alone * _UNRELATED) - np.log(alone)
    return np.bincount(pair, better, len(counts)) / np.maximum(counts, 1)


def _copied(first: Batch, second: Batch) -> np.ndarray:
    """Share of the second's words that stand in the first."""
    found = []
    for side in (first, second):
        spans = tokens(side)
        hashes = span_hashes(side.prefix, spans.starts, spans.ends)
        found.append((hashes ^ _pair_hash(spans), spans))
    (there, _), (own, spans) = found
    copied = np.isin(own, there)
    return share(np.bincount(spans.documents[copied], minlength=len(second)), spans.counts)


def _pair_hash(spans: Spans) -> np.ndarray:
    """A number of the pair that each span is in, so that words meet in their pair only."""
    return spans.documents.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _unusual(first: np.ndarray, second: np.ndarray, learned: np.ndarray) -> np.ndarray:
    """Deviations by which the lengths of a pair differ from the usual ratio of the learned ones.

    As of Gale and Church (1993), the spread grows with the root of the length.
    """
    ratio = np.median(((second + 1) / (first + 1))[learned]) if len(learned) else 1.0
    off = (second - first * ratio) / np.sqrt(first * ratio + second + 1)
    # a spread that some wrong pairs do not widen
    spread = 1.4826 * np.median(np.abs(off[learned])) if len(learned) else 1.0
    return np.abs(off) / max(float(spread), 1e-6)


def _numbers(first: str, second: str) -> tuple[int, int]:
    """How many numbers one side has and the other has not, and how many both have together."""
    a, b = (Counter(map(_value, _NUMBER.findall(side))) for side in (first, second))
    return (a - b).total() + (b - a).total(), (a | b).total()


def _value(number: str) -> str:
    """A number's digits, so that 1,000 and 1.000 and ١٠٠٠ are one."""
    return "".join(str(unicodedata.decimal(sign)) for sign in number if sign.isdecimal())
