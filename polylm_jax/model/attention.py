"""Causal attention: the plain formula, and kernels that never hold [heads, length, length].

All have one meaning; `polylm_jax.parallel.sharding.attender` chooses by platform. The kernels
take whole rows and the numbers of their documents; only the plain formula serves a cache.
"""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from polylm_jax.model.products import FLOAT32, dot

# Large and finite: a row that may see nothing stays finite, minus infinity would give NaN.
MASKED = -1e30
# A splash block is a multiple of a TPU's 128 lanes; 512 keeps a block of scores in its memory.
LANES, LARGEST_BLOCK = 128, 512


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
    mixed = checkpoint_name(mixed.swapaxes(1, 2).astype(value.dtype), "attention")
    normalizer = checkpoint_name(top + jnp.log(total), "attention")
    return mixed, (query, key, value, visible, normalizer, mixed)


def _backward(residuals, gradient):
    # Scores are made again as [keys, queries], as the gradients of key and value want them.
    query, key, value, visible, normalizer, mixed = residuals
    dtype = value.dtype
    weights = jnp.exp(_scores(key, query, visible.swapaxes(1, 2)) - normalizer.swapaxes(2, 3))
    along = (gradient.astype(FLOAT32) * mixed).sum(-1).swapaxes(1, 2)[:, :, None]
    slope = dot("bkhd,bqhd->bhkq", value, gradient, FLOAT32) - along
    slope = (slope * weights * query.shape[-1] ** -0.5).astype(dtype)
    key_gradient = dot("bhkq,bqhd->bhkd", slope, query, FLOAT32).swapaxes(1, 2)
    value_gradient = dot("bhkq,bqhd->bhkd", weights.astype(dtype), gradient, FLOAT32).swapaxes(1, 2)
    # [size, keys] x [keys, queries] moves the small operand, not the large
    query_gradient = dot("bhdk,bhkq->bhdq", key.transpose(0, 2, 3, 1), slope, FLOAT32)
    return (
        query_gradient.transpose(0, 3, 1, 2).astype(dtype),
        key_gradient.astype(dtype),
        value_gradient.astype(dtype),
        None,
    )


attention.defvjp(_forward, _backward)


def halves(
    query: jax.Array, key: jax.Array, value: jax.Array, documents: jax.Array | None
) -> jax.Array:
    """The plain formula on whole rows; arguments as of splash, of any length.

    The first half of a long row's queries leaves out the keys behind it, a quarter of all scores:
    3% of a small step on a CPU, where quarters of a row lost what they left out.
    """
    length = query.shape[1]
    ends = [0, length // 2, length] if length >= 2 * LANES else [0, length]
    mixed = []
    for start, stop in pairwise(ends):
        visible = causal(jnp.arange(start, stop)[None], stop)
        if documents is not None:
            visible = visible & same_document(documents)[:, start:stop, :stop]
        mixed.append(attention(query[:, start:stop], key[:, :stop], value[:, :stop], visible))
    return jnp.concatenate(mixed, axis=1)


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    documents: jax.Array | None,
    interpret: bool = False,
) -> jax.Array:
    """Splash attention, the TPU's kernel, on one device's rows and heads.

    query, key, value: [batch, length, heads, head_size]; length is a multiple of 128.
    documents: int32 [batch, length], tokens of different numbers do not see each other; or None.
    interpret: emulates the kernel where there is no TPU.
    """
    length, heads, size = query.shape[1:]
    block = next(b for b in range(LARGEST_BLOCK, 0, -LANES) if length % b == 0)
    blocks: dict[str, Any] = dict.fromkeys(
        [
            *("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv"),
            *("block_kv_dkv_compute", "block_q_dq", "block_kv_dq"),
        ],
        block,
    )
    mask = splash_attention_mask.CausalMask((length, length))
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(**blocks),
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    segments = None
    if documents is not None:
        segments = splash_attention_kernel.SegmentIds(documents, documents)
    rows = [x.swapaxes(1, 2) for x in (query * size**-0.5, key, value)]
    return jax.vmap(kernel)(*rows, segments).swapaxes(1, 2)


def cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, documents: jax.Array | None
) -> jax.Array:
    """cuDNN's flash attention; arguments as of splash, in bfloat16, of any length.

    The kernel knows no documents: they go in as a mask [batch, 1, length, length], which is
    large, but shared by the heads.
    """
    mask = None if documents is None else same_document(documents)[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=True, implementation="cudnn"
    )


def causal(positions: jax.Array, keys: int) -> jax.Array:
    """Mask [batch, queries, keys]: a query at a position sees slots up to and with its own."""
    return jnp.arange(keys) <= positions[..., None]


def documents_of(tokens: jax.Array, end: int) -> jax.Array:
    """Number of each token's document in its packed row, int32 [batch, length] like tokens.

    A document ends with, and includes, the id `end`.
    """
    ends = (tokens == end).astype(jnp.int32)
    return jnp.cumsum(ends, axis=-1) - ends


def same_document(documents: jax.Array) -> jax.Array:
    """Mask [batch, length, length]: both tokens stand in one document."""
    return documents[:, :, None] == documents[:, None, :]
