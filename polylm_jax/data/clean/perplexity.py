"""An n-gram model of a language's pieces, which knows fluent text from shuffled, menus and noise.

It is modified Kneser-Ney, interpolated (Chen and Goodman 1998), with the counts, discounts and
special words of KenLM's lmplz (Heafield and others 2013), so that every probability is the same.
A sentence is a line of text. All n-grams are kept: take as much clean text as memory allows.

An n-gram is a number: its place among those of its order, which are sorted by the place of its
first n-1 words and then by its last one. So a model is a few arrays, and scoring looks all tokens
up at once.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from mmap import mmap
from typing import BinaryIO, NamedTuple

import numpy as np

from polylm_jax.data.clean.text import ALONE, Kind, among, kind_table
from polylm_jax.data.documents import stretches
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.errors import UserError

UNKNOWN, BEGIN, END = range(3)  # words that every model has
_WORDS = 3
_LINE = 4096  # characters; a longer line is several
_FALLBACK = (0.5, 1.0, 1.5)  # discounts where text is too small to tell them, as KenLM's
_NOWHERE = np.int64(-1)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # multiplied by this, neighbours lie far apart


class Sentences(NamedTuple):
    """Words of sentences, each with BEGIN and END around it.

    words: int64. begins: which of them begin a sentence, bool.
    """

    words: np.ndarray
    begins: np.ndarray


@dataclass(frozen=True)
class Model:
    """N-grams of orders 1 to n, which words make them and what follows them.

    vocabulary: word of each piece, int32 [pieces]; UNKNOWN for what was not seen.
    keys: of each order from 2 on, (place of the first n-1 words) * words + last, uint64, ascending.
    logs: log10 of the probability of the last word after the others, float32, of each order.
    backoffs: log10 of what a longer context gives to it, float32, of each order but the last.
    slots: of each order from 2 on, where its keys are; see `Table`.
    """

    vocabulary: np.ndarray
    keys: tuple[np.ndarray, ...]
    logs: tuple[np.ndarray, ...]
    backoffs: tuple[np.ndarray, ...]
    slots: tuple[np.ndarray, ...]

    @property
    def order(self) -> int:
        return len(self.logs)

    @property
    def words(self) -> int:
        return len(self.logs[0])

    @cached_property
    def tables(self) -> tuple["Table", ...]:
        return tuple(map(Table, self.slots, self.keys))


@dataclass(frozen=True)
class Table:
    """Where keys are found in two or three steps: a place by hash, then the next ones.

    slots: place of a key in each slot, or -1, int32 [2 ** bits]. keys: as in `Model`.
    """

    slots: np.ndarray
    keys: np.ndarray

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Places of the keys, int64; -1 for those that are not there."""
        if not len(self.keys):
            return np.full(len(keys), _NOWHERE)
        mask = len(self.slots) - 1
        slot = _slots(keys, mask.bit_length())
        found = self.slots.take(slot).astype(np.int64)
        other = self.keys.take(found, mode="clip") != keys
        left = np.flatnonzero(other & (found != _NOWHERE))
        found[other] = _NOWHERE
        while len(left):
            slot[left] = (slot[left] + 1) & mask
            place = self.slots[slot[left]]
            there = place != _NOWHERE
            left, place = left[there], place[there]
            same = self.keys[place] == keys[left]
            found[left[same]] = place[same]
            left = left[~same]
        return found


def _slots(keys: np.ndarray, bits: int) -> np.ndarray:
    return (keys * _SPREAD >> np.uint64(64 - bits)).view(np.int64)


def _placed(keys: np.ndarray) -> np.ndarray:
    """The slots of a `Table` of keys."""
    bits = max(4, int(2 * len(keys)).bit_length())
    slots = np.full(1 << bits, _NOWHERE, np.int32)
    left = np.arange(len(keys), dtype=np.int32)
    slot = _slots(keys, bits)
    while len(left):
        free = slots[slot] == _NOWHERE
        slots[slot[free]] = left[free]  # of those that want one slot, the last gets it
        lost = slots[slot] != left
        left, slot = left[lost], (slot[lost] + 1) & ((1 << bits) - 1)
    return slots


def train(sentences: Sentences, pieces: int, order: int = 5) -> Model:
    """The model of sentences of pieces, numbers below `pieces` + 3; see `sentences`."""
    seen = np.zeros(pieces + _WORDS, bool)
    seen[sentences.words] = True
    seen[[UNKNOWN, BEGIN, END]] = True
    number = np.where(seen, np.cumsum(seen) - 1, UNKNOWN).astype(np.int32)
    words, count = number[sentences.words].astype(np.int64), int(seen.sum())

    # where the n-gram that ends at a word is among those of its order; the words are order 1
    at = words
    keys: list[np.ndarray] = []
    suffixes = [np.zeros(count, np.int64)]
    prefixes = [np.zeros(count, np.int64)]
    raws = [np.bincount(words, minlength=count)]
    begin = [np.arange(count) == BEGIN]
    for _ in range(1, order):
        ends = np.flatnonzero((at[:-1] != _NOWHERE) & ~sentences.begins[1:]) + 1
        key = at[ends - 1].astype(np.uint64) * np.uint64(count) + words[ends].astype(np.uint64)
        key, first, inverse, raw = np.unique(key, True, True, True)
        keys.append(key)
        suffixes.append(at[ends[first]])
        prefixes.append((key // np.uint64(count)).astype(np.int64))
        raws.append(raw)
        begin.append(begin[-1][prefixes[-1]])
        at = np.full(len(words), _NOWHERE)
        at[ends] = inverse.reshape(-1)

    counts = _adjusted(raws, suffixes, begin)
    logs: list[np.ndarray] = []
    backoffs: list[np.ndarray] = []
    below = np.full(1, 1 / (count - 1))  # <s> is never told
    for some, prefix, suffix in zip(counts, prefixes, suffixes, strict=True):
        discounts = _discounts(some)
        contexts = len(logs[-1]) if logs else 1
        kind = np.minimum(some, 3)
        total = np.bincount(prefix, some, contexts)
        spared = np.bincount(prefix, discounts[kind], contexts)
        weight = np.where(total > 0, spared / np.maximum(total, 1), 1.0)
        chance = (some - discounts[kind]) / np.maximum(total[prefix], 1)
        chance = chance + weight[prefix] * below[suffix]
        if logs:
            backoffs.append(np.log10(weight).astype(np.float32))
        else:
            chance[BEGIN] = 1
        logs.append(np.log10(chance).astype(np.float32))
        below = chance
    slots = tuple(map(_placed, keys))
    return Model(number, tuple(keys), tuple(logs), tuple(backoffs), slots)


def _adjusted(
    raws: list[np.ndarray], suffixes: list[np.ndarray], begin: list[np.ndarray]
) -> list[np.ndarray]:
    """What n-grams count: how many words stand before them; how often they do, for the longest.

    Nothing can stand before those that begin a sentence, so they count as often as they do.
    """
    counts = []
    for raw, longer, begins in zip(raws[:-1], suffixes[1:], begin[:-1], strict=True):
        counts.append(np.where(begins, raw, np.bincount(longer, minlength=len(raw))))
    counts.append(raws[-1])
    counts[0][BEGIN] = 0
    return counts


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken of counts 0, 1, 2, and 3 or more, float64 [4] (Chen and Goodman, eq. 26)."""
    one, two, three, four = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].tolist()
    if not (one and two and three):
        return np.array([0, *_FALLBACK])
    share = one / (one + 2 * two)
    found = [1 - 2 * share * two / one, 2 - 3 * share * three / two, 3 - 4 * share * four / three]
    good = all(0 <= discount <= size for size, discount in enumerate(found, 1))
    return np.array([0, *(found if good else _FALLBACK)])


def log10s(model: Model, sentences: Sentences, parted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log10 of the probability of each word after those before it, float32; 0 for BEGIN. And the
    same where nothing is known of what stands before a word that is parted, bool of the words.

    A context that was not seen costs nothing; of one that was, without the word, the backoff.
    """
    words = model.vocabulary[sentences.words].astype(np.int64)
    score = model.logs[0][words]
    alone = score.copy()
    at, inside = words, ~parted  # whether the n-gram that ends at a word crosses no parted one
    for keys, logs, backoffs in zip(model.tables, model.logs[1:], model.backoffs, strict=True):
        known = np.flatnonzero((at[:-1] != _NOWHERE) & ~sentences.begins[1:]) + 1
        context = at[known - 1]
        key = context.astype(np.uint64) * np.uint64(model.words) + words[known].astype(np.uint64)
        place = keys.find(key)
        there = place != _NOWHERE
        score[known] += backoffs[context]
        score[known[there]] = logs[place[there]]
        inner, within = inside[known], inside[known] & there
        alone[known[inner]] += backoffs[context[inner]]
        alone[known[within]] = logs[place[within]]
        at = np.full(len(words), _NOWHERE)
        at[known] = place
        inside[1:] &= inside[:-1]
    score[sentences.begins] = alone[sentences.begins] = 0
    return score, alone


def sentences(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Sentences, np.ndarray]:
    """The lines of texts as sentences of pieces, and where each text's begin, int64 [texts + 1].

    A piece's word is its id and 3 more.
    """
    return _sentences(tokenizer, [[*_lines(text)] for text in texts])


def _sentences(tokenizer: Tokenizer, lines: list[list[str]]) -> tuple[Sentences, np.ndarray]:
    """As `sentences`, of the lines of each text."""
    tokens = tokenizer.encode([*chain.from_iterable(lines)])
    sizes = np.fromiter(map(len, tokens), np.int64, len(tokens)) + 2
    words = np.full(sizes.sum(), END, np.int64)
    starts = np.cumsum(sizes) - sizes
    begins = np.zeros(len(words), bool)
    begins[starts] = True
    words[starts] = BEGIN
    inside = ~begins
    inside[starts + sizes - 1] = False
    words[inside] = np.fromiter(chain.from_iterable(tokens), np.int64) + _WORDS
    offsets = np.cumsum([0, *map(len, lines)])
    return Sentences(words, begins), np.append(starts, len(words))[offsets]


def _lines(text: str) -> Iterable[str]:
    text = text.encode("utf-8", "replace").decode()  # a tokenizer takes no half of a surrogate pair
    for line in text.split("\n"):
        if line := line.strip():
            yield from stretches(line, _LINE)


def bits_per_byte(model: Model, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Bits that a text's lines take with the model, by their UTF-8 bytes, float32 [texts].

    The end of a line is one byte. Not a number for a text without a line.
    """
    return bits(model, tokenizer, texts)[0]


def disorder(with_model: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """How little the order of the words of texts tells, given their `bits`, float32 [texts].

    About 1 where any other order would do, 0.6 to 0.8 of what people write. Rare words take many
    bits in whatever order they stand, and do so in both.
    """
    return with_model / alone


def bits(model: Model, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """`bits_per_byte` of texts, and what they would take if each word stood alone."""
    lines = [[*_lines(text)] for text in texts]
    some, offsets = _sentences(tokenizer, lines)
    text = np.repeat(np.arange(len(texts)), np.diff(offsets))
    parted = _begins_word(tokenizer)[some.words]
    parted[1:] |= some.begins[:-1]
    sizes = np.array([len(own) + len("".join(own).encode()) for own in lines], np.int64)
    with np.errstate(invalid="ignore"):
        with_model, alone = (
            (-np.bincount(text, logs, len(texts)) * np.log2(10) / sizes).astype(np.float32)
            for logs in log10s(model, some, parted)
        )
    return with_model, alone


@lru_cache(maxsize=2)
def _begins_word(tokenizer: Tokenizer) -> np.ndarray:
    """Which of the words of `sentences` begin a word of a language, bool [pieces + 3].

    Pieces with a space in front do, and of scripts without spaces all.
    """
    first = [piece.decode("utf-8", "ignore")[:1] or "a" for piece in tokenizer.pieces]
    kinds = kind_table()[[*map(ord, first)]]
    return np.append([True] * _WORDS, among(kinds, (Kind.SPACE, *ALONE)))


_SEVERAL = ("keys", "logs", "backoffs", "slots")
_ALIGN = 64  # bytes; an array begins at a whole number of them


def save(model: Model, file: BinaryIO) -> None:
    """Writes a model: a line of JSON that names its arrays, then these, so that they can be mapped
    into memory as they lie in the file."""
    arrays = [("vocabulary", model.vocabulary)]
    arrays += [(name, one) for name in _SEVERAL for one in getattr(model, name)]
    about = [(name, one.dtype.str, len(one)) for name, one in arrays]
    for part in (json.dumps(about).encode() + b"\n", *(one.tobytes() for _, one in arrays)):
        file.write(part + bytes(-len(part) % _ALIGN))


def load(content: bytes | mmap, name: str) -> Model:
    """The model that `save` wrote, as it lies in the content. UserError naming the file if it is
    none."""
    found: dict[str, list[np.ndarray]] = {one: [] for one in ("vocabulary", *_SEVERAL)}
    try:
        at = content.find(b"\n") + 1
        about = json.loads(content[:at])
        for key, kind, count in about:
            at += -at % _ALIGN
            found[key].append(np.frombuffer(content, kind, count, at))
            at += found[key][-1].nbytes
        (vocabulary,), *several = found.values()
        return Model(vocabulary, *map(tuple, several))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name} is no n-gram model; delete it and clean again.") from error
