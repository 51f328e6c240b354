"""The device mesh: data x fsdp x tensor."""

from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from polylm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True)
class MeshShape:
    """How many ways each mesh axis splits; one axis may be -1, "all devices that are left".

    data: copies of the model, each with its part of the batch.
    fsdp: parts of the model's parameters, each with its part of the batch (ZeRO-3).
    tensor: parts of every matrix product, all with the same rows (Megatron's TP).
    cpu_devices: as how many devices the CPU shows itself, to try a mesh without accelerators;
        0 leaves it as it is.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    cpu_devices: int = 0


def resolve(shape: MeshShape, devices: int) -> tuple[int, int, int]:
    """The shape with -1 filled in; an error if it does not make up the number of devices."""
    sizes = [shape.data, shape.fsdp, shape.tensor]
    fixed = int(np.prod([size for size in sizes if size != -1]))
    wanted = " x ".join(f"mesh.{axis} = {size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or min(sizes) < -1 or 0 in sizes:
        raise UserError(f"{wanted}: every axis is at least 1, and at most one may be -1.")
    if -1 in sizes and devices % fixed == 0:
        sizes[sizes.index(-1)] = devices // fixed
    if int(np.prod(sizes)) != devices:
        raise UserError(
            f"{wanted} does not make up the {devices} devices here; "
            f"choose axes whose product is {devices}, or -1 for one of them."
        )
    return sizes[0], sizes[1], sizes[2]


def make_mesh(shape: MeshShape, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over the devices (all of them by default), neighbours in tensor closest."""
    devices = jax.devices() if devices is None else devices
    sizes = resolve(shape, len(devices))
    if devices[0].platform == "cpu":
        grid = np.asarray(devices).reshape(sizes)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)
    # jax.make_mesh has another default in each version; Auto leaves the choice to XLA.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
