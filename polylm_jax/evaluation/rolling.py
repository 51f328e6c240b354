"""Log-likelihood of texts of any length, in windows of the model's context, as lm-eval has it."""

from collections.abc import Callable, Sequence
from typing import Any

from polylm_jax.evaluation.packing import windows
from polylm_jax.evaluation.score import Score, score
from polylm_jax.model.decoder import Decoder

Ids = list[int]


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
    context = decoder.size.context
    parts = [windows(given, ids, context) if ids else [] for given, ids in texts]
    pairs = [pair for part in parts for pair in part]
    scores = iter(score(decoder, params, pairs, batch, lambda found: done(len(found))))
    return [_together([next(scores) for _ in part]) for part in parts]


def _together(scores: Sequence[Score]) -> Score:
    return Score(
        sum(one.log_likelihood for one in scores),
        sum(one.tokens for one in scores),
        all(one.greedy for one in scores),
    )
