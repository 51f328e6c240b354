"""The first pass: a shard's documents are read, mended and measured; nothing is decided.

Of a shard it leaves the scores of all documents, a row each; their keys as duplicates; the
windows of benchmarks that stand in them; histograms of the scores by language; and last a note
of what was read, without which the others do not count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from polylm_jax.data.clean import contamination, duplicates, fluency, pairing, products, rules
from polylm_jax.data.clean.contamination import Index
from polylm_jax.data.clean.documents import Broken, Document, read
from polylm_jax.data.clean.engine import runs
from polylm_jax.data.clean.fluency import SCORES
from polylm_jax.data.clean.language import UNKNOWN, Identification, identify
from polylm_jax.data.clean.products import Piece, digest
from polylm_jax.data.clean.repair import repair, repair_all
from polylm_jax.data.clean.scraps import without
from polylm_jax.data.clean.settings import Clean
from polylm_jax.data.clean.text import BATCH, LETTERS, Batch, Kind, fold
from polylm_jax.data.clean.thresholds import BINS, bins
from polylm_jax.data.languages import CODE, is_bilingual, is_language
from polylm_jax.data.sides import hashed
from polylm_jax.errors import UserError

FORM = 5  # of what is written here; another number makes all anew
FEATURES = tuple(feature.name for feature in rules.FEATURES)
_OF_DOCUMENTS = (*FEATURES, "score", "language_share", *SCORES)
HISTOGRAMS = (*_OF_DOCUMENTS, *pairing.RULES, pairing.BY_CHANCE)
_SETTINGS = ("key", "bad", "scraps", "longest", "bands", "rows")
_SCRAPS = "scraps"
_PAIRS = 1000  # from which on a shard's pairs can tell which of them are wrong
_PLACES = 10  # of broken records that are told


@dataclass(frozen=True)
class Measuring:
    """What one needs to measure. folder: where what is made goes.

    models, tokenizer: folder of the n-gram models, "" for none, and that of their tokenizer.
    index: path of the index of benchmarks, "" for none.
    """

    clean: Clean
    language: Identification
    folder: str
    models: str
    tokenizer: str
    index: str


def settings_of(clean: Clean, language: Identification, models: str, index: str) -> str:
    """The hash of all that decides what this pass makes of a shard. models, index: their names."""
    # a model of languages, too, may be another by and by
    model = language.model and LocalFileSystem().ukey(language.model)
    settings = [asdict(clean)[name] for name in _SETTINGS]
    return digest(FORM, FEATURES, settings, asdict(language), model, models, index)


def measure(job: Measuring, piece: Piece) -> None:
    """Measures a shard."""
    broken = _Broken()
    tables: list[dict[str, Any]] = []
    keys, hits, count = [np.empty((0, job.clean.bands + 1), np.uint64)], [_none(2)], 0
    pairs = pairing.Pairs(job.language, _PAIRS)
    for some in _batches(_unbroken(job.clean, piece, broken)):
        texts, mends = zip(*mended(some, job.clean.scraps), strict=True)
        table, folded = _scored(job, some, texts, mends)
        of_two: dict[str, dict[int, str]] = {}
        for at, (language, text) in enumerate(zip(table["language"], texts, strict=True), count):
            if is_bilingual(language):
                of_two.setdefault(language, {})[at] = text
        for source, documents in of_two.items():
            pairs.add(source, documents)
        tables.append(table)
        keys.append(_keys(job.clean, table, folded))
        if job.index:
            hits.append(contamination.hits(opened_index(job.index), folded) + np.array([count, 0]))
        count += len(some)
    tables = tables or [_scored(job, [], (), ())[0]]  # of no document, so that columns have types
    scores = {name: _joined([table[name] for table in tables]) for name in tables[0]}
    stem = f"{job.folder}/{piece.key}"
    products.save_table(f"{stem}.scores.arrow", scores)
    products.save(f"{stem}.keys.npy", np.concatenate(keys))
    products.save(f"{stem}.hits.npy", np.concatenate(hits))
    languages = sorted(set(scores["language"]))
    products.save(f"{stem}.pairs.npy", pairs.rows())
    products.save(f"{stem}.histograms.npy", _histograms(scores, languages, pairs))
    note = {
        "shard": piece.shard.name,
        "documents": count,
        "bytes": int(scores["bytes"].sum()),
        "broken": broken.count,
        "first_broken": broken.first,
        "languages": languages,
        "scripts": _scripts(scores, languages),
    }
    products.save_json(f"{stem}.json", note)


def mended(documents: Sequence[Document], scraps: int) -> list[tuple[str, dict[str, int]]]:
    """Documents' texts as they are kept, and what was mended in each; code stays as it is.

    scraps: as `Clean` has it.
    """
    found = repair_all(["" if one.language == CODE else one.text for one in documents])
    for at, one in enumerate(documents):
        text, mends = found[at]
        if one.language == CODE:
            found[at] = _spelled(one.text), {}
        elif scraps:
            text, lines = without(text, scraps, one.language or UNKNOWN)
            found[at] = text, mends | ({_SCRAPS: lines} if lines else {})
    return found


def mended_again(document: Document, mends: str, scraps: int) -> str:
    """What `mended` makes of a document, given the names of what it mended: a text of which
    nothing is broken needs no second look."""
    if document.language == CODE:
        return _spelled(document.text)
    names = {*mends.split()}
    text = repair(document.text)[0] if names - {_SCRAPS} else document.text
    return without(text, scraps, document.language or UNKNOWN)[0] if _SCRAPS in names else text


def _spelled(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


@lru_cache(maxsize=1)
def opened_index(path: str) -> Index:
    """The index of benchmarks that `save_index` wrote."""
    arrays: dict[str, Any] = {name: products.load(f"{path}.{name}.npy") for name in _ARRAYS}
    return Index(names=tuple(products.load_json(f"{path}.json")), **arrays)


def save_index(path: str, index: Index) -> None:
    for name in _ARRAYS:
        products.save(f"{path}.{name}.npy", getattr(index, name))
    products.save_json(f"{path}.json", list(index.names))


_ARRAYS = ("hashes", "widths", "starts", "items")


def add_histograms(
    found: dict[str, dict[str, np.ndarray]], path: str, languages: list[str]
) -> None:
    """Adds what `measure` wrote to counts by language and feature, int64 [BINS]."""
    rows = products.load(path)
    for begin, end in runs(rows[:, 0] * len(HISTOGRAMS) + rows[:, 1]):
        language, feature, _, _ = rows[begin]
        features = found.setdefault(languages[language], {})
        counts = features.setdefault(HISTOGRAMS[feature], np.zeros(BINS, np.int64))
        counts[rows[begin:end, 2]] += rows[begin:end, 3]


def _none(width: int) -> np.ndarray:
    return np.empty((0, width), np.int64)


def _joined(parts: list) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [value for part in parts for value in part]


@dataclass
class _Broken:
    """Broken records: how many, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, one: Broken) -> None:
        self.count += 1
        if self.count <= _PLACES:
            self.first.append(f"{one.file}@{one.record} {one.reason}")


def _unbroken(clean: Clean, piece: Piece, broken: _Broken) -> Iterator[Document]:
    for one in read(piece.shard):
        if isinstance(one, Document):
            yield one
        elif clean.bad == "refuse":
            raise UserError(
                f"{one.file}@{one.record} {one.reason}; mend it, or count such records with "
                "--gin.clean.bad=skip."
            )
        else:
            broken.add(one)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """The documents in lists of no more than a batch of text, or one that is longer alone."""
    some: list[Document] = []
    size = 0
    for one in documents:
        if some and size + len(one.text) > BATCH:
            yield some
            some, size = [], 0
        some.append(one)
        size += len(one.text)
    if some:
        yield some


def _scored(
    job: Measuring,
    documents: list[Document],
    texts: tuple[str, ...],
    mends: tuple[dict[str, int], ...],
) -> tuple[dict[str, Any], Batch]:
    """The scores of documents by name, and their folded text. texts, mends: of `mended`.

    Of a document that is longer than a batch the rules look at as much as a batch holds.
    """
    batch = Batch.of([text[:BATCH] for text in texts])
    lengths = np.array([len(text) for text in texts], np.int64)
    said = [one.language for one in documents]
    languages, scores, shares = _identified(texts, said, job.language)
    features = rules.measure(batch) | {"characters": lengths.astype(np.float64)}
    folded = fold(batch if lengths.max(initial=0) <= BATCH else Batch.of(texts))
    contents = [text.encode() for text in texts]
    about = {
        "id": np.array([one.id for one in documents], np.uint64),
        "file": [one.file for one in documents],
        "record": np.array([one.record for one in documents], np.int64),
        "url": [one.url for one in documents],
        "language": languages,
        "score": scores,
        "language_share": shares,
        "bytes": np.array([len(content) for content in contents], np.int64),
        "hash": np.array([hashed(text) for text in texts], np.uint64),
        "mended": [" ".join(counts) for counts in mends],
        "letters": batch.counts[:, list(LETTERS)].argmax(1),
    }
    fluent = fluency.score(job.models, job.tokenizer, [*texts], languages)
    return about | {name: features[name] for name in FEATURES} | fluent, folded


def _identified(
    texts: Sequence[str], said: list[str], settings: Identification
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The language of each document, how sure that is, and the share of its letters in it.

    Where somebody has said the language, the others are NaN.
    """
    scores, shares = np.full((2, len(said)), np.nan)
    codes = list(said)
    unsaid = [at for at, language in enumerate(said) if not language]
    if unsaid:
        found = identify([texts[at] for at in unsaid], settings)
        scores[unsaid], shares[unsaid] = found.scores, found.shares
        for at, code in zip(unsaid, found.codes, strict=True):
            codes[at] = code
    return codes, scores, shares


def _keys(clean: Clean, scores: dict[str, Any], folded: Batch) -> np.ndarray:
    numbers = {name: hashed(name) for name in set(scores["language"])}
    languages = np.array([numbers[name] for name in scores["language"]], np.uint64)
    found = duplicates.keys(folded, languages, clean.bands, clean.rows)
    found[scores["characters"] > clean.longest] = duplicates.NONE
    return found


def _histograms(scores: dict[str, Any], languages: list[str], pairs: pairing.Pairs) -> np.ndarray:
    """Language, feature, bin, count, int64 [n, 4]: what is not 0 of the histograms.

    Those of a language are of its documents, those of two languages of their pairs.
    """
    number = {name: at for at, name in enumerate(languages)}
    of = np.array([number[name] for name in scores["language"]], np.int64)
    own = np.array([*map(is_language, languages)], bool)[of]
    rows = pairs.rows()
    values = [(name, of[own], scores[name][own]) for name in _OF_DOCUMENTS]
    values += [(name, of[rows["document"]], rows[name]) for name in pairing.RULES]
    values += [
        (pairing.BY_CHANCE, np.full(len(some), number[language]), some)
        for language, parts in pairs.by_chance.items()
        for some in parts
    ]
    found = []
    for name, language, some in values:
        there = ~np.isnan(some)
        feature = language[there] * len(HISTOGRAMS) + HISTOGRAMS.index(name)
        found.append(feature * BINS + bins(some[there]))
    places, counts = np.unique(np.concatenate(found), return_counts=True)
    shape = (max(len(languages), 1), len(HISTOGRAMS), BINS)
    return np.column_stack([*np.unravel_index(places, shape), counts])


def _scripts(scores: dict[str, Any], languages: list[str]) -> dict[str, dict[str, int]]:
    """How many documents of each language are mostly in each script."""
    found: dict[str, dict[str, int]] = {}
    for language in languages:
        own = np.array([name == language for name in scores["language"]])
        kinds, counts = np.unique(scores["letters"][own], return_counts=True)
        found[language] = {
            Kind(LETTERS[kind]).name: int(count) for kind, count in zip(kinds, counts, strict=True)
        }
    return found
