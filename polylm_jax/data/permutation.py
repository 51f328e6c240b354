"""A keyed permutation of 0..count-1, computable at any index without a table of its images."""

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
    is sent through again until it falls inside (cycle walking, Black and Rogaway 2002). A round
    sees only half of an index, so what it makes of all halves is known beforehand.
    Returns int64 of the shape of indices.
    """
    halves = [max(1, ((count - 1).bit_length() + 1) // 2) for count in counts]
    rounds = np.concatenate([_rounds(*one) for one in zip(keys, halves, strict=True)], axis=1)
    half, count = np.array(halves), np.array(counts)
    size = 1 << half
    begin = np.cumsum(size) - size

    def once(x: np.ndarray, of: np.ndarray) -> np.ndarray:
        my_half, my_begin = half[of], begin[of]
        left, right = x >> my_half, x & (size[of] - 1)
        for made in rounds:
            left, right = right, left ^ made[my_begin + right]
        return (left << my_half) | right

    of = np.broadcast_to(which, np.shape(indices)).ravel()
    result = once(np.ravel(indices), of)
    outside = np.flatnonzero(result >= count[of])
    while len(outside):
        result[outside] = once(result[outside], of[outside])
        outside = outside[result[outside] >= count[of[outside]]]
    return result.reshape(np.shape(indices))


@lru_cache(maxsize=128)
def _rounds(key: int, half: int) -> np.ndarray:
    """What each round makes of each number of `half` bits: [ROUNDS, 2**half].

    131 kB for a source of a hundred million rows, so those that a run has in use fit anywhere.
    """
    keys = np.array([[key_of(key, number)] for number in range(ROUNDS)], np.uint64)
    mixed = _mix(np.arange(1 << half, dtype=np.uint64) ^ keys)
    return (mixed & np.uint64((1 << half) - 1)).astype(np.uint16 if half <= 16 else np.uint32)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): a 64-bit avalanche."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
