"""Prompts into a static key-value cache: the state from which every search starts.

Prompts of different lengths share a batch: they are padded on the right, each row keeps its
own length, and slot i of the cache belongs to position i, so that no row ever sees another
row's padding, nor its own. Shapes are rounded up, see `slots_for`, and prompts are read in
chunks by one compiled loop, so that prompts of other lengths seldom need another program.
"""

import math
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polylm_jax.decode.sampling import NO_TOKEN, Sampling
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import (
    END_OF_DOCUMENT,
    Cache,
    Decoder,
    empty_cache,
    logits,
)

FEWEST_SLOTS = 64
FEWEST_STOPS = 4
# Prompts that a CPU reads before the next ones: what a layer writes of more leaves its caches
# before it is read.
ROWS_AT_ONCE = 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Texts under way, one a row.

    cache: keys and values of the texts so far; lengths: int32 [batch], their tokens.
    scores: float32 [batch, vocabulary], of the next token.
    seen: boolean [batch, vocabulary], tokens of the texts; None where nothing asks for it.
    stops: int32 [batch, ids], the ids that end a row, filled up with -1.
    left: int32 [batch], tokens that may still be added; done: boolean [batch].
    keys: random key [batch]; drawn: int32 [batch], tokens added so far.
    """

    cache: Cache
    lengths: jax.Array
    scores: jax.Array
    seen: jax.Array | None
    stops: jax.Array
    left: jax.Array
    done: jax.Array
    keys: jax.Array
    drawn: jax.Array


def prefill(
    decoder: Decoder,
    sampling: Sampling,
    params: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int] | None = None,
    stops: Sequence[Collection[int]] | None = None,
    repeats: Sequence[int] | None = None,
    rows: int = 1,
) -> State:
    """Reads the prompts.

    params: those of `weights.for_decoding`. prompts: token ids, which pass `check_prompts`.
    limits: most new tokens of each; sampling.new_tokens if not given.
    stops: the ids that end each; </s> if not given.
    repeats: how often each was drawn for before, which makes it another draw; 0 if not given.
    rows: the batch is padded to a multiple of this, the number of ways in which the mesh splits
        a batch.
    """
    context = decoder.size.context
    limits = limits or [sampling.new_tokens] * len(prompts)
    stops = stops or [{END_OF_DOCUMENT}] * len(prompts)
    repeats = repeats or [0] * len(prompts)
    needed = max(
        min(context, len(prompt) + limit) for prompt, limit in zip(prompts, limits, strict=True)
    )
    slots = slots_for(needed)
    extra = -len(prompts) % rows
    tokens = np.full((len(prompts) + extra, slots), END_OF_DOCUMENT, np.int32)
    ends = np.full(
        (len(prompts) + extra, power_of_two(max(FEWEST_STOPS, *map(len, stops)))), NO_TOKEN
    )
    lengths, left = np.ones((2, len(tokens)), np.int32)
    draws = np.zeros(len(tokens), np.uint32)
    given = zip(prompts, limits, stops, repeats, strict=True)
    for row, (prompt, limit, stop, repeat) in enumerate(given):
        tokens[row, : len(prompt)] = prompt
        ends[row, : len(stop)] = sorted(stop)
        lengths[row], left[row] = len(prompt), min(limit, context - len(prompt))
        draws[row] = draw_of(prompt, repeat)
    keys = _keys(jax.random.key(sampling.seed), draws)
    remember = sampling.repetition_penalty != 1
    cache, scores, seen = _read(decoder, remember, params, tokens, lengths)
    return State(
        cache=cache,
        lengths=jnp.asarray(lengths),
        scores=scores,
        seen=seen,
        stops=jnp.asarray(ends, jnp.int32),
        left=jnp.asarray(left),
        done=jnp.arange(len(tokens)) >= len(prompts),
        keys=keys,
        drawn=jnp.zeros(len(tokens), jnp.int32),
    )


def check_prompts(prompts: Sequence[Sequence[int]], context: int) -> None:
    """UserError if a prompt is empty, or leaves no room in the model's context."""
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise UserError(f"prompt {number} is empty; give at least one character.")
        if len(prompt) >= context:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens but the model's context is {context}; "
                "shorten it."
            )


def draw_of(prompt: Sequence[int], repeat: int = 0) -> int:
    """The number, below 2^32, that with the seed decides what is drawn after a prompt."""
    return zlib.crc32(np.array(prompt, np.int32).tobytes(), repeat)


def power_of_two(number: int) -> int:
    """The least power of two that is not below the number."""
    return 1 << (number - 1).bit_length()


def slots_for(tokens: int) -> int:
    """Slots of a cache for so many tokens: a power of two, or three quarters of one.

    Whatever a text's length, each of its tokens looks at all of them.
    """
    whole = power_of_two(max(tokens, FEWEST_SLOTS))
    return whole * 3 // 4 if FEWEST_SLOTS < tokens <= whole * 3 // 4 else whole


@jax.jit
def _keys(key: jax.Array, draws: jax.Array) -> jax.Array:
    """A random key [batch] for each number, uint32 [batch]."""
    return jax.vmap(partial(jax.random.fold_in, key))(draws)


@partial(jax.jit, static_argnums=(0, 1))
def _read(
    decoder: Decoder, remember: bool, params: Any, tokens: jax.Array, lengths: jax.Array
) -> tuple[Cache, jax.Array, jax.Array | None]:
    """Cache, scores after each row's last token, and what it has seen, if asked to remember.

    tokens: int32 [batch, slots], padded on the right; lengths: int32 [batch].
    """

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(-1, ROWS_AT_ONCE, *x.shape[1:])

    def in_parts(rows: tuple[jax.Array, jax.Array]) -> tuple[Cache, jax.Array]:
        parts = jax.lax.map(read, jax.tree.map(split, rows))
        cache, ends = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)
        return pinned(decoder, cache), ends

    read, rows = partial(_read_rows, decoder, params), (tokens, lengths - 1)
    if len(tokens) > ROWS_AT_ONCE and len(tokens) % ROWS_AT_ONCE == 0:
        cache, ends = jax.lax.platform_dependent(rows, cpu=in_parts, default=read)
    else:
        cache, ends = read(rows)
    return cache, logits(ends, params["embedding"]), _seen(decoder, remember, tokens, lengths)


def _read_rows(
    decoder: Decoder, params: Any, rows: tuple[jax.Array, jax.Array]
) -> tuple[Cache, jax.Array]:
    """Cache, and the hidden state at each row's last place; rows: their tokens and last places."""
    tokens, last = rows
    batch, slots = tokens.shape
    chunk = min(decoder.compute.prefill_chunk, slots)
    dtype = decoder.compute.cache_dtype or decoder.compute.dtype
    cache = pinned(decoder, empty_cache(decoder.size, batch, slots, dtype))
    # The first chunk looks at no slots; most prompts end in it.
    outputs: Any = decoder.apply({"params": params}, tokens[:, :chunk], cache)
    hidden, cache = outputs
    ends = hidden[jnp.arange(batch), jnp.minimum(last, chunk - 1)]
    if chunk < slots:
        cache, ends = _read_rest(decoder, params, tokens, last, cache, ends)
    return cache, ends


def _read_rest(
    decoder: Decoder,
    params: Any,
    tokens: jax.Array,
    last: jax.Array,
    cache: Cache,
    ends: jax.Array,
) -> tuple[Cache, jax.Array]:
    """The cache with what comes after the first chunk, and each row's last hidden state.

    last: the rows' last places, int32 [batch]; ends: the last hidden states of those rows that
    end in the first chunk, compute dtype [batch, d_model].
    """
    batch, slots = tokens.shape
    read, rows = min(decoder.compute.prefill_chunk, slots), jnp.arange(batch)
    chunk = math.gcd(read, slots)  # so that none reaches beyond the last slot

    def read_chunk(number: jax.Array, state: tuple[Cache, jax.Array]) -> tuple[Cache, jax.Array]:
        cache, ends = state
        begin = number * chunk
        positions = (begin + jnp.arange(chunk))[None]
        part = jax.lax.dynamic_slice_in_dim(tokens, begin, chunk, axis=1)
        outputs: Any = decoder.apply({"params": params}, part, cache, positions)
        hidden, cache = outputs
        place = last - begin
        here = ((place >= 0) & (place < chunk))[:, None]
        return cache, jnp.where(here, hidden[rows, place % chunk], ends)

    return jax.lax.fori_loop(read // chunk, last.max() // chunk + 1, read_chunk, (cache, ends))


def _seen(
    decoder: Decoder, remember: bool, tokens: jax.Array, lengths: jax.Array
) -> jax.Array | None:
    if not remember:
        return None
    batch, slots = tokens.shape
    real = jnp.arange(slots) < lengths[:, None]
    seen = jnp.zeros((batch, decoder.size.vocabulary), bool)
    return seen.at[jnp.arange(batch)[:, None], tokens].max(real)


def pinned(decoder: Decoder, cache: Any) -> Any:
    """The cache, or what was cut from one, split over the mesh as the decoder splits it."""
    return jax.tree.map(lambda x: decoder.constrain(x, "batch", "heads", None, None), cache)


def merged(
    slots: jax.Array,
    tail: jax.Array,
    places: jax.Array,
    lengths: jax.Array,
    written: jax.Array,
    axis: int = 2,
) -> jax.Array:
    """Slots [all, heads, slots, head_size] with `written` of the tail behind each row's length.

    places: which of all the rows are. Nothing else changes, be it that the tail reaches beyond the
    last slot, or begins before the first. axis: 3 where head_size comes before the slots.
    """
    since, tail = jnp.arange(tail.shape[2]), tail.astype(slots.dtype)
    at, nowhere = lengths[:, None] + since, slots.shape[axis]
    at = jnp.where((since < written[:, None]) & (at >= 0), at, nowhere)
    rows = (places[:, None], *[slice(None)] * (axis - 1), at)

    def put(slots: jax.Array, tail: jax.Array) -> jax.Array:
        return slots.at[rows].set(tail.swapaxes(1, 2), mode="drop")

    def as_bits(slots: jax.Array, tail: jax.Array) -> jax.Array:
        """A CPU would make all slots float32 to scatter bfloat16 into them."""
        held, new = (jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (slots, tail))
        return jax.lax.bitcast_convert_type(put(held, new), slots.dtype)

    if slots.dtype != jnp.bfloat16:
        return put(slots, tail)
    return jax.lax.platform_dependent(slots, tail, cpu=as_bits, default=put)


def turned(cache: Cache, at_once: bool = False) -> Cache:
    """A cache as a CPU multiplies it, keys [batch, heads, head_size, slots]; or that back again.

    at_once: all heads in one product, in bfloat16: keys [batch, slots, heads, head_size], values
    [batch, heads, head_size, slots]. To turn back in a loop what was made before it moves nothing.
    """
    axes = {"key": (1, 2), "value": (2, 3)} if at_once else {"key": (2, 3), "value": (2, 2)}
    return tuple({name: x.swapaxes(*axes[name]) for name, x in layer.items()} for layer in cache)
