"""Parameters of another run: what this one begins with, or what stays frozen beside adapters."""

import contextlib
from typing import Any

import jax
import optax

from polylm_jax.errors import UserError
from polylm_jax.model.lora import Lora
from polylm_jax.sizes import Size
from polylm_jax.train import checkpoint, door
from polylm_jax.train.restore import restore_state


def open_start(folder: str, size: Size, tokenizer: str, identity: str = "") -> door.Run:
    """The run that train.start names. tokenizer: fingerprint of this run's.

    identity: of the parameters that it is to be opened at, if it still has them.
    UserError where the other run's model or tokenizer is another.
    """
    run = (identity and door.find_run(folder, identity)) or door.open_run(folder)
    now = vars(size)
    other = [
        f"model.{name} = {value}" for name, value in run.meta["model"].items() if now[name] != value
    ]
    if other:
        raise UserError(
            f"train.start = {folder} has {', '.join(other)}; set the same here, for parameters of "
            "another shape cannot be taken."
        )
    if run.tokenizer.fingerprint != tokenizer:
        raise UserError(
            f"train.start = {folder} was trained with another tokenizer than the one here; set "
            f"tokenizer.path = {folder}."
        )
    return run


def open_base(folder: str, size: Size, tokenizer: str, manager: Any) -> door.Run:
    """The run that train.start names, at the parameters that adapters saved so far belong to.

    manager: of this run's checkpoints. UserError as of open_start, and where nothing would tell
    the parameters from others.
    """
    steps, beside = sorted(manager.all_steps(), reverse=True), ""
    for step in steps:
        with contextlib.suppress(*checkpoint.DAMAGE):
            beside = checkpoint.read_meta(manager, step)["fingerprints"].get("base", "")
            break
    run = open_start(folder, size, tokenizer, beside)
    if not door.identity_of(run.meta):
        raise UserError(
            f"train.start = {folder} has no checksum by which adapters could know its parameters "
            "again; import it again to have one."
        )
    return run


def read_moments(run: door.Run, abstract: dict[str, Any]) -> dict[str, Any]:
    """Parameters and optimizer of another run, as if it were at step 0: {"params", "optimizer"}.

    The moments keep the number of steps that they are the mean of; the learning rate begins anew.
    abstract: this run's state. UserError where there are no moments or they are not as saved.
    """
    if run.base is not None:
        raise UserError(
            f"train.start = {run.folder} has the moments of its adapters alone; leave out "
            "train.start_moments."
        )
    if run.meta.get("imported"):
        raise UserError(
            f"train.start = {run.folder} was imported and has no moments; leave out "
            "train.start_moments."
        )

    def none(parts: Any) -> dict[str, Any]:
        return {}

    parts = ("params", "optimizer")
    try:
        state, _ = restore_state(
            run.manager, run.step, run.meta, {part: abstract[part] for part in parts}, none
        )
    except checkpoint.DAMAGE as error:
        raise checkpoint.damaged(run.manager, run.step, error) from error

    def begun(part: Any) -> Any:
        if isinstance(part, optax.ScaleByScheduleState):
            return part._replace(count=part.count * 0)
        return part

    schedule = lambda part: isinstance(part, optax.ScaleByScheduleState)  # noqa: E731
    optimizer = jax.tree.map(begun, state["optimizer"], is_leaf=schedule)
    return {"params": state["params"], "optimizer": optimizer}


def check_base(meta: checkpoint.Meta, base: str, lora: Lora, folder: str) -> None:
    """UserError where a checkpoint's adapters belong to other frozen weights, or scale otherwise.

    base: identity of those here, "" where all weights are trained.
    """
    if meta["fingerprints"].get("base", "") != base:
        raise UserError(
            f"the checkpoint in {folder} was trained beside another base; give the train.start and "
            "lora.rank that it had, or choose another train.folder."
        )
    saved = meta.get("adapters", {})
    now = {"rank": lora.rank, "alpha": lora.alpha, "targets": list(lora.targets)}
    other = [name for name in now if saved and saved[name] != now[name]]
    if other:
        was = ", ".join(f"lora.{name} = {saved[name]} (now {now[name]})" for name in other)
        raise UserError(
            f"the checkpoint in {folder} has adapters of {was}; leave that setting as it was, or "
            "choose another train.folder."
        )
