"""The end of a run's steps: what each process wishes, and what becomes of the last state."""

from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from polylm_jax.parallel import together
from polylm_jax.train.ends import ENDS, RunEnded, end_of


def wish(stopped: bool, log_error: OSError | None) -> int:
    """Exit status with which this process wants all to end after saving, 0 for none."""
    if log_error is not None:
        return end_of(log_error).status
    return ENDS["stopped"].status if stopped else 0


def asked(
    status: int, folder: str, step: int, steps: int, log_error: OSError | None
) -> RunEnded | None:
    """The end that some process has wished for, None where it comes too late to matter.

    status: the highest of the wishes. step: the last that is done, and saved. log_error: this
    process's own.
    """
    if status == ENDS["stopped"].status:
        if step == steps:
            return None
        reason = f"it was asked to stop and did at step {step} of {steps}, all saved"
        return RunEnded("stopped", f"{reason}; the same command goes on from there.")
    word = next(end.word for end in ENDS.values() if end.status == status)
    why = "process 0 says why; mend that and run the same command again."
    if log_error:
        why = end_of(log_error).reason
        if word == "failed":
            why = f"{why.rstrip('.')}; mend that and run the same command again."
    return RunEnded(
        word, f"the log of {folder} cannot be written: {why} Step {step} of {steps} is saved."
    )


def stuck(folder: str, patience: int, skipped_to: int, step: int) -> RunEnded:
    """The end of a run that has skipped its patience of steps. step: the last that is saved."""
    return RunEnded(
        "stuck",
        f"{patience} steps in a row were skipped up to step {skipped_to}, as spikes or not finite; "
        f"step {step} is saved: lower optimizer.peak_learning_rate, or delete the newest of "
        f"{folder}/checkpoints to go back, or run the same command again: it skips these rows, and "
        "if that does not help goes on from the newest sound checkpoint.",
    )


def saved_before(
    error: Exception,
    state: Any,
    step: int,
    steps: int,
    save: Callable[[], None],
    manager: ocp.CheckpointManager,
) -> RunEnded:
    """The end that an error is, after the state has been saved where that can be done.

    state: as it was after the step. save: function that saves it, all processes together.
    """
    end = end_of(error)
    gone = any(leaf.is_deleted() for leaf in jax.tree.leaves(state))  # given to a step that failed
    if not gone and step and together.all_come(f"saved/{step}", together.MEET):
        try:
            save()
            reason = f"{end.reason} Step {step} of {steps} is saved."
            return RunEnded(end.word, reason, end.defect)
        except Exception as second:
            end = RunEnded(end.word, f"{end.reason} And then: {end_of(second).reason}", end.defect)
    alone = "" if together.processes() == 1 else "; all processes save together or none does"
    newest = manager.latest_step()
    what = "Nothing" if newest is None else f"Nothing after step {newest}"
    return RunEnded(end.word, f"{end.reason} {what} is saved{alone}.", end.defect)
