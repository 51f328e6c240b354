"""What is dropped, and which document of a cluster survives: of scores and thresholds alone.

A shard decides by itself what breaks a rule. Then the best of each cluster is found among the best
of the shards, so that a rule never takes a cluster's only good copy; and each shard is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from polylm_jax.data.clean import clusters, contamination, duplicates, pairing, products
from polylm_jax.data.clean.duplicates import CANDIDATE
from polylm_jax.data.clean.engine import packed, runs
from polylm_jax.data.clean.fluency import BITS, SCORES
from polylm_jax.data.clean.measuring import FEATURES, opened_index
from polylm_jax.data.clean.pairing import MISALIGNED
from polylm_jax.data.clean.products import Piece, digest
from polylm_jax.data.clean.settings import Clean
from polylm_jax.data.clean.text import mix
from polylm_jax.data.clean.thresholds import OF_LANGUAGE, Limit, Limits, of, outside
from polylm_jax.data.languages import is_bilingual

LANGUAGE, LONGEST, DUPLICATE, CONTAMINATED = "language", "longest", "duplicate", "contaminated"
_RULES = (LONGEST, *FEATURES, *SCORES, MISALIGNED)
# in which order a document's reasons are told; the first is the one that counts
ORDERS = {
    "duplicates": (LANGUAGE, DUPLICATE, *_RULES, CONTAMINATED),
    "rules": (LANGUAGE, *_RULES, DUPLICATE, CONTAMINATED),
}

_OF_PAIRS: dict[str, Limit] = {
    MISALIGNED: (None, 0.5)
}  # ours: a document most of whose pairs are wrong

# what is known of a document in the end; survivor: its cluster's, by id
SETTLED = np.dtype([("kept", "?"), ("survives", "?"), ("survivor", "<u8")])
# a kept document, as `sides.threshold` wants it, with the number of its language in its shard
HELD = np.dtype([("language", "<i4"), ("hash", "<u8"), ("text", "<i8")])

_TOLD = np.dtype([("cluster", "<u8"), ("document", "<u8"), ("id", "<u8")])


@dataclass(frozen=True)
class Deciding:
    """What one needs to decide. measured, clusters, folder: folders of the passes' products.

    index: path of the index of benchmarks, "" for none; stock: how many documents have each of
    its windows, in a file. parts: of the clusters, for Beam.
    """

    clean: Clean
    limits: Limits
    measured: str
    clusters: str
    folder: str
    index: str
    stock: str
    parts: int

    @property
    def order(self) -> tuple[str, ...]:
        """All reasons, the first one first."""
        return ORDERS[self.clean.order]


def settings_of(clean: Clean, limits: Limits, *others: str) -> str:
    """The hash of all that decides."""
    return digest(
        sorted(clean.languages), sorted(clean.off), clean.order, clean.longest, limits, others
    )


def failures(job: Deciding, scores: dict[str, Any], contaminated: np.ndarray) -> np.ndarray:
    """Which reasons there are to drop each document, bool [documents, reasons of job.order].

    Whether it is a duplicate is not among them. contaminated: bool [documents].
    """
    languages = np.array(scores["language"], object)
    failed = np.zeros((len(languages), len(job.order)), bool)
    place = {name: at for at, name in enumerate(job.order)}
    if job.clean.languages:
        failed[:, place[LANGUAGE]] = ~np.isin(languages, job.clean.languages)
    failed[:, place[CONTAMINATED]] = contaminated
    failed[:, place[LONGEST]] = scores["characters"] > job.clean.longest
    for language in set(languages):
        own = languages == language
        limits = (_OF_PAIRS if is_bilingual(language) else {}) | of(job.limits, language)
        for name, limit in limits.items():
            reason = LANGUAGE if name in OF_LANGUAGE else name
            if name not in job.clean.off and name in scores:
                failed[own, place[reason]] |= outside(scores[name][own], limit)
    failed[:, [place[name] for name in job.order if name in job.clean.off]] = False
    return failed


def pairs_of(
    job: Deciding, piece: Piece, scores: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of a shard's documents, PAIR; the rules that each breaks, bool [pairs, rules]; and
    MISALIGNED of the documents, float64: 1 without any pair, NaN for those in one language."""
    languages = np.array(scores["language"], object)
    both = [*filter(is_bilingual, set(languages))]
    pairs = np.zeros(0, pairing.PAIR)
    if both:
        pairs = products.load(f"{job.measured}/{piece.key}.pairs.npy")
    failed = np.zeros((len(pairs), len(pairing.RULES)), bool)
    of_pair = languages[pairs["document"]]
    without = np.full(len(languages), np.nan)
    for language in both:
        without[languages == language] = 1.0
        own = of_pair == language
        limits = of(job.limits, language)
        failed[own] = pairing.failures(pairs[own], limits, job.clean.off)
    counts = np.bincount(pairs["document"], minlength=len(languages))
    wrong = np.bincount(pairs["document"], failed.any(1), len(languages))
    return pairs, failed, np.where(counts, wrong / np.maximum(counts, 1), without)


def items_held(job: Deciding, piece: Piece) -> np.ndarray:
    """The benchmarks' items in a shard's documents, as `contamination.held` tells them."""
    none = np.empty((0, 3), np.int64)
    if not job.index:
        return none
    hits = products.load(f"{job.measured}/{piece.key}.hits.npy")
    if not len(hits):
        return none
    return contamination.held(opened_index(job.index), hits, products.load(job.stock))


def decide(job: Deciding, piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Writes what fails in a shard; gives its best CANDIDATE of each cluster, by cluster."""
    limited = {name for limits in job.limits.values() for name in limits}
    wanted = {"id", "language", "characters", BITS} | limited
    scores = products.load_table(f"{job.measured}/{piece.key}.scores.arrow", *sorted(wanted))
    count = len(scores["language"])
    *_, scores[MISALIGNED] = pairs_of(job, piece, scores)
    contaminated = np.zeros(count, bool)
    contaminated[items_held(job, piece)[:, 0]] = True
    failed = failures(job, scores, contaminated)
    products.save(f"{job.folder}/{piece.number:08}.failed.npy", failed)
    cluster, _ = clusters.of(job.clusters, piece.number, count)
    inside = np.flatnonzero(cluster)
    found = np.zeros(len(inside), CANDIDATE)
    if len(inside):
        found["cluster"] = cluster[inside]
        found["passes"] = ~failed[inside].any(1)
        found["bits"] = scores[BITS][inside]
        found["length"] = scores["characters"][inside]
        found["document"] = inside + (piece.number << clusters.PLACE)
        found["id"] = scores["id"][inside]
    best = duplicates.best(found)
    yield from packed(mix(best["cluster"]), best, job.parts)


def tell(job: Deciding, part: int, values: list[bytes]) -> None:
    """Finds the best of each cluster; writes it down for each shard that has one of it."""
    found = np.frombuffer(b"".join(values), CANDIDATE)
    best = duplicates.best(found)
    at = np.searchsorted(best["cluster"], found["cluster"])
    told = np.zeros(len(found), _TOLD)
    told["cluster"] = found["cluster"]
    told["document"], told["id"] = best["document"][at], best["id"][at]
    shards = (found["document"] >> np.uint64(clusters.PLACE)).astype(np.int64)
    order = np.argsort(shards, kind="stable")
    rows = np.column_stack(
        [
            shards[order].astype(np.uint64),
            *(told[name][order] for name in ("cluster", "document", "id")),
        ]
    )
    products.save(f"{job.folder}/best-{part:08}.npy", rows)


def told(piece: str | int) -> Iterator[tuple[int, bytes]]:
    """What `tell` wrote in a file, by shard; of a number nothing, so that its shard settles."""
    if isinstance(piece, int):
        yield piece, b""
        return
    rows = products.load(piece)
    for start, end in runs(rows[:, 0]):
        yield int(rows[start, 0]), np.ascontiguousarray(rows[start:end, 1:]).tobytes()


def settle(job: Deciding, pieces: dict[int, str], number: int, values: list[bytes]) -> None:
    """Writes what becomes of a shard's documents, SETTLED, and of the kept ones HELD.

    pieces: the key of each shard. The note is written last.
    """
    path = f"{job.measured}/{pieces[number]}.scores.arrow"
    scores = products.load_table(path, "language", "hash", "bytes")
    failed = products.load(f"{job.folder}/{number:08}.failed.npy")
    cluster, _ = clusters.of(job.clusters, number, len(failed))
    told = np.sort(np.frombuffer(b"".join(values), _TOLD), order="cluster")
    settled = np.zeros(len(failed), SETTLED)
    settled["survives"] = cluster == 0
    inside = np.flatnonzero(cluster)
    if len(inside):
        at = np.searchsorted(told["cluster"], cluster[inside])
        settled["survivor"][inside] = told["id"][at]
        own = inside + (number << clusters.PLACE)
        settled["survives"][inside] = told["document"][at] == own.astype(np.uint64)
    settled["kept"] = (settled["survives"] | (DUPLICATE in job.clean.off)) & ~failed.any(1)
    products.save(f"{job.folder}/{number:08}.settled.npy", settled)
    names = sorted(set(scores["language"]))
    kept = np.flatnonzero(settled["kept"])
    held = np.zeros(len(kept), HELD)
    if len(kept):
        held["language"] = [names.index(scores["language"][one]) for one in kept]
        held["hash"], held["text"] = scores["hash"][kept], scores["bytes"][kept]
    products.save(f"{job.folder}/{number:08}.held.npy", held)
    smallest = inside + (number << clusters.PLACE) + 1 == cluster[inside].astype(np.int64)
    note = {
        "decided": _told_apart(job, failed, settled, names),
        "languages": names,
        "kept": np.bincount(held["language"], minlength=len(names)).tolist(),
        "clusters": int(smallest.sum()),
        "survivors": int(settled["survives"][inside].sum()),
    }
    products.save_json(f"{job.folder}/{number:08}.json", note)


def _told_apart(
    job: Deciding, failed: np.ndarray, settled: np.ndarray, languages: list[str]
) -> str:
    """A hash of all that is decided on a shard's documents and their pairs."""
    of_pairs = {name: of(job.limits, name) for name in languages if is_bilingual(name)}
    found = sha256(failed.tobytes() + settled.tobytes()).hexdigest()
    return digest(found, of_pairs)
