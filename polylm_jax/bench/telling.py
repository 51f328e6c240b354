"""How well cleaning tells good text from bad: languages, fluent text, pairs of translations.

What is bad is made here of what is good, so that it is known which is which.
"""

import random

import numpy as np

from polylm_jax.bench import udhr
from polylm_jax.data import corpus
from polylm_jax.data.clean import bilingual, perplexity
from polylm_jax.data.clean.language import Identification, identify
from polylm_jax.data.languages import is_bilingual, languages_of
from polylm_jax.data.tokenizer import Tokenizer

PAIRS = ("en-de", "en-ru", "en-ja", "en-ar")
LOSS = 0.05
_MISALIGNED = 10  # one pair of so many gets another's translation
_TRAIN_BYTES = 3_000_000
_LEAST_BYTES = 100_000  # of a language, to train an n-gram model of it
_UNSPACED = ("zh", "ja", "th")
_ENTRIES, _ROWS = 6, 8  # of a menu
_MISREAD = 0.04  # of the characters


def measure(
    path: str, documents: dict[str, list[str]], tokenizer: Tokenizer, declarations: str
) -> dict[str, dict[str, float]]:
    """What is told, of which language or pair, and how well.

    path: of a corpus. documents: some of each of its languages. declarations: npm's package udhr,
    whose paragraphs' languages are told, too; "" for none.
    """
    spaced = {
        source: fluency(path, source, tokenizer)
        for source in documents
        if source not in _UNSPACED and _bytes(path, source) >= _LEAST_BYTES
    }
    return {
        "languages": languages(documents) | (udhr.measure(declarations) if declarations else {}),
        **{
            f"clean against {what}": {source: told[what] for source, told in spaced.items()}
            for what in SPOILED
        },
        f"misaligned pairs caught at a loss of {LOSS:.0%}": {
            source: pairs(path, source) for source in PAIRS if source in corpus.sources(path)
        },
        **sides(path),
    }


def _bytes(path: str, source: str) -> int:
    return sum(len(text.encode()) for text in corpus.documents(path, source, "train"))


def languages(documents: dict[str, list[str]]) -> dict[str, float]:
    """Share of the documents whose language is told, alone and where CLD2 agrees."""
    texts = [text for some in documents.values() for text in some]
    codes = [source.split("-")[0] for source, some in documents.items() for _ in some]

    def right(settings: Identification, least: float) -> float:
        told = identify(texts, settings)
        same = np.array([a == b for a, b in zip(told.codes, codes, strict=True)])
        return float((same & (told.scores >= least)).mean())

    return {
        "documents": len(texts),
        "right": right(Identification(), 0),
        "right, score 0.5, agreed": right(Identification(agree=True), 0.5),
    }


def _shuffled(chance: random.Random, text: str) -> str:
    """The words of each line in another order."""
    rows = [line.split() for line in text.split("\n")]
    return "\n".join(" ".join(chance.sample(words, len(words))) for words in rows)


def _menus(chance: random.Random, text: str) -> str:
    words = text.split()
    rows = [chance.sample(words, min(_ENTRIES, len(words))) for _ in range(_ROWS)]
    return "\n".join(map(" | ".join, rows))


def _misread(chance: random.Random, text: str) -> str:
    """As a machine reads print: some characters wrong."""
    return "".join(
        chance.choice("lI1|0Oo.,;") if chance.random() < _MISREAD else character
        for character in text
    )


# how a text is spoiled, and whether its disorder shall tell it, or its bits a byte
SPOILED = {
    "shuffled words": (_shuffled, True),
    "menus": (_menus, True),
    f"{_MISREAD:.0%} misread characters": (_misread, False),
}


def fluency(path: str, source: str, tokenizer: Tokenizer) -> dict[str, float]:
    """How often a held-out text has a lower score than one that is SPOILED, so or so (AUC)."""
    train, left = [], _TRAIN_BYTES
    for text in corpus.documents(path, source, "train"):
        train.append(text)
        left -= len(text.encode())
        if left < 0:
            break
    model = perplexity.train(perplexity.sentences(tokenizer, train)[0], tokenizer.size)
    lines = [
        line
        for text in corpus.documents(path, source, "valid")
        for line in text.split("\n")
        if len(line) >= 40
    ]
    held = ["\n".join(lines[at : at + 3]) for at in range(0, min(len(lines), 1800), 3)]
    if not held:
        return dict.fromkeys(SPOILED, float("nan"))
    clean = perplexity.bits(model, tokenizer, held)
    found = {}
    for what, (spoil, by_disorder) in SPOILED.items():
        chance = random.Random(0)
        wrong = perplexity.bits(model, tokenizer, [spoil(chance, text) for text in held])
        score = perplexity.disorder if by_disorder else lambda bits, alone: bits
        found[what] = auc(score(*clean), score(*wrong))
    return found


def pairs(path: str, source: str) -> float:
    """Share of misaligned pairs of like length that a loss of 5% of the good ones drops."""
    some = [
        pair for text in corpus.documents(path, source, "train") for pair in bilingual.pairs(text)
    ]
    firsts, seconds = [a for a, _ in some], [b for _, b in some]
    first, second = languages_of(source)
    way = bilingual.directions(firsts, seconds, (first, second))
    some = [(a, b) if sign >= 0 else (b, a) for (a, b), sign in zip(some, way, strict=True)]
    random.Random(0).shuffle(some)
    bad = len(some) // _MISALIGNED
    order = sorted(range(bad), key=lambda at: len(some[at][1]))
    wrong = list(some)
    for here, there in zip(order, [*order[1:], *order[:1]], strict=True):
        wrong[here] = (some[here][0], some[there][1])
    fit = bilingual.measure([a for a, _ in wrong], [b for _, b in wrong])["fit"]
    return float((fit[:bad] < np.quantile(fit[bad:], LOSS)).mean())


def sides(path: str) -> dict[str, dict[str, float]]:
    """Share of each corpus's pairs that are told to be swapped or in a foreign language: of all as
    they are, of every tenth one swapped, and of every tenth one with a third language's side."""
    found = {
        source: _oriented(source, [*corpus.documents(path, source, "train")])
        for source in filter(is_bilingual, corpus.sources(path))
    }
    sources = [source for source, some in found.items() if some]
    told: dict[str, dict[str, float]] = {}
    for source, other in zip(sources, [*sources[1:], *sources[:1]], strict=True):
        good, strange = found[source], found[other]
        spoiled = {
            "swapped": [(number, b, a) for number, a, b in good],
            "in a third language": [
                (number, a, strange[at % len(strange)][2]) for at, (number, a, _) in enumerate(good)
            ],
        }
        told.setdefault("good pairs taken by their languages", {})[source] = float(
            (_ways(source, good) != 1).mean()
        )
        for what, wrong in spoiled.items():
            every = slice(_MISALIGNED // 2, None, _MISALIGNED)
            some = list(good)
            some[every] = wrong[every]
            told.setdefault(f"pairs {what} caught", {})[source] = float(
                (_ways(source, some)[every] != 1).mean()
            )
    return told


def _oriented(source: str, texts: list[str]) -> list[tuple[int, str, str]]:
    """The pairs of texts, each with its text's number, the sides as most of a text's stand."""
    pairs = [(number, *pair) for number, text in enumerate(texts) for pair in bilingual.pairs(text)]
    if not pairs:
        return []
    most = np.bincount([number for number, _, _ in pairs], _ways(source, pairs))
    return [(number, a, b) if most[number] >= 0 else (number, b, a) for number, a, b in pairs]


def _ways(source: str, pairs: list[tuple[int, str, str]]) -> np.ndarray:
    numbers, firsts, seconds = ([*some] for some in zip(*pairs, strict=True))
    first, second = languages_of(source)
    return bilingual.directions(firsts, seconds, (first, second), documents=np.array(numbers))


def auc(low: np.ndarray, high: np.ndarray) -> float:
    """How often one of `low` is below one of `high`, equal ones counting half."""
    below, same = low[:, None] < high[None], low[:, None] == high[None]
    return float(below.mean() + same.mean() / 2)
