"""A checksum of a tree of arrays that is the same however the arrays are cut or placed.

Of an array it is the sum of its words, each times an odd number that follows from its place,
modulo 2^32; of a tree the sum of its arrays' sums, each times an odd number that follows from the
leaf's place in the order of names. The change of one word always shows, of several all but once in
2^32. As a sum it can be taken on the devices of any mesh, or part by part of an array that fits in
no memory.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MODULUS = 1 << 32
_MOST = 1 << 20  # elements that are summed at a time: what is held beside them is as large again


@jax.jit
def state_checksum(state: Any) -> jax.Array:
    """The checksum of a tree of arrays on devices, uint32."""

    def of_leaf(leaf: jax.Array) -> jax.Array:
        word = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        words = jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)
        place = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            place = place * size + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

    sums = [of_leaf(leaf) * (2 * i + 1) for i, leaf in enumerate(named(state).values())]
    return sum(sums, jnp.uint32(0))


def named(tree: Any) -> dict[tuple[str, ...], Any]:
    """The leaves of a tree by where they stand, in the order of the names.

    A field, a key and an index of one name are the same, as storage gives back dicts alone.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = lambda key: str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))  # noqa: E731
    found = {tuple(map(name, path)): leaf for path, leaf in leaves}
    return {path: found[path] for path in sorted(found)}


def part_sum(values: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> int:
    """What a part of an array adds to the array's sum, modulo 2^32.

    values: float32 of any shape; start: the place in the array of its first element on each axis;
    shape: the whole array's.
    """
    if values.size > _MOST:
        axis = next(i for i, length in enumerate(values.shape) if length > 1)
        one, other = np.array_split(values, 2, axis)
        behind = [first + one.shape[axis] * (i == axis) for i, first in enumerate(start)]
        return part_sum(one, start, shape) + part_sum(other, behind, shape)
    place = np.zeros((), np.uint32)
    for first, length, size in zip(start, values.shape, shape, strict=True):
        along = np.arange(first, first + length, dtype=np.uint32)
        place = place[..., None] * np.uint32(size) + along
    words = np.ascontiguousarray(values).view(np.uint32)
    return int(np.dot(words.ravel(), (2 * place + 1).ravel()))


def joined(sums: Any) -> int:
    """The checksum of a tree, given each array's sum, which may have passed 2^32."""
    leaves = enumerate(named(sums).values())
    return sum(leaf * (2 * i + 1) for i, leaf in leaves) % _MODULUS
