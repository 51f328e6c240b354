"""What tells good pairs of translations from bad ones, learned from the pairs themselves.

Which words go together `alignment` learns; beside it stand lengths, numbers, copies, languages.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from polylm_jax.data.clean.alignment import alignment, words
from polylm_jax.data.clean.language import Identification, likelihoods
from polylm_jax.data.clean.text import (
    Batch,
    Spans,
    document_hashes,
    fold,
    share,
    span_hashes,
    tokens,
)

# nats by which one language is likelier than another, chosen on the small corpus
_SURE = 1.0  # that two languages stand so, and not the other way round
_LIKELY = -0.7  # logarithm of the chance of a language that counts: of no text it is less
_LEAST = 2.0  # that a side is in another language, and by how much more a letter of few tells it:
_STRANGE = 65.0  # in any
_UNTRANSLATED = 30.0  # in that of the other side
_OTHERS, _CONTEXT = 10.0, 5.0  # from which on the others of a document count, and up to what
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
    documents: np.ndarray | None = None,
) -> np.ndarray:
    """1 where the sides are in the two languages, -1 where they are swapped, 0 where a side is in
    another or both are in one, int8 [pairs].

    documents: the document that each pair is in, ascending; None where each is in another.

    Whether they are swapped is a question between two languages. Where these are as likely either
    way, a pair is as most of its document. Another language must be likelier than a side's own, by
    the more the fewer letters the side has, and by the less the more the others of its document
    are in that language: so neither "Salvar" is Galician, nor a page of it Portuguese.
    """
    count = len(firsts)
    documents = np.arange(count) if documents is None else documents
    found = likelihoods([*firsts, *seconds], settings)
    codes = [language.split("-")[0] for language in languages]
    # language, side, pair
    own = np.stack([found.of(code) for code in codes]).reshape(2, 2, count)
    right = own[0, 0] + own[1, 1] - own[0, 1] - own[1, 0]
    told = (np.abs(right) > _SURE) & (own.max((0, 1)) > _LIKELY)
    way = np.where(told, np.sign(right), 0)
    most = np.where(np.bincount(documents, way) >= 0, 1, -1)[documents]
    way = np.where(way, way, most).astype(np.int8)
    sides = np.array([[0], [1]])
    wanted = np.where(way > 0, sides, 1 - sides)  # the language that a side should be in
    wanted_chance = own[wanted, sides, np.arange(count)]
    letters = np.maximum(found.letters.reshape(2, count), 1)
    begins = np.diff(documents, prepend=-1) > 0
    starts, place = np.flatnonzero(begins), np.cumsum(begins) - 1
    foreign = np.zeros((2, count), bool)
    for code, chance in zip(found.codes, found.chances, strict=True):
        likelier = chance.reshape(2, count) - wanted_chance
        others = np.add.reduceat(likelier, starts, axis=1)[:, place] - likelier
        evidence = likelier + np.clip(others - _OTHERS, 0, _CONTEXT)
        least = _LEAST + (_UNTRANSLATED if code in codes else _STRANGE) / letters
        is_other = wanted != codes.index(code) if code in codes else True
        foreign |= (evidence > least) & is_other & (chance.reshape(2, count) > _LIKELY)
    way[foreign.any(0)] = 0
    return way


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
