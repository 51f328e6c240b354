"""Text from a model: prefill, then one compiled loop over a static key-value cache.

Prompts of different lengths share a batch: they are padded on the right, each row keeps its
own position, and slot i of the cache belongs to position i, so that no row ever sees another
row's padding, nor its own.
"""

import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polylm_jax.errors import UserError
from polylm_jax.model.decoder import END_OF_DOCUMENT, Cache, Decoder, empty_cache, logits

# Prompt and cache lengths are rounded up to a multiple, so that few shapes are compiled.
BUCKET = 64


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy.

    new_tokens: most that are added; generation ends earlier at </s> (id 2).
    temperature: 0 takes the best token; the release's demo samples at 0.7 with top_p 0.8.
    top_k, top_p: keep the k best, or the fewest best whose probabilities reach p; 0 and 1: all.
    repetition_penalty: divides positive scores of tokens seen before, multiplies negative ones
        (Keskar et al. 2019); 1 does nothing.
    seed: with the prompt's own ids, decides the draw, whatever else is in the batch.
    """

    new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, right, rule in (
            ("new_tokens", self.new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not right:
                raise UserError(f"sampling.{name} = {getattr(self, name)}; it must be {rule}.")


def generate(
    decoder: Decoder, params: Any, prompts: list[list[int]], sampling: Sampling, rows: int = 1
) -> list[list[int]]:
    """Continues each prompt; returns the new ids only, cut before </s>.

    prompts: token ids, of any lengths. rows: the batch is padded to a multiple of this, the
    number of ways in which the mesh splits a batch. UserError if a prompt is empty, or leaves
    no room in the model's context.
    """
    context = decoder.size.context
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise UserError(f"prompt {number} is empty; give at least one character.")
        if len(prompt) >= context:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens but the model's context is {context}; "
                "shorten it."
            )
    longest = max(map(len, prompts))
    width = min(context, _bucket(longest))
    slots = min(context, _bucket(longest + sampling.new_tokens))
    filled = prompts + prompts[:1] * (-len(prompts) % rows)
    tokens = np.full((len(filled), width), END_OF_DOCUMENT, np.int32)
    for row, prompt in enumerate(filled):
        tokens[row, : len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in filled], np.int32)
    draws = np.array([zlib.crc32(np.array(p, np.int32).tobytes()) for p in filled], np.uint32)
    new, counts = _generate(decoder, sampling, slots, params, tokens, lengths, draws)
    new, counts = np.asarray(new), np.asarray(counts)
    return [new[row, : counts[row]].tolist() for row in range(len(prompts))]


def _bucket(length: int) -> int:
    return -(-length // BUCKET) * BUCKET


@partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    decoder: Decoder,
    sampling: Sampling,
    slots: int,
    params: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    draws: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Compiled generation.

    tokens: int32 [batch, width], padded on the right; lengths: int32 [batch]; draws: uint32
    [batch], what tells the rows' random numbers apart. Returns new ids [batch, new_tokens] and
    how many of each row count [batch].
    """
    batch, width = tokens.shape
    size, rows = decoder.size, jnp.arange(tokens.shape[0])
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(sampling.seed)))(draws)

    def run(tokens: jax.Array, cache: Cache, positions: jax.Array) -> tuple[jax.Array, Cache]:
        outputs: Any = decoder.apply({"params": params}, tokens, cache, positions)
        return outputs

    cache = empty_cache(size, batch, slots, decoder.compute.dtype)
    positions = jnp.broadcast_to(jnp.arange(width), (batch, width))
    hidden, cache = run(tokens, cache, positions)
    scores = logits(hidden[rows, lengths - 1], params["embedding"])
    real = positions < lengths[:, None]
    seen = jnp.zeros((batch, size.vocabulary), bool)
    seen = seen.at[rows[:, None], tokens].max(real)

    def unfinished(state: dict[str, Any]) -> jax.Array:
        return (state["count"] < sampling.new_tokens) & ~state["done"].all()

    def one_token(state: dict[str, Any]) -> dict[str, Any]:
        token = choose(state["scores"], state["seen"], keys, state["count"], sampling)
        position = lengths + state["count"]
        done = state["done"] | (token == END_OF_DOCUMENT) | (position >= size.context)
        new = state["new"].at[:, state["count"]].set(token)
        # A finished row repeats its last slot, where it harms nobody.
        slot = jnp.minimum(position, slots - 1)
        hidden, cache = run(token[:, None], state["cache"], slot[:, None])
        return {
            "count": state["count"] + 1,
            "done": done,
            "counts": state["counts"] + ~done,
            "new": new,
            "seen": state["seen"].at[rows, token].set(True),
            "cache": cache,
            "scores": logits(hidden[:, 0], params["embedding"]),
        }

    state: dict[str, Any] = {
        "count": jnp.zeros((), jnp.int32),
        "done": jnp.zeros(batch, bool),
        "counts": jnp.zeros(batch, jnp.int32),
        "new": jnp.full((batch, sampling.new_tokens), END_OF_DOCUMENT, jnp.int32),
        "seen": seen,
        "cache": cache,
        "scores": scores,
    }
    state = jax.lax.while_loop(unfinished, one_token, state)
    return state["new"], state["counts"]


def choose(
    scores: jax.Array, seen: jax.Array, keys: jax.Array, count: jax.Array, sampling: Sampling
) -> jax.Array:
    """The next token of each row, int32 [batch].

    scores: float32 [batch, vocabulary]; seen: boolean of the same shape, tokens of the text so
    far; keys: a random key per row; count: tokens drawn before, which with the key decides the
    draw. The order (penalty, temperature, top-k, top-p) is Hugging Face's.
    """
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        scores = jnp.where(seen, jnp.where(scores > 0, scores / penalty, scores * penalty), scores)
    if sampling.temperature == 0:
        return scores.argmax(-1).astype(jnp.int32)
    scores = scores / sampling.temperature
    if sampling.top_k:
        least = jax.lax.top_k(scores, min(sampling.top_k, scores.shape[-1]))[0][:, -1:]
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if sampling.top_p < 1:
        ordered = jnp.sort(scores, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = probabilities.cumsum(-1) - probabilities
        least = jnp.where(before < sampling.top_p, ordered, jnp.inf).min(-1, keepdims=True)
        scores = jnp.where(scores < least, -jnp.inf, scores)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
    return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
