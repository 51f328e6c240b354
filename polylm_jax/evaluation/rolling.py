"""Log-likelihood of texts of any length, in windows of the model's context, as lm-eval has it."""

from collections.abc import Callable, Sequence
from typing import Any

from polylm_jax.data.tokenizer import EOS
from polylm_jax.evaluation.score import Score, score
from polylm_jax.model.decoder import Decoder

Ids = Sequence[int]


def windows(ids: Ids, context: int, given: Ids = (EOS,)) -> list[tuple[list[int], list[int]]]:
    """Pairs (given, scored) that score each id of a text once; none for an empty text.

    given: ids that the text follows, at least one. Each window scores as many ids as the model's
    context has, and the last one what is left; before these stand as many as there is room for.
    """
    text = [*given, *ids]
    begin = len(text) - len(ids)
    found = []
    for first in range(begin, len(text), context):
        last = min(first + context, len(text))
        found.append((text[max(0, last - context - 1) : first], text[first:last]))
    return found


def rolling(
    decoder: Decoder,
    params: Any,
    texts: Sequence[tuple[Ids, Ids]],
    batch: int,
    done: Callable[[int], None] = lambda texts: None,
) -> list[Score]:
    """Scores of (ids that are given, ids of a text), in their order; of an empty text 0.

    batch: as in `score`; windows of different texts share one. done: told how many windows are
    scored, batch by batch.
    """
    parts = [windows(ids, decoder.size.context, given) for given, ids in texts]
    pairs = [pair for part in parts for pair in part]
    scores = iter(score(decoder, params, pairs, batch, lambda found: done(len(found))))
    return [_together([next(scores) for _ in part]) for part in parts]


def _together(scores: Sequence[Score]) -> Score:
    return Score(
        sum(one.log_likelihood for one in scores),
        sum(one.tokens for one in scores),
        all(one.greedy for one in scores),
    )
