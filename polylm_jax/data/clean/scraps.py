"""Lines that no text has: entries of menus, buttons, and format strings that a program fills in."""

import re

from polylm_jax.data.clean.language import UNKNOWN
from polylm_jax.data.clean.text import TERMINAL
from polylm_jax.data.languages import is_bilingual, is_language, languages_of

# %s, %(name)s, %5d, %1$s, {0}, {name}, ${x}, $[x], tags and entities of HTML; not 50%的
_FORMS = (
    r"%[sd](?!\w)|%\(\w+\)[a-z]|(?<!\d)%(?:[(A-Za-z_]|\d+\$|[-+#.\d]+[sdfxX](?!\w))"
    r"|\{[\w{%]|\$[\[({]|</?[A-Za-z!]|&#?\w+;"
)
_FORMAT = re.compile(_FORMS)
_NUMBERED = re.compile(rf"{_FORMS}|(?<!\d)%[1-9](?![\d.,]*\d)")  # and %1
# where %1 may be a share: Turkish, Basque and Kurdish (CLDR), and where nobody says it is not
_SIGN_FIRST = {"tr", "eu", "ku", UNKNOWN}
_CLOSING = re.escape("\"'»«”“’‘›‹)]）］」』】》〉")
_ENDED = re.compile(f"[{re.escape(TERMINAL)}][{_CLOSING}]*$")


def without(text: str, least: int, language: str) -> tuple[str, int]:
    """A text without its scraps, and how many there were.

    A scrap is a line with a format string, and one of fewer than `least` bytes of UTF-8 that does
    not end as a sentence does; 0 leaves all lines. Lines of a pair of languages stay together:
    a block of them goes when a format string is in it. Code stays as it is.
    """
    if not least or not (is_language(language) or is_bilingual(language)):
        return text, 0
    codes = {one.split("-")[0] for one in languages_of(language)}
    form = _FORMAT if codes & _SIGN_FIRST else _NUMBERED
    if is_bilingual(language):
        parts, between = re.split(r"\n\s*\n", text), "\n\n"
        kept = [part for part in parts if not form.search(part)]
    else:
        parts, between = text.split("\n"), "\n"
        formats = form if form.search(text) else None  # where there is none, no line has one
        kept = [part for part in parts if not _is_scrap(part, least, formats)]
    if len(kept) == len(parts):
        return text, 0
    return re.sub(r"\n{3,}", "\n\n", between.join(kept)).strip("\n"), len(parts) - len(kept)


def _is_scrap(line: str, least: int, form: re.Pattern[str] | None) -> bool:
    said = line.strip()
    if not said or (form and form.search(line)):
        return bool(said)
    # a character is a byte at least
    short = len(said) < least and len(said.encode("utf-8", "replace")) < least
    return short and not _ENDED.search(said)
