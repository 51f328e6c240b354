"""Sources of rows: what their names mean, what they are called, and in which order they stand.

A *source* is one stream of rows: a language ("de", "swh", "zh-Hant", "pt-BR"), a pair of
languages ("en-de"), or "code". What sources there are is said by the store, and which of them
count as foreign by the curriculum; everything that is kept per source (stores, tasks, metrics)
is keyed by its name. The paper's 18 languages have a table here, for their shares and names.

A language is an ISO 639 code of 2 or 3 small letters, then perhaps a script ("Hant") and a
region ("BR" or "419"), written as in BCP 47. So "pt-BR" is a language and "en-de" are two.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Language:
    """One language of PolyLM.

    code: ISO 639-1 code, used as folder name and source name.
    name: English name.
    tokens: billions of tokens in stage 1 of pre-training, code and parallel data
        excluded (paper, Table 2).
    """

    code: str
    name: str
    tokens: float


LANGUAGES = {
    language.code: language
    for language in (
        Language("en", "English", 424.96),
        Language("zh", "Chinese", 139.29),
        Language("ru", "Russian", 7.61),
        Language("es", "Spanish", 5.62),
        Language("de", "German", 5.56),
        Language("fr", "French", 5.10),
        Language("it", "Italian", 4.31),
        Language("pt", "Portuguese", 4.27),
        Language("ja", "Japanese", 4.19),
        Language("vi", "Vietnamese", 4.13),
        Language("id", "Indonesian", 3.91),
        Language("pl", "Polish", 3.84),
        Language("nl", "Dutch", 3.52),
        Language("ar", "Arabic", 3.48),
        Language("tr", "Turkish", 3.42),
        Language("th", "Thai", 2.89),
        Language("he", "Hebrew", 2.10),
        Language("ko", "Korean", 0.84),
    )
}

NON_ENGLISH = tuple(code for code in LANGUAGES if code != "en")

CODE = "code"

_LANGUAGE = r"[a-z]{2,3}(?:-[A-Z][a-z]{3})?(?:-(?:[A-Z]{2}|\d{3}))?"
_SOURCE = re.compile(f"({_LANGUAGE})(?:-({_LANGUAGE}))?")


def source_named(name: str) -> str | None:
    """The source that a folder or file of this name holds, "_" written "-"; None if none.

    Every language in it must have its code in ISO 639.
    """
    source = name.replace("_", "-")
    languages = languages_of(source)
    known = languages and all(_iso_name(language.split("-")[0]) for language in languages)
    return source if known or source == CODE else None


def languages_of(source: str) -> tuple[str, ...]:
    """The one or two languages of a source; none for code and for other names."""
    match = _SOURCE.fullmatch(source)
    return tuple(filter(None, match.groups())) if match else ()


def is_language(source: str) -> bool:
    """Whether a source is text in one language."""
    return len(languages_of(source)) == 1


def is_bilingual(source: str) -> bool:
    """Whether a source is two languages paired, as in "en-de"."""
    return len(languages_of(source)) == 2


def in_order(sources: Iterable[str]) -> list[str]:
    """Languages, then pairs, then the rest: those of the paper as in its table, others by name."""
    table = list(LANGUAGES)

    def place(source: str) -> tuple:
        languages = languages_of(source)
        ranks = [table.index(one) if one in LANGUAGES else len(table) for one in languages]
        return len(languages) or 3, ranks, source

    return sorted(sources, key=place)


def is_mixed(sources: Iterable[str]) -> bool:
    """Whether there are English and another language, so that a share of one says something."""
    return {"en"} < {source for source in sources if is_language(source)}


def non_english_share(sources: Sequence[str], counts: np.ndarray) -> np.ndarray:
    """The non-English share, 0 to 1, of the rows in one language in counts [..., sources]."""
    in_one = counts[..., [is_language(source) for source in sources]].sum(-1)
    english = counts[..., [source == "en" for source in sources]].sum(-1)
    return (in_one - english) / np.maximum(in_one, 1e-9)


def name_of(source: str) -> str:
    """What a reader calls a source: "German (de)", "English–German", "code"."""
    languages = languages_of(source)
    if len(languages) == 1:
        return f"{_name(source)} ({source})"
    # a code alone is not repeated here, but a script or a region must be told
    names = [f"{_name(one)} ({one})" if "-" in one else _name(one) for one in languages]
    return "–".join(names) or source


def _name(language: str) -> str:
    code = language.split("-")[0]
    return _iso_name(code) or code


@lru_cache
def _iso_name(code: str) -> str | None:
    """The English name of an ISO 639 code, None if there is no such code."""
    if code in LANGUAGES:
        return LANGUAGES[code].name
    # takes half a second and 20 MB, which the 18 need not pay
    from iso639 import Language as Iso
    from iso639 import LanguageNotFoundError

    for part in (Iso.from_part1,) if len(code) == 2 else (Iso.from_part3, Iso.from_part2b):
        with suppress(LanguageNotFoundError):
            return part(code).name.split(" (")[0]  # "Swahili (macrolanguage)"
    return None
