"""Questions and answers to tune on, out of the packages: translations and dialogues.

A share of the messages that are aligned with English becomes translations, in all languages at
once; of the same share of the dialogues the first two utterances become a question and its answer.
What they say is kept out of the corpus, so that none of it is trained on before it is tuned on.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from polylm_jax.data.languages import LANGUAGES, in_order, is_bilingual, languages_of
from polylm_jax.data.packages import Piece
from polylm_jax.data.sides import hashed

FOLDER = "pairs"  # in a corpus's

_TO_ENGLISH = 4  # one translation of so many goes into English, which all languages share
_TELLING = 12  # bytes of a key; one that is shorter stands in other texts by chance
_START = 3  # characters by which keys are found; a telling one has as many at least

Pieces = Mapping[str, Mapping[Piece, str]]  # of each source, with the package of each


@dataclass(frozen=True)
class Pair:
    """A question and its answer. language: of the answer. group: what says the same elsewhere."""

    language: str
    prompt: str
    completion: str
    group: str
    package: str


def key_of(text: str) -> str:
    """What a text says, without the case, signs and spaces in which two sayings may differ."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def held_back(pieces: Pieces, share: float) -> tuple[list[Pair], dict[str, dict[Piece, str]]]:
    """Pairs to tune on, and the pieces that are left, none of which says what a pair says.

    share: of the messages and dialogues, told by the hash of the English side or first utterance.
    """
    chosen = [
        (source, piece, package)
        for source, found in pieces.items()
        for piece, package in found.items()
        if len(piece) > 1 and hashed(key_of(piece[0])) < share * 2**64
    ]
    said = _Said(key_of(line) for _, piece, _ in chosen for line in piece)
    left = {
        source: {p: package for p, package in found.items() if not any(line in said for line in p)}
        for source, found in pieces.items()
    }
    return [_pair(*one) for one in chosen], {source: some for source, some in left.items() if some}


def _pair(source: str, piece: Piece, package: str) -> Pair:
    first, second = piece[:2]
    group = key_of(first)
    if not is_bilingual(source):
        return Pair(source, first, second, group, package)
    language = languages_of(source)[1]
    if hashed(f"{language} {group}") % _TO_ENGLISH == 0:
        return Pair("en", f"Translate into English: {second}", first, group, package)
    prompt = f"Translate into {LANGUAGES[language].name}: {first}"
    return Pair(language, prompt, second, group, package)


class _Said:
    """The texts that say one of the keys: those that are one, and those that hold a long one."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = frozenset(keys) - {""}
        self._starts: dict[str, tuple[str, ...]] = {}
        for key in sorted(self._keys):
            if len(key.encode()) >= _TELLING:
                self._starts[key[:_START]] = (*self._starts.get(key[:_START], ()), key)

    def __contains__(self, text: str) -> bool:
        key = key_of(text)
        return key in self._keys or any(
            key.startswith(self._starts.get(key[at : at + _START], ()), at)
            for at in range(len(key) - _START + 1)
        )


def write(pairs: Iterable[Pair], folder: Path) -> dict[str, int]:
    """Writes xx.jsonl of each language into a new folder, and returns how many pairs each has."""
    by_language: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_language.setdefault(pair.language, []).append(pair)
    folder.mkdir()
    for language, some in by_language.items():
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in map(_line, some))
        (folder / f"{language}.jsonl").write_text("".join(lines), "utf-8")
    return {language: len(by_language[language]) for language in in_order(by_language)}


def _line(pair: Pair) -> dict[str, str]:
    fields = asdict(pair)
    del fields["language"]
    fields["from"] = fields.pop("package")
    return fields
