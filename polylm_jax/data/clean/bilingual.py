"""What tells good pairs of translations from bad ones, learned from the pairs themselves.

Which words go together `alignment` learns; beside it stand lengths, numbers, copies, languages.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from polylm_jax.data.clean.alignment import alignment, words
from polylm_jax.data.clean.language import Identification, identify
from polylm_jax.data.clean.text import (
    Batch,
    Spans,
    document_hashes,
    fold,
    share,
    span_hashes,
    tokens,
)

_BLANK = re.compile(r"(\n\s*\n)")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


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
    spans = [tokens(side) for side in sides]
    counts = np.array([_numbers(a, b) for a, b in zip(firsts, seconds, strict=True)], np.int64)
    counts = counts.reshape(-1, 2)
    learned = len(firsts) if learned is None else learned
    first, second = map(words, sides, spans)
    aligned = alignment(first, second, learned)
    numbers = share(counts[:, 0], counts[:, 1])
    # of what stands there many times one is enough, or all others would be unusual beside it
    hashes = [document_hashes(side)[:learned] for side in sides]
    different = np.unique(np.column_stack(hashes), axis=0, return_index=True)[1]
    return {
        "copied": _copied(sides, spans),
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
    found = identify([*firsts, *seconds], settings)
    told = [
        code if score >= sure else "" for code, score in zip(found.codes, found.scores, strict=True)
    ]

    def way(first: str, second: str) -> int:
        for sign, (a, b) in ((1, languages), (-1, languages[::-1])):
            if (first, second) in ((a, b), (a, ""), ("", b)):
                return sign
        return 1 if first == second == "" else 0

    codes = tuple(language.split("-")[0] for language in languages)
    languages = (codes[0], codes[1])
    return np.array(
        [way(a, b) for a, b in zip(told[: len(firsts)], told[len(firsts) :], strict=True)], np.int8
    )


def limits(scores: dict[str, np.ndarray], loss: float = 0.05) -> dict[str, float]:
    """The limit of each feature that drops this share of the pairs."""
    return {
        name: float(np.quantile(some, loss if name in ("aligned", "fit") else 1 - loss))
        for name, some in scores.items()
        if len(some)
    }


def _copied(sides: Sequence[Batch], spans: Sequence[Spans]) -> np.ndarray:
    """Share of the second's words that stand in the first. spans: the words of both sides."""
    there, own = (
        span_hashes(side.prefix, some.starts, some.ends) ^ _pair_hash(some)
        for side, some in zip(sides, spans, strict=True)
    )
    counts = spans[1].counts
    return share(np.bincount(spans[1].documents, np.isin(own, there), len(counts)), counts)


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
    found = [_NUMBER.findall(side) for side in (first, second)]
    if not any(found):
        return 0, 0
    a, b = (Counter(map(_value, some)) for some in found)
    return (a - b).total() + (b - a).total(), (a | b).total()


def _value(number: str) -> str:
    """A number's digits, so that 1,000 and 1.000 and ١٠٠٠ are one."""
    return "".join(str(unicodedata.decimal(sign)) for sign in number if sign.isdecimal())
