"""Cross-entropy over a large vocabulary that never holds [tokens, vocabulary].

The tokens are taken in blocks. The forward pass of a block makes the block's gradient too, so
that no logits are computed twice; the gradient of the embedding accumulates in float32. Operands
of all three products are in the compute dtype. As the gradients are made in the forward pass, a
loop over just the tokens that are learned may have as many turns as it needs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from polylm_jax.model.table import ONE_DEVICE, TableAxes, no_sums, on_each, summed

Sums = TypeVar("Sums", jax.Array, None)  # of gradients; None where there are none

BLOCK = 1024  # tokens, where the settings leave it to the device


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
    sums: jax.Array | None,
    *,
    block: int,
    axes: TableAxes,
    learned: bool,
    gradient: bool,
    turned: bool = False,
) -> Any:
    """The loss of one device's rows against one device's part of the vocabulary.

    turned: see _block_of.
    """
    one_block = _block_of(table, axes, gradient, turned)
    start: Any = None
    if sums is not None:
        start = jnp.zeros(table.shape[::-1]) if turned else sums[0]
    if learned:
        loss, of_hidden, start = _learned(one_block, start, hidden, targets, weights, block, axes)
    else:
        width = positions_per_block(hidden.shape[1], hidden.shape[0], block)
        inputs = tuple(blocked(x, width) for x in (hidden, targets, weights))
        start, (loss, of_hidden) = jax.lax.scan(one_block, start, inputs)
        loss, of_hidden = unblocked(loss), unblocked(of_hidden)
    if not gradient:
        return loss
    if sums is None:
        return loss, of_hidden, None
    # of one block the turn would become part of its product, as which a CPU's library has none
    of_table = sums + jax.lax.optimization_barrier(start).T if turned else start[None]
    return loss, of_hidden, of_table


def _block_of(table: jax.Array, axes: TableAxes, gradient: bool, turned: bool) -> Callable:
    """Function (gradient of the table so far, (hidden, targets, weights) of a block) -> (gradient
    of the table, (losses, gradient of hidden)).

    The gradient of the table is None where it has none; without gradient that of hidden is empty.
    turned: for a CPU, where passes over all scores cost as much as products. The gradient of the
    table is [d_model, vocabulary], so that no scores are transposed, and the targets' scores are
    looked up, not summed out of all.
    """

    def over_vocabulary(reduce: Callable, x: jax.Array) -> jax.Array:
        return x if axes.vocabulary is None else reduce(x, axes.vocabulary)

    part = 0 if axes.vocabulary is None else jax.lax.axis_index(axes.vocabulary)
    first = part * table.shape[0]
    ids = first + jnp.arange(table.shape[0])

    def of_targets(scores, target):
        place = jnp.clip(target - first, 0, len(ids) - 1)
        found = jnp.take_along_axis(scores, place[..., None], -1, mode="clip")[..., 0]
        return jnp.where(ids[place] == target, found, 0)

    def one_block(table_gradient, inputs):
        h, target, weight = inputs
        scores = jnp.einsum("bld,vd->blv", h, table, preferred_element_type=jnp.float32)
        hit = target[..., None] == ids
        top = over_vocabulary(jax.lax.pmax, jax.lax.stop_gradient(scores.max(-1)))
        exponentials = jnp.exp(scores - top[..., None])
        total = over_vocabulary(jax.lax.psum, exponentials.sum(-1))
        wanted = of_targets(scores, target) if turned else jnp.where(hit, scores, 0).sum(-1)
        wanted = over_vocabulary(jax.lax.psum, wanted)
        loss = jnp.log(total) + top - wanted
        if not gradient:
            return table_gradient, (loss, jnp.zeros((*loss.shape, 0), h.dtype))
        scale = (weight / total)[..., None]
        slope = (exponentials * scale - jnp.where(hit, weight[..., None], 0)).astype(h.dtype)
        h_gradient = jnp.einsum("blv,vd->bld", slope, table, preferred_element_type=jnp.float32)
        h_gradient = over_vocabulary(jax.lax.psum, h_gradient).astype(h.dtype)
        if table_gradient is not None:
            equation, sides = ("bld,blv->dv", (h, slope)) if turned else ("blv,bld->vd", (slope, h))
            table_gradient = table_gradient + jnp.einsum(
                equation, *sides, preferred_element_type=jnp.float32
            )
        return table_gradient, (loss, h_gradient)

    return one_block


def _learned(
    one_block: Callable,
    start: jax.Array | None,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    block: int,
    axes: TableAxes,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
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
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    sums: jax.Array | None,
    block: int,
    axes: TableAxes,
    learned: bool,
    gradient: bool,
) -> Any:
    """_local over the mesh in context, or as it is where no axes are given."""
    here = partial(_local, block=block, axes=axes, learned=learned, gradient=gradient)
    local = partial(jax.lax.platform_dependent, cpu=partial(here, turned=True), default=here)
    rows = axes.tokens
    given = (rows, axes.table, rows, rows, axes.sums)
    found = (rows, rows, axes.sums) if gradient else rows
    return on_each(local, axes, given, found)(hidden, table, targets, weights, sums)


def loss_and_gradients(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    sums: Sums,
    block: int,
    axes: TableAxes,
    learned: bool = False,
) -> tuple[jax.Array, jax.Array, Sums]:
    """Each token's cross-entropy, and the gradients of the weighted sum of all.

    As cross_entropy, but the table is in the compute dtype. sums: each device's own gradient of the
    table so far, see table.no_sums; None where the table is frozen.
    Returns losses, float32 [batch, length], the gradient of hidden in its dtype, and the sums with
    this gradient in them.
    """
    found: tuple[jax.Array, jax.Array, Sums] = _sharded(
        hidden, table, targets, weights, sums, block, axes, learned, gradient=True
    )
    return found


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def cross_entropy(
    hidden: jax.Array,
    embedding: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    block: int,
    axes: TableAxes = ONE_DEVICE,
    learned: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of the tokens' cross-entropy, and each token's own, in nats.

    hidden: [batch, length, d_model] in the compute dtype; embedding: float32 [vocabulary, d_model];
    targets: int32 [batch, length]; weights: float32 [batch, length], none below 0.
    block: tokens of a device whose logits exist at a time; 0 for BLOCK.
    axes: how the mesh in context splits rows and vocabulary. learned: only the tokens whose weight
    is above 0 are computed; the others' loss is 0.
    Returns (sum(weights · loss), loss [batch, length]), float32; gradients flow from the
    sum only, to hidden and embedding.
    """
    table = embedding.astype(hidden.dtype)
    loss = _sharded(hidden, table, targets, weights, None, block, axes, learned, gradient=False)
    return jnp.sum(loss * weights), loss


def _forward(hidden, embedding, targets, weights, block, axes, learned):
    table = embedding.astype(hidden.dtype)
    loss, of_hidden, sums = loss_and_gradients(
        hidden, table, targets, weights, no_sums(table, axes), block, axes, learned
    )
    return (jnp.sum(loss * weights), loss), (of_hidden, summed(sums, axes))


def _backward(block, axes, learned, gradients, cotangents):
    of_hidden, of_table = gradients
    slope, _ = cotangents
    return (slope * of_hidden).astype(of_hidden.dtype), slope * of_table, None, None


cross_entropy.defvjp(_forward, _backward)
