"""What the rules look at: features of documents, measured for a batch at a time.

`FEATURES` is the table of them, each with a limit for English and who published it; which limit
cuts in another language is for `thresholds` to say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from polylm_jax.data.clean import features
from polylm_jax.data.clean.text import (
    BLANKS,
    LETTERS,
    WORDS,
    Batch,
    Kind,
    count,
    document_hashes,
    share,
    total,
)
from polylm_jax.data.clean.view import View

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


def _measured(view: View) -> list[np.ndarray]:
    return [feature.of(view).astype(np.float64) for feature in FEATURES]


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
    Feature("sentences", (5, None), _C4, "marks that end a sentence", features.sentences),
    Feature(
        "word_length",
        (3, 10),
        _GOPHER,
        "characters of a word, on average",
        lambda v: share(v.word_characters, v.words),
    ),
    Feature("longest_word", (None, 1000), _C4, "characters without white space", features.longest),
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
        _by_word(lambda v: v.characters("…") + v.located(features.dots(v))),
    ),
    Feature(
        "bullet_lines",
        (None, 0.9),
        _GOPHER,
        "share of lines that begin with a bullet",
        lambda v: features.of_lines(v, features.bulleted),
    ),
    Feature(
        "ellipsis_lines",
        (None, 0.3),
        _GOPHER,
        "share of lines that end in an ellipsis",
        lambda v: features.of_lines(v, features.trailing),
    ),
    Feature(
        "alphabetic",
        (0.8, None),
        _GOPHER,
        "share of what stands between spaces that has a letter",
        features.alphabetic,
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
        lambda v: share(features.distinct(v), v.words),
    ),
    Feature("entropy", (3, None), _PAJAMA, "entropy of the words, nats", features.entropy),
    Feature(
        "duplicate_lines",
        (None, 0.3),
        _GOPHER,
        "share of lines that have been before",
        lambda v: features.again(v.lines, v.lines_before),
    ),
    Feature(
        "duplicate_line_characters",
        (None, 0.2),
        _GOPHER,
        "share of the characters of lines in such lines",
        lambda v: features.characters_again(v.lines, v.lines_before),
    ),
    Feature(
        "duplicate_paragraphs",
        (None, 0.3),
        _GOPHER,
        "share of paragraphs that have been before",
        lambda v: features.again(v.paragraphs, v.paragraphs_before),
    ),
    Feature(
        "duplicate_paragraph_characters",
        (None, 0.2),
        _GOPHER,
        "share of the characters of paragraphs in such paragraphs",
        lambda v: features.characters_again(v.paragraphs, v.paragraphs_before),
    ),
    *(
        Feature(
            f"top_{size}_gram",
            (None, most),
            _GOPHER,
            f"share of the characters of words in the most frequent {size} words in a row",
            partial(features.top, size=size),
        )
        for size, most in ((2, 0.2), (3, 0.18), (4, 0.16))
    ),
    *(
        Feature(
            f"duplicate_{size}_grams",
            (None, most),
            _GOPHER,
            f"share of the characters of words in {size} words in a row that have been before",
            partial(features.covered, size=size),
        )
        for size, most in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))
    ),
    Feature(
        "repeated_characters",
        (None, 0.106),
        _BLOOM,
        "share of windows of 10 characters that have been before",
        features.windows,
    ),
    Feature(
        "ended_lines",
        (0.12, None),
        _FINEWEB,
        "share of lines that end in a mark of a sentence",
        lambda v: features.of_lines(v, features.ended),
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
        lambda v: features.of_lines(v, features.are_short),
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
        lambda v: share(features.broken(v), v.batch.lengths),
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
        lambda v: share(count(features.numeric(v), v.tokens.offsets), v.words),
    ),
    Feature("dates", (None, 0.05), _OURS, "dates a word", _by_word(features.dates)),
    Feature("urls", (None, 0.05), _OURS, "addresses of the web a word", _by_word(features.urls)),
    Feature(
        "placeholders",
        (None, 0.02),
        _OURS,
        "format strings (%s, {name}) and tags of HTML a word",
        _by_word(features.placeholders),
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
        _by_word(features.separators),
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
        features.other_scripts,
    ),
)
