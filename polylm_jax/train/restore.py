"""A saved state in the form that the settings of today want.

Orbax casts while it reads, and calls what has another form an error like any other. Here a state is
read as it was saved, so that only what its checksum says is damage; then it is cast, and said so.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from polylm_jax.errors import UserError
from polylm_jax.train import checkpoint
from polylm_jax.train.checksum import named, state_checksum

# parts of a state without which there is no going on; all else can begin anew
ESSENTIAL = ("step", "skipped", "skipped_in_a_row", "params", "optimizer")


def restore_state(
    manager: ocp.CheckpointManager,
    step: int,
    meta: checkpoint.Meta,
    abstract: dict[str, Any],
    begin: Callable[[Sequence[str]], dict[str, Any]],
) -> tuple[dict[str, Any], list[str]]:
    """The state of a step as these settings have it, and what of it had to change, in sentences.

    It is read in the types in which it was saved, so that its checksum can be compared; what has
    another type now is cast. begin: function (parts) -> fresh ones, for parts that a former version
    did not save or saved in another form. One of DAMAGE where the state is not as it was saved,
    UserError where it is another one.
    """
    found = _described(manager, step)
    wanted, anew = dict(found), []
    for part, leaves in abstract.items():
        if part in found and _shapes(found[part]) == _shapes(leaves):
            wanted[part] = _as_saved(leaves, named(found[part]))
        elif part in ESSENTIAL:
            raise UserError(
                f"the checkpoint of step {step} in {manager.directory} has the part {part} in "
                "another form, of other settings or another version; go on with those, or choose "
                "another train.folder."
            )
        else:
            anew.append(part)
    restored = checkpoint.restore(manager, step, wanted)
    if int(state_checksum(restored)) != meta["state_checksum"]:
        raise ValueError("the state was altered after it was saved")
    remarks = [f"{part} begins anew: the checkpoint has none of its form." for part in anew]
    state = begin(anew) if anew else {}
    for part in abstract.keys() - set(anew):
        was, now = _types(restored[part]), _types(abstract[part])
        if was != now:
            name = "optimizer.moments" if part == "optimizer" else f"the type of {part}"
            remarks.append(f"{name} was {was} and is {now} now; what was saved is cast.")
        state[part] = jax.tree.map(
            lambda leaf, like: leaf.astype(like.dtype), restored[part], abstract[part]
        )
    return state, remarks


def _described(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Shapes and types of a saved state, on every device: ShapeDtypeStructs in nested dicts."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader, checkpoint.plain_errors():
        tree = reader.metadata(manager.directory / str(step) / "state").item_metadata.tree
    if not isinstance(tree, dict):
        raise ValueError("its description cannot be read")
    everywhere = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), tree
    )


def _as_saved(tree: Any, saved: dict[tuple[str, ...], Any]) -> Any:
    """The tree with each leaf in the type that it was saved in."""
    leaves, structure = jax.tree_util.tree_flatten(tree)
    numbers = named(jax.tree_util.tree_unflatten(structure, range(len(leaves))))
    types = {number: saved[path].dtype for path, number in numbers.items()}
    like = [
        jax.ShapeDtypeStruct(leaf.shape, types[i], sharding=leaf.sharding)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree_util.tree_unflatten(structure, like)


def _shapes(tree: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in named(tree).items()}


def _types(tree: Any) -> str:
    """The types of floating point in a tree, by name."""
    kinds = {leaf.dtype for leaf in jax.tree.leaves(tree)}
    return " and ".join(sorted(str(k) for k in kinds if jnp.issubdtype(k, jnp.floating)))
