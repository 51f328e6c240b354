"""The paper's classifier of English: good text against pages of the web, by words and 2-grams.

As fastText's, it is a logistic regression of hashed words and pairs of words (paper, §3.1); the
paper took Wikipedia and books as good text and Common Crawl as the other, and says no threshold.
Steps that are bounded by the curvature fit the weights, so that a fit has no rate and no seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np

from polylm_jax.data.clean.text import Batch, fold, ngram_hashes, prefix_hashes, span_hashes, tokens
from polylm_jax.errors import UserError

BITS = 20  # of a hash: a million weights
_ROUNDS = 100
_PENALTY = 1.0  # on the square of a weight, for a document each


@dataclass(frozen=True)
class Classifier:
    """weights: of each hash, float32 [2 ** BITS]. bias: of a text without words."""

    weights: np.ndarray
    bias: float


def features(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the words and pairs of words of folded texts, and the text of each, both int64."""
    batch = fold(Batch.of(texts))
    spans = tokens(batch)
    words = span_hashes(batch.prefix, spans.starts, spans.ends)
    both = ngram_hashes(prefix_hashes(words), 2)
    inside = spans.documents[1:] == spans.documents[:-1]
    hashes = np.concatenate([words, both[inside]]) >> np.uint64(64 - BITS)
    document = np.concatenate([spans.documents, spans.documents[:-1][inside]])
    return hashes.astype(np.int64), document


def train(good: Sequence[str], web: Sequence[str]) -> Classifier:
    """What tells good texts from those of the web; both kinds weigh the same."""
    hashes, document = features([*good, *web])
    count = len(good) + len(web)
    sizes = (len(good), len(web))
    label = np.repeat([1.0, 0.0], sizes)
    weigh = np.repeat([count / 2 / max(size, 1) for size in sizes], sizes)
    value = _shares(document, count)
    used, at = np.unique(hashes, return_inverse=True)
    at = at.reshape(-1)
    found, bias = np.zeros(len(used)), 0.0
    # The steepest that a logistic gets is 1/4, and what a text has, its bias too, sums to 2: so no
    # step goes too far.
    steep = np.bincount(at, weigh[document] * value / 2, len(used)) + _PENALTY / count
    for _ in range(_ROUNDS):
        error = weigh * (label - _logistic(_sums(found, at, document, value, count) + bias))
        step = np.bincount(at, error[document] * value, len(used)) - found * _PENALTY / count
        found += step / steep
        bias += 2 * error.sum() / weigh.sum()
    weights = np.zeros(1 << BITS, np.float32)
    weights[used] = found
    return Classifier(weights, float(bias))


def score(classifier: Classifier, texts: Sequence[str]) -> np.ndarray:
    """The chance that each text is good, float32 [texts]."""
    hashes, document = features(texts)
    value = _shares(document, len(texts))
    sums = _sums(classifier.weights, hashes, document, value, len(texts))
    return _logistic(sums + classifier.bias).astype(np.float32)


def save(classifier: Classifier, file: BinaryIO) -> None:
    """Writes the weights that are not 0 as one .npz."""
    at = np.flatnonzero(classifier.weights)
    np.savez(file, at=at.astype(np.int32), weights=classifier.weights[at], bias=classifier.bias)


def load(content: bytes, name: str) -> Classifier:
    """The classifier that `save` wrote. UserError naming the file if it is none."""
    weights = np.zeros(1 << BITS, np.float32)
    try:
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            weights[arrays["at"]] = arrays["weights"]
            return Classifier(weights, float(arrays["bias"]))
    except Exception as error:
        raise UserError(f"{name} is no classifier; delete it and clean again.") from error


def _shares(document: np.ndarray, count: int) -> np.ndarray:
    """What each feature adds to its text: fastText's mean over the words of a text."""
    return 1 / np.bincount(document, minlength=count)[document]


def _sums(
    weights: np.ndarray, hashes: np.ndarray, document: np.ndarray, value: np.ndarray, count: int
) -> np.ndarray:
    return np.bincount(document, weights[hashes] * value, count)


def _logistic(sums: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(sums / 2))
