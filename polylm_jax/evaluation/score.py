"""Log-likelihood of a continuation after a context: what most benchmarks are scored with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polylm_jax.data.tokenizer import EOS, Tokenizer
from polylm_jax.decode.prefill import power_of_two
from polylm_jax.errors import UserError
from polylm_jax.evaluation.packing import Batch
from polylm_jax.model.decoder import Decoder, logits
from polylm_jax.model.loss import blocked, positions_per_block, unblocked

FEWEST_POSITIONS = 64
HEAD_BLOCK = 256  # targets of a device whose logits are held at a time, at most


@dataclass(frozen=True)
class Score:
    """Of one continuation: sum of ln p over its tokens, their number, and whether each was the
    model's best guess."""

    log_likelihood: float
    tokens: int
    greedy: bool


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """`encode_pair` of many (context, continuation), which are encoded at once."""
    cut = []
    for context, continuation in pairs:
        end = len(context.rstrip())
        cut.append((context[:end], context[end:] + continuation))
    contexts = list({context: None for context, _ in cut if context})
    heads = dict(zip(contexts, tokenizer.encode(contexts), strict=True))
    wholes = tokenizer.encode([context + continuation for context, continuation in cut])
    found = []
    for (context, continuation), whole in zip(cut, wholes, strict=True):
        head = heads.get(context)
        if not head:
            found.append(([EOS], whole))
        else:
            tail = whole[len(head) :] or tokenizer.encode([continuation])[0]
            found.append((head, tail))
    return found


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Ids of the context by itself, and those that both together have more, as in lm-eval.

    So a token that spans the join counts for the context, whose last token may be another. Where
    nothing is left for the continuation, it has the ids of its text by itself. Spaces at the
    context's end belong to the continuation, and an empty context is an end of document, after
    which training texts begin.
    """
    [pair] = encode_pairs(tokenizer, [(context, continuation)])
    return pair


def score(
    decoder: Decoder,
    params: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch: int,
    done: Callable[[dict[int, Score]], None] = lambda scores: None,
) -> list[Score]:
    """Scores of (context ids, continuation ids), in their order.

    batch: pairs computed at once, a multiple of the ways in which the mesh splits a batch.
    A context too long for the model loses its beginning. done: told each batch's scores by their
    pairs' places.
    UserError if a context is empty, or a continuation is or does not fit the model's context.
    """
    context = decoder.size.context
    for number, (head, tail) in enumerate(pairs, 1):
        if not head or not tail:
            raise UserError(f"pair {number} has an empty context or continuation; give both.")
        if len(tail) > context:
            raise UserError(
                f"the continuation of pair {number} has {len(tail)} tokens but the model's context "
                f"is {context}; shorten it."
            )
    # longest first, so that a batch is of like lengths and too large a batch fails at once
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    scores: dict[int, Score] = {}
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        rows = [[*pairs[i][0], *pairs[i][1]][-context - 1 :] for i in chosen]
        width = min(context, max(FEWEST_POSITIONS, power_of_two(max(map(len, rows)) - 1)))
        tokens = np.full((batch, width + 1), EOS, np.int32)
        wanted = np.zeros((batch, width), bool)
        for row, (ids, i) in enumerate(zip(rows, chosen, strict=True)):
            tokens[row, : len(ids)] = ids
            wanted[row, len(ids) - 1 - len(pairs[i][1]) : len(ids) - 1] = True
        sums, greedy = map(np.asarray, _score(decoder, params, tokens, wanted))
        if not np.isfinite(sums).all():
            raise UserError(
                "the model's scores are not finite, so nothing can be scored; take a checkpoint "
                "from before its parameters went wrong, or try --gin.compute.dtype=float32."
            )
        found = {
            i: Score(float(sums[row]), len(pairs[i][1]), bool(greedy[row]))
            for row, i in enumerate(chosen)
        }
        scores |= found
        done(found)
    return [scores[i] for i in range(len(pairs))]


@partial(jax.jit, static_argnums=0)
def _score(
    decoder: Decoder, params: Any, tokens: jax.Array, wanted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sum of ln p, float32 [batch], and whether all are greedy, boolean [batch].

    tokens: int32 [batch, length + 1]; wanted: boolean [batch, length], targets that count.
    """
    hidden, _ = decoder.apply({"params": params}, tokens[:, :-1])

    # a few positions of all rows at a time, as in the loss: [tokens, vocabulary] is never held
    rows, length = wanted.shape
    width = positions_per_block(length, rows, decoder.compute.loss_block)

    def one_block(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        states, targets = inputs
        scores = logits(states, params["embedding"])
        picked = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
        return picked - jax.nn.logsumexp(scores, axis=-1), scores.argmax(-1) == targets

    blocks = (blocked(hidden, width), blocked(tokens[:, 1:], width))
    found, best = map(unblocked, jax.lax.map(one_block, blocks))
    return jnp.where(wanted, found, 0).sum(1), (best | ~wanted).all(1)


def score_rows(decoder: Decoder, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """ln p of a batch's targets, float32 [rows · width], and whether each is the best guess.

    Only the first batch.count count. One program for each shape of a batch: the head runs on
    targets alone, in as many blocks as they fill.
    """
    arrays = (batch.tokens, batch.documents, batch.branches, batch.sources, batch.targets)
    return _score_rows(decoder, params, *arrays, np.int32(batch.count))


@partial(jax.jit, static_argnums=0)
def _score_rows(
    decoder: Decoder,
    params: Any,
    tokens: jax.Array,
    documents: jax.Array,
    branches: jax.Array,
    sources: jax.Array,
    targets: jax.Array,
    count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    variables = {"params": params}
    hidden, _ = decoder.apply(variables, tokens, documents=documents, branches=branches)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    embedding = params["embedding"].astype(hidden.dtype)
    block = positions_per_block(targets.size, 1, min(HEAD_BLOCK, decoder.compute.loss_block))

    def turn(i: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        source, target = (
            jax.lax.dynamic_slice_in_dim(x, i * block, block) for x in (sources, targets)
        )
        scores = logits(decoder.constrain(hidden[source], "batch", None), embedding)
        picked = jnp.take_along_axis(scores, target[:, None], axis=-1)[:, 0]
        new = (picked - jax.nn.logsumexp(scores, axis=-1), scores.argmax(-1) == target)
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=i * block, axis=0)
        return put(found[0], new[0]), put(found[1], new[1])

    start = (jnp.zeros(targets.size), jnp.zeros(targets.size, bool))
    chances, best = jax.lax.fori_loop(0, -(-count // block), turn, start)
    return decoder.constrain(chances, None), decoder.constrain(best, None)
