"""How good a text reads: by n-gram models of clean text, and by the paper's classifier of English.

An n-gram model of each language tells bits a byte, on the pieces of the tokenizer that the run
will have, and how little of them the order of the words saves: strange words show in the one,
words that follow one another badly in the other. The classifier tells how much likelier English
is clean text than a page of the web.
"""

import io
from functools import lru_cache, partial

import numpy as np

from polylm_jax.data import corpus
from polylm_jax.data import tokenizer as tokenizers
from polylm_jax.data.clean import perplexity, products, quality
from polylm_jax.data.clean.engine import Beam, each
from polylm_jax.data.clean.perplexity import Model
from polylm_jax.data.clean.quality import Classifier
from polylm_jax.data.clean.settings import Clean
from polylm_jax.data.languages import is_language
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.files import put

BITS, DISORDER, QUALITY = "bits_per_byte", "disorder", "quality"
KEPT = {BITS: True, DISORDER: True, QUALITY: False}  # whether what is large is bad
SCORES = tuple(KEPT)
_ENGLISH = "en"


def settings_of(clean: Clean, tokenizer: str) -> str:
    """The hash of all that decides what the models are; "" where there are none."""
    if not clean.fluent:
        return ""
    text = corpus.manifest(clean.fluent)["sha256"]
    pieces = tokenizers.load(tokenizer).fingerprint
    web = corpus.manifest(clean.web)["sha256"] if clean.web else ""
    return products.digest(text, web, pieces, clean.fluent_megabytes, clean.ngrams)


def train(clean: Clean, beam: Beam, tokenizer: str, folder: str) -> None:
    """Trains a model of each language of clean.fluent, and the classifier, unless in `folder`."""
    there = set(products.names(folder))
    wanted = [one for one in corpus.sources(clean.fluent) if is_language(one)]
    wanted += [QUALITY] if clean.web else []
    todo = [one for one in wanted if _name(one) not in there]
    each(beam, partial(_train, clean, tokenizer, folder), todo)


def score(
    folder: str, tokenizer: str, texts: list[str], languages: list[str]
) -> dict[str, np.ndarray]:
    """SCORES of each text, float64; NaN where no model tells."""
    found = {name: np.full(len(texts), np.nan) for name in SCORES}
    for language in set(languages) if folder else ():
        own = [at for at, one in enumerate(languages) if one == language]
        some = [texts[at] for at in own]
        model = _model(folder, language)
        if model is not None:
            bits = perplexity.bits(model, _tokenizer(tokenizer), some)
            found[BITS][own], found[DISORDER][own] = bits[0], perplexity.disorder(*bits)
        classifier = _classifier(folder) if language == _ENGLISH else None
        if classifier is not None:
            found[QUALITY][own] = quality.score(classifier, some)
    return found


def _name(what: str) -> str:
    return f"{what}.npz" if what == QUALITY else f"{what}.ngrams"


def _train(clean: Clean, tokenizer: str, folder: str, name: str) -> None:
    content = io.BytesIO()
    if name == QUALITY:
        texts = (_texts(clean, clean.fluent, _ENGLISH), _texts(clean, clean.web, _ENGLISH))
        quality.save(quality.train(*texts), content)
    else:
        pieces = _tokenizer(tokenizer)
        sentences, _ = perplexity.sentences(pieces, _texts(clean, clean.fluent, name))
        perplexity.save(perplexity.train(sentences, pieces.size, clean.ngrams), content)
    put(f"{folder}/{_name(name)}", content.getvalue())


def _texts(clean: Clean, path: str, language: str) -> list[str]:
    """As much of a corpus's language as is trained on."""
    texts, left = [], clean.fluent_megabytes * 1e6
    for text in corpus.documents(path, language, "train"):
        texts.append(text)
        left -= len(text.encode())
        if left <= 0:
            break
    return texts


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    return tokenizers.load(path)


# a batch meets many languages, and what is mapped takes no memory that others want
@lru_cache(maxsize=64)
def _model(folder: str, language: str) -> Model | None:
    path = f"{folder}/{_name(language)}"
    return perplexity.load(products.mapped(path), path) if products.exists(path) else None


@lru_cache(maxsize=1)
def _classifier(folder: str) -> Classifier | None:
    path = f"{folder}/{_name(QUALITY)}"
    return quality.load(products.read(path), path) if products.exists(path) else None
