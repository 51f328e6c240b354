"""The features that take more than a line: what each finds in the documents of a batch.

A share of nothing is 0.
"""

from collections.abc import Callable

import numpy as np

from polylm_jax.data.clean.text import (
    ALONE,
    LETTERS,
    WORDS,
    Kind,
    Spans,
    among,
    count,
    ngram_hashes,
    share,
    total,
)
from polylm_jax.data.clean.view import View, table


def distinct(view: View) -> np.ndarray:
    """Different words."""
    later = view.tokens.documents[view.repeated[1].later]
    return view.words - np.bincount(later, minlength=len(view.words))


def entropy(view: View) -> np.ndarray:
    """Of the words, in nats: log n - 1/n sum c log c; words that stand once add nothing."""
    found = view.repeated[1]
    # summed in the order of the words' hashes, which is the same in every batch
    terms = found.sizes * np.log(np.maximum(found.sizes, 1))
    sums = np.bincount(found.documents, terms, minlength=len(view.words))
    words = np.maximum(view.words, 1)
    return np.maximum(np.log(words) - sums / words, 0)


def top(view: View, size: int) -> np.ndarray:
    """Share of the characters in words that the most frequent n-gram has; of equals the longest."""
    found = view.repeated[size]
    ends = np.append(0, np.cumsum(view.tokens.lengths))
    firsts = found.members[np.append(0, np.cumsum(found.sizes))[:-1]]
    characters = ends[firsts + size] - ends[firsts]
    best = np.zeros(len(view.words), np.int64)
    np.maximum.at(best, found.documents, found.sizes << 32 | characters)
    return share((best >> 32) * (best & (2**32 - 1)), view.word_characters)


def covered(view: View, size: int) -> np.ndarray:
    """Share of the characters in words that lie in n-grams which have been before."""
    later = view.repeated[size].later
    change = np.bincount(later, minlength=len(view.tokens) + 1)[: len(view.tokens) + 1]
    change -= np.bincount(later + size, minlength=len(view.tokens) + 1)
    inside = np.cumsum(change[:-1]) > 0
    return share(total(view.tokens.lengths * inside, view.tokens.offsets), view.word_characters)


def again(spans: Spans, before: np.ndarray) -> np.ndarray:
    """Share of the spans of each document that have been before."""
    return share(count(before, spans.offsets), spans.counts)


def characters_again(spans: Spans, before: np.ndarray) -> np.ndarray:
    """Share of the spans' characters that are in such as have been before."""
    characters = total(spans.lengths, spans.offsets)
    return share(total(spans.lengths * before, spans.offsets), characters)


_WINDOW = 10


def windows(view: View) -> np.ndarray:
    """Share of the windows of 10 characters that have been before."""
    batch = view.batch
    hashes = ngram_hashes(batch.prefix, _WINDOW)
    counts = np.maximum(batch.lengths - _WINDOW + 1, 0)
    # a document at a time is sorted in the nearest cache, and needs no place beside the hash
    ordered = [
        np.sort(hashes[at : at + some])
        for at, some in zip(batch.offsets.tolist(), counts.tolist(), strict=False)
    ]
    again = [np.count_nonzero(some[1:] == some[:-1]) for some in ordered]
    return share(np.array(again, np.int64), counts)


def alphabetic(view: View) -> np.ndarray:
    """Share of what stands between white space that has a letter."""
    letters = view.letters[view.chunks.ends] > view.letters[view.chunks.starts]
    return share(count(letters, view.chunks.offsets), view.chunks.counts)


def longest(view: View) -> np.ndarray:
    """Characters of the longest that stands between white space."""
    longest = np.zeros(len(view.words), np.int64)
    np.maximum.at(longest, view.chunks.documents, view.chunks.lengths)
    return longest


def sentences(view: View) -> np.ndarray:
    """Marks of sentences, but for those inside of a run, a number or a word."""
    kinds = view.batch.kinds
    mark = kinds == Kind.TERMINAL
    inside = among(kinds, (*(set(WORDS) - set(ALONE)), Kind.TERMINAL))
    mark[:-1] &= ~inside[1:] | view.batch.first[1:]
    return count(mark, view.batch.offsets)


def bulleted(view: View) -> np.ndarray:
    """Which lines begin with a bullet."""
    return table("•‣▪●◦⁃∙▶►·・*-–—")[view.low[view.lines.starts]]


def dots(view: View) -> np.ndarray:
    """Where runs of three full stops or more begin."""
    at = view.follow(".", ".", ".")
    before = np.maximum(at - 1, 0)
    inner = (at > 0) & (view.batch.codes[before] == ord(".")) & ~view.batch.first[at]
    return at[~inner]


def trailing(view: View) -> np.ndarray:
    """Which lines end in an ellipsis."""
    codes, ends = view.batch.codes, view.lines.ends
    dots = np.full(len(view.lines), True)
    for back in (1, 2, 3):
        dots &= codes[np.maximum(ends - back, 0)] == ord(".")
    return dots & (view.lines.lengths >= 3) | table("…")[view.low[ends - 1]]


def ended(view: View) -> np.ndarray:
    """Which lines end in a mark of a sentence, with a quote or bracket after it or without."""
    kinds, ends = view.batch.kinds, view.lines.ends
    last = kinds[ends - 1]
    before = kinds[np.maximum(ends - 2, 0)] == Kind.TERMINAL
    closed = (last == Kind.CLOSING) & before & (view.lines.lengths > 1)
    return (last == Kind.TERMINAL) | closed


def of_lines(view: View, which: Callable[[View], np.ndarray]) -> np.ndarray:
    """Share of the lines of which something holds."""
    return share(count(which(view), view.lines.offsets), view.lines.counts)


def are_short(view: View) -> np.ndarray:
    """Which lines have 30 characters or fewer."""
    return view.lines.lengths <= 30


def numeric(view: View) -> np.ndarray:
    """Which words have no letter."""
    return view.letters[view.tokens.ends] == view.letters[view.tokens.starts]


def dates(view: View) -> np.ndarray:
    """Numbers as in 2024-01-31, 31.1.24, 1/31/24, and years as in 2024年 and 2024년."""
    spans, without = view.tokens, numeric(view)
    first = np.flatnonzero(without[:-2] & without[1:-1] & without[2:])
    good = np.full(len(first), True)
    for step in (0, 1):
        gap = spans.ends[first + step]  # before the next word, so there is a character
        good &= (spans.starts[first + step + 1] == gap + 1) & table("-/.")[view.low[gap]]
    for step in (0, 1, 2):
        good &= spans.lengths[first + step] <= 4
    good &= spans.documents[first] == spans.documents[first + 2]
    return view.located(spans.starts[first[good]], view.follow("0123456789", "年년"))


def urls(view: View) -> np.ndarray:
    """Addresses of the web."""
    return view.located(view.follow(":", "/", "/"), view.follow("w", "w", "w", "."))


_ASCII = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def placeholders(view: View) -> np.ndarray:
    """As in %s, %(name)s, %1, {0}, {name}, ${x}, $[x], and tags and entities of HTML."""
    return view.located(
        view.follow("%", _ASCII + "(123456789"),
        view.follow("{", _ASCII + "0123456789_{%"),
        view.follow("$", "[{("),
        view.follow("<", _ASCII + "/!"),
        view.follow("&", _ASCII + "#", _ASCII + "0123456789x", _ASCII + "0123456789;"),
    )


def separators(view: View) -> np.ndarray:
    """Signs that stand alone between the entries of menus and paths, as in File | Edit."""
    spans = view.chunks
    alone = table("|¦‖>›»<‹«·•/\\→←▸▶►★☆✓")[view.low[spans.starts]] & (spans.lengths == 1)
    return count(alone, spans.offsets)


def broken(view: View) -> np.ndarray:
    """Signs that bytes were decoded wrongly: U+FFFD, and UTF-8 read as Latin-1 or cp1252."""
    lead = "".join(map(chr, range(0xC2, 0xDF)))
    inner = bytes(range(0x80, 0xC0)).decode("cp1252", "ignore")
    inner += "".join(map(chr, range(0x80, 0xA0)))
    three = view.follow("".join(map(chr, range(0xE0, 0xF0))), inner, inner)
    return view.characters("\ufffd") + view.located(view.follow(lead, inner), three)


_SCRIPTS = tuple(kind for kind in LETTERS if kind not in (Kind.CAPITAL, Kind.KANA))


def other_scripts(view: View) -> np.ndarray:
    """Share of the small letters that are not of the document's script; kana go with Han."""
    letters = view.batch.counts[:, list(_SCRIPTS)]
    letters[:, _SCRIPTS.index(Kind.HAN)] += view.of(Kind.KANA)
    return share(letters.sum(1) - letters.max(1), letters.sum(1))
