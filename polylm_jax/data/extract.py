"""Plain text out of the formats that packages keep it in: catalogues, dialogues, manuals.

Pure functions from a file's content to its text, in the file's order and otherwise unchanged.
"""

import re
import struct
import unicodedata
from html.parser import HTMLParser

_PLACEHOLDER = re.compile(
    r"%\(\w+\)\w|%[-+\d.]*[a-zA-Z]|%\w+|\$\(?\w+\)?|\{[^{}]*\}|&\w+;|https?://\S+"
)
_MARKUP = re.compile(r"</?\w[^>]*>|[~_]")  # tags, and the ~ and _ that mark keyboard shortcuts
_WORD = re.compile(r"[^\W\d_]{2}")
_DEAD_LINK = re.compile(r"\[\S+\.xhp#\S* not found\]")


def is_prose(text: str) -> bool:
    """Whether a text is language at all: has a word, and is mostly letters, not placeholders."""
    plain = _PLACEHOLDER.sub("", text)
    # Marks count as letters: half of a Thai or a decomposed Vietnamese word is marks.
    letters = sum(unicodedata.category(character)[0] in "LM" for character in plain)
    return bool(_WORD.search(plain)) and letters >= 0.5 * len("".join(text.split()))


def pairs_of_catalogue(content: bytes) -> list[tuple[str, str]]:
    """The (English, translation) pairs of a gettext .mo file that are prose on both sides.

    Of a plural only its first and last form are taken, against the singular and the plural.
    Untranslated strings are left out. Raises ValueError if the content is no .mo file.
    """
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(content[:4])
    if order is None:
        raise ValueError("not a gettext .mo file")
    count, originals, translations = struct.unpack_from(f"{order}3I", content, 8)

    def forms(table: int, index: int) -> list[str]:
        length, start = struct.unpack_from(f"{order}2I", content, table + 8 * index)
        text = content[start : start + length].decode("utf-8")
        return text.rpartition("\x04")[2].split("\0")  # a context may stand before \x04

    pairs = []
    for index in range(count):
        english, translation = forms(originals, index), forms(translations, index)
        both = [(english[0], translation[0]), (english[-1], translation[-1])]
        pairs += [(first.strip(), second.strip()) for first, second in dict.fromkeys(both)]
    # A translation that still has the English in it was never finished.
    return [pair for pair in pairs if pair[0] not in pair[1] and all(map(_is_clean, pair))]


def _is_clean(text: str) -> bool:
    return is_prose(text) and not _MARKUP.search(_PLACEHOLDER.sub("", text))


def dialogues_of_yaml(text: str) -> list[tuple[str, ...]]:
    """The dialogues of a ChatterBot corpus file, each the utterances in turn.

    Reads the one shape that these files have, "- - first" and "  - next", with lines that
    go on indented; an utterance that is a block ("|", program code) ends its dialogue.
    """
    found: list[list[str]] = []
    in_block = False
    for line in text.partition("conversations:")[2].splitlines():
        item = re.match(r"(\s*- - ?|\s+- ?)(.*)", line)
        if item and item[1].count("-") == 2:
            found.append([])
            in_block = False
        if not found or in_block or not line.strip():
            continue
        if item:
            in_block = item[2].strip() in ("|", ">", "|-", ">-")
            if not in_block:
                found[-1].append(item[2].strip())
        elif found[-1]:
            found[-1][-1] += " " + line.strip()
    unquoted = [tuple(filter(None, map(_unquoted, dialogue))) for dialogue in found]
    return [dialogue for dialogue in unquoted if len(dialogue) > 1 and is_prose(" ".join(dialogue))]


def _unquoted(scalar: str) -> str:
    if len(scalar) > 1 and scalar[0] == scalar[-1] == '"':
        return scalar[1:-1].replace('\\"', '"').strip()
    if len(scalar) > 1 and scalar[0] == scalar[-1] == "'":
        return scalar[1:-1].replace("''", "'").strip()
    return scalar


_REST_INLINE = (
    (re.compile(r":[\w:-]+:`~?([^`<]*?)\s*(?:<[^`>]*>)?`"), r"\1"),  # roles
    (re.compile(r"``(.+?)``"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*(?:<[^`>]*>)?`__?"), r"\1"),  # links
    (re.compile(r"`([^`]+)`"), r"\1"),
    (re.compile(r"(?<!\w)(\*\*?)(\S(?:[^*]*\S)?)\1(?!\w)"), r"\2"),
    (re.compile(r"\\(\W)"), r"\1"),
)


def paragraphs_of_rest(text: str) -> list[str]:
    """The prose of a reStructuredText page: headings, paragraphs and list items, one string each.

    Whatever is indented or starts with markup (directives, code, tables, targets) is left out.
    """
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.splitlines() if not re.fullmatch(r"([^\w\s])\1{2,}", line)]
        if not lines or not re.match(r"[\w\"'`(*:#-]", lines[0]) or "==  ==" in block:
            continue
        if re.match(r":[\w ]+:(\s|$)|>>>|--|\.\. ", lines[0]):
            continue
        for item in re.split(r"\n(?=[*-] )", "\n".join(lines)):
            plain = " ".join(re.sub(r"^([*-]|#\.|\d+\.) ", "", item).split())
            for pattern, replacement in _REST_INLINE:
                plain = pattern.sub(replacement, plain)
            paragraphs.append(re.sub(r"::$", ":", plain))
    return [paragraph for paragraph in paragraphs if is_prose(paragraph)]


def paragraphs_of_help(html: str) -> dict[str, str]:
    """The headings and paragraphs of a LibreOffice Help page by their ids, in the page's order.

    The ids are the same in every language, which is what aligns a page with its translation.
    What has the mark of a link that led nowhere when the page was made is left out.
    """
    reader = _HelpReader()
    reader.feed(html)
    reader.close()
    plain = {name: re.sub(r"[ \t\r\n]+", " ", text).strip() for name, text in reader.found.items()}
    return {
        name: text for name, text in plain.items() if is_prose(text) and not _DEAD_LINK.search(text)
    }


class _HelpReader(HTMLParser):
    """Collects the text of each <p> and <h1>…<h6> whose id is one of a paragraph or a heading."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p" or re.fullmatch(r"h[1-6]", tag):
            name = dict(attrs).get("id") or ""
            self._open = name if re.match(r"(par|hd)_", name) and name not in self.found else ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" or re.fullmatch(r"h[1-6]", tag):
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.found[self._open] = self.found.get(self._open, "") + data
