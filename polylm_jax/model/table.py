"""The gradient of the tied embedding: one float32 sum for both of its uses, sent once a step.

Each device adds up what its own rows give, the loss's share and the look-up's, of all
microbatches, into an array of its own. Only then do the devices sum these: all that a step sends of
it is the table once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from polylm_jax.model.products import FLOAT32


@dataclass(frozen=True)
class TableAxes:
    """Mesh axes over which the table and what meets it are split; the default is one device.

    batch: axes that split the rows of tokens. vocabulary: axis that splits the table's rows.
    embed: axis of batch that splits the columns of the table's gradient once it is summed; None
        on one device alone.
    """

    batch: tuple[str, ...] = ()
    vocabulary: str | None = None
    embed: str | None = None

    @property
    def tokens(self) -> P:
        """How arrays [batch, …] are split."""
        return P(self.batch)

    @property
    def table(self) -> P:
        """How the table is split where it is used: [vocabulary, d_model]."""
        return P(self.vocabulary)

    @property
    def sums(self) -> P:
        """How the devices' own sums are split: [devices of batch, vocabulary, d_model]."""
        return P(self.batch, self.vocabulary)

    @property
    def gradient(self) -> P:
        """How their sum is split: [vocabulary, d_model]."""
        return P(self.vocabulary, self.embed)


ONE_DEVICE = TableAxes()


def on_each(
    local: Callable[..., Any], axes: TableAxes, given: tuple[P, ...], found: Any
) -> Callable[..., Any]:
    """A function of each device's parts of arrays, as one of the whole arrays.

    given, found: how arguments and results are split over the mesh in context.
    """
    if axes == ONE_DEVICE:
        return local
    return jax.shard_map(local, in_specs=given, out_specs=found, check_vma=False)


def no_sums(table: jax.Array, axes: TableAxes) -> jax.Array:
    """Sums of nothing for a table [vocabulary, d_model]: float32 [devices, vocabulary, d_model]."""

    def local(rows: jax.Array) -> jax.Array:
        return jnp.zeros((1, len(rows), table.shape[1]), FLOAT32)

    rows = jnp.zeros(len(table), jnp.int8)  # of a device: as many as its part of the vocabulary
    sums: jax.Array = on_each(local, axes, (axes.table,), axes.sums)(rows)
    return sums


def add_looked_up(
    sums: jax.Array, tokens: jax.Array, gradient: jax.Array, axes: TableAxes
) -> jax.Array:
    """The sums and the gradient of the table's rows that were looked up.

    tokens: int32 [batch, length]; gradient: float32 [batch, length, d_model].
    """

    def local(sums: jax.Array, tokens: jax.Array, gradient: jax.Array) -> jax.Array:
        own = sums[0]
        if axes.vocabulary is not None:
            tokens = tokens - jax.lax.axis_index(axes.vocabulary) * own.shape[0]
        # rows of another device's part of the vocabulary are dropped
        own = own.at[tokens].add(gradient, mode="drop", wrap_negative_indices=False)
        return own[None]

    given = (axes.sums, axes.tokens, axes.tokens)
    added: jax.Array = on_each(local, axes, given, axes.sums)(sums, tokens, gradient)
    return added


def summed(sums: jax.Array, axes: TableAxes, sent: jnp.dtype = FLOAT32) -> jax.Array:
    """The devices' own sums as one, float32 [vocabulary, d_model], of which each has its columns.

    sent: in which the devices add them up.
    """
    if axes.embed is None:  # one device
        return sums[0]
    local = partial(_over_devices, axes=axes, sent=sent)
    gradient: jax.Array = on_each(local, axes, (axes.sums,), axes.gradient)(sums)
    return gradient


def _over_devices(sums: jax.Array, axes: TableAxes, sent: jnp.dtype) -> jax.Array:
    own, ways = sums[0].astype(sent), jax.lax.axis_size(axes.embed)
    rest = tuple(axis for axis in axes.batch if axis != axes.embed)
    if len(own) % ways:
        own = jax.lax.psum_scatter(own, axes.embed, scatter_dimension=1, tiled=True)
        return jax.lax.psum(own, rest).astype(FLOAT32)
    # Whole rows, along an axis of their own: of columns, which may not fill tiles, and of what a
    # loop has made a TPU would sum all on every chip, twice as much. The small part that each then
    # has changes rows for columns.
    own = own.reshape(ways, -1, own.shape[1])
    own = jax.lax.psum_scatter(own, axes.embed, scatter_dimension=0)
    own = jax.lax.psum(own, rest)
    own = jax.lax.all_to_all(own, axes.embed, split_axis=1, concat_axis=0, tiled=True)
    return own.astype(FLOAT32)
