"""A benchmark between the steps of a run: what is kept of it, how long it may take.

What asks is given to the trainer, which knows no benchmark. It reads the parameters where they
are, so nothing of the run depends on it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.model.decoder import Decoder

SHARE = 0.01  # of a run's time that it may take without a word

# "score": {task: mean over its languages}; "error", its standard error; "chance", of those that
# choose; "by_language": {TASK/LANGUAGE: score}. A score that is no number is None.
Record = dict[str, Any]
Ask = Callable[[dict[str, Any]], Record]
# (decoder, tokenizer, ways in which the mesh splits a batch, where to say what is missing) -> Ask
MakeAsk = Callable[[Decoder, Tokenizer, int, Callable[[str], None]], Ask]


@dataclass
class Exam:
    """Asks, and sees how much of the run's time that takes.

    every: steps from one to the next. The first one compiles and is not judged.
    """

    ask: Ask
    every: int
    _ended: float | None = field(default=None, init=False)
    _told: bool = field(default=False, init=False)

    def __call__(self, variables: dict[str, Any]) -> tuple[Record, list[str]]:
        """The record, with the seconds it took, and the lines to say."""
        started = time.monotonic()
        record = self.ask(variables)
        ended = time.monotonic()
        seconds, lines = ended - started, [told(record)]
        if self._ended is not None and not self._told:
            share = seconds / (ended - self._ended)
            if share > SHARE:
                self._told = True
                lines.append(
                    f"Evaluation takes {share:.1%} of the time; train.evaluate_every = "
                    f"{_rounded(self.every * share / SHARE)} or fewer items (evaluation.limit) "
                    f"would make it {SHARE:.0%}."
                )
        self._ended = ended
        return {"kind": "evaluation", **record, "seconds": round(seconds, 4)}, lines


def _rounded(steps: float) -> int:
    """Up to two digits."""
    unit = 10 ** max(0, math.floor(math.log10(steps)) - 1)
    return math.ceil(steps / unit) * unit


def told(record: Record) -> str:
    """The scores in words; one that does not differ from chance (95%) says so."""
    words = []
    for name, score in record["score"].items():
        chance, error = record["chance"].get(name), record.get("error", {}).get(name)
        if score is None or not math.isfinite(score):
            words.append(f"{name} is not a number")
        elif chance is None:
            words.append(f"{name} {score:.3f}{_spread(error, 3)} bits per byte")
        else:
            same = error is not None and not abs(score - chance) > 1.96 * error
            beside = "not different from chance" if same else f"chance {100 * chance:g}"
            words.append(f"{name} {100 * score:.1f}{_spread(error and 100 * error, 1)} ({beside})")
    return f"evaluation: {', '.join(words)}"


def _spread(error: float | None, digits: int) -> str:
    return f" ± {error:.{digits}f}" if error is not None and math.isfinite(error) else ""
