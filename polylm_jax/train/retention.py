"""Which checkpoints are sound, and which of them stay.

A checkpoint is sound if the step before it was accepted. One that was saved while steps were being
skipped may hold a state that will never be right again, with finite parameters and a loss of NaN.
It never pushes a sound one out, and none but the newest of its kind stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Meta = dict[str, Any]


class Skipped(NamedTuple):
    """in_a_row: steps that were skipped in a row when the checkpoint was saved. stuck: whether
    they were so many that the run stopped."""

    in_a_row: int
    stuck: bool


def skipped_of(meta: Meta) -> Skipped:
    """What a checkpoint's meta says; those of former versions say nothing and count as sound."""
    return Skipped(*meta.get("skipped", (0, False)))


def sound(saved: dict[int, Skipped]) -> list[int]:
    """The steps whose checkpoints are sound, oldest first.

    A run that is stuck shows that the state after its last accepted step was dead already.
    """
    dead = {step - skipped.in_a_row for step, skipped in saved.items() if skipped.stuck}
    return sorted(
        step for step, skipped in saved.items() if not skipped.in_a_row and step not in dead
    )


def kept(saved: dict[int, Skipped], keep: int) -> set[int]:
    """The steps whose checkpoints stay: the newest, and the `keep` newest that are sound.

    Two sound ones stay in any case: of the newest nobody knows yet whether a step can be made.
    """
    return {max(saved), *sound(saved)[-max(keep, 2) :]}


@dataclass
class Retention:
    """`kept` as Orbax asks for it, after each save. saved: the checkpoints, the new one too."""

    keep: int
    saved: dict[int, Skipped] = field(default_factory=dict)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each checkpoint whether it stays."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        stay = kept({step: self.saved.get(step, Skipped(0, False)) for step in steps}, self.keep)
        return [step in stay for step in steps]
