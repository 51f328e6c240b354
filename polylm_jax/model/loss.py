"""Cross-entropy over a large vocabulary that never holds [tokens, vocabulary].

The rows' positions are taken in blocks. The forward pass of a block makes the block's
gradient too, so that no logits are computed twice; the gradient of the embedding
accumulates in float32. Operands of all three products are in the compute dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P


@dataclass(frozen=True)
class LossAxes:
    """Mesh axes over which the loss is split; the empty default is one device.

    batch: axes that split the rows. vocabulary: axis that splits the embedding's rows.
    """

    batch: tuple[str, ...] = ()
    vocabulary: str | None = None


def positions_per_block(length: int, rows: int, block: int) -> int:
    """Largest divisor of length with which rows x positions stays within block tokens."""
    wanted = max(1, block // rows)
    return next(n for n in range(min(wanted, length), 0, -1) if length % n == 0)


def blocked(x: jax.Array, width: int) -> jax.Array:
    """[rows, length, …] -> [length / width, rows, width, …]."""
    rows, length = x.shape[:2]
    return jnp.moveaxis(x.reshape(rows, length // width, width, *x.shape[2:]), 1, 0)


def unblocked(x: jax.Array) -> jax.Array:
    """Inverse of blocked."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _local(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    block: int,
    axes: LossAxes,
    gradient: bool,
) -> Any:
    """The loss of one device's rows against one device's part of the vocabulary."""

    def over_vocabulary(reduce: Callable, x: jax.Array) -> jax.Array:
        return x if axes.vocabulary is None else reduce(x, axes.vocabulary)

    part = 0 if axes.vocabulary is None else jax.lax.axis_index(axes.vocabulary)
    ids = part * table.shape[0] + jnp.arange(table.shape[0])
    width = positions_per_block(hidden.shape[1], hidden.shape[0], block)

    def one_block(table_gradient, inputs):
        h, target, weight = inputs
        scores = jnp.einsum("bld,vd->blv", h, table, preferred_element_type=jnp.float32)
        hit = target[..., None] == ids
        top = over_vocabulary(jax.lax.pmax, jax.lax.stop_gradient(scores.max(-1)))
        exponentials = jnp.exp(scores - top[..., None])
        total = over_vocabulary(jax.lax.psum, exponentials.sum(-1))
        wanted = over_vocabulary(jax.lax.psum, jnp.where(hit, scores, 0).sum(-1))
        loss = jnp.log(total) + top - wanted
        if not gradient:
            return table_gradient, (loss, None)
        scale = (weight / total)[..., None]
        slope = (exponentials * scale - jnp.where(hit, weight[..., None], 0)).astype(h.dtype)
        h_gradient = jnp.einsum("blv,vd->bld", slope, table, preferred_element_type=jnp.float32)
        h_gradient = over_vocabulary(jax.lax.psum, h_gradient).astype(h.dtype)
        table_gradient = table_gradient + jnp.einsum(
            "blv,bld->vd", slope, h, preferred_element_type=jnp.float32
        )
        return table_gradient, (loss, h_gradient)

    start = jnp.zeros(table.shape, jnp.float32) if gradient else jnp.zeros(())
    inputs = tuple(blocked(x, width) for x in (hidden, targets, weights))
    table_gradient, (loss, h_gradient) = jax.lax.scan(one_block, start, inputs)
    if not gradient:
        return unblocked(loss)
    if axes.batch:
        table_gradient = jax.lax.psum(table_gradient, axes.batch)
    return unblocked(loss), unblocked(h_gradient), table_gradient


def _sharded(
    hidden: jax.Array,
    embedding: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    block: int,
    axes: LossAxes,
    gradient: bool,
) -> Any:
    """_local over the mesh in context, or as it is where no axes are given."""
    local = partial(_local, block=block, axes=axes, gradient=gradient)
    table = embedding.astype(hidden.dtype)
    if axes == LossAxes():
        return local(hidden, table, targets, weights)
    rows, head = P(axes.batch), P(axes.vocabulary)
    return jax.shard_map(
        local,
        in_specs=(rows, head, rows, rows),
        out_specs=(rows, rows, head) if gradient else rows,
        check_vma=False,
    )(hidden, table, targets, weights)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(
    hidden: jax.Array,
    embedding: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    block: int,
    axes: LossAxes = LossAxes(),
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of the tokens' cross-entropy, and each token's own, in nats.

    hidden: [batch, length, d_model] in the compute dtype; embedding: float32
    [vocabulary, d_model]; targets: int32 [batch, length]; weights: float32 [batch, length].
    block: tokens of a device whose logits exist at a time.
    axes: how the mesh in context splits rows and vocabulary.
    Returns (sum(weights · loss), loss [batch, length]), float32; gradients flow from the
    sum only, to hidden and embedding.
    """
    loss = _sharded(hidden, embedding, targets, weights, block, axes, gradient=False)
    return jnp.sum(loss * weights), loss


def _forward(hidden, embedding, targets, weights, block, axes):
    loss, *gradients = _sharded(hidden, embedding, targets, weights, block, axes, gradient=True)
    return (jnp.sum(loss * weights), loss), tuple(gradients)


def _backward(block, axes, gradients, cotangents):
    h_gradient, table_gradient = gradients
    slope, _ = cotangents
    return (slope * h_gradient).astype(h_gradient.dtype), slope * table_gradient, None, None


cross_entropy.defvjp(_forward, _backward)
