"""The words of a text in its language: what ROUGE-L compares and a length is counted in.

The paper (§4) takes NLTK's wordpunct for languages with spaces, KyTea for Japanese, Okt for Korean
and a Thai tokenizer. KyTea is in no package registry and Okt needs Java: MeCab with UniDic and Kiwi
stand for them. A language that needs a segmenter is refused where that is missing: letters in the
place of words find under two thirds of the pairs that words find.
"""

import importlib
import importlib.metadata
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from polylm_jax.errors import UserError

Words = Callable[[str], list[str]]

WORDPUNCT = re.compile(r"\w+|[^\w\s]+")

# Languages written without spaces that nothing here can cut into words.
UNCUT = ("my", "km", "lo", "bo", "yue", "wuu")


def _japanese() -> Words:
    tagger = _module("fugashi", "ja").Tagger()
    return lambda text: [word.surface for word in tagger(text)]


def _korean() -> Words:
    kiwi = _module("kiwipiepy", "ko").Kiwi(num_workers=1)
    return lambda text: [word.form for word in kiwi.tokenize(text)]


def _thai() -> Words:
    cut = _module("pythainlp.tokenize", "th").word_tokenize
    return partial(cut, engine="newmm", keep_whitespace=False)


def _chinese() -> Words:
    tokenizer = _module("jieba", "zh").Tokenizer()
    # its own start reads and writes a cache in a folder where anybody may put another
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return lambda text: [word for word in tokenizer.lcut(text) if not word.isspace()]


# language: (packages that cut it, what makes its segmenter)
SEGMENTERS: dict[str, tuple[tuple[str, ...], Callable[[], Words]]] = {
    "ja": (("fugashi", "unidic-lite"), _japanese),
    "ko": (("kiwipiepy", "kiwipiepy-model"), _korean),
    "th": (("pythainlp",), _thai),
    "zh": (("jieba",), _chinese),
}


@cache
def words_of(language: str) -> Words:
    """The function text -> words, punctuation included and case kept, for a language's code.

    UserError where its segmenter is not installed, or where there is none.
    """
    code = base(language)
    if code in UNCUT:
        raise UserError(
            f'"{language}" is written without spaces and no segmenter for it is known here; take '
            "it out of self_instruct.languages."
        )
    return SEGMENTERS[code][1]() if code in SEGMENTERS else WORDPUNCT.findall


def base(language: str) -> str:
    """A language's code without script and region."""
    return language.split("-")[0]


def segmenter(language: str) -> str:
    """What cuts a language into words, with versions, for other words give other pools."""
    code = base(language)
    packages = SEGMENTERS[code][0] if code in SEGMENTERS else ()
    return " ".join(f"{one} {importlib.metadata.version(one)}" for one in packages) or "wordpunct"


def count(words: list[str]) -> int:
    """How many of them hold a letter or a digit."""
    return sum(any(map(str.isalnum, word)) for word in words)


def _module(name: str, language: str) -> Any:
    packages = SEGMENTERS[language][0]
    try:
        for package in packages:
            importlib.metadata.version(package)
        return importlib.import_module(name)
    except (ImportError, importlib.metadata.PackageNotFoundError):
        raise UserError(
            f'the words of "{language}" need {" and ".join(packages)}; '
            'pip install "polylm_jax[tune]", or take it out of self_instruct.languages.'
        ) from None
