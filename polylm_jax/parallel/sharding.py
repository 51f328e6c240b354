"""The one table from logical axes to mesh axes, and the shardings that follow from it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from polylm_jax.chips import chip_of
from polylm_jax.errors import UserError
from polylm_jax.model.attention import (
    LANES,
    TREE_BLOCK,
    Scope,
    Trees,
    cudnn,
    over_trees,
    splash,
    staircase,
)
from polylm_jax.model.decoder import Attend, Compute
from polylm_jax.model.lora import Lora, adapter_axes
from polylm_jax.model.loss import BLOCK
from polylm_jax.model.parameters import logical_axes
from polylm_jax.model.table import ONE_DEVICE, TableAxes
from polylm_jax.sizes import Size

MESH_AXES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "length": None,
    "layers": None,
    "vocabulary": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
}
# Attention kernels by the platform of a device.
KERNELS = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}
MOST_IN_BLOCK = 2048  # tokens of the loss; more take memory and gain little
MOST_UNROLLED = 24  # layers, the 1.7B's; of more the compiler's time and memory are not known
LOSS_AXES = TableAxes(batch=("data", "fsdp"), vocabulary="tensor", embed="fsdp")


def loss_axes(mesh: Mesh) -> TableAxes:
    """How a mesh splits the loss; one device has no axes.

    A CPU's compiler does not see that a sum over one device is none: it copies, and fuses nothing.
    """
    return LOSS_AXES if mesh.size > 1 else ONE_DEVICE


def spec(axes: tuple[str | None, ...]) -> P:
    """PartitionSpec of an array whose dimensions have these logical names."""
    return P(*(None if axis is None else MESH_AXES[axis] for axis in axes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: its rows over data and fsdp, nothing over tensor."""
    return NamedSharding(mesh, spec(("batch",)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


def check_divides(size: Size, mesh: Mesh) -> None:
    """UserError if a dimension of the model cannot be split evenly as the table asks."""
    wanted = {
        ("model.vocabulary", size.vocabulary): "tensor",
        ("model.heads", size.heads): "tensor",
        ("model.d_ff", size.d_ff): "tensor",
        ("model.d_model", size.d_model): "fsdp",
    }
    for (name, dimension), axis in wanted.items():
        if dimension % mesh.shape[axis]:
            raise UserError(
                f"mesh.{axis} = {mesh.shape[axis]} does not divide {name} = {dimension}; "
                f"choose a mesh.{axis} that does."
            )


def parameter_shardings(size: Size, mesh: Mesh) -> dict[str, Any]:
    """Tree of NamedSharding for the decoder's parameters."""
    check_divides(size, mesh)
    is_leaf = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(
        lambda axes: NamedSharding(mesh, spec(axes)), logical_axes(size), is_leaf=is_leaf
    )


def adapter_shardings(size: Size, lora: Lora, mesh: Mesh) -> dict[str, NamedSharding]:
    """NamedSharding of each adapter's arrays: split as its kernel is."""
    check_divides(size, mesh)
    return {
        name: NamedSharding(mesh, spec(axes)) for name, axes in adapter_axes(size, lora).items()
    }


def like_parameters(tree: Any, wanted: dict[str, Any], mesh: Mesh) -> Any:
    """Shardings for a tree that holds copies of the parameters' tree, as optimizers do.

    tree: arrays or ShapeDtypeStructs. wanted: shardings of what is trained. Subtrees with its
    structure are split so; everything else (counters) is replicated.
    """
    structure: Any = jax.tree.structure(wanted)

    def is_copy(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    return jax.tree.map(
        lambda node: wanted if is_copy(node) else replicated(mesh), tree, is_leaf=is_copy
    )


@cache
def constrainer(mesh: Mesh, shard_length: bool = False) -> Callable[..., jax.Array]:
    """The decoder's hook: function (x, *logical axes) that pins x to the mesh.

    shard_length: whether the logical axis "length" is split over tensor. One function for one
    mesh: decoders of the same settings are equal, and what is compiled for one serves all.
    """

    def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
        parts = [
            "tensor" if shard_length and axis == "length" else part
            for axis, part in zip(axes, spec(axes), strict=True)
        ]
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*parts)))

    return constrain


def for_device(compute: Compute, layers: int, kind: str) -> Compute:
    """The settings with those that are left to the device, 0, chosen for one of this kind.

    unroll: all layers on a GPU, whose compiler else copies what each keeps into the loop's arrays
    and writes zeros there first; 1 elsewhere and for more than MOST_UNROLLED.
    loss_block: so many tokens that the product which updates the embedding's gradient, 8 bytes of
    it for 2 FLOPs a token, is not bound by memory.
    """
    chip = chip_of(kind)
    block = BLOCK
    while chip and block / 4 < chip.flops / chip.bandwidth and block < MOST_IN_BLOCK:
        block *= 2
    unrolled = layers if kind.startswith("NVIDIA") and layers <= MOST_UNROLLED else 1
    return replace(
        compute,
        unroll=compute.unroll or unrolled,
        loss_block=compute.loss_block or block,
    )


@cache
def attender(compute: Compute, mesh: Mesh, interpret: bool = False) -> Attend | None:
    """The decoder's other hook: attention by the kernel that compute.attention asks for.

    Returns None for the plain formula; for equal arguments the same function, so that what it is
    part of is compiled once. The platform is that of the mesh's devices, which need not be here.
    interpret: emulates splash on other platforms.
    """
    name, platform = compute.attention, mesh.devices.flat[0].platform
    if name == "auto":
        name = KERNELS.get(platform, "staircase")
        if name == "cudnn" and compute.dtype != "bfloat16":
            name = "staircase"
    heads = spec(("batch", None, "heads", None))

    def on_each_device(kernel: Attend, scope: Scope) -> Attend:
        return jax.shard_map(
            kernel,
            mesh=mesh,
            in_specs=(heads, heads, heads, None if scope is None else spec(("batch",))),
            out_specs=heads,
            check_vma=False,
        )

    def with_trees(query: jax.Array, key: jax.Array, value: jax.Array, scope: Scope) -> jax.Array:
        other = query.shape[1] % TREE_BLOCK or platform != "cpu"
        if other or not isinstance(scope, Trees):
            return staircase(query, key, value, scope)
        return on_each_device(over_trees, scope)(query, key, value, scope)

    if name != "splash":
        return {"plain": None, "staircase": with_trees, "cudnn": cudnn}[name]

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, scope: Scope) -> jax.Array:
        length = query.shape[1]
        if length % LANES:
            if compute.attention == "splash":
                raise UserError(
                    f'compute.attention = "splash" needs rows of a multiple of {LANES} tokens, '
                    f'not {length}; set rows.length so, or compute.attention = "plain".'
                )
            return staircase(query, key, value, scope)
        kernel = partial(splash, interpret=interpret)
        return on_each_device(kernel, scope)(query, key, value, scope)

    return attend
