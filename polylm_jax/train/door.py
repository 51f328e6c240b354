"""The one door to what a run holds: its parameters and its tokenizer, as they were saved or not at
all.

Storage gives back a flipped bit as another number, and a folder may be given another tokenizer; so
whoever reads a run opens it here, where checksums and fingerprints are compared.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from polylm_jax.data.tokenizer import MODEL, Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.files import opened
from polylm_jax.model.parameters import layer_parameters, outer_parameters
from polylm_jax.sizes import Size
from polylm_jax.train import arrays, checkpoint, checksum


@dataclass(frozen=True)
class Run:
    """A run's newest sound checkpoint, its parameters not yet read, and its tokenizer."""

    folder: str
    manager: Any
    step: int
    meta: checkpoint.Meta
    tokenizer: Tokenizer

    @property
    def size(self) -> Size:
        return Size(**self.meta["model"])


class Part(NamedTuple):
    """Some of one parameter. layer: None outside the layers. place: a slice of each axis of the
    parameter's shape, which has no layer axis. values: float32, of the place's shape."""

    name: str
    layer: int | None
    place: tuple[slice, ...]
    values: np.ndarray


def open_run(folder: str) -> Run:
    """Opens a run for reading; UserError where its meta or its tokenizer is not as it was saved."""
    manager = checkpoint.open_existing(folder)
    step, said = checkpoint.newest_sound(manager)
    if said:
        print(f"note: {said}", file=sys.stderr)
    try:
        meta = checkpoint.read_meta(manager, step)
    except checkpoint.DAMAGE as error:
        raise checkpoint.damaged(manager, step, error) from error
    if "base" in meta["fingerprints"]:
        raise UserError(
            f"{folder} holds adapters (lora.rank) to the parameters of the run that it began with, "
            "which are trained on but not read yet; give that run, or tune all its weights."
        )
    if checkpoint.params_checksum(meta) is None:
        print(
            f"note: {folder} was imported without a checksum, so nobody can tell whether its "
            "parameters are as they were; import it again to have one.",
            file=sys.stderr,
        )
    return Run(folder, manager, step, meta, _tokenizer(folder, meta["fingerprints"]["tokenizer"]))


def read_params(run: Run, mesh: Mesh) -> Any:
    """The parameters, float32, split over the mesh; UserError if they are not as saved."""
    return checkpoint.restore_params(run.manager, run.step, run.size, mesh)


def read_parts(run: Run) -> Iterator[Part]:
    """The parameters in parts, in the memory of a few: what one device held, one layer at a time.

    UserError if they are not as saved, which shows only after the last part: what is made of the
    parts is good for nothing before.
    """
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
