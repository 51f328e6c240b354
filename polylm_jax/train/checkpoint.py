"""Orbax checkpoints: the state, the gin text that made it, and fingerprints of its data.

The one room that knows Orbax. A restore always goes to an abstract tree with the present
shardings, so that a checkpoint of any mesh is read on any other.
"""

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from polylm_jax.errors import UserError
from polylm_jax.model.parameters import shapes
from polylm_jax.parallel.sharding import parameter_shardings
from polylm_jax.sizes import Size

Meta = dict[str, Any]


def open_manager(folder: str, keep: int | None = None) -> ocp.CheckpointManager:
    """Manager of FOLDER/checkpoints: asynchronous, keeps the newest `keep`."""
    _one_sentence_for_a_failed_save()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=True, create=True
    )
    path = epath.Path(folder)
    if "://" not in str(folder):
        path = epath.Path(Path(folder).absolute())
    return ocp.CheckpointManager(path / "checkpoints", options=options)


def _one_sentence_for_a_failed_save() -> None:
    """Silences the stack traces with which Orbax and TensorStore accompany a failed save.

    Orbax logs what it also raises. The writes that were under way when one failed come back to
    an event loop that Orbax has closed, which Python reports as exceptions nobody can catch.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    former = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            former(unraisable)

    sys.unraisablehook = hook


def open_existing(folder: str) -> ocp.CheckpointManager:
    """Manager of a run that must have a checkpoint."""
    if "://" not in folder and not (Path(folder) / "checkpoints").is_dir():
        raise UserError(f"there is no run in {folder}; give the folder of one with --run=DIR.")
    manager = open_manager(folder)
    if manager.latest_step() is None:
        raise UserError(f"{folder} has no whole checkpoint yet; train on with `polylm train`.")
    return manager


def save(manager: ocp.CheckpointManager, step: int, state: Any, meta: Meta) -> None:
    """Starts a save and returns while it is written; an earlier save's failure is raised here."""
    try:
        manager.check_for_errors()
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
            force=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_saved(manager, step, error) from error


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits for the save under way and raises its failure as one sentence."""
    step = manager.latest_step() or 0
    try:
        manager.wait_until_finished()
        manager.check_for_errors()
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_saved(manager, step, error) from error


def _not_saved(manager: ocp.CheckpointManager, step: int, error: Exception) -> Exception:
    """What a failed save raises: one sentence if the storage is to blame, else the error."""
    reasons = ("No space left on device", "File too large", "Quota exceeded", "Permission denied")
    reason = next((r for r in reasons if r.lower() in str(error).lower()), None)
    if reason is None:
        return error
    # what the failed save has left behind complains as it is taken down
    sys.unraisablehook = lambda _: None
    return UserError(
        f"the checkpoint of step {step} could not be written to {manager.directory} ({reason}); "
        "free some space and run the same command again: it goes on from the newest whole "
        "checkpoint."
    )


def meta_of(size: Size, rows: int, gin: str, fingerprints: dict[str, str]) -> Meta:
    """What is saved beside the state. rows: of the run, read so far."""
    return {
        "model": dataclasses.asdict(size),
        "rows": rows,
        "gin": gin,
        "fingerprints": fingerprints,
    }


def read_meta(manager: ocp.CheckpointManager, step: int) -> Meta:
    """The saved meta of a step."""
    return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def check_model(meta: Meta, size: Size, folder: str) -> None:
    """UserError naming each dimension in which the checkpoint's model is another one."""
    now = dataclasses.asdict(size)
    other = [
        f"model.{name} = {value} (now {now[name]})"
        for name, value in meta["model"].items()
        if now[name] != value
    ]
    if other:
        raise UserError(
            f"the checkpoint in {folder} has {', '.join(other)}; use the gin file it was trained "
            "with, or another train.folder."
        )


def check_fingerprints(meta: Meta, fingerprints: dict[str, str], folder: str) -> None:
    """UserError naming what has changed since the checkpoint: tokenizer, rows or curriculum."""
    changed = [
        name for name, value in meta["fingerprints"].items() if fingerprints.get(name) != value
    ]
    if changed:
        raise UserError(
            f"the checkpoint in {folder} was trained with another {' and another '.join(changed)}; "
            "put the former one back, or choose another train.folder."
        )


def restore(manager: ocp.CheckpointManager, step: int, abstract: Any) -> Any:
    """The state of a step, placed as the abstract tree's shardings say."""
    restored = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    )
    return restored["state"]


def restore_params(manager: ocp.CheckpointManager, step: int, size: Size, mesh: Mesh) -> Any:
    """Only the parameters of a step, float32, split over the mesh; no optimizer is read."""
    place = lambda shape, sharding: jax.ShapeDtypeStruct(  # noqa: E731
        shape.shape, shape.dtype, sharding=sharding
    )
    item = {"params": jax.tree.map(place, shapes(size), parameter_shardings(size, mesh))}
    arguments = ocp.checkpoint_utils.construct_restore_args(item)
    path = manager.directory / str(step) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore(
            path, ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
        )
    return restored["params"]
