"""The clusters of duplicates of all shards, by Beam: keys to edges to stars, and these to shards.

A document's number is that of its shard, then its place in it. What a stage makes are files of a
part each, so that the memory of a worker is that of a part, however many documents there are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from polylm_jax.data.clean import duplicates, products
from polylm_jax.data.clean.engine import Beam, grouped, looped, packed, runs
from polylm_jax.data.clean.text import mix
from polylm_jax.files import put

DONE = "done.json"
PLACE = 36  # bits of a document's place in its shard
PART = 2**26  # bytes of pairs that one worker sorts
_AT_ONCE = 2 * 10**7  # edges that fit one process, 1 GB with all that is made of them


@dataclass(frozen=True)
class Keys:
    """The keys of a shard's documents: uint64 [documents, keys] in a file."""

    number: int
    path: str


def find(beam: Beam, keys: Sequence[Keys], documents: int, most: float, folder: str) -> None:
    """Finds all clusters and writes what `of` reads, for each shard that has some.

    documents: how many there are, with how many keys each. most: bytes of keys in Beam at once.
    """
    if not keys:
        return products.save_json(f"{folder}/{DONE}", {"edges": 0, "rounds": 0})
    size = documents * duplicates.PAIR
    parts = max(1, -(-size // PART))
    slices = int(max(1, -(-size // most)))
    # told by how many there are: of another number, each slice has other keys
    stage = f"edges{slices}"
    # where one worker would have them all, this one can be it
    share = looped if parts == slices == 1 else partial(grouped, beam)
    for number in range(slices):
        done = f"{folder}/{stage}-{number:05}.done"
        if not products.exists(done):
            emit = partial(_pairs, parts, slices, number)
            share(emit, keys, partial(_edges, f"{folder}/{stage}"))
            put(done, b"")
    edges = _files(folder, stage)
    count = sum(len(products.load(path)) for path in edges)
    rounds = 0
    if count <= _AT_ONCE:
        labels = duplicates.connected(np.concatenate([_none(), *map(products.load, edges)]))
        _by_shard(folder, duplicates.with_sizes(labels))
    else:
        edges, rounds = _stars(beam, edges, parts, folder)
        grouped(beam, partial(_by, parts, 1, False), edges, partial(_sized, folder))
        grouped(beam, _of_shards, _files(folder, "sized"), partial(_shard, folder))
    products.save_json(f"{folder}/{DONE}", {"edges": count, "rounds": rounds})


def of(folder: str, number: int, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a shard's documents the cluster's number and its size, uint64; 0 and 1 in none.

    The number is that of the cluster's smallest document, plus 1.
    """
    cluster, size = np.zeros(documents, np.uint64), np.ones(documents, np.uint64)
    path = f"{folder}/shard-{number:08}.npy"
    if products.exists(path):
        found = products.load(path)
        at = (found[:, 0] - (np.uint64(number) << np.uint64(PLACE))).astype(np.int64)
        cluster[at], size[at] = found[:, 1] + np.uint64(1), found[:, 2]
    return cluster, size


def _files(folder: str, stage: str) -> list[str]:
    names = products.names(folder)
    return [f"{folder}/{n}" for n in names if n.startswith(f"{stage}-") and n.endswith(".npy")]


def _none() -> np.ndarray:
    return np.empty((0, 2), np.uint64)


def _joined(values: list[bytes], width: int = 2) -> np.ndarray:
    return np.frombuffer(b"".join(values), np.uint64).reshape(-1, width)


def _pairs(parts: int, slices: int, number: int, keys: Keys) -> Iterator[tuple[int, bytes]]:
    pairs = duplicates.pairs(products.load(keys.path), keys.number << PLACE)
    own = pairs[:, 0] // np.uint64(parts) % np.uint64(slices) == number
    for part, rows in packed(pairs[own, 0], pairs[own], parts):
        yield part * slices + number, rows


def _edges(name: str, part: int, values: list[bytes]) -> None:
    products.save(f"{name}-{part:08}.npy", duplicates.edges(_joined(values)))


def _stars(beam: Beam, edges: list[str], parts: int, folder: str) -> tuple[list[str], int]:
    """Rounds of stars until nothing changes: the files of the last edges, and the rounds."""
    for turn in range(64):  # a chain halves each round
        large, left, small = (f"{folder}/{name}{turn:02}" for name in ("large", "left", "small"))
        done = f"{small}.done"
        if not products.exists(done):
            grouped(beam, partial(_by, parts, 0, True), edges, partial(_large, large, left))
            unsettled = sum(int(n.split("-")[2]) for n in _named(folder, f"left{turn:02}"))
            if not unsettled:
                return edges, turn
            pieces = _files(folder, f"large{turn:02}")
            grouped(beam, partial(_by, parts, 0, False), pieces, partial(_small, small))
            put(done, b"")
        edges = _files(folder, f"small{turn:02}")
    raise AssertionError("the clusters of duplicates do not settle")


def _named(folder: str, stage: str) -> list[str]:
    return [name for name in products.names(folder) if name.startswith(f"{stage}-")]


def _by(parts: int, column: int, both_ways: bool, path: str) -> Iterator[tuple[int, bytes]]:
    """The edges of a file, perhaps both ways, by the part of their first or second document."""
    rows = products.load(path)
    rows = duplicates.both_ways(rows) if both_ways else rows
    return packed(mix(rows[:, column]), rows, parts)


def _large(name: str, left: str, part: int, values: list[bytes]) -> None:
    rows, unsettled = duplicates.large_star(_joined(values))
    products.save(f"{name}-{part:08}.npy", rows)
    put(f"{left}-{part:08}-{unsettled}", b"")


def _small(name: str, part: int, values: list[bytes]) -> None:
    products.save(f"{name}-{part:08}.npy", duplicates.small_star(_joined(values)))


def _sized(folder: str, part: int, values: list[bytes]) -> None:
    labels = duplicates.distinct(_joined(values))
    products.save(f"{folder}/sized-{part:08}.npy", duplicates.with_sizes(labels))


def _of_shards(path: str) -> Iterator[tuple[int, bytes]]:
    rows = products.load(path)
    shards = (rows[:, 0] >> np.uint64(PLACE)).astype(np.int64)
    for shard in np.unique(shards):
        yield int(shard), rows[shards == shard].tobytes()


def _shard(folder: str, shard: int, values: list[bytes]) -> None:
    rows = _joined(values, 3)
    products.save(f"{folder}/shard-{shard:08}.npy", rows[np.argsort(rows[:, 0])])


def _by_shard(folder: str, rows: np.ndarray) -> None:
    """What `_of_shards` and `_shard` come to, of rows that are sorted."""
    shards = (rows[:, 0] >> np.uint64(PLACE)).astype(np.int64)
    for start, end in runs(shards):
        products.save(f"{folder}/shard-{int(shards[start]):08}.npy", rows[start:end])
