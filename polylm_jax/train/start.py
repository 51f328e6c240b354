"""Where the steps of a run begin: at its newest checkpoint, or at the newest sound one."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import orbax.checkpoint as ocp

from polylm_jax.train import checkpoint
from polylm_jax.train.course import Course
from polylm_jax.train.metrics import Metrics
from polylm_jax.train.retention import sound
from polylm_jax.train.step import State

# (step, meta) to the state of that checkpoint, what is read from there on, and what has to be said
Load = Callable[[int, checkpoint.Meta], tuple[State, Course, list[str]]]


class Start(NamedTuple):
    """How many steps are done, how many rows are read, the state then, and what the run reads."""

    step: int
    row: int
    state: State
    course: Course


def newest_of(
    steps: Sequence[int], manager: ocp.CheckpointManager, load: Load, metrics: Metrics
) -> Start | None:
    """The start from the newest of these checkpoints that is whole, None where there is none."""
    newest = checkpoint.restore_newest(manager, steps, load, metrics.say)
    if newest is None:
        return None
    step, meta, (state, course, remarks) = newest
    metrics.say(f"Going on from step {step} of {manager.directory.parent}.")
    for remark in remarks:
        metrics.say(remark)
    for record in meta.get("unlogged", []):
        metrics.write(record)
    return Start(step, meta["rows"], state, course)


def newest_sound(manager: ocp.CheckpointManager, load: Load, metrics: Metrics) -> Start | None:
    """The start from the newest sound checkpoint, None where there is none.

    A run goes on from a checkpoint that was saved while steps were skipped, since rows alone may
    have been to blame. Where the next ones are skipped, too, the state is to blame: then this is
    where it begins, and what was saved later is set aside.
    """
    good = sound(checkpoint.saved(manager))
    if not good:
        return None
    metrics.say("The next steps are skipped, too: going back to the newest sound checkpoint.")
    start = newest_of(good, manager, load, metrics)
    if start is not None:
        place = checkpoint.set_aside_after(manager, start.step)
        metrics.say(f"What was saved after step {start.step} is now in {place}.")
    return start
