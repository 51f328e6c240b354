"""Texts that come and go in one static cache: the programs, each of one shape.

A prompt is read beside the cache, into a staged row, a chunk at a time; its first token is chosen
there, and the row is put into a slot. A burst adds some tokens to the texts of all slots. While it
does, the cache is only read: new keys and values go to a tail, which is merged at the end. So a
CPU's compiler never copies the cache, and reading costs the same whatever the number of slots.

All but `burst` are about one text, which the mesh's ways of a batch read alike. Whatever stands in
the other slots, a text's numbers are the same, bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise, starmap
from typing import Any

import jax
import jax.numpy as jnp

from polylm_jax.decode.prefill import merged, pinned, turned
from polylm_jax.decode.sampling import HEARD, NO_TOKEN, SAID, Wishes, choosable, choose_each
from polylm_jax.model.decoder import (
    COMPUTE_DTYPES,
    END_OF_DOCUMENT,
    Cache,
    Compute,
    Decoder,
    Tail,
    empty_cache,
    logits,
)

HEAD_BLOCK = 32  # tokens whose logits are held at a time where all of a prompt are told

Pieces = tuple[Cache, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Likely:
    """How likely tokens were: natural logarithms, of the scores as they are.

    logprob: float32 […]; ids: int32 […, most] of the likeliest, best first; logprobs: theirs.
    """

    logprob: Any
    ids: Any
    logprobs: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """The texts of all slots as a burst finds them; arrays [slots].

    last: int32, the token that goes on next, which the cache has not. lengths: int32, tokens that
    it has. left: int32, tokens that may be added, 0 where a slot is idle. drawn: int32, tokens that
    were. asked: boolean, whether it is told how likely they were.
    """

    last: Any
    lengths: Any
    left: Any
    drawn: Any
    asked: Any
    wishes: Wishes


def for_one(decoder: Decoder) -> Decoder:
    """The decoder of one text, whose row the mesh cannot split."""

    def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
        return decoder.constrain(x, *(None if axis == "batch" else axis for axis in axes))

    return decoder.clone(constrain=constrain)


def held_as(compute: Compute) -> str:
    """The dtype of keys and values in the cache.

    A CPU adds up in float32 and would make all that a burst looks at float32 each time.
    """
    usual = "float32" if _on_cpu() else compute.dtype
    return compute.cache_dtype or usual


def cut(cache: Cache, widths: Sequence[int]) -> Pieces:
    """A cache as bursts look at it: cut where they may end.

    A CPU copies a part of an array before a loop that reads it, but not a whole one; and multiplies
    with keys that lie there with the slots last.
    """
    places = [0, *widths] if _on_cpu() else [0, widths[-1]]

    def part(begin: int, end: int) -> Cache:
        return _turned(jax.tree.map(lambda x: x[:, :, begin:end], cache))

    return tuple(starmap(part, pairwise(places)))


def joined(pieces: Pieces) -> Cache:
    """What was cut, whole."""
    whole: Cache = jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=2), *map(_turned, pieces)
    )
    return whole


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _turned(cache: Cache) -> Cache:
    return turned(cache) if _on_cpu() else cache


def ends(pieces: Pieces) -> list[int]:
    """Where each piece of a cache ends in the context."""
    return [*accumulate(piece[0]["value"].shape[2] for piece in pieces)]


def start(decoder: Decoder, slots: int, widths: Sequence[int], staged: int) -> tuple[Any, ...]:
    """All that lives on the devices, empty: (cache, held, staged rows, hidden, held_row).

    widths: see `cut`; the last is the context. held: int32 [slots, vocabulary], what the texts
    hold, see HEARD and SAID. The last two are like what `read` and `first` return, where the others
    take it.
    """
    dtype, context = held_as(decoder.compute), widths[-1]
    one, size = for_one(decoder), decoder.size
    held = jnp.zeros((slots, size.vocabulary), jnp.int32)
    return (
        pinned(decoder, cut(empty_cache(size, slots, context, dtype), widths)),
        decoder.constrain(held, "batch", "vocabulary"),
        tuple(pinned(one, empty_cache(size, 1, context, dtype)) for _ in range(staged)),
        one.constrain(
            jnp.zeros((1, size.d_model), COMPUTE_DTYPES[decoder.compute.dtype]), None, None
        ),
        one.constrain(held[:1], None, "vocabulary"),
    )


def read(
    decoder: Decoder,
    width: int,
    params: Any,
    staged: tuple[Cache, ...],
    tokens: jax.Array,
    begin: jax.Array,
    last: jax.Array,
) -> tuple[tuple[Cache, ...], tuple[jax.Array, ...]]:
    """Staged rows, each with a chunk more, and the hidden states of the chunks' places `last`,
    [1, d] each.

    width: slots of a row that are looked at; each chunk ends within. tokens: int32 [rows, chunk],
    which stand in the texts from `begin` on, int32 [rows]. Behind the places `last`, int32 [rows],
    they count for nothing, and are to be that one again.
    """
    looked_at = jax.tree.map(
        lambda *rows: jnp.concatenate([row[:, :, :width] for row in rows]), *staged
    )
    hidden, found = _hidden(for_one(decoder), params, looked_at, tokens, begin, last)

    def put(row: int) -> Cache:
        """Its slots that were looked at, and those behind them."""
        return jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y[row : row + 1], 0, axis=2),
            *(staged[row], found),
        )

    rows = range(len(staged))
    found_at = tuple(_at(decoder, hidden[row], last[row]) for row in rows)
    return tuple(pinned(for_one(decoder), put(row)) for row in rows), found_at


def score(
    decoder: Decoder,
    most: int,
    params: Any,
    staged: Cache,
    tokens: jax.Array,
    begin: jax.Array,
    last: jax.Array,
    targets: jax.Array,
) -> tuple[Cache, jax.Array, Likely]:
    """As `read` of one row that looks at all of it, and how likely the targets, int32 [chunk], were
    after each of its tokens; begin, last: int32."""
    one = for_one(decoder)
    [hidden], staged = _hidden(one, params, staged, tokens, begin[None], last[None])
    block = min(HEAD_BLOCK, len(targets))

    def some(part: tuple[jax.Array, jax.Array]) -> Likely:
        return _likely(one, most, logits(part[0], params["embedding"]), part[1])

    parts = (hidden.reshape(-1, block, hidden.shape[-1]), targets.reshape(-1, block))
    found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(some, parts))
    return staged, _at(decoder, hidden, last), found


def first(
    decoder: Decoder,
    most: int,
    params: Any,
    hidden: jax.Array,
    tokens: jax.Array,
    length: jax.Array,
    wishes: Wishes,
) -> tuple[jax.Array, Likely, jax.Array]:
    """A text's first token, int32 [1], how likely it was, and what the text holds, [1, vocabulary].

    hidden: of the prompt's last token, [1, d]. tokens: int32 [context], the prompt, of `length`.
    """
    one = for_one(decoder)
    held = jnp.zeros((1, decoder.size.vocabulary), jnp.int32)
    heard = (jnp.arange(len(tokens)) < length).astype(jnp.int32) * HEARD
    held = held.at[0, tokens].max(heard)
    scores = logits(hidden, params["embedding"])
    token = choose_each(choosable(scores, decoder.ids), held, wishes, jnp.zeros(1, jnp.int32))
    likely = _likely(one, most, scores, token)
    held = held.at[0, token].add(SAID)
    return token, likely, one.constrain(held, None, "vocabulary")


def insert(
    decoder: Decoder,
    width: int,
    cache: Pieces,
    held: jax.Array,
    staged: Cache,
    held_row: jax.Array,
    slot: jax.Array,
    length: jax.Array,
) -> tuple[Pieces, jax.Array]:
    """The cache with a staged row of `length` tokens in a slot, and what the texts hold.

    width: in the pieces behind so many slots stays what there is; with a length of 0 all others are
    cleared.
    """

    def put(whole: jax.Array, row: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, row, slot, axis=0)

    parts = zip([0, *ends(cache)], cache, cut(_kept(staged, length), ends(cache)), strict=False)
    cache = tuple(
        jax.tree.map(put, piece, part) if begin < width else piece for begin, piece, part in parts
    )
    return pinned(decoder, cache), decoder.constrain(put(held, held_row), "batch", "vocabulary")


def take(
    decoder: Decoder, staged: Cache, cache: Pieces, slot: jax.Array, length: jax.Array
) -> Cache:
    """A staged row with the first `length` tokens of a slot's text, and nothing else."""
    row = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1), cache)
    return pinned(for_one(decoder), _kept(joined(row), length))


def burst(
    decoder: Decoder,
    width: int,
    steps: int,
    most: int,
    params: Any,
    cache: Pieces,
    held: jax.Array,
    rows: Rows,
    places: jax.Array | None = None,
) -> tuple[Pieces, jax.Array, jax.Array, Likely]:
    """Adds up to `steps` tokens to the texts of all slots.

    width: slots of a text that are looked at; none is longer. places: int32 [fewer], the slots that
    the rows are of, each once; None for all. Returns the cache, what the texts hold, the tokens
    int32 [rows, steps], filled up with END_OF_DOCUMENT, and how likely they were. A text ends with
    END_OF_DOCUMENT, with NO_TOKEN where its scores are no numbers, or where no more may be added.
    """
    slots = len(rows.last)
    mine = lambda x: x if places is None else x[places]  # noqa: E731
    pieces = [*zip([0, *ends(cache)], cache, strict=False)]
    look = _looked_at(jax.tree.map(mine, [x for at, x in pieces if at < width]), width)
    # on a CPU as wide as what is looked at, or all of that would be cast at every token
    dtype = "float32" if _on_cpu() else cache[0][0]["key"].dtype.name
    everyone = jnp.arange(slots)

    def unfinished(carry: dict[str, Any]) -> jax.Array:
        return (carry["step"] < steps) & carry["going"].any()

    def one_token(carry: dict[str, Any]) -> dict[str, Any]:
        step, going = carry["step"], carry["going"]
        first, *more = look()
        outputs: Any = decoder.apply(
            {"params": params},
            carry["token"][:, None],
            first,
            (rows.lengths + step)[:, None],
            tail=Tail(carry["tail"], step, tuple(more)),
        )
        hidden, tail = outputs
        scores = logits(hidden[:, 0], params["embedding"])
        wanted = choosable(scores, decoder.ids)
        token = choose_each(wanted, carry["held"], rows.wishes, rows.drawn + step)
        token = jnp.where(going, token, END_OF_DOCUMENT)
        likely = jax.lax.cond(
            (rows.asked & going).any(),
            lambda: _likely(decoder, most, scores, token),
            lambda: _unlikely((slots,), most),
        )
        ended = (token == END_OF_DOCUMENT) | (token == NO_TOKEN)
        said = (going & ~ended).astype(jnp.int32) * SAID
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=step, axis=1)
        return {
            "step": step + 1,
            "token": token,
            "going": going & ~ended & (step + 1 < rows.left),
            "tail": tail,
            "held": carry["held"].at[everyone, token].add(said),
            "written": carry["written"] + going,
            "new": put(carry["new"], token[:, None]),
            "likely": jax.tree.map(lambda x, y: put(x, y[:, None]), carry["likely"], likely),
        }

    carry: dict[str, Any] = {
        "step": jnp.zeros((), jnp.int32),
        "token": jnp.asarray(rows.last),
        "going": rows.left > 0,
        "tail": pinned(decoder, empty_cache(decoder.size, slots, steps, dtype)),
        "held": mine(held),
        "written": jnp.zeros(slots, jnp.int32),
        "new": jnp.full((slots, steps), END_OF_DOCUMENT, jnp.int32),
        "likely": _unlikely((slots, steps), most),
    }

    carry = jax.lax.while_loop(unfinished, one_token, carry)
    here = everyone if places is None else places

    def merge(at: int, name: str, slots: jax.Array, tail: jax.Array) -> jax.Array:
        axis = 3 if name == "key" and _on_cpu() else 2
        return merged(slots, tail, here, rows.lengths - at, carry["written"], axis)

    cache = tuple(
        tuple(
            {name: merge(at, name, slots, tail[name]) for name, slots in layer.items()}
            for layer, tail in zip(piece, carry["tail"], strict=True)
        )
        if at < width + steps
        else piece
        for at, piece in pieces
    )
    cache = pinned(decoder, cache)
    held = carry["held"] if places is None else held.at[places].set(carry["held"])
    held = decoder.constrain(held, "batch", "vocabulary")
    return cache, held, carry["new"], carry["likely"]


def _looked_at(pieces: Sequence[Cache], width: int) -> Callable[[], Pieces]:
    """The first `width` slots of a cache that was cut, for a loop that only reads it.

    A CPU multiplies in float32; the barrier has that made before the loop. In it, to turn the keys
    moves nothing.
    """
    if not _on_cpu():
        narrow: Pieces = jax.tree.map(lambda x: x[:, :, :width], tuple(pieces))
        return lambda: narrow
    made = jax.lax.optimization_barrier(jax.tree.map(lambda x: x.astype(jnp.float32), pieces))
    return lambda: tuple(map(_turned, made))


def _hidden(
    one: Decoder, params: Any, staged: Cache, tokens: jax.Array, begin: jax.Array, last: jax.Array
) -> tuple[jax.Array, Cache]:
    """Hidden states [rows, chunk, d] of chunks, and their rows with them.

    What fills a chunk up is its last token at its last position: so it is a number if that is one,
    and a weight of 0 hides it.
    """
    positions = begin[:, None] + jnp.minimum(jnp.arange(tokens.shape[1]), last[:, None])
    outputs: Any = one.apply({"params": params}, tokens, staged, positions)
    hidden, staged = outputs
    return hidden, pinned(one, staged)


def _at(decoder: Decoder, hidden: jax.Array, place: jax.Array) -> jax.Array:
    return decoder.constrain(jax.lax.dynamic_slice_in_dim(hidden, place, 1), None, None)


def _kept(row: Cache, length: jax.Array) -> Cache:
    """A row with zeros behind its first `length` tokens: no NaN, which times 0 is NaN, stays."""

    def kept(x: jax.Array) -> jax.Array:
        return jnp.where((jnp.arange(x.shape[2]) < length)[:, None], x, 0)

    return jax.tree.map(kept, row)


def _likely(decoder: Decoder, most: int, scores: jax.Array, tokens: jax.Array) -> Likely:
    """Of tokens [batch] by scores [batch, vocabulary]; only ids of the tokenizer are told."""
    total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    mine = jnp.take_along_axis(scores, tokens[:, None], axis=-1)
    best, ids = jax.lax.top_k(choosable(scores, decoder.ids), most)
    return Likely((mine - total)[:, 0], ids.astype(jnp.int32), best - total)


def _unlikely(shape: tuple[int, ...], most: int) -> Likely:
    """The same where nobody asks."""
    return Likely(
        jnp.full(shape, jnp.nan),
        jnp.zeros((*shape, most), jnp.int32),
        jnp.full((*shape, most), jnp.nan),
    )
