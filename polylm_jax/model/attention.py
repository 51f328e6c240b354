"""Causal attention as a plain function of arrays."""

import jax
import jax.numpy as jnp

# Large and finite: a row that may see nothing stays finite, minus infinity would give NaN.
MASKED = -1e30


def attention(query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array) -> jax.Array:
    """Scaled dot-product attention with the softmax in float32.

    query: [batch, queries, heads, head_size]; key, value: [batch, keys, heads, head_size].
    visible: boolean, broadcast to [batch, queries, keys]; True where a query may look.
    Returns [batch, queries, heads, head_size] in the dtype of value.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, MASKED), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


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
