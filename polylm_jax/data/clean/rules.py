"""What the rules look at: features of documents, measured for a batch at a time.

`FEATURES` is the table of them, each with a limit for English and who published it; which limit
cuts in another language is for `thresholds` to say. Words are those of `text.tokens`, so a value
differs somewhat from that of a program with a word splitter. A share of nothing is 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np

from polylm_jax.data.clean.text import (
    ALONE,
    BLANKS,
    LETTERS,
    WORDS,
    Batch,
    Kind,
    Spans,
    among,
    chunks,
    count,
    document_hashes,
    lines,
    ngram_hashes,
    paragraphs,
    prefix_hashes,
    share,
    span_hashes,
    tokens,
    total,
)

Measure = Callable[["View"], np.ndarray]


@dataclass(frozen=True)
class Feature:
    """One number about a document.

    limit: least and most that English text may have, None for no bound. source: who published
    the limit, "ours" where nobody did. what: the number in words. of: measures a batch, float64
    or int64 [documents].
    """

    name: str
    limit: tuple[float | None, float | None]
    source: str
    what: str
    of: Measure


def measure(batch: Batch) -> dict[str, np.ndarray]:
    """All features of the documents of a batch, float64 [documents] each."""
    parts = [_measured(View(part)) for part in batch.parts()]
    return {
        feature.name: np.concatenate([part[at] for part in parts])
        for at, feature in enumerate(FEATURES)
    }


def _measured(view: "View") -> list[np.ndarray]:
    return [feature.of(view).astype(np.float64) for feature in FEATURES]


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
        return _before(self.batch, self.lines)

    @cached_property
    def paragraphs_before(self) -> np.ndarray:
        """Which paragraphs have been before, bool."""
        return _before(self.batch, self.paragraphs)

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
            return _table(wanted).take(self.low)
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
            at = at[_table(wanted)[self.low[after]] & ~begins[after]]
        return at

    def located(self, *places: np.ndarray) -> np.ndarray:
        """How many of the places lie in each document."""
        at = np.sort(np.concatenate(places))
        return np.diff(np.searchsorted(at, self.batch.offsets))


_LAST = 0xFFFF  # characters that are asked for lie below
_COMPARED = 16  # so many are faster compared one by one than looked up


@lru_cache(maxsize=64)
def _table(wanted: str) -> np.ndarray:
    table = np.zeros(_LAST + 1, bool)
    table[[ord(character) for character in wanted]] = True
    return table


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


def _distinct(view: View) -> np.ndarray:
    later = view.tokens.documents[view.repeated[1].later]
    return view.words - np.bincount(later, minlength=len(view.words))


def _entropy(view: View) -> np.ndarray:
    """Of the words, in nats: log n - 1/n sum c log c; words that stand once add nothing."""
    found = view.repeated[1]
    # summed in the order of the words' hashes, which is the same in every batch
    terms = found.sizes * np.log(np.maximum(found.sizes, 1))
    sums = np.bincount(found.documents, terms, minlength=len(view.words))
    words = np.maximum(view.words, 1)
    return np.maximum(np.log(words) - sums / words, 0)


def _top(view: View, size: int) -> np.ndarray:
    """Share of the characters in words that the most frequent n-gram has; of equals the longest."""
    found = view.repeated[size]
    ends = np.append(0, np.cumsum(view.tokens.lengths))
    firsts = found.members[np.append(0, np.cumsum(found.sizes))[:-1]]
    characters = ends[firsts + size] - ends[firsts]
    best = np.zeros(len(view.words), np.int64)
    np.maximum.at(best, found.documents, found.sizes << 32 | characters)
    return share((best >> 32) * (best & (2**32 - 1)), view.word_characters)


def _covered(view: View, size: int) -> np.ndarray:
    """Share of the characters in words that lie in n-grams which have been before."""
    later = view.repeated[size].later
    change = np.bincount(later, minlength=len(view.tokens) + 1)[: len(view.tokens) + 1]
    change -= np.bincount(later + size, minlength=len(view.tokens) + 1)
    inside = np.cumsum(change[:-1]) > 0
    return share(total(view.tokens.lengths * inside, view.tokens.offsets), view.word_characters)


def _before(batch: Batch, spans: Spans) -> np.ndarray:
    """Which spans have been before in their document, bool."""
    hashes = span_hashes(batch.prefix, spans.starts, spans.ends)
    before = np.zeros(len(spans), bool)
    before[repeated(hashes, np.arange(len(spans)), spans.documents).later] = True
    return before


def _again(spans: Spans, before: np.ndarray) -> np.ndarray:
    return share(count(before, spans.offsets), spans.counts)


def _characters_again(spans: Spans, before: np.ndarray) -> np.ndarray:
    characters = total(spans.lengths, spans.offsets)
    return share(total(spans.lengths * before, spans.offsets), characters)


_WINDOW = 10


def _windows(view: View) -> np.ndarray:
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


def _alphabetic(view: View) -> np.ndarray:
    letters = view.letters[view.chunks.ends] > view.letters[view.chunks.starts]
    return share(count(letters, view.chunks.offsets), view.chunks.counts)


def _longest(view: View) -> np.ndarray:
    longest = np.zeros(len(view.words), np.int64)
    np.maximum.at(longest, view.chunks.documents, view.chunks.lengths)
    return longest


def _sentences(view: View) -> np.ndarray:
    """Marks of sentences, but for those inside of a run, a number or a word."""
    kinds = view.batch.kinds
    mark = kinds == Kind.TERMINAL
    inside = among(kinds, (*(set(WORDS) - set(ALONE)), Kind.TERMINAL))
    mark[:-1] &= ~inside[1:] | view.batch.first[1:]
    return count(mark, view.batch.offsets)


def _starts(view: View) -> np.ndarray:
    """Which lines begin with a bullet."""
    return _table("•‣▪●◦⁃∙▶►·・*-–—")[view.low[view.lines.starts]]


def _dots(view: View) -> np.ndarray:
    """Where runs of three full stops or more begin."""
    at = view.follow(".", ".", ".")
    before = np.maximum(at - 1, 0)
    inner = (at > 0) & (view.batch.codes[before] == ord(".")) & ~view.batch.first[at]
    return at[~inner]


def _trailing(view: View) -> np.ndarray:
    """Which lines end in an ellipsis."""
    codes, ends = view.batch.codes, view.lines.ends
    dots = np.full(len(view.lines), True)
    for back in (1, 2, 3):
        dots &= codes[np.maximum(ends - back, 0)] == ord(".")
    return dots & (view.lines.lengths >= 3) | _table("…")[view.low[ends - 1]]


def _ended(view: View) -> np.ndarray:
    """Which lines end in a mark of a sentence, with a quote or bracket after it or without."""
    kinds, ends = view.batch.kinds, view.lines.ends
    last = kinds[ends - 1]
    before = kinds[np.maximum(ends - 2, 0)] == Kind.TERMINAL
    closed = (last == Kind.CLOSING) & before & (view.lines.lengths > 1)
    return (last == Kind.TERMINAL) | closed


def _lines(view: View, which: Callable[[View], np.ndarray]) -> np.ndarray:
    return share(count(which(view), view.lines.offsets), view.lines.counts)


def _short(view: View) -> np.ndarray:
    return view.lines.lengths <= 30


def _numeric(view: View) -> np.ndarray:
    """Which words have no letter."""
    return view.letters[view.tokens.ends] == view.letters[view.tokens.starts]


def _dates(view: View) -> np.ndarray:
    """Numbers as in 2024-01-31, 31.1.24, 1/31/24, and years as in 2024年 and 2024년."""
    spans, numeric = view.tokens, _numeric(view)
    first = np.flatnonzero(numeric[:-2] & numeric[1:-1] & numeric[2:])
    good = np.full(len(first), True)
    for step in (0, 1):
        gap = spans.ends[first + step]  # before the next word, so there is a character
        good &= (spans.starts[first + step + 1] == gap + 1) & _table("-/.")[view.low[gap]]
    for step in (0, 1, 2):
        good &= spans.lengths[first + step] <= 4
    good &= spans.documents[first] == spans.documents[first + 2]
    return view.located(spans.starts[first[good]], view.follow("0123456789", "年년"))


def _urls(view: View) -> np.ndarray:
    return view.located(view.follow(":", "/", "/"), view.follow("w", "w", "w", "."))


_ASCII = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _placeholders(view: View) -> np.ndarray:
    """As in %s, %(name)s, %1, {0}, {name}, ${x}, $[x], and tags and entities of HTML."""
    return view.located(
        view.follow("%", _ASCII + "(123456789"),
        view.follow("{", _ASCII + "0123456789_{%"),
        view.follow("$", "[{("),
        view.follow("<", _ASCII + "/!"),
        view.follow("&", _ASCII + "#", _ASCII + "0123456789x", _ASCII + "0123456789;"),
    )


def _separators(view: View) -> np.ndarray:
    """Signs that stand alone between the entries of menus and paths, as in File | Edit."""
    spans = view.chunks
    alone = _table("|¦‖>›»<‹«·•/\\→←▸▶►★☆✓")[view.low[spans.starts]] & (spans.lengths == 1)
    return count(alone, spans.offsets)


def _broken(view: View) -> np.ndarray:
    """Signs that bytes were decoded wrongly: U+FFFD, and UTF-8 read as Latin-1 or cp1252."""
    lead = "".join(map(chr, range(0xC2, 0xDF)))
    inner = bytes(range(0x80, 0xC0)).decode("cp1252", "ignore")
    inner += "".join(map(chr, range(0x80, 0xA0)))
    three = view.follow("".join(map(chr, range(0xE0, 0xF0))), inner, inner)
    return view.characters("\ufffd") + view.located(view.follow(lead, inner), three)


_SCRIPTS = tuple(kind for kind in LETTERS if kind not in (Kind.CAPITAL, Kind.KANA))


def _other_scripts(view: View) -> np.ndarray:
    """Share of the small letters that are not of the document's script; kana go with Han."""
    letters = view.batch.counts[:, list(_SCRIPTS)]
    letters[:, _SCRIPTS.index(Kind.HAN)] += view.of(Kind.KANA)
    return share(letters.sum(1) - letters.max(1), letters.sum(1))


# The words that make up most of running text, of our own knowledge. Thai has none: its words
# are not found.
STOP_WORDS = {
    "en": "the of and to in is that for it with as was on be this by are from or an",
    "zh": "的 了 是 在 不 有 和 这 也 就",
    "ru": "и в не на что с по как это из но к для от а у",
    "es": "de la el que en y a los se las un por con una para del no es",
    "de": "der die und das in den von zu mit ist nicht ein eine auf des im dem für es sich",
    "fr": "de la le et les des en un une du que est dans pour qui il au par sur pas",
    "it": "di che e la il un a per in una non sono del le si con da i della è",
    "pt": "de a o que e do da em um para com não uma os no se na por mais as é",
    "ja": "の に は を が と で も た て",
    "vi": "và của là có các cho được trong không một với những để này người đã từ",
    "id": "yang dan di dengan untuk dari ini itu pada tidak dalam adalah akan ke atau",
    "pl": "w i na z się nie do to że jest o jak po od za dla przez oraz",
    "nl": "de het een van en in is dat op te met voor niet zijn aan er om die",
    "ar": "من في على أن إلى التي عن مع هذا ما لا هذه أو كان هو ذلك",
    "tr": "ve bir bu için ile de da olarak daha gibi çok olan ne kadar en",
    "he": "של את על לא הוא עם זה כי גם או אל היא אני כל אם",
    "ko": "이 그 수 및 등 것 있는 있다 한 더 또는 있습니다 대한",
}


_LOW = np.uint64(0xFFFF)


@lru_cache
def _stop_hashes() -> tuple[np.ndarray, np.ndarray]:
    """The hashes of all stop words, sorted, and which low bits one of them has."""
    words = sorted({word for some in STOP_WORDS.values() for word in some.split()})
    hashes = np.sort(document_hashes(Batch.of(words)))
    bits = np.zeros(int(_LOW) + 1, bool)
    bits[hashes & _LOW] = True
    return hashes, bits


def _stop_words(view: View) -> np.ndarray:
    stops, bits = _stop_hashes()
    at = np.flatnonzero(bits[view.hashes & _LOW])
    found = np.minimum(np.searchsorted(stops, view.hashes[at]), len(stops) - 1)
    at = at[stops[found] == view.hashes[at]]
    return share(np.diff(np.searchsorted(at, view.tokens.offsets)), view.words)


def _by_word(number: Callable[[View], np.ndarray]) -> Measure:
    return lambda view: share(number(view), view.words)


_C4, _BLOOM, _GOPHER = "C4 (1910.10683)", "ROOTS (2303.03915)", "Gopher (2112.11446)"
_FINEWEB, _NEMO = "FineWeb (2406.17557)", "NeMo Curator"
_PAJAMA = "RedPajama-v2 (2411.12372), the limit ours"
_OURS = "ours"

FEATURES = (
    Feature("characters", (200, None), _OURS, "characters", lambda v: v.batch.lengths),
    Feature("words", (50, 100_000), _GOPHER, "words", lambda v: v.words),
    Feature("lines", (1, None), _OURS, "lines that are not blank", lambda v: v.lines.counts),
    Feature("sentences", (5, None), _C4, "marks that end a sentence", _sentences),
    Feature(
        "word_length",
        (3, 10),
        _GOPHER,
        "characters of a word, on average",
        lambda v: share(v.word_characters, v.words),
    ),
    Feature("longest_word", (None, 1000), _C4, "characters without white space", _longest),
    Feature(
        "line_length",
        (10, None),
        _OURS,
        "characters of a line, on average",
        lambda v: share(total(v.lines.lengths, v.lines.offsets), v.lines.counts),
    ),
    Feature("hashes", (None, 0.1), _GOPHER, "# a word", _by_word(lambda v: v.characters("#＃"))),
    Feature(
        "ellipses",
        (None, 0.1),
        _GOPHER,
        "… and ... a word",
        _by_word(lambda v: v.characters("…") + v.located(_dots(v))),
    ),
    Feature(
        "bullet_lines",
        (None, 0.9),
        _GOPHER,
        "share of lines that begin with a bullet",
        lambda v: _lines(v, _starts),
    ),
    Feature(
        "ellipsis_lines",
        (None, 0.3),
        _GOPHER,
        "share of lines that end in an ellipsis",
        lambda v: _lines(v, _trailing),
    ),
    Feature(
        "alphabetic",
        (0.8, None),
        _GOPHER,
        "share of what stands between spaces that has a letter",
        _alphabetic,
    ),
    Feature(
        "stop_words",
        (0.06, None),
        _OURS,
        "share of words that are among the most frequent ones of our languages",
        _stop_words,
    ),
    Feature(
        "distinct_words",
        (0.1, None),
        _PAJAMA,
        "different words by words",
        lambda v: share(_distinct(v), v.words),
    ),
    Feature("entropy", (3, None), _PAJAMA, "entropy of the words, nats", _entropy),
    Feature(
        "duplicate_lines",
        (None, 0.3),
        _GOPHER,
        "share of lines that have been before",
        lambda v: _again(v.lines, v.lines_before),
    ),
    Feature(
        "duplicate_line_characters",
        (None, 0.2),
        _GOPHER,
        "share of the characters of lines in such lines",
        lambda v: _characters_again(v.lines, v.lines_before),
    ),
    Feature(
        "duplicate_paragraphs",
        (None, 0.3),
        _GOPHER,
        "share of paragraphs that have been before",
        lambda v: _again(v.paragraphs, v.paragraphs_before),
    ),
    Feature(
        "duplicate_paragraph_characters",
        (None, 0.2),
        _GOPHER,
        "share of the characters of paragraphs in such paragraphs",
        lambda v: _characters_again(v.paragraphs, v.paragraphs_before),
    ),
    *(
        Feature(
            f"top_{size}_gram",
            (None, most),
            _GOPHER,
            f"share of the characters of words in the most frequent {size} words in a row",
            partial(_top, size=size),
        )
        for size, most in ((2, 0.2), (3, 0.18), (4, 0.16))
    ),
    *(
        Feature(
            f"duplicate_{size}_grams",
            (None, most),
            _GOPHER,
            f"share of the characters of words in {size} words in a row that have been before",
            partial(_covered, size=size),
        )
        for size, most in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))
    ),
    Feature(
        "repeated_characters",
        (None, 0.106),
        _BLOOM,
        "share of windows of 10 characters that have been before",
        _windows,
    ),
    Feature(
        "ended_lines",
        (0.12, None),
        _FINEWEB,
        "share of lines that end in a mark of a sentence",
        lambda v: _lines(v, _ended),
    ),
    Feature(
        "newlines",
        (None, 0.3),
        _FINEWEB,
        "line ends a word",
        _by_word(lambda v: v.of(Kind.NEWLINE)),
    ),
    Feature(
        "short_lines",
        (None, 0.67),
        _FINEWEB,
        "share of lines of 30 characters or fewer",
        lambda v: _lines(v, _short),
    ),
    Feature(
        "symbols",
        (None, 0.4),
        _BLOOM,
        "share of what is visible that is neither letter nor digit",
        lambda v: share(v.visible - v.of(*WORDS), v.visible),
    ),
    Feature(
        "invisible",
        (None, 0.01),
        _OURS,
        "share of characters that cannot be seen",
        lambda v: share(v.of(Kind.INVISIBLE), v.batch.lengths),
    ),
    Feature(
        "broken",
        (None, 0.001),
        _OURS,
        "signs of wrong decoding a character",
        lambda v: share(_broken(v), v.batch.lengths),
    ),
    Feature(
        "digits",
        (None, 0.15),
        _NEMO,
        "share of what is visible that is a digit",
        lambda v: share(v.of(Kind.DIGIT), v.visible),
    ),
    Feature(
        "numbers",
        (None, 0.2),
        _OURS,
        "share of words without a letter",
        lambda v: share(count(_numeric(v), v.tokens.offsets), v.words),
    ),
    Feature("dates", (None, 0.05), _OURS, "dates a word", _by_word(_dates)),
    Feature("urls", (None, 0.05), _OURS, "addresses of the web a word", _by_word(_urls)),
    Feature(
        "placeholders",
        (None, 0.02),
        _OURS,
        "format strings (%s, {name}) and tags of HTML a word",
        _by_word(_placeholders),
    ),
    Feature(
        "code",
        (None, 0.02),
        _OURS,
        r"share of what is visible among {}[]<>\|=;_~^`",
        lambda v: share(v.characters("{}[]<>\\|=;_~^`"), v.visible),
    ),
    Feature(
        "separators",
        (None, 0.05),
        _OURS,
        "signs that stand alone, as in File | Edit, a word",
        _by_word(_separators),
    ),
    Feature(
        "capitals",
        (None, 0.3),
        _OURS,
        "share of letters that are capitals",
        lambda v: share(v.of(Kind.CAPITAL), v.of(*LETTERS)),
    ),
    Feature(
        "white_space",
        (None, 0.25),
        _NEMO,
        "share of characters that are white space",
        lambda v: share(v.of(*BLANKS), v.batch.lengths),
    ),
    Feature(
        "parentheses",
        (None, 0.1),
        _NEMO,
        "share of what is visible that is a parenthesis",
        lambda v: share(v.characters("()[]（）［］【】「」"), v.visible),
    ),
    Feature(
        "other_scripts",
        (None, 0.2),
        _OURS,
        "share of small letters in another script than most",
        _other_scripts,
    ),
)
