"""Causal attention as a plain function of arrays."""

import jax
import jax.numpy as jnp

from polylm_jax.model.products import FLOAT32, dot

# Large and finite: a row that may see nothing stays finite, minus infinity would give NaN.
MASKED = -1e30


@jax.custom_vjp
def attention(query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array) -> jax.Array:
    """Scaled dot-product attention with the softmax in float32.

    query: [batch, queries, heads, head_size]; key, value: [batch, keys, heads, head_size].
    visible: boolean, broadcast to [batch, queries, keys]; True where a query may look.
    Returns [batch, queries, heads, head_size] in the dtype of value.
    """
    return _forward(query, key, value, visible)[0]


def _scores(query: jax.Array, key: jax.Array, visible: jax.Array) -> jax.Array:
    scores = dot("bqhd,bkhd->bhqk", query, key, FLOAT32) * query.shape[-1] ** -0.5
    return jnp.where(visible[:, None], scores, MASKED)


def _forward(query, key, value, visible):
    scores = _scores(query, key, visible)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top).astype(value.dtype)
    total = weights.astype(FLOAT32).sum(axis=-1, keepdims=True)
    mixed = dot("bhqk,bkhd->bhqd", weights, value, FLOAT32) / total
    mixed = mixed.swapaxes(1, 2).astype(value.dtype)
    return mixed, (query, key, value, visible, top + jnp.log(total), mixed)


def _backward(residuals, gradient):
    query, key, value, visible, normalizer, mixed = residuals
    dtype = value.dtype
    weights = jnp.exp(_scores(query, key, visible) - normalizer)
    along = (gradient.astype(FLOAT32) * mixed).sum(-1).swapaxes(1, 2)[..., None]
    slope = dot("bqhd,bkhd->bhqk", gradient, value, FLOAT32) - along
    slope = (slope * weights * query.shape[-1] ** -0.5).astype(dtype)
    query_gradient = dot("bhqk,bkhd->bhqd", slope, key, FLOAT32).swapaxes(1, 2)
    # Written transposed: [size, queries] x [queries, keys] moves the small operand, not the large.
    key_gradient = dot("bhdq,bhqk->bhdk", query.transpose(0, 2, 3, 1), slope, FLOAT32)
    across = gradient.transpose(0, 2, 3, 1)
    value_gradient = dot("bhdq,bhqk->bhdk", across, weights.astype(dtype), FLOAT32)
    back = lambda x: x.transpose(0, 3, 1, 2).astype(dtype)  # noqa: E731
    return query_gradient.astype(dtype), back(key_gradient), back(value_gradient), None


attention.defvjp(_forward, _backward)


def causal(positions: jax.Array, keys: int) -> jax.Array:
    """Mask [batch, queries, keys]: a query at a position sees slots up to and with its own."""
    return jnp.arange(keys) <= positions[..., None]


def same_document(tokens: jax.Array, end: int) -> jax.Array:
    """Mask [batch, length, length]: both tokens stand in one document of a packed row.

    tokens: int32 [batch, length]. A document ends with, and includes, the id `end`.
    """
    ends = (tokens == end).astype(jnp.int32)
    document = jnp.cumsum(ends, axis=-1) - ends
    return document[:, :, None] == document[:, None, :]
