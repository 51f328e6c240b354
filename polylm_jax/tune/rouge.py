"""ROUGE-L between instructions, exact, at the speed of bit-parallel longest subsequences.

F = 2 LCS / (m + n) for texts of m and n words, which is what rouge_score's F comes to (Lin 2004
with beta 1). Words become characters of a string, so that rapidfuzz finds the LCS of one text and
many in one call; F is made from whole numbers, so that nothing is rounded before it is compared.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polylm_jax.errors import UserError
from polylm_jax.tune.words import Words

BLOCK = 2**22  # pairs at once: 16 MB of int32
SURROGATES, CHARACTERS = range(0xD800, 0xE000), 0x110000


class Texts:
    """Texts in one language that can be compared, in the order in which they were added.

    words: the language's, see `words_of`.
    """

    def __init__(self, words: Words) -> None:
        self._words = words
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []
        self._lengths = np.zeros(0, int)
        self._cdist, self._lcs = _rapidfuzz()

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, texts: Sequence[str]) -> None:
        """Takes texts up."""
        new = list(map(self._encoded, texts))
        self._texts += new
        self._lengths = np.append(self._lengths, _lengths(new))

    def f(self, texts: Sequence[str], since: int = 0) -> np.ndarray:
        """ROUGE-L's F of each text and those added after the first `since`, float64."""
        return self._f(list(map(self._encoded, texts)), since)

    def nearest(self) -> np.ndarray:
        """The greatest F of each text and any other, float64 [added]; 0 where there is none."""
        best = np.zeros(len(self))
        step = max(1, BLOCK // max(1, len(self)))
        for first in range(0, len(self), step):
            some = self._f(self._texts[first : first + step])
            rows = np.arange(len(some))
            some[rows, first + rows] = 0
            best[first : first + step] = some.max(-1, initial=0)
        return best

    def _f(self, some: list[str], since: int = 0) -> np.ndarray:
        others = self._texts[since:] if since else self._texts
        if not some or not others:
            return np.zeros((len(some), len(others)))
        lcs = self._cdist(some, others, scorer=self._lcs, dtype=np.int32)
        return 2 * lcs / np.maximum(np.add.outer(_lengths(some), self._lengths[since:]), 1)

    def _encoded(self, text: str) -> str:
        return "".join(map(self._character, self._words(text)))

    def _character(self, word: str) -> str:
        code = self._ids.setdefault(word, len(self._ids))
        code += len(SURROGATES) * (code >= SURROGATES.start)
        if code >= CHARACTERS:
            raise UserError("a pool cannot hold more than 1,112,064 different words; split it.")
        return chr(code)


def f(a: str, b: str, words: Words) -> float:
    """ROUGE-L's F of two texts; 0 where one of them has no words."""
    texts = Texts(words)
    texts.add([b])
    return float(texts.f([a])[0, 0])


def _lengths(texts: list[str]) -> np.ndarray:
    return np.fromiter(map(len, texts), int, len(texts))


def _rapidfuzz() -> tuple[Callable[..., np.ndarray], Any]:
    try:
        process = importlib.import_module("rapidfuzz.process")
        distance = importlib.import_module("rapidfuzz.distance")
    except ImportError:
        raise UserError(
            'ROUGE-L needs rapidfuzz; pip install "polylm_jax[tune]" and run it again.'
        ) from None
    return process.cdist, distance.LCSseq.similarity
