"""The one door to what a run holds: its parameters and its tokenizer, as they were saved or not at
all.

Storage gives back a flipped bit as another number, and a folder may be given another tokenizer; so
whoever reads a run opens it here, where checksums and fingerprints are compared. A run of adapters
(LoRA) opens the run that it began with, too, and is read as the two merged: added in float32.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from polylm_jax.data.tokenizer import MODEL, Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.files import opened
from polylm_jax.model.decoder import COMPUTE_DTYPES
from polylm_jax.model.lora import TARGETS, Lora, adapter_shapes, merged
from polylm_jax.model.parameters import layer_parameters, outer_parameters, shapes
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import adapter_shardings, parameter_shardings
from polylm_jax.sizes import Size
from polylm_jax.train import arrays, checkpoint, checksum


@dataclass(frozen=True)
class Run:
    """A run's newest sound checkpoint, its parameters not yet read, and its tokenizer.

    base: of a run of adapters, the run whose parameters they belong to.
    """

    folder: str
    manager: Any
    step: int
    meta: checkpoint.Meta
    tokenizer: Tokenizer
    base: "Run | None" = None

    @property
    def size(self) -> Size:
        return Size(**self.meta["model"])

    @property
    def lora(self) -> Lora:
        """Of a run of adapters."""
        noted = self.meta["adapters"]
        return Lora(noted["rank"], noted["alpha"], tuple(noted["targets"]))


class Part(NamedTuple):
    """Some of one parameter. layer: None outside the layers. place: a slice of each axis of the
    parameter's shape, which has no layer axis. values: float32, of the place's shape."""

    name: str
    layer: int | None
    place: tuple[slice, ...]
    values: np.ndarray


def open_run(folder: str) -> Run:
    """Opens a run for reading; UserError where its meta or its tokenizer is not as it was saved,
    or where the run is of adapters and that which they belong to is not there as it was."""
    manager = checkpoint.open_existing(folder)
    step, said = checkpoint.newest_sound(manager)
    if said:
        print(f"note: {said}", file=sys.stderr)
    try:
        meta = checkpoint.read_meta(manager, step)
    except checkpoint.DAMAGE as error:
        raise checkpoint.damaged(manager, step, error) from error
    return _opened(folder, manager, step, meta)


def find_run(folder: str, identity: str) -> Run | None:
    """A run at its newest checkpoint with these parameters, None where none has them.

    UserError where one cannot be read and no other has them.
    """
    manager, unread = checkpoint.open_existing(folder), None
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            meta = checkpoint.read_meta(manager, step)
        except checkpoint.DAMAGE as error:
            unread = unread or checkpoint.damaged(manager, step, error)
            continue
        if identity_of(meta) == identity:
            return _opened(folder, manager, step, meta)
    if unread:
        raise unread
    return None


def identity_of(meta: checkpoint.Meta) -> str:
    """What tells a checkpoint's parameters from others, "" where it has no checksum of them.

    Of adapters it tells what they belong to as well.
    """
    saved = checkpoint.params_checksum(meta)
    beside = meta["fingerprints"].get("base")
    own = "" if saved is None else f"{saved:08x}"
    return f"{beside}+{own}" if beside else own


def note_of(lora: Lora, start: str, folder: str) -> dict[str, Any]:
    """What the meta of a run of adapters says of them. start: the run that they belong to, which
    is noted by its way from the run's folder, so that both may be moved."""
    local = "://" not in start + folder
    way = os.path.relpath(start, folder) if local else start
    return {"adapters": {"start": way, **asdict(lora), "targets": list(lora.targets)}}


def _opened(folder: str, manager: Any, step: int, meta: checkpoint.Meta) -> Run:
    base = _base_of(folder, meta) if "base" in meta["fingerprints"] else None
    if checkpoint.params_checksum(meta) is None:
        print(
            f"note: {folder} was imported without a checksum, so nobody can tell whether its "
            "parameters are as they were; import it again to have one.",
            file=sys.stderr,
        )
    vocabulary = _tokenizer(folder, meta["fingerprints"]["tokenizer"])
    return Run(folder, manager, step, meta, vocabulary, base)


def _base_of(folder: str, meta: checkpoint.Meta) -> Run:
    if "adapters" not in meta:
        raise UserError(
            f"{folder} holds adapters of a former version, which does not note what they belong "
            "to; train on for a step with `polylm tune`, and it is noted."
        )
    start, wanted = meta["adapters"]["start"], meta["fingerprints"]["base"]
    if "://" not in start + folder:
        start = os.path.normpath(os.path.join(folder, start))
    files, place = opened(start)
    if not files.isdir(f"{place}/checkpoints"):
        raise UserError(
            f"{folder} holds adapters to the parameters of {start}, where there is no run; put it, "
            "or a link to it, there."
        )
    base = find_run(start, wanted)
    if base is None:
        raise UserError(
            f"{folder} holds adapters to other parameters than {start} has now; put the run there "
            f"that it began with (its parameters' checksum is {wanted})."
        )
    return base


def read_params(run: Run, mesh: Mesh, dtype: str = "float32") -> Any:
    """The parameters, split over the mesh; UserError if they are not as saved.

    dtype: to which each is rounded, once, before the next is read.
    """
    structure = jax.tree.structure(shapes(run.size))
    arrays = (array.astype(COMPUTE_DTYPES[dtype]) for _, array in _arrays(run, mesh))
    return jax.tree.unflatten(structure, arrays)


def _arrays(run: Run, mesh: Mesh) -> Iterator[tuple[str, jax.Array]]:
    """Name and values of each array, float32, in the tree's order."""
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(  # noqa: E731
        leaf.shape, leaf.dtype, sharding=sharding
    )
    if run.base is None:
        wanted = jax.tree.map(place, shapes(run.size), parameter_shardings(run.size, mesh))
        yield from checkpoint.each_array(run.manager, run.step, run.size, wanted)
        return
    adapters, scale = read_adapters(run, mesh), run.lora.scale
    for name, array in _arrays(run.base, mesh):
        if name in run.lora.targets:
            add = jax.jit(merged, donate_argnums=0, out_shardings=array.sharding)
            array = add(array, adapters[f"{name}_a"], adapters[f"{name}_b"], scale)
        yield name, array
        del array


def read_adapters(run: Run, mesh: Mesh | None = None) -> dict[str, jax.Array]:
    """The adapters of a run, NAME_a and NAME_b, float32, split over the mesh, or on one device.

    UserError if they are not as saved.
    """
    mesh = mesh or make_mesh(MeshShape(1, 1, 1), jax.local_devices()[:1])
    places = adapter_shardings(run.size, run.lora, mesh)
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[name])
        for name, leaf in adapter_shapes(run.size, run.lora).items()
    }
    return dict(checkpoint.each_array(run.manager, run.step, run.size, wanted))


def read_parts(run: Run) -> Iterator[Part]:
    """The parameters in parts, in the memory of a few: what one device held, one layer at a time.

    UserError if they are not as saved, which shows only after the last part: what is made of the
    parts is good for nothing before.
    """
    if run.base is None:
        yield from _stored_parts(run)
        return
    lora, adapters = run.lora, {name: np.asarray(x) for name, x in read_adapters(run).items()}
    for part in read_parts(run.base):
        if part.name in lora.targets:
            inputs = TARGETS[part.name]
            a = adapters[f"{part.name}_a"][part.layer][part.place[:inputs]]
            b = adapters[f"{part.name}_b"][part.layer][:, *part.place[inputs:]]
            part = part._replace(values=part.values + lora.scale * np.tensordot(a, b, 1))
        yield part


def _stored_parts(run: Run) -> Iterator[Part]:
    folder, size = arrays.arrays_of(run.manager, run.step), run.size
    layers = layer_parameters(size)
    sums = dict.fromkeys(outer_parameters(size) | layers, 0)
    try:
        for name, parameter in (outer_parameters(size) | layers).items():
            shape = (size.layers, *parameter.shape) if name in layers else parameter.shape
            array = arrays.open_array(folder, size, name)
            if array.shape != shape or array.dtype.name != "float32":
                raise ValueError(f"{name} is {array.dtype.name} {array.shape}")
            for chunk in _chunks(shape, array.chunk_layout.read_chunk.shape):
                start, values = [along.start for along in chunk], array[chunk].read().result()
                if name not in layers:
                    sums[name] += checksum.part_sum(values, start, shape)
                    yield Part(name, None, chunk, values)
                    continue
                for layer, part in enumerate(values, start[0]):
                    sums[name] += checksum.part_sum(part[None], [layer, *start[1:]], shape)
                    yield Part(name, layer, chunk[1:], part)
        saved = checkpoint.params_checksum(run.meta)
        if saved is not None and arrays.total_of(sums, size) != saved:
            raise ValueError("the parameters were altered after they were saved")
    except checkpoint.DAMAGE as error:
        raise checkpoint.damaged(run.manager, run.step, error) from error


def _chunks(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """The slices that cover an array chunk by chunk."""
    axes = [
        [slice(start, min(start + step, length)) for start in range(0, length, step)]
        for length, step in zip(shape, chunk, strict=True)
    ]
    return itertools.product(*axes)


def _tokenizer(folder: str, fingerprint: str) -> Tokenizer:
    files, file = opened(f"{folder}/{MODEL}")
    try:
        found = Tokenizer(files.cat_file(file))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {MODEL}; put the file there that the run was made with (its sha256 "
            f"begins {fingerprint[:12]})."
        ) from None
    if found.fingerprint != fingerprint:
        raise UserError(
            f"{folder}/{MODEL} is not the tokenizer that the run was made with; put that one back "
            f"(its sha256 begins {fingerprint[:12]}, not {found.fingerprint[:12]})."
        )
    return found
