"""Mends what was broken on a text's way, and nothing that its writer meant.

Widths, quotes, ligatures, accents, joiners and the isolates of right-to-left text stay: clean
text comes back byte for byte.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from polylm_jax.data.clean.text import Batch

LONGEST_WORD = 200  # characters; what is longer is an address, base64 or a rule of signs
MENDED = ("surrogates", "mojibake", "controls", "overrides", "long_words", "white_space")

_HALVES = re.compile("[\ud800-\udfff]")
_NONCHARACTERS = "\ufdd0-\ufdef\ufffe\uffff" + "".join(
    f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0x110000, 0x10000)
)
# controls that are no white space, a BOM inside of a text, and formats that Unicode deprecates
_CONTROLS = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff\u206a-\u206f\ufff9-\ufffb" + _NONCHARACTERS + "]"
)
_OVERRIDES = re.compile("[\u202d\u202e]")
_DIRECTIONS = re.compile("[\u202a-\u202e\n\u2029]")

# scripts that write words without spaces, and their marks, and those that Ethiopic parts words by;
# looked at from a word's first letter
_IN_WORD = (
    r"[^\s\u0e00-\u109f\u1360-\u1368\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f"
    "\u2e80-\ud7ff\uf900-\ufaff\uff00-\uffef\U0001f000-\U0003ffff]"
)
_LONG = re.compile(f"(?<!{_IN_WORD}){_IN_WORD}{{{LONGEST_WORD + 1},}}")

# line ends of other systems
_ENDS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1f]")
# three empty lines or more, wide gaps but for those that indent
_GAPS = re.compile("\n{4,}|(?<=\\S)[ \t\xa0]{3,}")

# of which one is in all that it finds, for to look for these is 20 times as fast
_IN_WHITE = ("   ", "\n\n\n\n", *"\r\t\xa0\x0b\x0c\x1c\x1d\x1e\x1f")

# How cp1252 shows the bytes 0x80 to 0xFF; those that it has no sign for, as Latin-1 does.
_SHOWN = [bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(0x80, 0x100)]
_BYTE_OF = {ord(sign): byte for byte, sign in enumerate(_SHOWN, 0x80)}
_BYTE_OF |= {byte: byte for byte in range(0x80, 0x100)}
_HIGH = "[" + re.escape("".join(sorted(set(_SHOWN) | set(map(chr, range(0x80, 0x100)))))) + "]"
_INNER = "[" + re.escape("".join(sorted({*_SHOWN[:0x40], *map(chr, range(0x80, 0xC0))}))) + "]"
_RUN = re.compile(f"{_HIGH}+")
# two bytes, three or four that could be one character
_SUSPECT = re.compile(f"[Â-ß]{_INNER}|[à-ï]{_INNER}{{2}}|[ð-ô]{_INNER}{{3}}")
# what Western text turns into, so that one place is enough
_SURE = re.compile("Ã[\x80-\xbf]|Ã[‚ƒ„…†‡ˆ‰Š‹Œ]|Â[\xa0-\xbf]|â€|â‚¬")
_READABLE = 0.8  # of the runs above ASCII that must be UTF-8
_PLACES = 3


# what any mend needs to find, and what is no damage unless some stand in a row
_SIGNS = (
    "[\r\x0b\x0c\x1c-\x1f"
    + "".join(one.pattern[1:-1] for one in (_HALVES, _CONTROLS, _OVERRIDES))
    + "]",
    "[Â-ô]",
    _INNER,
    "[ \t\xa0]",
    "\n",
    _IN_WORD,
)
_SURELY, _LEAD, _INSIDE, _GAP, _NEWLINE, _WORD = (1 << bit for bit in range(len(_SIGNS)))


def repair_all(texts: Sequence[str]) -> list[tuple[str, dict[str, int]]]:
    """As `repair` of each; those that surely have nothing to mend are found all at once."""
    looked = [_may_be_broken(part) for part in Batch.of(texts).parts()]
    return [
        repair(text) if doubtful else (text, {})
        for text, doubtful in zip(texts, np.concatenate(looked).tolist(), strict=True)
    ]


@lru_cache
def _signs() -> np.ndarray:
    """Which of _SIGNS each code point is, a bit each, uint8 [0x110000]."""
    everything = "".join(map(chr, range(0x110000)))
    table = np.zeros(len(everything), np.uint8)
    for bit, pattern in enumerate(_SIGNS):
        for run in re.finditer(f"{pattern}+", everything):
            table[run.start() : run.end()] |= 1 << bit
    return table


def _may_be_broken(batch: Batch) -> np.ndarray:
    """Which documents of a batch have what some mend looks for, or nearly, bool."""
    signs = _signs().take(batch.codes)
    lead = np.flatnonzero(signs[:-1] & _LEAD)
    places = [np.flatnonzero(signs & _SURELY), lead[signs[lead + 1] & _INSIDE > 0]]
    for kind, most in ((_GAP, 2), (_NEWLINE, 3)):
        some = np.flatnonzero(signs & kind)
        places.append(some[:-most][some[most:] - some[:-most] == most])
    edges = np.append(np.flatnonzero((signs & _WORD == 0) | batch.first), len(signs))
    places.append(edges[:-1][np.diff(edges) > LONGEST_WORD])
    found = np.zeros(len(batch), bool)
    found[np.searchsorted(batch.offsets, np.concatenate(places), "right") - 1] = True
    return found


def repair(text: str) -> tuple[str, dict[str, int]]:
    """The text mended, and how many places of each of MENDED were."""
    counts = {}
    for name, mend in _MENDS.items():
        text, places = mend(text)
        if places:
            counts[name] = places
    return text, counts


def _joined(text: str) -> tuple[str, int]:
    """Halves of surrogate pairs become their character; lone ones go."""
    halves = 0 if text.isascii() else len(_HALVES.findall(text))
    if halves:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    return text, halves


def _decoded(text: str) -> tuple[str, int]:
    """UTF-8 that was read as Latin-1 or cp1252, once or twice.

    It is mended where it shows at three places, or is unmistakable, and nearly all that lies
    above ASCII is such: a German ß before a quotation mark looks the same.
    """
    places = 0
    for _ in range(2):
        suspects = 0 if text.isascii() else len(_SUSPECT.findall(text))
        if not suspects or (suspects < _PLACES and not _SURE.search(text)):
            break
        runs = _RUN.findall(text)
        readable = sum(_as_utf8(run) is not None for run in runs)
        if readable < _READABLE * len(runs):
            break
        text = _RUN.sub(lambda run: _as_utf8(run[0]) or run[0], text)
        places += readable
    return text, places


def _as_utf8(run: str) -> str | None:
    try:
        return bytes(_BYTE_OF[ord(sign)] for sign in run).decode()
    except UnicodeDecodeError:
        return None


def _without_controls(text: str) -> tuple[str, int]:
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text, 0
    return _CONTROLS.subn("", text)


def _straightened(text: str) -> tuple[str, int]:
    """Takes out what forces letters into a direction, and what ends that, up to a line's end."""
    if not _OVERRIDES.search(text):
        return text, 0
    places, open_ = 0, list[bool]()

    def kept(found: re.Match[str]) -> str:
        nonlocal places
        sign, forced = found[0], False
        if sign in "\n\u2029":
            open_.clear()
        elif sign == "\u202c":
            forced = bool(open_) and open_.pop()
        else:
            forced = sign in "\u202d\u202e"
            open_.append(forced)
        places += forced
        return "" if forced else sign

    return _DIRECTIONS.sub(kept, text), places


def _shortened(text: str) -> tuple[str, int]:
    if max(map(len, text.split()), default=0) <= LONGEST_WORD:
        return text, 0
    return _LONG.subn("", text)


def _spaced(text: str) -> tuple[str, int]:
    if not any(sign in text for sign in _IN_WHITE):
        return text, 0

    def by(found: re.Match[str]) -> str:
        if found[0][0] == "\n":
            return "\n\n\n"
        return "" if text[found.end() : found.end() + 1] in ("", "\n") else " "

    text, ends = _ENDS.subn("\n", text)  # first, so that empty lines are the same with \r\n
    mended, gaps = _GAPS.subn(by, text)
    return mended, ends + gaps


_MENDS: dict[str, Callable[[str], tuple[str, int]]] = {
    "surrogates": _joined,
    "mojibake": _decoded,
    "controls": _without_controls,
    "overrides": _straightened,
    "long_words": _shortened,
    "white_space": _spaced,
}
