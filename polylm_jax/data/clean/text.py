"""Many documents as one array of code points, and what is the same for all that measure them.

A word splitter a language would cost more than all rules together, and differ from one language
to the next. So the unit is told by script: words are runs of letters, marks and digits, but a
letter of a script that puts no spaces between words (Chinese, Japanese, Thai …) is one alone.

What is found in a document never depends on the batch that it is in.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np

# code points of a batch: its arrays then take about 100 MB
BATCH = 2**20
# and of a part of one, whose arrays stay in the cache of a core
PART = 2**17


class Kind(IntEnum):
    """What a code point is; each is of one kind."""

    SYMBOL = 0
    INVISIBLE = auto()
    SPACE = auto()
    NEWLINE = auto()
    TERMINAL = auto()
    CLOSING = auto()
    DIGIT = auto()
    MARK = auto()
    CAPITAL = auto()
    LATIN = auto()
    CYRILLIC = auto()
    GREEK = auto()
    ARABIC = auto()
    HEBREW = auto()
    HANGUL = auto()
    HAN = auto()
    KANA = auto()
    THAI = auto()
    UNSPACED = auto()
    LETTER = auto()


KINDS = len(Kind)
LETTERS = tuple(kind for kind in Kind if kind >= Kind.CAPITAL)
WORDS = (*LETTERS, Kind.MARK, Kind.DIGIT)
BLANKS = (Kind.SPACE, Kind.NEWLINE)
ALONE = (Kind.HAN, Kind.KANA, Kind.THAI, Kind.UNSPACED)

# first and last code point of the scripts that are told apart (Unicode's Blocks.txt); a letter
# of none of them is a LETTER
_SCRIPTS = (
    (Kind.LATIN, 0x41, 0x24F), (Kind.LATIN, 0x250, 0x2AF), (Kind.LATIN, 0x1D00, 0x1DBF),
    (Kind.LATIN, 0x1E00, 0x1EFF), (Kind.LATIN, 0x2C60, 0x2C7F), (Kind.LATIN, 0xA720, 0xA7FF),
    (Kind.LATIN, 0xAB30, 0xAB6F), (Kind.LATIN, 0xFB00, 0xFB06), (Kind.LATIN, 0xFF21, 0xFF5A),
    (Kind.GREEK, 0x370, 0x3FF), (Kind.GREEK, 0x1F00, 0x1FFF), (Kind.CYRILLIC, 0x400, 0x52F),
    (Kind.CYRILLIC, 0x1C80, 0x1C8F), (Kind.CYRILLIC, 0x2DE0, 0x2DFF),
    (Kind.CYRILLIC, 0xA640, 0xA69F), (Kind.HEBREW, 0x590, 0x5FF), (Kind.HEBREW, 0xFB1D, 0xFB4F),
    (Kind.ARABIC, 0x600, 0x6FF), (Kind.ARABIC, 0x750, 0x77F), (Kind.ARABIC, 0x870, 0x8FF),
    (Kind.ARABIC, 0xFB50, 0xFDFF), (Kind.ARABIC, 0xFE70, 0xFEFE), (Kind.HANGUL, 0x1100, 0x11FF),
    (Kind.HANGUL, 0x3130, 0x318F), (Kind.HANGUL, 0xA960, 0xA97F), (Kind.HANGUL, 0xAC00, 0xD7FF),
    (Kind.HANGUL, 0xFFA0, 0xFFDC), (Kind.HAN, 0x2E80, 0x2FDF), (Kind.HAN, 0x3005, 0x3007),
    (Kind.HAN, 0x3021, 0x3029), (Kind.HAN, 0x3038, 0x303B), (Kind.HAN, 0x3400, 0x4DBF),
    (Kind.HAN, 0x4E00, 0x9FFF), (Kind.HAN, 0xF900, 0xFAFF), (Kind.HAN, 0x20000, 0x323AF),
    (Kind.KANA, 0x3031, 0x3035), (Kind.KANA, 0x3040, 0x30FF), (Kind.KANA, 0x31F0, 0x31FF),
    (Kind.KANA, 0xFF66, 0xFF9F), (Kind.KANA, 0x1AFF0, 0x1B16F), (Kind.THAI, 0xE00, 0xE7F),
    (Kind.UNSPACED, 0xE80, 0xFFF), (Kind.UNSPACED, 0x1000, 0x109F),
    (Kind.UNSPACED, 0x1780, 0x17FF), (Kind.UNSPACED, 0x1950, 0x19DF),
    (Kind.UNSPACED, 0x1A20, 0x1AAF), (Kind.UNSPACED, 0x3100, 0x312F),
    (Kind.UNSPACED, 0xA000, 0xA4CF), (Kind.UNSPACED, 0xA980, 0xA9DF),
    (Kind.UNSPACED, 0xAA60, 0xAA7F),
)  # fmt: skip

# what ends a sentence, in all scripts that have such a mark
TERMINAL = ".!?…‥。｡．！？؟۔؞।॥։׃፧።၊။។៕᠃᠉᙮᥄᥅᪨᪩᭚᭛᱾᱿⸮꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꯫‼‽⁇⁈⁉།༎༏༐༑༔܀܁܂߹꫰꫱𑃀𑃁𑅁𑅂"
_NEWLINES = "\n\u2028\u2029\x85"
# joiners belong to words of Persian or Hindi
_JOINERS = "\u200c\u200d"


@lru_cache
def kind_table() -> np.ndarray:
    """The kind of each code point, uint8 [0x110000], from Python's own Unicode tables.

    What is not assigned is a symbol, for the next Python may know it as an emoji.
    """
    of_category = {
        **dict.fromkeys(("Cc", "Cf", "Cs", "Co"), Kind.INVISIBLE),
        **dict.fromkeys(("Zs", "Zl", "Zp"), Kind.SPACE),
        **dict.fromkeys(("Mn", "Mc", "Me"), Kind.MARK),
        **dict.fromkeys(("Ll", "Lm", "Lo"), Kind.LETTER),
        **dict.fromkeys(("Lu", "Lt"), Kind.CAPITAL),
        **dict.fromkeys(("Pe", "Pf", "Pi"), Kind.CLOSING),
        "Nd": Kind.DIGIT,
    }
    categories = map(unicodedata.category, map(chr, range(0x110000)))
    table = np.array([of_category.get(name, Kind.SYMBOL) for name in categories], np.uint8)
    for kind, first, last in _SCRIPTS:
        script = table[first : last + 1]
        # numerals of Han (〇) count as its letters
        numeral = (script == Kind.SYMBOL) if first in (0x3005, 0x3021) else False
        script[(script == Kind.LETTER) | numeral] = kind
    of_character = {
        Kind.SPACE: "\t\v\f\r\x1c\x1d\x1e\x1f",
        Kind.NEWLINE: _NEWLINES,
        Kind.TERMINAL: TERMINAL,
        Kind.CLOSING: "\"'»«”’“‘‹›",
        Kind.MARK: _JOINERS,
    }
    table[_selector()] = Kind.SYMBOL
    for kind, characters in of_character.items():
        table[[ord(character) for character in characters]] = kind
    table.setflags(write=False)
    return table


def among(kinds: np.ndarray, wanted: Iterable[Kind]) -> np.ndarray:
    """Which of the kinds are wanted ones, bool of the shape of `kinds`."""
    table = np.zeros(256, bool)
    table[list(wanted)] = True
    return table.take(kinds)


@dataclass(frozen=True)
class Batch:
    """Documents one after another.

    codes: their code points, uint32. offsets: where each begins and the last ends,
    int64 [documents + 1].
    """

    codes: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Batch":
        """The texts as they are, lone halves of surrogates too."""
        codes = "".join(texts).encode("utf-32-le", "surrogatepass")
        offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        return cls(np.frombuffer(codes, np.uint32), offsets)

    @classmethod
    def joined(cls, batches: Sequence["Batch"]) -> "Batch":
        """The documents of some batches, one or more, as one."""
        if len(batches) == 1:
            return batches[0]
        lengths = np.concatenate([one.lengths for one in batches])
        return cls(np.concatenate([one.codes for one in batches]), np.append(0, lengths.cumsum()))

    def parts(self, most: int = PART) -> Iterator["Batch"]:
        """The documents in batches of so many code points, or of one that is longer; one or more.

        What goes through many steps goes faster part by part.
        """
        if len(self.codes) <= most:
            yield self
            return
        begin = 0
        while begin < len(self):
            within = np.searchsorted(self.offsets, self.offsets[begin] + most, "right") - 1
            end = max(int(within), begin + 1)
            first, last = self.offsets[begin], self.offsets[end]
            yield Batch(self.codes[first:last], self.offsets[begin : end + 1] - first)
            begin = end

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def kinds(self) -> np.ndarray:
        """Kinds of the code points, uint8."""
        return kind_table().take(self.codes)

    @cached_property
    def counts(self) -> np.ndarray:
        """How many code points of each kind a document has, int64 [documents, KINDS]."""
        document = np.repeat(np.arange(len(self)) * KINDS, self.lengths)
        flat = np.bincount(document + self.kinds, minlength=len(self) * KINDS)
        return flat.reshape(len(self), KINDS)

    @property
    def lengths(self) -> np.ndarray:
        """Code points of each document, int64."""
        return np.diff(self.offsets)

    @cached_property
    def first(self) -> np.ndarray:
        """Which code points begin a document, bool."""
        first = np.zeros(len(self.codes) + 1, bool)
        first[self.offsets] = True
        return first[:-1]

    @cached_property
    def visible(self) -> np.ndarray:
        """Where what is not white space is, int64."""
        return np.flatnonzero(~among(self.kinds, BLANKS))

    @cached_property
    def marks(self) -> tuple[np.ndarray, np.ndarray]:
        """Where marks are, int64, and the code point that each belongs to: itself if none."""
        marks = np.flatnonzero(self.kinds == Kind.MARK)
        begins = np.ones(len(marks), bool)
        begins[1:] = np.diff(marks) > 1
        begins |= self.first[marks]
        own = marks[begins]
        bases = np.where(self.first[own], own, own - 1)
        return marks, bases[np.cumsum(begins) - 1]

    @cached_property
    def prefix(self) -> np.ndarray:
        """What `span_hashes` takes, uint64 [code points + 1]."""
        return _prefix(_mixed_codes().take(self.codes))

    def text(self, document: int) -> str:
        """A document as a string."""
        begin, end = self.offsets[document : document + 2]
        return self.codes[begin:end].tobytes().decode("utf-32-le", "surrogatepass")


@dataclass(frozen=True)
class Spans:
    """Stretches of a batch, in order, none of which lies in two documents.

    starts, ends: code points, int64, the end exclusive. offsets: which spans are a document's,
    int64 [documents + 1].
    """

    starts: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """Code points of each span, int64."""
        return self.ends - self.starts

    @property
    def counts(self) -> np.ndarray:
        """Spans of each document, int64."""
        return np.diff(self.offsets)

    @cached_property
    def documents(self) -> np.ndarray:
        """The document that each span lies in, int64."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)


def count(mask: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many of a mask hold between each offset and the next, int64."""
    return np.diff(np.searchsorted(np.flatnonzero(mask), offsets))


def total(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums of whole numbers between each offset and the next, int64: exact in any order."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return np.diff(sums[offsets])


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part by whole, float64; 0 where the whole is."""
    return part / np.maximum(whole, 1)


def tokens(batch: Batch) -> Spans:
    """Words: runs of letters, digits and their marks; where no spaces are, a letter, its marks."""
    member = among(batch.kinds, (*LETTERS, Kind.DIGIT))
    marks, bases = batch.marks
    member[marks] = member[bases]  # on a space or a symbol it makes no word
    return _runs(batch, member)


def chunks(batch: Batch) -> Spans:
    """Runs of what is not white space, cut around each letter of a script without spaces."""
    return _runs(batch, ~among(batch.kinds, BLANKS))


def lines(batch: Batch) -> Spans:
    """Lines that are not blank, without the white space around them."""
    return _between(batch, 1)


def paragraphs(batch: Batch) -> Spans:
    """What stands between blank lines, without the white space around it."""
    return _between(batch, 2)


def _runs(batch: Batch, member: np.ndarray) -> Spans:
    """Runs of members. A letter that stands alone begins one, and so does what follows it."""
    alone = among(batch.kinds, ALONE)
    marks, bases = batch.marks
    after = np.zeros(len(alone) + 1, bool)
    after[1:] = alone
    after[marks + 1] = alone[bases]
    after[marks] = False
    begins = member.copy()
    begins[1:] &= ~member[:-1] | batch.first[1:] | alone[1:] | after[1:-1]
    ends = member.copy()
    ends[:-1] &= ~member[1:] | begins[1:]
    starts = np.flatnonzero(begins)
    return Spans(starts, np.flatnonzero(ends) + 1, np.searchsorted(starts, batch.offsets))


def _between(batch: Batch, newlines: int) -> Spans:
    """What stands between so many newlines or more, with nothing but white space in between."""
    visible = batch.visible
    if not len(visible):
        return Spans(visible, visible, np.zeros_like(batch.offsets))
    after, counts = np.unique(
        np.searchsorted(visible, np.flatnonzero(batch.kinds == Kind.NEWLINE)), return_counts=True
    )
    # the first that is visible in each document, and after newlines
    first = np.searchsorted(visible, batch.offsets[:-1])
    at = np.unique(np.concatenate([first, after[counts >= newlines]]))
    at = at[at < len(visible)]
    starts = visible[at]
    ends = visible[np.append(at[1:], len(visible)) - 1] + 1
    return Spans(starts, ends, np.searchsorted(starts, batch.offsets))


@lru_cache
def fold_table() -> np.ndarray:
    """What each code point is compared as, uint32 [0x110000]; 0 where it is left out.

    Case and width go, presentation forms become letters, all digits are 0, and what is no word is
    a space. Accents stay: without them Vietnamese would have a third of its words.
    """
    kinds = kind_table()
    word = among(kinds, WORDS)
    table = np.where(word, np.arange(0x110000), ord(" ")).astype(np.uint32)
    table[(kinds == Kind.INVISIBLE) | _selector()] = 0
    table[[ord(joiner) for joiner in _JOINERS]] = 0
    # Han and Hangul are written in one way only
    for code in np.flatnonzero(word & ~among(kinds, (Kind.HAN, Kind.HANGUL, Kind.DIGIT))):
        plain = unicodedata.normalize("NFKC", chr(code))
        lower = (plain if len(plain) == 1 else chr(code)).lower()
        table[code] = ord(lower[0]) if table[code] else 0
    for code in (*range(0xF900, 0xFB00), *range(0x2F800, 0x2FA20), *range(0xFFA0, 0xFFE0)):
        plain = unicodedata.normalize("NFKC", chr(code))
        table[code] = ord(plain) if word[code] and len(plain) == 1 else table[code]
    table[kinds == Kind.DIGIT] = ord("0")
    table.setflags(write=False)
    return table


def _selector() -> np.ndarray:
    """Which code points only choose how the one before is drawn, bool [0x110000]."""
    codes = np.arange(0x110000)
    return (codes >= 0xFE00) & (codes <= 0xFE0F) | (codes >= 0xE0100) & (codes <= 0xE01EF)


def fold(batch: Batch) -> Batch:
    """The documents as they are compared: words in small letters with one space between two."""
    return Batch.joined([_folded(part) for part in batch.parts()])


def _folded(batch: Batch) -> Batch:
    codes = fold_table().take(batch.codes)
    batch = Batch(codes, batch.offsets)
    if not codes.all():
        batch = _taken(batch, np.flatnonzero(codes))
    space = batch.codes == ord(" ")
    needless = space & batch.first
    needless[1:] |= space[1:] & space[:-1]
    # what follows a document's last word
    ends = batch.offsets[1:]
    words = np.flatnonzero(~space)
    after = np.append(0, words + 1)[np.searchsorted(words, ends)]
    needless[after[after < ends]] = True
    return _taken(batch, np.flatnonzero(~needless))


def _taken(batch: Batch, places: np.ndarray) -> Batch:
    """The code points at some places, ascending."""
    return Batch(batch.codes.take(places), np.searchsorted(places, batch.offsets))


# A polynomial modulo 2**64: 5 modulo 8 has the longest period there is, and an odd base an inverse.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)


@lru_cache(maxsize=4)
def _powers(base: int, count: int) -> np.ndarray:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _first_powers(base: int, count: int) -> np.ndarray:
    # a whole number of batches, so that there are few different arrays to keep
    return _powers(base, (count // BATCH + 1) * BATCH)[:count]


def mix(values: np.ndarray) -> np.ndarray:
    """Spreads what is in 64 bits over all of them, one to one, uint64 (the end of MurmurHash3)."""
    values, before = values >> np.uint64(33), values
    values ^= before
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


@lru_cache
def _mixed_codes() -> np.ndarray:
    """`mix` of all code points and 1, uint64 [0x110000]: to look up is faster than to mix."""
    return mix(np.arange(1, 0x110001, dtype=np.uint64))


def prefix_hashes(values: np.ndarray) -> np.ndarray:
    """Of each beginning of the values its polynomial, uint64 [values + 1]; see `span_hashes`."""
    return _prefix(mix(values.astype(np.uint64) + np.uint64(1)))


def _prefix(terms: np.ndarray) -> np.ndarray:
    hashes = np.zeros(len(terms) + 1, np.uint64)
    terms *= _first_powers(_BASE, len(terms))
    np.cumsum(terms, out=hashes[1:])
    return hashes


def span_hashes(prefix: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """64-bit hashes of the values in each span; equal values hash equally wherever they stand."""
    hashes = prefix[ends] - prefix[starts]
    hashes *= _first_powers(_INVERSE, len(prefix))[starts]
    return mix(hashes)


def ngram_hashes(prefix: np.ndarray, size: int) -> np.ndarray:
    """64-bit hashes of all windows of so many values, uint64 [values - size + 1].

    Windows that begin in one document and end in the next are among them.
    """
    windows = max(len(prefix) - size, 0)
    hashes = prefix[size:] - prefix[:windows]
    hashes *= _first_powers(_INVERSE, windows)
    return mix(hashes)


def document_hashes(batch: Batch) -> np.ndarray:
    """64-bit hashes of the documents, uint64 [documents]."""
    return span_hashes(batch.prefix, batch.offsets[:-1], batch.offsets[1:])


# Characters of a shingle by script, so that the Jaccard of shingles is that of runs of 5 words
# (measured over 11 languages: correlation .962, mean difference -.006).
SHINGLE = 24
_SHINGLES = {Kind.THAI: 20, Kind.UNSPACED: 20, Kind.HANGUL: 14, Kind.KANA: 10, Kind.HAN: 8}
_DENSE = min(first for kind, first, _ in _SCRIPTS if kind in _SHINGLES)
_KANA_SHARE = 0.1  # of the letters, from which a text in Han is Japanese


def shingle_sizes(batch: Batch) -> np.ndarray:
    """Code points of a shingle of each document, by the script that most of it is in, int64."""
    if batch.codes.max(initial=0) < _DENSE:
        return np.full(len(batch), SHINGLE)
    letters = batch.counts[:, list(LETTERS)].sum(1)
    sizes = np.full(len(batch), SHINGLE)
    for kind, usual in _SHINGLES.items():
        size: int | np.ndarray = usual
        own = batch.counts[:, kind]
        if kind == Kind.HAN:
            japanese = batch.counts[:, Kind.KANA] > _KANA_SHARE * letters
            size = np.where(japanese, _SHINGLES[Kind.KANA], size)
            own = own + batch.counts[:, Kind.KANA]
        sizes = np.where(2 * own > letters, size, sizes)
    return sizes


def shingles(folded: Batch) -> tuple[np.ndarray, np.ndarray]:
    """A number for each shingle of folded documents, uint64, and where each document's begin.

    Equal shingles have equal numbers, whose bits are not even: `mix` them. The second is int64
    [documents + 1]. A document that is shorter than a shingle is one, an empty one has none.
    """
    sizes = np.minimum(shingle_sizes(folded), folded.lengths)
    counts = np.where(folded.lengths > 0, folded.lengths - sizes + 1, 0)
    prefix = folded.prefix
    inverse = _first_powers(_INVERSE, len(prefix))
    found = [np.empty(0, np.uint64)]
    # neighbours of one size at once; of windows that reach into the next document nothing is taken
    edges = np.flatnonzero(np.diff(sizes, prepend=-1, append=-1))
    for begin, end in pairwise(edges.tolist()):
        first, last = folded.offsets[begin], folded.offsets[end] + 1
        size = sizes[begin]
        windows = prefix[first + size : last] - prefix[first : last - size]
        windows *= inverse[first : last - size]
        starts = (folded.offsets[begin:end] - first).tolist()
        some = counts[begin:end].tolist()
        found += [windows[at : at + n] for at, n in zip(starts, some, strict=True)]
    return np.concatenate(found), np.append(0, np.cumsum(counts))
