"""The 18 languages of PolyLM and what the paper says of each.

A *source* is one stream of rows: a language ("de"), English paired with a language
("en-de"), or "code". The curriculum gives each source its share; everything else
that is kept per language (stores, tasks, metrics) is keyed by the source's name.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """One language.

    code: ISO 639-1 code, used as folder name and source name.
    name: English name.
    own_name: the language's name in itself.
    tokens: billions of tokens in stage 1 of pre-training, code and parallel data
        excluded (paper, Table 2).
    """

    code: str
    name: str
    own_name: str
    tokens: float


LANGUAGES = {
    language.code: language
    for language in (
        Language("en", "English", "English", 424.96),
        Language("zh", "Chinese", "中文", 139.29),
        Language("ru", "Russian", "Русский", 7.61),
        Language("es", "Spanish", "Español", 5.62),
        Language("de", "German", "Deutsch", 5.56),
        Language("fr", "French", "Français", 5.10),
        Language("it", "Italian", "Italiano", 4.31),
        Language("pt", "Portuguese", "Português", 4.27),
        Language("ja", "Japanese", "日本語", 4.19),
        Language("vi", "Vietnamese", "Tiếng Việt", 4.13),
        Language("id", "Indonesian", "Bahasa Indonesia", 3.91),
        Language("pl", "Polish", "Polski", 3.84),
        Language("nl", "Dutch", "Nederlands", 3.52),
        Language("ar", "Arabic", "العربية", 3.48),
        Language("tr", "Turkish", "Türkçe", 3.42),
        Language("th", "Thai", "ไทย", 2.89),
        Language("he", "Hebrew", "עברית", 2.10),
        Language("ko", "Korean", "한국어", 0.84),
    )
}

NON_ENGLISH = tuple(code for code in LANGUAGES if code != "en")


def is_bilingual(source: str) -> bool:
    """Whether a source is English paired with another language, as in "en-de"."""
    return "-" in source
