"""How fluent a text is: bits a byte, told by n-gram models of clean text, one a language.

The models are trained here, on the pieces of the tokenizer that the run will have.
"""

import io
from functools import lru_cache, partial

import numpy as np

from polylm_jax.data import corpus
from polylm_jax.data import tokenizer as tokenizers
from polylm_jax.data.clean import perplexity, products
from polylm_jax.data.clean.engine import Beam, each
from polylm_jax.data.clean.perplexity import Model
from polylm_jax.data.clean.settings import Clean
from polylm_jax.data.languages import is_language
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.files import put

BITS = "bits_per_byte"


def settings_of(clean: Clean, tokenizer: str) -> str:
    """The hash of all that decides what the models are; "" where there are none."""
    if not clean.fluent:
        return ""
    text = corpus.manifest(clean.fluent)["sha256"]
    pieces = tokenizers.load(tokenizer).fingerprint
    return products.digest(text, pieces, clean.fluent_megabytes, clean.ngrams)


def train(clean: Clean, beam: Beam, tokenizer: str, folder: str) -> None:
    """Trains a model of each language of clean.fluent, unless it is in `folder`."""
    there = set(products.names(folder))
    languages = [one for one in corpus.sources(clean.fluent) if is_language(one)]
    todo = [one for one in languages if _name(one) not in there]
    each(beam, partial(_train, clean, tokenizer, folder), todo)


def score(folder: str, tokenizer: str, texts: list[str], languages: list[str]) -> np.ndarray:
    """Bits a byte of each text by its language's model, float64; NaN where there is none."""
    found = np.full(len(texts), np.nan)
    for language in set(languages) if folder else ():
        own = [at for at, one in enumerate(languages) if one == language]
        model = _model(folder, language)
        if model is not None:
            some = [texts[at] for at in own]
            found[own] = perplexity.bits_per_byte(model, _tokenizer(tokenizer), some)
    return found


def _name(language: str) -> str:
    return f"{language}.npz"


def _train(clean: Clean, tokenizer: str, folder: str, language: str) -> None:
    texts, left = [], clean.fluent_megabytes * 1e6
    for text in corpus.documents(clean.fluent, language, "train"):
        texts.append(text)
        left -= len(text.encode())
        if left <= 0:
            break
    pieces = _tokenizer(tokenizer)
    sentences, _ = perplexity.sentences(pieces, texts)
    content = io.BytesIO()
    perplexity.save(perplexity.train(sentences, pieces.size, clean.ngrams), content)
    put(f"{folder}/{_name(language)}", content.getvalue())


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    return tokenizers.load(path)


# a worker meets few languages at a time, and a model may be as large as a worker's memory allows
@lru_cache(maxsize=2)
def _model(folder: str, language: str) -> Model | None:
    path = f"{folder}/{_name(language)}"
    if not products.exists(path):
        return None
    return perplexity.load(products.read(path), path)
