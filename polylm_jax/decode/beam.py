"""Beam search by the rules of Hugging Face's `generate`, for a batch, in one compiled loop.

Every row is searched by itself: it has its own prompt length, limit and stop ids, and closes
when its own rule says so, whatever the rows beside it do.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from polylm_jax.decode.prefill import State
from polylm_jax.decode.sampling import NO_TOKEN, Sampling, are_numbers, choosable, penalise
from polylm_jax.model.decoder import END_OF_DOCUMENT, Decoder, logits

# The score of a text that does not exist; minus infinity would give NaN when divided and added.
NOTHING = -1e9


@partial(jax.jit, static_argnums=(0, 1, 2))
def beam_search(
    decoder: Decoder, sampling: Sampling, tokens: int, params: Any, state: State
) -> tuple[jax.Array, jax.Array]:
    """The best text of each row: ids int32 [batch, tokens], and how many count [batch].

    tokens: no less than the largest of the rows' limits. state: from `prefill`. A text's score is
    its summed log-probability / (new tokens, a stop id included) ** length_penalty. Of each step's
    candidates only the best `beams` may end, the rest are there to go on. A row that met scores
    that are no numbers is NO_TOKEN throughout.
    """
    batch, beams = state.lengths.shape[0], sampling.beams
    vocabulary, most = decoder.size.vocabulary, state.stops.shape[1]
    candidates = (1 + most) * beams  # each beam may lose as many to stop ids
    limits, stops = state.left, state.stops
    early = sampling.early_stopping == "yes"

    def spread(x: jax.Array) -> jax.Array:
        return jnp.repeat(x, beams, axis=0)

    def select(x: jax.Array, index: jax.Array) -> jax.Array:
        """x: [batch, n, …] -> [batch, k, …] by index [batch, k]."""
        return jax.vmap(lambda row, i: row[i])(x, index)

    def reorder(x: jax.Array, index: jax.Array) -> jax.Array:
        """x: [batch x beams, …], each row's beams in another order."""
        return select(x.reshape(batch, beams, *x.shape[1:]), index).reshape(x.shape)

    def step(carry: dict[str, Any]) -> dict[str, Any]:
        count = carry["count"]
        scores = jax.nn.log_softmax(carry["scores"], axis=-1)
        scores = penalise(scores, carry["seen"], sampling.repetition_penalty)
        scores = choosable(scores, decoder.ids)
        numbers = are_numbers(scores).reshape(batch, beams).all(1)
        scores = scores.reshape(batch, beams, vocabulary) + carry["running"][:, :, None]
        totals, index = jax.lax.top_k(scores.reshape(batch, -1), candidates)
        origin, token = index // vocabulary, (index % vocabulary).astype(jnp.int32)
        texts = select(carry["texts"], origin).at[:, :, count].set(token)
        ends = (token[:, :, None] == stops[:, None]).any(-1) | (count + 1 >= limits)[:, None]

        # those that have ended and are good enough join the best
        full = carry["ended"].all(1)
        enters = ends & (jnp.arange(candidates) < beams) & carry["open"][:, None]
        enters = enters & ~(full & early)[:, None]
        final = totals / (count + 1.0) ** sampling.length_penalty
        merged = jnp.concatenate([carry["best"], jnp.where(enters, final, -jnp.inf)], axis=1)
        best, kept = jax.lax.top_k(merged, beams)
        best_texts = select(jnp.concatenate([carry["best_texts"], texts], axis=1), kept)
        ended = select(jnp.concatenate([carry["ended"], enters], axis=1), kept)
        lengths = jnp.full((batch, candidates), count + 1)
        best_counts = select(jnp.concatenate([carry["best_counts"], lengths], axis=1), kept)

        # the best of the others go on
        running, chosen = jax.lax.top_k(jnp.where(ends, totals + NOTHING, totals), beams)
        origin, texts = select(origin, chosen), select(texts, chosen)
        token = select(token, chosen).reshape(-1)

        # a row stays open while a running text could still overtake its worst
        count = count + 1
        length = jnp.broadcast_to(count, limits.shape)
        if sampling.early_stopping == "never" and sampling.length_penalty > 0:
            length = limits
        hope = running[:, 0] / length.astype(jnp.float32) ** sampling.length_penalty
        full = ended.all(1)
        opens = carry["open"] & (~full | (hope > best[:, -1])) & ~(full & early)

        cache = jax.tree.map(lambda x: reorder(x, origin), carry["cache"])
        positions = spread(state.lengths) + count - 1
        outputs: Any = decoder.apply({"params": params}, token[:, None], cache, positions[:, None])
        hidden, cache = outputs
        seen = carry["seen"]
        if seen is not None:
            seen = reorder(seen, origin).at[jnp.arange(batch * beams), token].set(True)
        return {
            "count": count,
            "open": opens & (count < limits) & numbers,
            "numbers": carry["numbers"] & (numbers | ~carry["open"]),
            "cache": cache,
            "scores": logits(hidden[:, 0], params["embedding"]),
            "seen": seen,
            "running": running,
            "texts": texts,
            "best": best,
            "best_texts": best_texts,
            "best_counts": best_counts,
            "ended": ended,
        }

    texts = jnp.full((batch, beams, tokens), END_OF_DOCUMENT, jnp.int32)
    carry: dict[str, Any] = {
        "count": jnp.zeros((), jnp.int32),
        "open": ~state.done,
        "numbers": jnp.ones(batch, bool),
        "cache": jax.tree.map(spread, state.cache),
        "scores": spread(state.scores),
        "seen": jax.tree.map(spread, state.seen),
        # all beams are the prompt at first: only one may speak
        "running": jnp.full((batch, beams), NOTHING).at[:, 0].set(0),
        "texts": texts,
        "best": jnp.full((batch, beams), NOTHING),
        "best_texts": texts,
        "best_counts": jnp.zeros((batch, beams), jnp.int32),
        "ended": jnp.zeros((batch, beams), bool),
    }
    carry = jax.lax.while_loop(lambda carry: carry["open"].any(), step, carry)
    new, counts = carry["best_texts"][:, 0], carry["best_counts"][:, 0]
    new = jnp.where(carry["numbers"][:, None], new, NO_TOKEN)
    last = new[jnp.arange(batch), counts - 1]
    return new, counts - (last[:, None] == stops).any(-1)
