"""Exact and near duplicates: which documents are copies, told by hashes that fit any machine.

A document has a few keys, and copies share one: the hash of its folded text, and its bands, each
of eight values of a MinHash of one permutation (Li, Owen, Zhang 2012) whose empty places are
filled as Shrivastava has it ("Optimal Densification", 2017). With 14 bands of 8, documents whose
shingles agree to 0.8 share a band with probability 0.92, to 0.9 with 0.9996, to 0.5 with 0.05.

Keys that agree are edges between documents, and what edges connect is a cluster. A document is a
number, and its keys travel as pairs (key, number) of 16 bytes, thousands in one value: no text
is shuffled, and no key is a hot one, for a part of all keys is sorted at once. Clusters come from
stars (Kiveris et al. 2014, "Connected Components in MapReduce and Beyond"): each round, the
neighbours of a document are bound to the smallest of them, until every cluster is one star.
"""

from functools import lru_cache

import numpy as np

from polylm_jax.data.clean.text import Batch, document_hashes, mix, shingles

NONE = np.uint64(0)  # no key
_EMPTY = np.uint32(2**32 - 1)

PAIR = 16  # bytes of a key and a document, or of an edge


def keys(folded: Batch, languages: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """The keys of folded documents, uint64 [documents, 1 + bands]; NONE where there is none.

    languages: a number for each document's language, uint64: only inside one are there copies.
    A text without a letter or digit is nobody's copy.
    """
    found = np.concatenate([_keys(part, bands, rows) for part in folded.parts()])
    return np.where(
        found == NONE, NONE, np.maximum(mix(found ^ mix(languages + np.uint64(1))[:, None]), 1)
    )


def _keys(folded: Batch, bands: int, rows: int) -> np.ndarray:
    """As `keys`, whatever the language."""
    exact = np.where(folded.lengths == 0, NONE, np.maximum(document_hashes(folded), 1))
    return np.column_stack([exact, banded(signatures(*shingles(folded), bands * rows), bands)])


def signatures(shingles: np.ndarray, offsets: np.ndarray, size: int) -> np.ndarray:
    """MinHashes, uint32 [documents, size], of the numbers of shingles, uint64 [n].

    offsets: which are a document's, int64 [documents + 1].
    Two agree in about the share of places that is the Jaccard similarity of their shingles. Those
    of a document without shingles are all 2^32 - 1.
    """
    documents = len(offsets) - 1
    well = mix(shingles)
    place = well >> np.uint64(32)
    place *= np.uint64(size)
    place >>= np.uint64(32)
    place += np.repeat(np.arange(documents, dtype=np.uint64) * np.uint64(size), np.diff(offsets))
    flat = np.full(documents * size, _EMPTY)
    # the largest value means that there is none
    np.minimum.at(flat, place.view(np.int64), np.minimum(well.astype(np.uint32), _EMPTY - 1))
    found = flat.reshape(documents, size)
    left = np.flatnonzero((found == _EMPTY).any(1) & (found != _EMPTY).any(1))
    given, order = found[left], _order(size)
    document, empty = np.nonzero(given == _EMPTY)
    for step in range(size):  # by the last one every place has been looked at
        taken = given[document, order[empty, step]]
        there = taken != _EMPTY
        found[left[document[there]], empty[there]] = taken[there]
        document, empty = document[~there], empty[~there]
        if not len(document):
            break
    return found


@lru_cache(maxsize=4)
def _order(size: int) -> np.ndarray:
    """In which order each empty place looks at the others, int64 [size, size]: all, at random."""
    grid = np.arange(size * size, dtype=np.uint64).reshape(size, size)
    return np.argsort(mix(grid + np.uint64(0x9E3779B97F4A7C15)), axis=1)


def banded(signatures: np.ndarray, bands: int) -> np.ndarray:
    """One key for each band of a signature, uint64 [documents, bands]; NONE without shingles."""
    parts = signatures.reshape(len(signatures), bands, -1).astype(np.uint64)
    found = np.broadcast_to(mix(np.arange(1, bands + 1, dtype=np.uint64)), parts.shape[:2])
    for row in range(parts.shape[2]):
        found = mix(found + parts[:, :, row] * np.uint64(0x9E3779B97F4A7C15))
    return np.where((signatures == _EMPTY).all(1)[:, None], NONE, np.maximum(found, 1))


def pairs(keys: np.ndarray, first: int) -> np.ndarray:
    """(key, document) uint64 [n, 2] of all keys of a shard, whose first document is `first`."""
    documents = np.arange(first, first + len(keys), dtype=np.uint64)
    found = np.column_stack([keys.ravel(), np.repeat(documents, keys.shape[1])])
    return found[found[:, 0] != NONE]


def distinct(rows: np.ndarray) -> np.ndarray:
    """The different rows of uint64 [n, 2], sorted."""
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:] != rows[:-1]).any(1)
    return rows[new]


def _groups(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of sorted rows, where each run of equal first numbers begins, and the run of each row."""
    new = np.diff(rows[:, 0], prepend=~rows[:1, 0]) != 0
    return np.flatnonzero(new), np.cumsum(new) - 1


def edges(pairs: np.ndarray) -> np.ndarray:
    """Edges (larger, smaller), uint64 [n, 2], that bind all documents of a key to its smallest.

    pairs: all (key, document) of the keys in them.
    """
    rows = distinct(pairs)
    starts, group = _groups(rows)
    found = np.column_stack([rows[:, 1], rows[starts, 1][group]])
    return distinct(found[found[:, 0] != found[:, 1]])


def both_ways(edges: np.ndarray) -> np.ndarray:
    return np.concatenate([edges, edges[:, ::-1]])


def large_star(neighbours: np.ndarray) -> tuple[np.ndarray, int]:
    """Binds the larger neighbours of each document to the smallest of all and itself.

    neighbours: edges both ways, all of those that begin with the documents in them.
    Returns edges, and how many documents are not yet the centre or a point of a star: when that
    is 0 everywhere, the edges that came in are the clusters.
    """
    rows = distinct(neighbours)
    starts, group = _groups(rows)
    counts = np.diff([*starts, len(rows)])
    smallest = np.minimum(rows[starts, 0], rows[starts, 1])
    is_centre, is_point = rows[starts, 0] < rows[starts, 1], counts == 1
    found = np.column_stack([rows[:, 1], smallest[group]])
    return found[rows[:, 1] > rows[:, 0]], int((~is_centre & ~is_point).sum())


def small_star(edges: np.ndarray) -> np.ndarray:
    """Binds each document and its smaller neighbours to the smallest of those.

    edges: (larger, smaller), all of those that begin with the documents in them.
    """
    rows = distinct(edges)
    starts, group = _groups(rows)
    smallest = rows[starts, 1]
    others = np.column_stack([rows[:, 1], smallest[group]])
    own = np.column_stack([rows[starts, 0], smallest])
    return np.concatenate([own, others[others[:, 0] != others[:, 1]]])


def connected(edges: np.ndarray) -> np.ndarray:
    """What `large_star` and `small_star` come to, at once and in memory: (document, smallest)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    documents, places = np.unique(edges, return_inverse=True)
    ends = places.reshape(edges.shape).astype(np.int32)
    graph = coo_array(
        (np.ones(len(ends), np.uint8), (ends[:, 0], ends[:, 1])), shape=(len(documents),) * 2
    )
    count, label = connected_components(graph, directed=False)
    smallest = np.full(count, len(documents))
    np.minimum.at(smallest, label, np.arange(len(documents)))
    found = np.column_stack([documents, documents[smallest[label]]])
    return found[found[:, 0] != found[:, 1]]


def with_sizes(labels: np.ndarray) -> np.ndarray:
    """(document, cluster, size) uint64 [n, 3] of all documents of clusters, sorted.

    labels: (document, smallest), all of those of the clusters in them. A cluster has the number
    of its smallest document.
    """
    roots, counts = np.unique(labels[:, 1], return_counts=True)
    sizes = (counts + 1).astype(np.uint64)
    points = np.column_stack([labels, sizes[np.searchsorted(roots, labels[:, 1])]])
    found = np.concatenate([points, np.column_stack([roots, roots, sizes])])
    return found[np.argsort(found[:, 0])]


# a candidate to survive its cluster, compared in this order; id is what others know it by
CANDIDATE = np.dtype(
    [
        ("cluster", "<u8"),
        ("passes", "u1"),
        ("bits", "<f8"),
        ("length", "<u8"),
        ("document", "<u8"),
        ("id", "<u8"),
    ]
)


def best(candidates: np.ndarray) -> np.ndarray:
    """The best CANDIDATE of each cluster that has some here, by cluster.

    First one that passes the rules, then one of fewer bits a byte (not a number comes last), then
    the longest, then the smallest number. The best of some bests is the best of all.
    """
    order = np.lexsort(
        (
            candidates["document"],
            ~candidates["length"],
            candidates["bits"],
            1 - candidates["passes"],
            candidates["cluster"],
        )
    )
    ordered = candidates[order]
    new = np.diff(ordered["cluster"], prepend=~ordered["cluster"][:1]) != 0
    return ordered[new]
