"""Cross-entropy over a large vocabulary that never holds [tokens, vocabulary].

The tokens are taken in blocks. The forward pass of a block makes the block's gradient too, so
that no logits are computed twice; the gradient of the embedding accumulates in float32. Operands
of all three products are in the compute dtype. As the gradients are made in the forward pass, a
loop over just the tokens that are learned may have as many turns as it needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

BLOCK = 1024  # tokens, where the settings leave it to the device


@dataclass(frozen=True)
class Head:
    """What of the head is computed.

    learned: only the tokens whose weight is above 0; the others' loss is 0. frozen: no gradient
    of the embedding.
    """

    learned: bool = False
    frozen: bool = False


@dataclass(frozen=True)
class LossAxes:
    """Mesh axes over which the loss is split; the empty default is one device.

    batch: axes that split the rows. vocabulary: axis that splits the embedding's rows. embed: axis
    of batch that splits the embedding's columns too; its gradient leaves the loss split so.
    """

    batch: tuple[str, ...] = ()
    vocabulary: str | None = None
    embed: str | None = None


def positions_per_block(length: int, rows: int, block: int) -> int:
    """Largest divisor of length with which rows x positions stays within block tokens.

    block: 0 for BLOCK.
    """
    wanted = max(1, (block or BLOCK) // rows)
    return next(n for n in range(min(wanted, length), 0, -1) if length % n == 0)


def blocked(x: jax.Array, width: int) -> jax.Array:
    """[rows, length, …] -> [length / width, rows, width, …]."""
    rows, length = x.shape[:2]
    return jnp.moveaxis(x.reshape(rows, length // width, width, *x.shape[2:]), 1, 0)


def unblocked(x: jax.Array) -> jax.Array:
    """Inverse of blocked."""
    x = jnp.moveaxis(x, 0, 1)
    rows, blocks, width = x.shape[:3]
    return x.reshape(rows, blocks * width, *x.shape[3:])


def _local(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    block: int,
    axes: LossAxes,
    head: Head,
    gradient: bool,
) -> Any:
    """The loss of one device's rows against one device's part of the vocabulary."""
    one_block = _block_of(table, axes, head, gradient)
    start = jnp.zeros(table.shape, jnp.float32) if gradient and not head.frozen else jnp.zeros(())
    if head.learned:
        loss, h_gradient, table_gradient = _learned(
            one_block, start, hidden, targets, weights, block, axes
        )
    else:
        width = positions_per_block(hidden.shape[1], hidden.shape[0], block)
        inputs = tuple(blocked(x, width) for x in (hidden, targets, weights))
        table_gradient, (loss, h_gradient) = jax.lax.scan(one_block, start, inputs)
        loss, h_gradient = unblocked(loss), unblocked(h_gradient)
    if not gradient:
        return loss
    if axes.batch and not head.frozen:
        table_gradient = _summed(table_gradient, axes)
    return loss, h_gradient, table_gradient


def _summed(gradient: jax.Array, axes: LossAxes) -> jax.Array:
    """The table's gradient summed over the rows of all devices, each of which gets its columns.

    To hand every device the whole sum would send twice as much.
    """
    if axes.embed:
        gradient = jax.lax.psum_scatter(gradient, axes.embed, scatter_dimension=1, tiled=True)
    return jax.lax.psum(gradient, tuple(axis for axis in axes.batch if axis != axes.embed))


def _block_of(table: jax.Array, axes: LossAxes, head: Head, gradient: bool) -> Callable:
    """Function (gradient of the table so far, (hidden, targets, weights) of a block) -> (gradient
    of the table, (losses, gradient of hidden)); without gradients where none is wanted."""

    def over_vocabulary(reduce: Callable, x: jax.Array) -> jax.Array:
        return x if axes.vocabulary is None else reduce(x, axes.vocabulary)

    part = 0 if axes.vocabulary is None else jax.lax.axis_index(axes.vocabulary)
    ids = part * table.shape[0] + jnp.arange(table.shape[0])

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
            return table_gradient, (loss, jnp.zeros((*loss.shape, 0), h.dtype))
        scale = (weight / total)[..., None]
        slope = (exponentials * scale - jnp.where(hit, weight[..., None], 0)).astype(h.dtype)
        h_gradient = jnp.einsum("blv,vd->bld", slope, table, preferred_element_type=jnp.float32)
        h_gradient = over_vocabulary(jax.lax.psum, h_gradient).astype(h.dtype)
        if not head.frozen:
            table_gradient = table_gradient + jnp.einsum(
                "blv,bld->vd", slope, h, preferred_element_type=jnp.float32
            )
        return table_gradient, (loss, h_gradient)

    return one_block


def _learned(
    one_block: Callable,
    start: jax.Array,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    block: int,
    axes: LossAxes,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss, its gradient at hidden and at the table, of the tokens whose weight is above 0.

    They are taken first, as many blocks as they fill; the rest of the last block has weight 0.
    """
    tokens = weights.size
    width = next(n for n in range(min(block or BLOCK, tokens), 0, -1) if tokens % n == 0)
    h, target, weight = (x.reshape(tokens, *x.shape[2:]) for x in (hidden, targets, weights))
    order = jnp.argsort(weight <= 0, stable=True)
    turns = -(-jnp.sum(weight > 0) // width)
    if axes.batch:
        # as many turns on all devices, for those of one row share the blocks of its vocabulary
        turns = jax.lax.pmax(turns, axes.batch)

    def turn(i, carry):
        table_gradient, losses, h_gradients = carry
        place = jax.lax.dynamic_slice_in_dim(order, i * width, width)
        inputs = tuple(x[place][None] for x in (h, target, weight))
        table_gradient, (loss, h_gradient) = one_block(table_gradient, inputs)
        return (
            table_gradient,
            losses.at[place].set(loss[0], unique_indices=True),
            h_gradients.at[place].set(h_gradient[0], unique_indices=True),
        )

    nothing = jax.eval_shape(one_block, start, tuple(x[None, :width] for x in (h, target, weight)))
    size = nothing[1][1].shape[-1]  # no gradient at hidden where none is wanted
    carry = (start, jnp.zeros(tokens), jnp.zeros((tokens, size), h.dtype))
    table_gradient, losses, h_gradients = jax.lax.fori_loop(0, turns, turn, carry)
    losses = jnp.where(weight > 0, losses, 0).reshape(targets.shape)
    return losses, h_gradients.reshape(*targets.shape, size), table_gradient


def _sharded(
    hidden: jax.Array,
    embedding: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    block: int,
    axes: LossAxes,
    head: Head,
    gradient: bool,
) -> Any:
    """_local over the mesh in context, or as it is where no axes are given."""
    local = partial(_local, block=block, axes=axes, head=head, gradient=gradient)
    table = embedding.astype(hidden.dtype)
    if axes == LossAxes():
        return local(hidden, table, targets, weights)
    rows, vocabulary = P(axes.batch), P(axes.vocabulary)
    of_table = P() if head.frozen else P(axes.vocabulary, axes.embed)
    return jax.shard_map(
        local,
        in_specs=(rows, vocabulary, rows, rows),
        out_specs=(rows, rows, of_table) if gradient else rows,
        check_vma=False,
    )(hidden, table, targets, weights)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def cross_entropy(
    hidden: jax.Array,
    embedding: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    block: int,
    axes: LossAxes = LossAxes(),
    head: Head = Head(),
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of the tokens' cross-entropy, and each token's own, in nats.

    hidden: [batch, length, d_model] in the compute dtype; embedding: [vocabulary, d_model],
    float32 or, if frozen, the compute dtype; targets: int32 [batch, length]; weights: float32
    [batch, length], none below 0.
    block: tokens of a device whose logits exist at a time; 0 for BLOCK.
    axes: how the mesh in context splits rows and vocabulary. head: what of it is computed.
    Returns (sum(weights · loss), loss [batch, length]), float32; gradients flow from the
    sum only, to hidden and, unless frozen, to embedding.
    """
    loss = _sharded(hidden, embedding, targets, weights, block, axes, head, gradient=False)
    return jnp.sum(loss * weights), loss


def _forward(hidden, embedding, targets, weights, block, axes, head):
    loss, *gradients = _sharded(
        hidden, embedding, targets, weights, block, axes, head, gradient=True
    )
    return (jnp.sum(loss * weights), loss), tuple(gradients)


def _backward(block, axes, head, gradients, cotangents):
    h_gradient, table_gradient = gradients
    slope, _ = cotangents
    of_table = None if head.frozen else slope * table_gradient
    return (slope * h_gradient).astype(h_gradient.dtype), of_table, None, None


cross_entropy.defvjp(_forward, _backward)
