"""The device mesh: data x fsdp x tensor, over one slice or several."""

from dataclasses import dataclass
from typing import Annotated

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from polylm_jax.errors import UserError
from polylm_jax.ranges import Range, check

AXES = ("data", "fsdp", "tensor")

Ways = Annotated[int, Range(1, 2**20, also=(-1, "all devices that are left"))]


@dataclass(frozen=True)
class MeshShape:
    """How many ways each mesh axis splits; one axis may be -1, "all devices that are left".

    data: copies of the model, each with its part of the batch.
    fsdp: parts of the model's parameters, each with its part of the batch (ZeRO-3).
    tensor: parts of every matrix product, all with the same rows (Megatron's TP).
    slices: parts of the devices that only a data centre's network joins. The axes above are of
        one slice, and each slice holds copies of its own: so parameters and products never leave
        it, and only gradients cross. 0 takes the slices that TPUs say they are in.
    cpu_devices: as how many devices the CPU shows itself, to try a mesh without accelerators;
        0 leaves it as it is.
    """

    data: Ways = 1
    fsdp: Ways = -1
    tensor: Ways = 1
    slices: Annotated[int, Range(1, 2**20, also=(0, "what is there"))] = 0
    cpu_devices: Annotated[int, Range(1, 1024, also=(0, "as it is"))] = 0

    def __post_init__(self) -> None:
        check(self, "mesh")
        if [self.data, self.fsdp, self.tensor].count(-1) > 1:
            raise UserError(f"{in_words(self)}: at most one may be -1.")


def in_words(shape: MeshShape) -> str:
    """The axes as gin has them, for errors."""
    return " x ".join(f"mesh.{axis} = {getattr(shape, axis)}" for axis in AXES)


def resolve(shape: MeshShape, devices: int, slices: int = 1) -> tuple[int, int, int]:
    """The whole mesh, -1 filled in; an error if it does not make up the number of devices.

    devices: of all slices together. slices: how many there are; the copies of each are ways of
    data.
    """
    if devices % slices:
        raise UserError(
            f"mesh.slices = {slices} does not divide the {devices} devices here; choose one that "
            "does."
        )
    devices //= slices
    sizes = [shape.data, shape.fsdp, shape.tensor]
    fixed = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and devices % fixed == 0:
        sizes[sizes.index(-1)] = devices // fixed
    if int(np.prod(sizes)) != devices:
        raise UserError(
            f"{in_words(shape)} does not make up the {devices} devices "
            f"{'of each slice' if slices > 1 else 'here'}; "
            f"choose axes whose product is {devices}, or -1 for one of them."
        )
    return slices * sizes[0], sizes[1], sizes[2]


def slices_of(shape: MeshShape, devices: list[jax.Device]) -> list[list[jax.Device]]:
    """The devices of each slice; `resolve` says whether they are as many for all.

    UserError where TPUs say that they are in other slices than the shape has.
    """
    told = [getattr(device, "slice_index", 0) for device in devices]
    names = sorted(set(told)) if devices[0].platform == "tpu" else [0]
    if len(names) > 1:
        slices = [
            [device for device, name in zip(devices, told, strict=True) if name == wanted]
            for wanted in names
        ]
        if shape.slices not in (0, len(slices)) or len({len(one) for one in slices}) > 1:
            raise UserError(
                f"mesh.slices = {shape.slices}, but the devices are in {len(slices)} slices of "
                f"{', '.join(str(len(one)) for one in slices)}; set mesh.slices = 0 and give "
                "slices of one size."
            )
        return slices
    count = shape.slices or 1
    size = len(devices) // count
    return [devices[i * size : (i + 1) * size] for i in range(count)]


def make_mesh(shape: MeshShape, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over the devices (all of them by default), neighbours in tensor closest."""
    devices = jax.devices() if devices is None else devices
    slices = slices_of(shape, devices)
    data, fsdp, tensor = resolve(shape, len(devices), len(slices))
    sizes = (data // len(slices), fsdp, tensor)
    if devices[0].platform == "cpu":
        grids = [np.asarray(slice_).reshape(sizes) for slice_ in slices]
    else:
        grids = [
            mesh_utils.create_device_mesh(sizes, devices=slice_, allow_split_physical_axes=True)
            for slice_ in slices
        ]
    grid = np.concatenate(grids)
    # jax.make_mesh has another default in each version; Auto leaves the choice to XLA.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
