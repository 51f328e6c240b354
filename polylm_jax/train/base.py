"""Parameters of another run: what this one begins with, or what stays frozen beside adapters."""

from typing import Any

import jax
import optax
from jax.sharding import Mesh

from polylm_jax.errors import UserError
from polylm_jax.model.decoder import COMPUTE_DTYPES
from polylm_jax.parallel.sharding import parameter_shardings
from polylm_jax.sizes import Size
from polylm_jax.train import checkpoint, door
from polylm_jax.train.checksum import state_checksum
from polylm_jax.train.restore import restore_state


def open_start(folder: str, size: Size, tokenizer: str) -> door.Run:
    """The run that train.start names. tokenizer: fingerprint of this run's.

    UserError where the other run's model or tokenizer is another.
    """
    run = door.open_run(folder)
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


def read_start(folder: str, size: Size, tokenizer: str, mesh: Mesh) -> Any:
    """The parameters of a run's newest sound checkpoint, float32, split over the mesh."""
    return door.read_params(open_start(folder, size, tokenizer), mesh)


def read_moments(run: door.Run, abstract: dict[str, Any]) -> dict[str, Any]:
    """Parameters and optimizer of another run, as if it were at step 0: {"params", "optimizer"}.

    The moments keep the number of steps that they are the mean of; the learning rate begins anew.
    abstract: this run's state. UserError where there are no moments or they are not as saved.
    """
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


def frozen(params: Any, size: Size, dtype: str, mesh: Mesh) -> tuple[Any, str]:
    """Parameters that are not trained, in the compute dtype, and the checksum of what they were.

    params: float32, used up.
    """
    checksum = f"{int(state_checksum(params)):08x}"
    cast = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf.astype(COMPUTE_DTYPES[dtype]), tree),
        out_shardings=parameter_shardings(size, mesh),
        donate_argnums=0,
    )
    return cast(params), checksum


def check_base(meta: checkpoint.Meta, base: str, folder: str) -> None:
    """UserError where a checkpoint's adapters belong to other frozen weights.

    base: the checksum of those here, "" where all weights are trained.
    """
    if meta["fingerprints"].get("base", "") != base:
        raise UserError(
            f"the checkpoint in {folder} was trained beside another base; give the train.start and "
            "lora.rank that it had, or choose another train.folder."
        )
