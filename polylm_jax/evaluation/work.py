"""Work on a benchmark: what is ready to run, what comes of it, who does which part of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from polylm_jax.evaluation.items import Measure
from polylm_jax.evaluation.tasks import Asked
from polylm_jax.parallel import together
from polylm_jax.train.ends import RunEnded


@dataclass(frozen=True)
class Result:
    """What came of a task in a language.

    measures: the headline first. samples: a line for each item, as lm-eval writes them.
    truncated: items that are longer than the model's context. left_out: the same where that is
    asked, and items with a choice of no tokens.
    favourite: the choice that was taken most often, and its share; None if nothing is chosen.
    """

    asked: Asked
    measures: tuple[Measure, ...]
    samples: list[dict[str, Any]]
    truncated: int = 0
    left_out: int = 0
    favourite: tuple[int, float] | None = None


@dataclass(frozen=True)
class Work:
    """Tasks that are ready to run. positions: tokens to compute, those in store not counted.

    ask: function (done) that asks all and tells `done` how many positions more are computed.
    results: of each task in each language, once it is asked; in process 0, which has the store.
    """

    items: int
    positions: int
    ask: Callable[[Callable[[int], None]], None]
    results: Callable[[], list[Result]]


def agreed(name: str, left: list[int], keys: Sequence[str]) -> list[int]:
    """The batches that are left by process 0's store, which the others do not have.

    keys: of all that is asked. RunEnded("unequal"), in every process, where one asks otherwise.
    """
    digest = sha256("".join(keys).encode()).hexdigest()

    def judge(told: list[str]) -> str:
        first, *others = map(json.loads, told)
        return json.dumps(first[1] if all(one[0] == first[0] for one in others) else None)

    mine = json.dumps([digest, left if together.process() == 0 else []])
    found = json.loads(together.verdict(f"evaluation/{name}", mine, judge))
    if found is None:
        raise RunEnded(
            "unequal",
            "the processes do not ask the same; give all of them the same files in "
            "evaluation.folder and the same settings.",
        )
    return found
