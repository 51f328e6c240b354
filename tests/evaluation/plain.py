"""Log-likelihoods as anyone would write them: one text a row, all logits, a softmax in float64."""

from functools import partial

import jax
import numpy as np

from polylm_jax.evaluation.likelihood import Score
from polylm_jax.model.decoder import logits


@partial(jax.jit, static_argnums=0)
def scores(decoder, params, rows):
    return logits(decoder.apply({"params": params}, rows)[0], params["embedding"])


def plain(decoder, params, pairs):
    """A Score for each (context ids, continuation ids), none longer than the model's context."""
    rows = np.full((len(pairs), decoder.size.context), 2, np.int32)
    for row, (head, tail) in zip(rows, pairs, strict=True):
        ids = [*head, *tail][:-1]
        row[: len(ids)] = ids
    found = []
    for row, (head, tail) in zip(rows, pairs, strict=True):
        of_all = np.asarray(scores(decoder, params, row[None]), np.float64)[0]
        chances = of_all[len(head) - 1 : len(head) - 1 + len(tail)]
        chances -= chances.max(-1, keepdims=True)
        chances -= np.log(np.exp(chances).sum(-1, keepdims=True))
        sum_ = float(chances[np.arange(len(tail)), list(tail)].sum())
        found.append(Score(sum_, len(tail), bool((chances.argmax(-1) == tail).all())))
    return found
