"""A keyed permutation of 0..count-1, computable at any index without a table."""

import hashlib
from functools import lru_cache

import numpy as np

ROUNDS = 6


def key_of(*parts: object) -> int:
    """A 64-bit key from any printable parts, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def permute(indices: np.ndarray, count: int, key: int) -> np.ndarray:
    """Images of indices (integers in [0, count)) under the permutation with this key.

    A balanced Feistel network over the next even number of bits; an image outside the range
    is sent through again until it falls inside (cycle walking, Black and Rogaway 2002).
    Returns int64 of the shape of indices.
    """
    if count < 2:
        return np.zeros_like(indices, dtype=np.int64)
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    round_keys = _round_keys(key)

    def once(x: np.ndarray) -> np.ndarray:
        left, right = x >> shift, x & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << shift) | right

    result = once(np.asarray(indices).astype(np.uint64))
    while (outside := result >= np.uint64(count)).any():
        result[outside] = once(result[outside])
    return result.astype(np.int64)


@lru_cache(maxsize=1024)
def _round_keys(key: int) -> list[np.uint64]:
    return [np.uint64(key_of(key, number)) for number in range(ROUNDS)]


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): a 64-bit avalanche."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
