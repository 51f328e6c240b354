"""Causal attention: the plain formula, and kernels that never hold [heads, length, length].

All have one meaning; `polylm_jax.parallel.sharding.attender` chooses by platform. The kernels
take whole rows and the numbers of their documents; only the plain formula serves a cache.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from polylm_jax.model.products import COLUMNS, FLOAT32, dot

# Large and finite: a row that may see nothing stays finite, minus infinity would give NaN.
MASKED = -1e30
# A splash block is a multiple of a TPU's 128 lanes; 512 keeps a block of scores in its memory.
LANES, LARGEST_BLOCK = 128, 512
STEPS = 4  # of the staircase, at most; each at least LANES queries
# Queries over trees that are taken at a time, and how many times as many keys before their own
# they may look at: the first of these that is enough.
TREE_BLOCK, TREE_REACHES = 64, (0, 1, 2, 3, 5, 7)


class Trees(NamedTuple):
    """Documents that are trees: a stem of branch 0, then branches 1, 2, … that go on from it and
    do not see each other. Both int32 [batch, length]."""

    documents: jax.Array
    branches: jax.Array


Scope = jax.Array | Trees | None  # the documents of whole rows; None where a row is one


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array, steps: int = 1
) -> jax.Array:
    """Scaled dot-product attention with the softmax in float32.

    query: [batch, queries, heads, head_size]; key, value: [batch, keys, heads, head_size].
    visible: boolean, broadcast to [batch, queries, keys]; True where a query may look.
    steps: equal parts of a whole row's queries, taken one by one; none sees keys behind its own.
    Returns [batch, queries, heads, head_size] in the dtype of value.
    """
    return _forward(query, key, value, visible, steps)[0]


def _parts(query: jax.Array, key: jax.Array, steps: int) -> list[tuple[slice, slice]]:
    """The queries of each step, and the keys that they may see."""
    if steps == 1:
        return [(slice(query.shape[1]), slice(key.shape[1]))]
    ends = range(0, query.shape[1] + 1, query.shape[1] // steps)
    return [(slice(start, stop), slice(stop)) for start, stop in pairwise(ends)]


def _forward(query, key, value, visible, steps):
    visible = jnp.broadcast_to(visible, (len(visible), query.shape[1], key.shape[1]))
    mixed, weights, totals = [], [], []
    for rows, seen in _parts(query, key, steps):
        scores = dot("bqhd,bkhd->bhqk", query[:, rows], key[:, seen], FLOAT32)
        scores = scores * query.shape[-1] ** -0.5
        scores = jnp.where(visible[:, None, rows, seen], scores, MASKED)
        weight = jnp.exp(scores - scores.max(axis=-1, keepdims=True)).astype(value.dtype)
        total = weight.astype(FLOAT32).sum(axis=-1, keepdims=True)
        part = dot("bhqk,bkhd->bhqd", weight, value[:, seen], FLOAT32) / total
        mixed.append(part.swapaxes(1, 2).astype(value.dtype))
        weights.append(weight)
        totals.append(total.swapaxes(1, 2))
    mixed = checkpoint_name(jnp.concatenate(mixed, axis=1), "attention")
    return mixed, (query, key, value, mixed, weights, totals)


def _backward(steps, residuals, gradient):
    # The weights stay undivided by their totals: the gradient is divided, which is smaller.
    query, key, value, mixed, weights, totals = residuals
    of_query: list[jax.Array] = []
    of_key: list[jax.Array] = []
    of_value: list[jax.Array] = []
    parts = _parts(query, key, steps)
    for (rows, seen), weight, total in zip(parts, weights, totals, strict=True):
        slope = gradient[:, rows].astype(FLOAT32) / total
        along = (slope * mixed[:, rows]).sum(-1).swapaxes(1, 2)[..., None]
        slope = slope.astype(value.dtype)
        of_scores = dot("bqhd,bkhd->bhqk", slope, value[:, seen], FLOAT32) - along
        of_scores = (of_scores * weight * query.shape[-1] ** -0.5).astype(value.dtype)
        of_query.append(dot("bhqk,bkhd->bhqd", of_scores, key[:, seen], FLOAT32))
        # [size, queries] x [queries, keys] moves the small operand, not the large
        unseen = ((0, 0), (0, 0), (0, 0), (0, key.shape[1] - seen.stop))
        for gradients, x, y in ((of_key, query[:, rows], of_scores), (of_value, slope, weight)):
            gradients.append(jnp.pad(dot("bqhd,bhqk->bhdk", x, y, FLOAT32), unseen))
    return (
        jnp.concatenate(of_query, axis=2).swapaxes(1, 2).astype(query.dtype),
        reduce(jnp.add, of_key).transpose(0, 3, 1, 2).astype(key.dtype),
        reduce(jnp.add, of_value).transpose(0, 3, 1, 2).astype(value.dtype),
        None,
    )


attention.defvjp(_forward, _backward)


def staircase(query: jax.Array, key: jax.Array, value: jax.Array, scope: Scope) -> jax.Array:
    """The plain formula on whole rows; arguments as of splash, of any length.

    A row's queries are taken in steps, which leave out the keys behind them: of four steps, three
    eighths of all scores are never made.
    """
    length = query.shape[1]
    visible = causal(jnp.arange(length)[None], length)
    if scope is not None:
        visible = visible & within(scope)
    fitting = [n for n in range(2, STEPS + 1) if length % n == 0 and length // n >= LANES]
    return attention(query, key, value, visible, max(fitting, default=1))


def over_trees(query: jax.Array, key: jax.Array, value: jax.Array, scope: Trees) -> jax.Array:
    """The plain formula on rows of trees, of a multiple of TREE_BLOCK tokens.

    Row by row, a block of queries looks at its own keys and back to where the first of its trees
    begins: as far as trees are long, not rows, and what it makes stays in a processor's cache.
    """
    arrays = (query, key, value, *scope)
    row = lambda one: _over_trees_of_a_row(*(x[None] for x in one))[0]  # noqa: E731
    return jax.lax.map(row, arrays)


def _over_trees_of_a_row(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    documents: jax.Array,
    branches: jax.Array,
) -> jax.Array:
    blocks = query.shape[1] // TREE_BLOCK
    first = _first_of(_begins(documents))[0, ::TREE_BLOCK]
    before = jnp.arange(blocks) - first // TREE_BLOCK
    reaches = [*(n for n in TREE_REACHES if n < blocks - 1), blocks - 1]

    def part(x: jax.Array, start: jax.Array, count: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start * TREE_BLOCK, count * TREE_BLOCK, axis=1)

    def looking_back(reach: int) -> Callable[[jax.Array], jax.Array]:
        def of_block(block: jax.Array) -> jax.Array:
            start = jnp.maximum(block - reach, 0)
            seen = partial(part, start=start, count=reach + 1)
            mine = partial(part, start=block, count=1)
            places = jnp.arange(TREE_BLOCK)[None] + (block - start) * TREE_BLOCK
            visible = causal(places, (reach + 1) * TREE_BLOCK)
            visible &= mine(documents)[:, :, None] == seen(documents)[:, None]
            stem, same = seen(branches) == 0, mine(branches)[:, :, None] == seen(branches)[:, None]
            visible &= stem[:, None] | same
            return attention(mine(query), seen(key), seen(value), visible)

        return of_block

    turns = [looking_back(reach) for reach in reaches]
    which = jnp.searchsorted(jnp.array(reaches), before)
    step = lambda one: jax.lax.switch(one[1], turns, one[0])  # noqa: E731
    mixed = jax.lax.map(step, (jnp.arange(blocks), which))
    return mixed.swapaxes(0, 1).reshape(query.shape)


def in_parts(
    query: jax.Array, parts: Sequence[tuple[jax.Array, jax.Array]], visible: jax.Array
) -> jax.Array:
    """The plain formula on keys and values that lie in several arrays, which it does not join.

    query: [batch, queries, heads, head_size], as wide as any part; each key and value: [batch,
    heads, keys, head_size]. visible: boolean [batch, queries, keys of all parts]. Returns what
    `attention` does, in the dtype of query. All is made of each part by itself, as its size has it:
    so one of which nothing is visible changes no bit.
    """
    ends = [0, *accumulate(key.shape[2] for key, _ in parts)]
    scores = []
    for (start, end), (key, _) in zip(pairwise(ends), parts, strict=True):
        score = _scores(query, key) * query.shape[-1] ** -0.5
        scores.append(jnp.where(visible[:, None, :, start:end], score, MASKED))
    most = reduce(jnp.maximum, [score.max(axis=-1, keepdims=True) for score in scores])
    weights = [jnp.exp(score - most).astype(query.dtype) for score in scores]
    total = [weight.astype(FLOAT32).sum(axis=-1, keepdims=True) for weight in weights]
    mixed = [_mixed(weight, value) for weight, (_, value) in zip(weights, parts, strict=True)]
    mean = reduce(jnp.add, mixed) / reduce(jnp.add, total)
    return mean.swapaxes(1, 2).astype(query.dtype)


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Float32 [batch, heads, queries, keys]; arguments as of in_parts."""

    def plain(query: jax.Array, key: jax.Array) -> jax.Array:
        return dot("bqhd,bhkd->bhqk", query, key.astype(query.dtype), FLOAT32)

    def of_all_heads(query: jax.Array, key: jax.Array) -> jax.Array:
        batch, _, heads, size = query.shape
        own = jnp.arange(_columns(heads))[:, None] == jnp.arange(heads)
        apart = jnp.where(own[..., None], query.astype(key.dtype), 0)
        key = key.swapaxes(1, 2).reshape(batch, -1, heads * size)
        found = dot("bkd,bcd->bkc", key, apart.reshape(batch, -1, heads * size), FLOAT32)
        return found[..., :heads].swapaxes(1, 2)[:, :, None]

    if not _at_once(query.shape[1], query, key):
        return plain(query, key)
    return jax.lax.platform_dependent(query, key, cpu=of_all_heads, default=plain)


def _mixed(weight: jax.Array, value: jax.Array) -> jax.Array:
    """Float32 [batch, heads, queries, head_size] of weights [batch, heads, queries, keys]."""

    def plain(weight: jax.Array, value: jax.Array) -> jax.Array:
        return dot("bhqk,bhkd->bhqd", weight, value.astype(weight.dtype), FLOAT32)

    def of_all_heads(weight: jax.Array, value: jax.Array) -> jax.Array:
        batch, heads, keys, size = value.shape
        unused = ((0, 0), (0, _columns(heads) - heads), (0, 0))
        columns = jnp.pad(weight[:, :, 0].astype(value.dtype), unused)
        value = value.swapaxes(2, 3).reshape(batch, heads * size, keys)
        found = dot("bdk,bck->bdc", value, columns, FLOAT32)
        found, number = found.reshape(batch, heads, size, -1), jnp.arange(heads)
        return found[:, number, :, number].swapaxes(0, 1)[:, :, None]

    if not _at_once(weight.shape[2], weight, value):
        return plain(weight, value)
    return jax.lax.platform_dependent(weight, value, cpu=of_all_heads, default=plain)


def _at_once(queries: int, right: jax.Array, slots: jax.Array) -> bool:
    """Whether a CPU takes one product for all heads, each of which is a column of its right
    operand, 0 in the others' rows: where slots are kept narrower than they would be multiplied.

    Of a product with one column it makes all bfloat16 float32, and runs it on one core.
    """
    return queries == 1 and slots.dtype == jnp.bfloat16 and right.dtype == FLOAT32


def _columns(heads: int) -> int:
    return -(-heads // COLUMNS) * COLUMNS


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    scope: Scope,
    interpret: bool = False,
) -> jax.Array:
    """Splash attention, the TPU's kernel, on one device's rows and heads.

    query, key, value: [batch, length, heads, head_size]; length is a multiple of 128.
    scope: documents int32 [batch, length], tokens of different numbers do not see each other; or
    trees, for which the kernel runs twice: on the stems, and on each token's own branch. It has no
    gradient there. interpret: emulates the kernel where there is no TPU.
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
    trees = isinstance(scope, Trees)
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(**blocks),
        save_residuals=trees,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    ids = splash_attention_kernel.SegmentIds
    rows = [x.swapaxes(1, 2) for x in (query * size**-0.5, key, value)]
    if not isinstance(scope, Trees):
        segments = None if scope is None else ids(scope, scope)
        return jax.vmap(kernel)(*rows, segments).swapaxes(1, 2)
    stem, own = scope.branches == 0, _first_of(_begins(scope.documents) | _begins(scope.branches))
    of_stem = ids(scope.documents, jnp.where(stem, scope.documents, -1))
    of_branch = ids(jnp.where(stem, -2, own), jnp.where(stem, -1, own))
    # where a token sees nothing its sum is next to nothing, and so is that part of the mixture
    (one, (sum_of_one,)), (other, (sum_of_other,)) = (
        jax.vmap(kernel)(*rows, segments) for segments in (of_stem, of_branch)
    )
    share = jax.nn.sigmoid(sum_of_other - sum_of_one)[..., None]
    one, other = one.astype(FLOAT32), other.astype(FLOAT32)
    return (one + share * (other - one)).astype(value.dtype).swapaxes(1, 2)


def cudnn(query: jax.Array, key: jax.Array, value: jax.Array, scope: Scope) -> jax.Array:
    """cuDNN's flash attention; arguments as of splash, in bfloat16, of any length.

    The kernel knows no documents: they go in as a mask [batch, 1, length, length], which is
    large, but shared by the heads.
    """
    mask = None if scope is None else within(scope)[:, None]
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


def since_first(documents: jax.Array) -> jax.Array:
    """How far each token stands behind its document's first, int32 [batch, length] as documents."""
    return jnp.arange(documents.shape[1]) - _first_of(_begins(documents))


def same_document(documents: jax.Array) -> jax.Array:
    """Mask [batch, length, length]: both tokens stand in one document."""
    return documents[:, :, None] == documents[:, None, :]


def since_stem(documents: jax.Array, branches: jax.Array) -> jax.Array:
    """How far each token stands behind its tree's first on its own way, int32 [batch, length].

    documents, branches: int32 [batch, length]; a document is a stem, of branch 0, then branches
    1, 2, … that all go on where the stem ends.
    """
    stem = (branches == 0).astype(jnp.int32)
    before = jnp.cumsum(stem, axis=1) - stem
    outside = jax.lax.cummax(jnp.where(_begins(documents), before, 0), axis=1)
    along = jnp.arange(documents.shape[1]) - _first_of(_begins(documents) | _begins(branches))
    return jnp.where(branches == 0, before - outside, before - outside + along)


def _begins(numbers: jax.Array) -> jax.Array:
    return jnp.diff(numbers, axis=1, prepend=numbers[:, :1] - 1) != 0


def _first_of(begins: jax.Array) -> jax.Array:
    """The last place up to each at which something begins, int32 [batch, length] as begins."""
    return jax.lax.cummax(jnp.where(begins, jnp.arange(begins.shape[1]), 0), axis=1)


def within(scope: jax.Array | Trees) -> jax.Array:
    """Mask [batch, length, length]: both tokens stand in one document, on one way if it is a
    tree."""
    if isinstance(scope, Trees):
        return same_document(scope.documents) & on_one_way(scope.branches)
    return same_document(scope)


def on_one_way(branches: jax.Array) -> jax.Array:
    """Mask [batch, length, length]: the key stands in the stem or in the query's own branch."""
    keys = branches[:, None, :]
    return (keys == 0) | (keys == branches[:, :, None])
