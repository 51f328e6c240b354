"""A keyed permutation of 0..count-1, computable at any index without a table."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

ROUNDS = 4  # the fewest that pass for random in both directions, Luby and Rackoff 1988


def key_of(*parts: object) -> int:
    """A 64-bit key from any printable parts, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def permute(
    indices: np.ndarray,
    counts: Sequence[int],
    keys: Sequence[int],
    which: np.ndarray | int = 0,
) -> np.ndarray:
    """Images of indices under permutations, each of 0..count-1 and with a key of its own.

    which: through which permutation an index is sent, broadcast to indices.

    A balanced Feistel network over the next even number of bits; an image outside the range
    is sent through again until it falls inside (cycle walking, Black and Rogaway 2002).
    Returns int64 of the shape of indices.
    """
    halves = [max(1, ((count - 1).bit_length() + 1) // 2) for count in counts]
    half = np.array(halves, np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    count = np.array(counts, np.uint64)
    round_keys = np.array([_round_keys(key) for key in keys], np.uint64).T

    def once(x: np.ndarray, of: np.ndarray) -> np.ndarray:
        my_half, my_mask = half[of], mask[of]
        left, right = x >> my_half, x & my_mask
        for round_key in round_keys:
            mixed = _mix(right ^ round_key[of])
            mixed &= my_mask
            mixed ^= left
            left, right = right, mixed
        return (left << my_half) | right

    of = np.broadcast_to(which, np.shape(indices)).ravel()
    result = once(np.ravel(indices).astype(np.uint64), of)
    outside = np.flatnonzero(result >= count[of])
    while len(outside):
        result[outside] = once(result[outside], of[outside])
        outside = outside[result[outside] >= count[of[outside]]]
    return result.astype(np.int64).reshape(np.shape(indices))


@lru_cache(maxsize=1024)
def _round_keys(key: int) -> list[int]:
    return [key_of(key, number) for number in range(ROUNDS)]


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): a 64-bit avalanche, in place."""
    shifted = x >> np.uint64(30)
    x ^= shifted
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= np.right_shift(x, np.uint64(27), out=shifted)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= np.right_shift(x, np.uint64(31), out=shifted)
    return x
