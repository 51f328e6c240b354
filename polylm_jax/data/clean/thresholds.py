"""Thresholds from data: what a rule cuts in English text, it may cut in another language.

Published thresholds are of English and of one program's words, and nobody says PolyLM's. So a
threshold is carried over by its tail: "at least 0.8 of the words have a letter" becomes the value
below which as large a share of the language's own documents lies as lies below 0.8 of English.

Histograms have fixed bins and whole counts, so that their sum is the same in any order.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated

import numpy as np

from polylm_jax.data.languages import is_bilingual, languages_of
from polylm_jax.files import MaybePlace
from polylm_jax.ranges import HUGE, OneOf, Range, Share, check

Limit = tuple[float | None, float | None]  # least and most, both allowed; None sets no bound
Limits = dict[str, dict[str, Limit]]  # of a language, of a feature
Histograms = Mapping[str, Mapping[str, np.ndarray]]  # of a language, of a feature: counts

OF_LANGUAGE = ("score", "language_share")  # what tells that a document is in its language
EVERY = "*"  # in the place of a language

_FINE = 7  # bits of a float's fraction: a bin is 0.4 to 0.8% wide
_LEAST, _MOST = 2.0**-20, 2.0**44  # what lies outside is in the first or last bin


Bound = Annotated[float, Range(0, HUGE)]


def outside(values: np.ndarray, limit: Limit) -> np.ndarray:
    """Which values a limit does not allow, bool; one that is no number breaks none."""
    least, most = limit
    found = np.zeros(len(values), bool)
    found |= False if least is None else values < least
    found |= False if most is None else values > most
    return found


def of(limits: Limits, language: str) -> dict[str, Limit]:
    """The limits of a language or of two: its own, before those of every one."""
    every = limits.get(EVERY, {}) if languages_of(language) else {}
    return every | limits.get(language, {})


@dataclass(frozen=True)
class Thresholds:
    """What decides where rules cut; see `derive`.

    method: "tails" of the language's own text, the published "english" values for all, or only
        what is "given" as limits.
    reference: corpus of clean text that tails are taken from; "" for what is cleaned.
    documents: a language with fewer takes the values of all text in its script.
    drop: most of a language that one rule may drop, and of good pairs that `alignment` may.
    keep: share that bits_per_byte, disorder and quality each let pass.
    limits: language, or "*" for every one: feature: (least, most), in place of what is derived.
    """

    method: Annotated[str, OneOf("tails", "english", "given")] = "tails"
    reference: MaybePlace = ""
    documents: Annotated[int, Range(1)] = 2000
    drop: Share = 0.05
    keep: Share = 0.9
    limits: dict[str, dict[str, tuple[Bound | None, Bound | None]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, "thresholds")


def _bin(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, _LEAST).astype(np.float64).view(np.int64) >> (52 - _FINE)


_FIRST = int(_bin(np.array([_LEAST]))[0])
BINS = int(_bin(np.array([_MOST]))[0]) - _FIRST


def bins(values: np.ndarray) -> np.ndarray:
    """The bin that each value lies in, int64; the values are numbers, none of them negative."""
    return np.minimum(_bin(values) - _FIRST, BINS - 1)


def lower_edges() -> np.ndarray:
    """Where the bins begin, float64 [BINS]; the first at 0."""
    edges = ((np.arange(BINS) + _FIRST) << (52 - _FINE)).view(np.float64)
    edges[0] = 0
    return edges


def tail(counts: np.ndarray, edge: float, above: bool) -> float:
    """The share of the values that lies above an edge, or below, to the width of a bin."""
    at = int(bins(np.array([edge]))[0])
    beyond = counts[at + 1 :] if above else counts[:at]
    return float(beyond.sum() / max(counts.sum(), 1))


def bound(counts: np.ndarray, share: float, above: bool) -> float:
    """The edge of a bin nearest the middle beyond which at most `share` of the values lie."""
    allowed = share * counts.sum()
    if above:
        within = np.cumsum(counts[::-1])[::-1] <= allowed  # what lies from this edge on
        at = int(within.argmax()) if within.any() else BINS - 1
    else:
        at = int((np.cumsum(counts) - counts <= allowed).sum()) - 1
    return float(lower_edges()[at])


def language_score(counts: np.ndarray) -> float:
    """Below which score of language identification a document is dropped.

    The median less one deviation, between 0.3 and 0.9, as FineWeb2 has it (arXiv 2506.20920).
    """
    edges = lower_edges()
    middles = (edges + np.append(edges[1:], _MOST)) / 2
    mean = float((counts * middles).sum() / max(counts.sum(), 1))
    spread = float(np.sqrt((counts * (middles - mean) ** 2).sum() / max(counts.sum(), 1)))
    return max(0.3, min(0.9, bound(counts, 0.5, above=False) - spread))


@dataclass(frozen=True)
class Derived:
    """The thresholds of a language.

    documents: it has; of two languages, pairs. pooled: the script whose documents they are from,
        "" for its own. shares: what lies outside each limit, of its own documents.
    """

    limits: dict[str, Limit]
    documents: int
    pooled: str
    shares: dict[str, float]


def derive(
    histograms: Histograms,
    scripts: Mapping[str, str],
    english: Mapping[str, Limit],
    kept: Mapping[str, bool],
    settings: Thresholds,
    reference: Histograms | None = None,
) -> dict[str, Derived]:
    """The thresholds of every language.

    scripts: of each language, for pooling. english: published limits of features.
    kept: features that `settings.keep` of a language pass, with whether what is large is bad.
    reference: histograms of clean text, where there is some. The score of a language, "score", is
        cut by `language_score`.
    """
    clean = reference or histograms
    pools, own_pools = _pooled(clean, scripts), _pooled(histograms, scripts)
    found: dict[str, Derived] = {}
    for language, own in histograms.items():
        script = scripts.get(language, "")
        # its clean text, or where there is too little of that its own
        large = next((a for a in (clean.get(language, {}), own) if _many(a, settings)), None)
        limits: dict[str, Limit] = {}
        if settings.method != "given":
            source = large or pools.get(script) or own_pools[script]
            limits = _limits(source, clean.get("en", {}), english, kept, settings)
            if not large and settings.method == "tails":
                limits = _eased(limits, own, kept, settings)
        limits |= of(settings.limits, language)
        pooled = "" if large else script or "all"
        found[language] = Derived(limits, _documents(own), pooled, _shares(limits, own))
    for language in sorted({*settings.limits} - {*found, EVERY}):
        found[language] = Derived(settings.limits[language], 0, "", {})
    return found


def _documents(features: Mapping[str, np.ndarray]) -> int:
    """How many a language has, given its histograms."""
    return int(max((counts.sum() for counts in features.values()), default=0))


def _many(features: Mapping[str, np.ndarray], settings: Thresholds) -> bool:
    """Whether a language has enough documents to have thresholds of its own."""
    return _documents(features) >= settings.documents


def _pooled(histograms: Histograms, scripts: Mapping[str, str]) -> dict[str, dict[str, np.ndarray]]:
    """The histograms of all languages of each script together."""
    pools: dict[str, dict[str, np.ndarray]] = {}
    for language, features in histograms.items():
        pool = pools.setdefault(scripts.get(language, ""), {})
        for name, counts in features.items():
            pool[name] = pool.get(name, 0) + counts
    return pools


def _eased(
    limits: Mapping[str, Limit],
    own: Mapping[str, np.ndarray],
    kept: Mapping[str, bool],
    settings: Thresholds,
) -> dict[str, Limit]:
    """Limits of other text, as wide as it takes to drop no more of a language than its own would.

    Others of its script may have stop words, marks of sentences or spaces that it has not. What
    tells its language stays, for by that it is known who is in it.
    """

    def wide(name: str, least: float | None, most: float | None) -> Limit:
        share = 1 - settings.keep if name in kept else settings.drop
        low, high = (bound(own[name], share, above) for above in (False, True))
        return None if least is None else min(least, low), None if most is None else max(most, high)

    return {
        name: wide(name, *limit) if name in own and name not in OF_LANGUAGE else limit
        for name, limit in limits.items()
    }


def of_pairs(
    histograms: Histograms, published: Mapping[str, Limit], settings: Thresholds
) -> dict[str, Derived]:
    """The thresholds of pairs of languages, by `published` ones of pairs; see `derive`.

    Where there is a histogram of what a feature is by chance, "<feature>_by_chance", it is cut
    by `chance`, but not below the published one. What two languages lack of pairs no others can
    lend them, so a few have the published ones.
    """
    found: dict[str, Derived] = {}
    for languages, own in histograms.items():
        pairs = int(max((counts.sum() for counts in own.values()), default=0))
        limits: dict[str, Limit] = {}
        for name, limit in published.items() if settings.method != "given" else ():
            counts, strange = own.get(name), own.get(f"{name}_by_chance")
            few = pairs < settings.documents or counts is None or not counts.sum()
            if few or counts is None or settings.method == "english":
                limits[name] = limit
            elif strange is not None and strange.sum():
                derived = chance(counts, strange, settings.drop)
                limits[name] = (_rounded(max(derived, limit[0] or 0)), limit[1])
            else:
                limits[name] = _carried(limit, counts, counts, settings.drop)
        every = settings.limits.get(EVERY, {})
        limits |= {name: every[name] for name in published if name in every}
        limits |= settings.limits.get(languages, {})
        found[languages] = Derived(limits, pairs, "", _shares(limits, own))
    return found


def chance(counts: np.ndarray, strange: np.ndarray, loss: float) -> float:
    """The edge below which a feature is as it is by chance, counted in `strange`.

    Below it lies 99% of what is put together by chance, but no more than `loss` of what belongs
    together: of `counts` less as much of `strange` as may be in it.
    """
    below = (np.cumsum(counts) - counts) / counts.sum()
    by_chance = (np.cumsum(strange) - strange) / strange.sum()
    some = by_chance > 0.3  # fewer would tell by accident
    wrong = min(float((below[some] / by_chance[some]).min(initial=1)), 0.99)
    lost = (below - wrong * by_chance) / (1 - wrong)
    # what is wrong may lie somewhat lower than what is strange, so that less is lost further up
    return float(lower_edges()[np.flatnonzero((lost <= loss) & (by_chance <= 0.99))[-1]])


def _shares(limits: Mapping[str, Limit], own: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What lies outside each limit."""
    return {
        name: sum(
            tail(own[name], _exact(edge, above), above)
            for edge, above in zip(limit, (False, True), strict=True)
            if edge is not None
        )
        for name, limit in limits.items()
        if name in own
    }


def _exact(edge: float, above: bool) -> float:
    """What `tail` takes for an edge, which may be a bin's that was rounded: then all that lies
    beyond the bin's is beyond it, also what is in the bin that it was rounded into."""
    edges = lower_edges()
    at = int(np.abs(edges - edge).argmin())
    if not at or abs(edges[at] - edge) > _ROUNDED * edge:
        return edge
    return float(edges[at - 1 if above else at])


def _limits(
    source: Mapping[str, np.ndarray],
    models: Mapping[str, np.ndarray],
    english: Mapping[str, Limit],
    kept: Mapping[str, bool],
    settings: Thresholds,
) -> dict[str, Limit]:
    """Limits from the histograms of a language, or of its script. models: those of English."""
    limits: dict[str, Limit] = {}
    for name, published in english.items():
        counts, theirs = source.get(name), models.get(name)
        if settings.method == "english" or counts is None or not counts.sum():
            limits[name] = published
        else:
            enough = theirs is not None and theirs.sum() >= settings.documents
            model = theirs if enough and theirs is not None else counts
            limits[name] = _carried(published, model, counts, settings.drop)
    for name, high_is_bad in kept.items():
        counts = source.get(name)
        if counts is None or not counts.sum():
            continue
        cut = _rounded(bound(counts, 1 - settings.keep, above=high_is_bad))
        limits[name] = (None, cut) if high_is_bad else (cut, None)
    if "score" in source and source["score"].sum():
        limits["score"] = (_rounded(language_score(source["score"])), None)
    return limits


def _carried(published: Limit, model: np.ndarray, counts: np.ndarray, most: float) -> Limit:
    """The limit beyond which as large a tail lies as beyond the published one in `model`.

    Where nothing of English lies there, it is the published one, but never one that drops more
    than `most`.
    """

    def carried(edge: float | None, above: bool) -> float | None:
        if edge is None:
            return None
        share = tail(model, edge, above) or tail(counts, edge, above)
        if not share or (share <= most and share == tail(counts, edge, above)):
            return edge
        return _rounded(bound(counts, min(share, most), above))

    return carried(published[0], False), carried(published[1], True)


_ROUNDED = 0.5e-3  # by which part of it a number of four digits may be another


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


_ORIGIN = re.compile(rb"# Derived as ([0-9a-f]{16})\.")


def as_gin(derived: Mapping[str, Derived]) -> str:
    """The thresholds as a gin file to be read, edited and given back with --gin_file."""
    lines = ["thresholds.limits = {"]
    for language, found in derived.items():
        pooled = f"; too few, so of all in {found.pooled} script" if found.pooled else ""
        what = "pairs" if is_bilingual(language) else "documents"
        lines.append(f'    "{language}": {{  # {found.documents:,} {what}{pooled}')
        for name, limit in found.limits.items():
            share = f"{found.shares[name]:.2%}" if name in found.shares else "not measured"
            lines.append(f'        "{name}": {limit!r},  # {share}')
        lines.append("    },")
    body = "\n".join([*lines, "}", ""])
    return f"{_HEAD}# Derived as {_digest(body.encode())}.\n{body}"


_HEAD = """\
# What `polylm clean` drops, by language: (least, most), None for no bound. Behind each is the
# share of the language's documents that lies outside. Edit it and run `polylm clean` again: what
# is here is taken as it stands.
"""


def _digest(body: bytes) -> str:
    return sha256(body).hexdigest()[:16]


def origin(file: bytes) -> bytes:
    """Which thresholds a gin file was derived as, be it edited; empty if it was not."""
    found = _ORIGIN.search(file)
    return found[1] if found else b""


def is_edited(file: bytes) -> bool:
    """Whether a gin file is no longer what it was derived as."""
    found = _ORIGIN.search(file)
    return not found or _digest(file[found.end() :].lstrip(b"\n")) != found[1].decode()
