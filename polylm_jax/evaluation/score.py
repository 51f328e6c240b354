"""Log-likelihood of continuations after contexts: what most benchmarks are scored with."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polylm_jax.data.tokenizer import EOS, Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.evaluation.packing import Batch, Planned, Tree, batch
from polylm_jax.model.decoder import Decoder, logits
from polylm_jax.model.loss import positions_per_block

HEAD_BLOCK = 256  # targets of a device whose logits are held at a time, at most

# Of each text of a tree: the sum of ln p over its targets, and whether each was the best guess.
Sums = list[tuple[float, bool]]


class NotFinite(UserError):
    """The model's scores are no numbers."""


@dataclass(frozen=True)
class Subject:
    """The model that is asked. params: the tree of training. ways: in which its mesh splits a
    batch."""

    decoder: Decoder
    params: Any
    tokenizer: Tokenizer
    ways: int

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params}


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """Of each (context, continuation): ids of the context by itself, and those that both together
    have more, as in lm-eval.

    So a token that spans the join counts for the context, whose last token may be another. Where
    nothing is left for the continuation, it has the ids of its text by itself. Spaces at the
    context's end belong to the continuation, and an empty context is an end of document, after
    which training texts begin.
    """
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


def score_trees(
    decoder: Decoder,
    variables: dict[str, Any],
    trees: Sequence[Tree],
    planned: Iterable[Planned],
    keep: Callable[[Planned, dict[int, Sums]], None],
) -> None:
    """Scores the trees of some batches, and tells each batch's by the trees' numbers.

    variables: what the decoder is applied to. One batch is computed while the one before it is
    kept. UserError where a sum is no number.
    """
    before: tuple[Planned, Batch, tuple[jax.Array, jax.Array]] | None = None

    def keep_before() -> None:
        if before is None:
            return
        plan, one, (chances, best) = *before[:2], map(np.asarray, before[2])
        if not np.isfinite(chances[: one.count]).all():
            raise NotFinite(
                "the model's scores are not finite, so nothing can be said of it; take a "
                "checkpoint from before its parameters went wrong, or try "
                "--gin.evaluation.dtype=float32."
            )
        sums = {
            number: [
                (float(chances[first + text].sum(dtype=np.float64)), bool(best[first + text].all()))
                for text in trees[number].texts
            ]
            for number, first in one.trees
        }
        keep(plan, sums)

    for plan in planned:
        one = batch(trees, plan)
        arrays = (one.tokens, one.documents, one.branches, one.sources, one.targets)
        found = score_batch(decoder, variables, *arrays, np.int32(one.count))
        keep_before()
        before = plan, one, found
    keep_before()


@partial(jax.jit, static_argnums=0)
def score_batch(
    decoder: Decoder,
    variables: dict[str, Any],
    tokens: jax.Array,
    documents: jax.Array,
    branches: jax.Array,
    sources: jax.Array,
    targets: jax.Array,
    count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """ln p of a batch's targets, float32 [rows · width], and whether each is the best guess.

    The arrays are those of `packing.Batch`. Only the first `count` targets count. One program for
    each shape of a batch: the head runs on targets alone, in as many blocks as they fill.
    """
    hidden, _ = decoder.apply(variables, tokens, documents=documents, branches=branches)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    embedding = variables["params"]["embedding"].astype(hidden.dtype)
    block = positions_per_block(targets.size, 1, min(HEAD_BLOCK, decoder.compute.loss_block))

    def turn(i: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        source, target = (
            jax.lax.dynamic_slice_in_dim(x, i * block, block) for x in (sources, targets)
        )
        scores = logits(decoder.constrain(hidden[source], "batch", None), embedding)
        picked = jnp.take_along_axis(scores, target[:, None], axis=-1)[:, 0]
        # argmax is slow on a CPU
        new = (picked - jax.nn.logsumexp(scores, axis=-1), picked >= scores.max(axis=-1))
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=i * block, axis=0)
        return put(found[0], new[0]), put(found[1], new[1])

    start = (jnp.zeros(targets.size), jnp.zeros(targets.size, bool))
    chances, best = jax.lax.fori_loop(0, -(-count // block), turn, start)
    return decoder.constrain(chances, None), decoder.constrain(best, None)
