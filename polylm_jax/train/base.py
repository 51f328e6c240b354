"""Parameters of another run: what this one begins with, or what stays frozen beside adapters."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import COMPUTE_DTYPES
from polylm_jax.parallel.sharding import parameter_shardings
from polylm_jax.sizes import Size
from polylm_jax.train.checksum import state_checksum
from polylm_jax.train.door import open_run, read_params


def read_start(folder: str, size: Size, tokenizer: Tokenizer, mesh: Mesh) -> Any:
    """The parameters of a run's newest checkpoint, float32, split over the mesh.

    UserError where the run in the folder, train.start, has another model or tokenizer than these.
    """
    run = open_run(folder)
    there, here = dataclasses.asdict(run.size), dataclasses.asdict(size)
    other = [f"model.{name} = {there[name]}" for name in here if there[name] != here[name]]
    if other:
        raise UserError(
            f"train.start = {folder} has {', '.join(other)}; set the same here, for parameters of "
            "another shape cannot be taken."
        )
    if run.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"train.start = {folder} was trained with another tokenizer than the one here; set "
            f"tokenizer.path = {folder} and make the rows with that."
        )
    return read_params(run, mesh)


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
