"""Orbax checkpoints: the state, the gin text that made it, and fingerprints of its data.

The one room that knows Orbax. A restore always goes to an abstract tree with the present
shardings, so that a checkpoint of any mesh is read on any other.

Orbax stores arrays without a checksum: a flipped bit of a file comes back as another number. So
the meta holds a checksum of the state, taken on the devices, which is compared after a restore.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint._src.futures import future, signaling_client

from polylm_jax.errors import UserError, first_line
from polylm_jax.model.parameters import shapes
from polylm_jax.parallel.sharding import parameter_shardings
from polylm_jax.sizes import Size
from polylm_jax.train.checksum import joined, state_checksum
from polylm_jax.train.ends import RunEnded
from polylm_jax.train.retention import Meta, Retention, Skipped, skipped_of, sound

Loaded = TypeVar("Loaded")

# what Orbax and JSON raise for a file that is missing, cut off or altered
DAMAGE = (ValueError, LookupError, AttributeError, TypeError, EOFError, FileNotFoundError)
# where TensorStore writes, besides disks; any other URL it takes for the name of a local folder
STORES = ("gs://", "s3://")
# storage that cannot be reached has damaged nothing
OUT_OF_REACH = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED")
LONGEST = 200  # letters of what a library says
# how TensorStore begins to say what storage answered to a write
NOT_WRITTEN = ("Error opening", "Error reading", "Error writing", *OUT_OF_REACH)


def open_manager(folder: str, retention: Retention | None = None) -> ocp.CheckpointManager:
    """Manager of FOLDER/checkpoints: asynchronous.

    retention: for a run that goes on; it says what stays, and what killed saves left is deleted.
    """
    if "://" in folder and not folder.startswith(STORES):
        raise UserError(
            f"{folder} cannot hold a run: checkpoints lie on a disk, or at {' or '.join(STORES)}."
        )
    _one_sentence_for_a_failed_save()
    _timeouts_by_the_steady_clock()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=retention,
        enable_async_checkpointing=True,
        create=True,
        # never by a reader: the save of a run that is alive looks the same
        cleanup_tmp_directories=retention is not None,
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


def _timeouts_by_the_steady_clock() -> None:
    """Orbax counts the seconds of a save by the wall clock, whose jump would fail it."""
    steady = SimpleNamespace(time=time.monotonic, sleep=time.sleep)
    for module in (future, signaling_client):
        vars(module)["time"] = steady


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
        whole = sealed(meta, int(state_checksum(state)), int(state_checksum(state["params"])))
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(whole)
            ),
            force=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise not_saved(manager, step, error) from error


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits for the save under way and raises its failure as one sentence."""
    step = manager.latest_step() or 0
    try:
        manager.wait_until_finished()
        manager.check_for_errors()
    except (OSError, ValueError, RuntimeError) as error:
        raise not_saved(manager, step, error) from error


def not_saved(manager: ocp.CheckpointManager, step: int, error: Exception) -> Exception:
    """What a failed save raises: one sentence if the storage is to blame, else the error."""
    reasons = ("No space left on device", "File too large", "Quota exceeded", "Permission denied")
    reason = next((r for r in reasons if r.lower() in str(error).lower()), None)
    storage = isinstance(error, OSError) or any(words in str(error) for words in NOT_WRITTEN)
    if reason is None and not storage:
        return error
    # what the failed save has left behind complains as it is taken down
    sys.unraisablehook = lambda _: None
    why = reason or first_line(error)[:LONGEST]
    what = f"the checkpoint of step {step} could not be written to {manager.directory} ({why})"
    kept = ": it goes on from the newest whole checkpoint" if step else ""
    again = f"run the same command again{kept}."
    if reason is None:
        return RunEnded("failed", f"{what}; when that storage answers, {again}")
    if reason == "Permission denied":
        return RunEnded("failed", f"{what}; give this user the right to write there and {again}")
    return RunEnded("storage full", f"{what}; free some space and {again}")


def meta_of(
    size: Size,
    rows: int,
    gin: str,
    fingerprints: dict[str, str],
    skipped: Skipped = Skipped(0, False),  # noqa: B008
) -> Meta:
    """What is saved beside the state. rows: of the run, read so far. skipped: just before."""
    return {
        "model": dataclasses.asdict(size),
        "rows": rows,
        "gin": gin,
        "fingerprints": fingerprints,
        "skipped": skipped,
    }


def sealed(meta: Meta, state: int, params: int) -> Meta:
    """The meta as it is saved, with checksums: the state's, the parameters' and its own."""
    whole = meta | {"state_checksum": state, "params_checksum": params}
    return whole | {"meta_checksum": _meta_checksum(whole)}


def write_meta(manager: ocp.CheckpointManager, step: int, whole: Meta) -> None:
    """Puts another meta in the place of a step's."""
    place = manager.directory / str(step) / "meta"
    ocp.JsonCheckpointHandler().save(place, args=ocp.args.JsonSave(whole))


def params_checksum(meta: Meta) -> int | None:
    """The parameters' checksum; None for a run of the days when imports had none, and 0 there."""
    saved = meta.get("params_checksum")
    return None if meta.get("imported") and not saved else saved


def read_meta(manager: ocp.CheckpointManager, step: int) -> Meta:
    """The saved meta of a step. Raises one of DAMAGE where it is not as it was saved."""
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    if meta.pop("meta_checksum", None) != _meta_checksum(meta):
        raise ValueError("the meta was altered after it was saved")
    return meta


def saved(manager: ocp.CheckpointManager) -> dict[int, Skipped]:
    """Each whole checkpoint, and what had been skipped before it was saved.

    One whose meta is damaged counts as sound: whoever takes it will say that it is damaged.
    """
    found = {}
    for step in manager.all_steps():
        try:
            found[step] = skipped_of(read_meta(manager, step))
        except DAMAGE:
            found[step] = Skipped(0, False)
    return found


def newest_sound(manager: ocp.CheckpointManager) -> tuple[int, str]:
    """The step of the checkpoint that readers take, and what to say where it is not the newest."""
    steps = saved(manager)
    newest, good = max(steps), sound(steps)
    if not good:
        return newest, f"Step {newest} was saved while steps were skipped; no sound one is left."
    if good[-1] == newest:
        return newest, ""
    return good[-1], (
        f"Taking step {good[-1]}, the newest sound checkpoint: step {newest} was saved while steps "
        "were skipped."
    )


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
            f"the checkpoint in {folder} has {', '.join(other)}; leave that setting as it was, or "
            "take the run that has it."
        )


def check_tokenizer(meta: Meta, fingerprint: str, folder: str) -> None:
    """UserError where the checkpoint's tokenizer is another one."""
    if meta["fingerprints"]["tokenizer"] != fingerprint:
        raise UserError(
            f"the checkpoint in {folder} was trained with another tokenizer; put the former one "
            "back, or choose another train.folder."
        )


def restore_newest(
    manager: ocp.CheckpointManager,
    steps: Sequence[int],
    load: Callable[[int, Meta], Loaded],
    say: Callable[[str], None],
) -> tuple[int, Meta, Loaded] | None:
    """Step, meta and what was loaded of the newest of these checkpoints; None where there is none.

    A damaged one is told of with `say` and moved to the folder `damaged` beside the others, but
    only once an older one has been restored. load: function (step, meta) -> what is wanted; it
    raises UserError for a meta that does not fit. All processes take the same checkpoint.
    """
    unread: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        error = None
        try:
            meta = read_meta(manager, step)
            loaded = load(step, meta)
        except DAMAGE as raised:
            if _out_of_reach(raised):
                raise damaged(manager, step, raised) from raised
            error = raised
        if multihost_utils.process_allgather(np.array(error is None)).all():
            for former, why in unread.items():
                place = _set_aside(manager, former, "damaged")
                say(f"The checkpoint of step {former} is damaged ({why}); it is now in {place}.")
            return step, meta, loaded
        unread[step] = first_line(error)[:LONGEST]
    if unread:
        why = "; ".join(f"step {step}: {reason}" for step, reason in unread.items())
        raise UserError(
            f"no checkpoint in {manager.directory} can be read ({why}); move that folder away to "
            "begin anew, or go on with the program that wrote it."
        )
    return None


def _set_aside(manager: ocp.CheckpointManager, step: int, name: str) -> epath.Path:
    """Moves a checkpoint into a folder of this name beside the others; returns where it is now."""
    folder = manager.directory.parent / name
    taken = {path.name for path in folder.iterdir()} if folder.exists() else set()
    names = (f"{step}" if not again else f"{step}.{again}" for again in range(len(taken) + 1))
    place = folder / next(name for name in names if name not in taken)
    multihost_utils.sync_global_devices("checkpoint named")
    if jax.process_index() == 0:
        folder.mkdir(exist_ok=True)
        (manager.directory / str(step)).rename(place)
    multihost_utils.sync_global_devices("checkpoint moved")
    manager.reload()
    return place


def set_aside_after(manager: ocp.CheckpointManager, step: int) -> epath.Path:
    """Moves the newest checkpoint to the folder `unsound`, in place of what is there, and deletes
    the others that are later than `step`; returns where the newest is now."""
    *others, newest = sorted(later for later in manager.all_steps() if later > step)
    for other in others:
        manager.delete(other)
    multihost_utils.sync_global_devices("unsound checkpoints deleted")
    if jax.process_index() == 0 and (manager.directory.parent / "unsound").exists():
        (manager.directory.parent / "unsound").rmtree()
    multihost_utils.sync_global_devices("unsound folder empty")
    return _set_aside(manager, newest, "unsound")


def _meta_checksum(meta: Meta) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def restore(manager: ocp.CheckpointManager, step: int, abstract: Any) -> Any:
    """The state of a step, placed as the abstract tree's shardings say."""
    with plain_errors():
        restored = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
    return restored["state"]


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raises what was wrong with a read, which Orbax hides behind an `Exception` of no class."""
    try:
        yield
    except Exception as error:
        if type(error) is Exception and error.__cause__:
            raise error.__cause__ from None
        raise


def restore_params(manager: ocp.CheckpointManager, step: int, size: Size, mesh: Mesh) -> Any:
    """Only the parameters of a step, float32, split over the mesh; no optimizer is read.

    UserError where they are not as they were saved.
    """
    place = lambda shape, sharding: jax.ShapeDtypeStruct(  # noqa: E731
        shape.shape, shape.dtype, sharding=sharding
    )
    wanted = jax.tree.map(place, shapes(size), parameter_shardings(size, mesh))
    found = [array for _, array in each_array(manager, step, size, wanted)]
    return jax.tree.unflatten(jax.tree.structure(wanted), found)


def each_array(
    manager: ocp.CheckpointManager, step: int, size: Size, wanted: Any
) -> Iterator[tuple[str, jax.Array]]:
    """Name and values of each array of a step's parameters, one at a time, in the tree's order.

    wanted: what was trained, as ShapeDtypeStructs with shardings. UserError where they are not as
    they were saved, which shows only after the last: they are good for nothing before.
    """
    path, sums = manager.directory / str(step) / "state", []
    leaves, structure = jax.tree_util.tree_flatten_with_path(wanted)
    try:
        meta = read_meta(manager, step)
        check_model(meta, size, str(manager.directory.parent))
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            for keys, leaf in leaves:
                item = leaf
                for key in reversed(keys):
                    item = {key.key: item}
                item = {"params": item}
                arguments = ocp.checkpoint_utils.construct_restore_args(item)
                how = ocp.args.PyTreeRestore(
                    item=item, restore_args=arguments, partial_restore=True
                )
                with plain_errors():
                    (array,) = jax.tree.leaves(reader.restore(path, how))
                sums.append(int(state_checksum(array)))
                yield keys[-1].key, array
                del array  # so that it need not be in memory beside the next one
        saved = params_checksum(meta)
        if saved is not None and joined(jax.tree.unflatten(structure, sums)) != saved:
            raise ValueError("the parameters were altered after they were saved")
    except DAMAGE as error:
        raise damaged(manager, step, error) from error


def damaged(manager: ocp.CheckpointManager, step: int, error: Exception) -> UserError:
    """What a failed read of a step raises: one sentence."""
    which = f"the checkpoint of step {step} in {manager.directory}"
    why = first_line(error)[:LONGEST]
    if _out_of_reach(error):
        return UserError(
            f"{which} cannot be reached ({why}); see to that storage, or to what you may do there, "
            "and run the same command again."
        )
    earlier = any(other < step for other in manager.all_steps())
    mend = (
        "move that step's folder away to take the one before"
        if earlier
        else "there is none before it, so take a copy of the run or make it again"
    )
    return UserError(f"{which} is damaged ({why}); {mend}.")


def _out_of_reach(error: Exception) -> bool:
    return any(word in str(error) for word in OUT_OF_REACH)
