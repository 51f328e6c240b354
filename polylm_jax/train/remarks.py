"""What is worth saying of a run's settings before it starts, though all of them are allowed."""

import ast
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from polylm_jax.data.schedule import Schedule
from polylm_jax.train.optimizer import OptimizerSettings

FAR = 0.1  # of the run: what the end of the decay may be away from the last step
WIDTH = 60  # characters that are shown of a value that differs


def differences(old: str, new: str) -> list[str]:
    """The settings that differ, one line each: "train.steps: 10 -> 12".

    old, new: gin text with every value in force. What only one of them has is another version's.
    """
    before, now = values_of(old), values_of(new)
    changed = [name for name in now if name in before and not _same(before[name], now[name])]
    return [f"{name}: {' -> '.join(_apart(before[name], now[name]))}" for name in changed]


def remarks(steps: int, optimizer: OptimizerSettings, schedule: Schedule, tokens: int) -> list[str]:
    """Sentences on what of the settings a run of so many steps and tokens does not come to."""
    said = []
    warmup, decay = _point(optimizer, "warmup"), _point(optimizer, "decay")
    ends = {"steps": f"train.steps = {steps}", "tokens": f"the run's {tokens:,} tokens"}
    lasts = {"steps": steps, "tokens": tokens}
    if warmup.at >= lasts[warmup.unit]:
        said.append(
            f"{warmup} reaches beyond {ends[warmup.unit]}: the peak learning rate is never reached."
        )
    last = lasts[decay.unit]
    if optimizer.final_share < 1 and decay.at > (1 + FAR) * last:
        said.append(
            f"{decay} lies after {ends[decay.unit]}: the learning rate does not come down to its "
            "final value."
        )
    if optimizer.final_share < 1 and decay.at < (1 - FAR) * last:
        said.append(
            f"{decay} lies before {ends[decay.unit]}: the last {last - int(decay.at):,} "
            f"{decay.unit} keep the final learning rate."
        )
    curves: dict[str, Sequence[tuple[float, Any]]] = {"non_english": schedule.non_english}
    curves["weights"] = schedule.weights
    curves |= {f'extras["{name}"]': points for name, points in schedule.extras.items()}
    for name, points in curves.items():
        if beyond := _unreached(points, tokens):
            said.append(
                f"curriculum.{name} still changes up to {beyond:,.0f} tokens, but the run ends at "
                f"{tokens:,}."
            )
    return said


class _Point(NamedTuple):
    """Where the learning rate turns. unit: "steps" or "tokens"."""

    name: str
    unit: str
    at: float

    def __str__(self) -> str:
        at = f"{self.at:,.0f}" if self.unit == "tokens" else f"{self.at}"
        return f"optimizer.{self.name}_{self.unit} = {at}"


def _point(optimizer: OptimizerSettings, name: str) -> _Point:
    unit = "tokens" if getattr(optimizer, f"{name}_tokens") else "steps"
    return _Point(name, unit, getattr(optimizer, f"{name}_{unit}"))


def values_of(gin: str) -> dict[str, str]:
    """Each setting of gin text with every value in force, a line each: name -> value as written."""
    lines = (line.partition(" = ") for line in gin.splitlines())
    return {name: value for name, equals, value in lines if equals}


def _same(old: str, new: str) -> bool:
    """Whether two values are equal; 0 and 0.0 are."""
    try:
        return ast.literal_eval(old) == ast.literal_eval(new)
    except (ValueError, SyntaxError):
        return old == new


def _apart(old: str, new: str) -> list[str]:
    """Two values; if they are long, from a little before the place where they part."""
    if max(len(old), len(new)) <= WIDTH:
        return [old, new]
    pairs = enumerate(zip(old, new, strict=False))
    parting = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
    start = max(0, parting - WIDTH // 3)
    return [
        ("..." if start else "")
        + text[start : start + WIDTH]
        + ("..." if len(text) > start + WIDTH else "")
        for text in (old, new)
    ]


def _unreached(points: Sequence[tuple[float, Any]], tokens: int) -> float:
    """Tokens of the last point at which a curve changes after the run, 0 if there is none."""
    late = [
        at
        for (before, old), (at, new) in pairwise(points)
        if new != old and (at > tokens or before == at == tokens)
    ]
    return max(late, default=0)
