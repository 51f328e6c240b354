"""Text from a model: prefill, then one compiled loop that adds tokens."""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polylm_jax.decode.beam import beam_search
from polylm_jax.decode.prefill import (
    State,
    check_prompts,
    merged,
    pinned,
    power_of_two,
    prefill,
    turned,
)
from polylm_jax.decode.sampling import NO_TOKEN, Sampling, check_chosen, choosable, choose
from polylm_jax.decode.shares import shares, side_by_side
from polylm_jax.model.decoder import END_OF_DOCUMENT, Cache, Decoder, Tail, empty_cache, logits

Carry = tuple[jax.Array, State, jax.Array]  # tokens that were added, the texts, the new ids

BURST = 32  # tokens that a CPU adds between two writes into the cache
TOKENS_AT_ONCE = 16  # between two looks at the texts, where one may end by what it says


def generate(
    decoder: Decoder,
    params: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    rows: int = 1,
    limits: Sequence[int] | None = None,
    stops: Sequence[Collection[int]] | None = None,
    repeats: Sequence[int] | None = None,
    ended: Callable[[int, list[int]], bool] | None = None,
) -> list[list[int]]:
    """Continues each prompt; returns the new ids only, cut before the id that ended it.

    The other arguments are those of `prefill`; a UserError for what `check_prompts` refuses, and if
    the model's scores are no numbers. ended: function (number of a prompt, its new ids) -> whether
    to leave it there, asked every few tokens, from several threads; not for a beam search.
    """
    check_prompts(prompts, decoder.size.context)
    batch = -(-len(prompts) // rows) * rows
    number = shares(params, batch)
    longest, left = power_of_two(max(limits or [sampling.new_tokens])), threading.Event()

    def share(first: int) -> list[list[int]]:
        """Every so manyth prompt, so that short and long ones are shared evenly."""
        mine = slice(first, None, number)
        state = prefill(
            decoder,
            sampling,
            params,
            prompts[mine],
            limits and limits[mine],
            stops and stops[mine],
            repeats and repeats[mine],
            rows=-(-batch // number),
        )
        count = len(prompts[mine])
        if ended:
            over = lambda row, new: left.is_set() or ended(first + number * row, new)  # noqa: E731
            return _watched(decoder, params, state, sampling, count, over)
        if sampling.beams > 1:
            found = beam_search(decoder, rules(sampling), longest, params, state)
        else:
            found = decode_some(decoder, sampling, params, state, longest)[1:]
        new, counts = map(np.asarray, found)
        check_chosen(new)
        return [new[row, : counts[row]].tolist() for row in range(count)]

    texts: list[list[int]] = [[] for _ in prompts]
    every = range(min(number, len(prompts)))
    for first, found in enumerate(side_by_side(share, every, leave=left.set)):
        texts[first::number] = found
    return texts


def decode_some(
    decoder: Decoder, sampling: Sampling, params: Any, state: State, tokens: int
) -> tuple[State, jax.Array, jax.Array]:
    """Adds up to so many tokens to each row, with no word from the host between them.

    Returns the state, the new ids int32 [batch, tokens] and how many of each row count
    [batch]; a row's stop id does not. A row whose scores are no numbers ends with NO_TOKEN, which
    `check_chosen` looks for. The state given is used up. Until `state.done.all()`
    more calls continue the same texts: however they are cut, the tokens are the same.
    """
    return _decode(decoder, rules(sampling), tokens, params, state)


def _watched(
    decoder: Decoder,
    params: Any,
    state: State,
    sampling: Sampling,
    prompts: int,
    ended: Callable[[int, list[int]], bool],
) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in range(prompts)]
    while not state.done.all():
        state, *found = decode_some(decoder, sampling, params, state, TOKENS_AT_ONCE)
        new, counts = map(np.asarray, found)
        check_chosen(new)
        over = np.zeros(len(counts), bool)
        for row, text in enumerate(texts):
            text += new[row, : counts[row]].tolist()
            over[row] = ended(row, text)
        state = replace(state, done=state.done | over)
    return texts


def why_ended(prompt: int, new: int, limit: int, context: int) -> str:
    """ "eos", "length" (its limit) or "context" (the model's), told by numbers of tokens."""
    if new < min(limit, context - prompt):
        return "eos"
    return "length" if limit <= context - prompt else "context"


def rules(sampling: Sampling) -> Sampling:
    """The settings less those that are no part of the compiled program."""
    return replace(sampling, seed=0, new_tokens=1, stop=())


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _decode(
    decoder: Decoder, sampling: Sampling, tokens: int, params: Any, state: State
) -> tuple[State, jax.Array, jax.Array]:
    def unfinished(carry: Carry, most: jax.Array | int = tokens) -> jax.Array:
        count, state, _ = carry
        return (count < most) & ~state.done.all()

    def one_token(add: Callable[..., Any], carry: Carry) -> Carry:
        count, state, new = carry
        scores = choosable(state.scores, decoder.ids)
        token = choose(scores, state.seen, state.keys, state.drawn, sampling)
        stopped = (token[:, None] == state.stops).any(-1) | (token == NO_TOKEN)
        done = state.done | stopped
        added = (~done).astype(jnp.int32)
        # A finished row writes to the slot after its last, which its text will not see.
        hidden, cache = add(token[:, None], count, state)
        state = State(
            cache=cache,
            lengths=state.lengths + added,
            scores=logits(hidden[:, 0], params["embedding"]),
            seen=None if state.seen is None else state.seen.at[rows, token].max(~done),
            stops=state.stops,
            left=state.left - added,
            done=done | (state.left <= added),
            keys=state.keys,
            drawn=state.drawn + added,
        )
        return count + 1, state, new.at[:, count].set(token)

    def burst(carry: Carry) -> Carry:
        first, before, new = carry
        steps, at_once = min(BURST, tokens), decoder.compute.dtype == "bfloat16"
        cast = jax.tree.map(lambda x: x.astype(decoder.compute.dtype), before.cache)
        # the barrier has it made before the loop that reads it, not at every token
        held: Cache = jax.lax.optimization_barrier(turned(cast, at_once))

        def add(token: jax.Array, count: jax.Array, state: State) -> Any:
            place = count - first
            positions = (before.lengths + place)[:, None]
            tail, cache = Tail(state.cache, place), turned(held, at_once)
            return decoder.apply({"params": params}, token, cache, positions, tail=tail)

        # as wide as the attention, or all of it would be cast at every token
        tail = pinned(decoder, empty_cache(decoder.size, len(rows), steps, "float32"))
        count, state, new = jax.lax.while_loop(
            partial(unfinished, most=jnp.minimum(first + steps, tokens)),
            partial(one_token, add),
            (first, replace(before, cache=tail), new),
        )
        written = state.lengths - before.lengths
        merge = partial(merged, places=rows, lengths=before.lengths, written=written)
        cache = pinned(decoder, jax.tree.map(merge, before.cache, state.cache))
        return count, replace(state, cache=cache), new

    def in_place(carry: Carry) -> Carry:
        def add(token: jax.Array, count: jax.Array, state: State) -> Any:
            return decoder.apply({"params": params}, token, state.cache, state.lengths[:, None])

        return jax.lax.while_loop(unfinished, partial(one_token, add), carry)

    def in_bursts(carry: Carry) -> Carry:
        return jax.lax.while_loop(unfinished, burst, carry)

    rows, before = jnp.arange(state.lengths.shape[0]), state.drawn
    new = jnp.full((len(rows), tokens), END_OF_DOCUMENT, jnp.int32)
    start = (jnp.zeros((), jnp.int32), state, new)
    _, state, new = jax.lax.platform_dependent(start, cpu=in_bursts, default=in_place)
    # whole in every process of a run, which all look at the texts
    return state, decoder.constrain(new, None, None), decoder.constrain(state.drawn - before, None)
