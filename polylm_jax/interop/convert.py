"""A Hugging Face folder to a run and back, in parts, so that no model has to fit in memory.

Coming in, a part is at most PART bytes of one layer of one tensor. Going out it is a chunk of
the checkpoint: what one device held of one parameter, all layers of it, if a training run wrote
it; one such part if `import_folder` did.
"""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from jax.sharding import Mesh

from polylm_jax.console import LiveLine
from polylm_jax.data import tokenizer
from polylm_jax.errors import UserError
from polylm_jax.files import new_folder
from polylm_jax.interop import orbax_files
from polylm_jax.interop.hugging_face import HEAD, matched, places, size_of
from polylm_jax.interop.tensor_files import (
    DTYPES,
    SAFETENSORS_INDEX,
    Stored,
    create_safetensors,
    open_folder,
)
from polylm_jax.jsonl import read_json
from polylm_jax.model.parameters import (
    Parameter,
    count,
    layer_parameters,
    outer_parameters,
)
from polylm_jax.parallel.sharding import parameter_shardings
from polylm_jax.sizes import Size
from polylm_jax.train import checkpoint

# Most bytes, as float32, that are read, converted and written at a time.
PART = 1 << 26
# Most bytes of a safetensors file, but for a tensor that is larger by itself.
SHARD = 5 * 10**9
# What must be whole numbers in a config.json, where it is there.
CONFIG = {
    **dict.fromkeys(
        ("n_embd?", "n_layer?", "n_head?", "n_positions?", "vocab_size?"), range(2**31)
    ),
    "n_inner?": (int, NoneType),
    "activation_function?": str,
}
# How the flag, config.json and safetensors name what an export is written in.
EXPORTED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def read_size(folder: str) -> Size:
    """The size of the model in a Hugging Face folder."""
    file = Path(folder, "config.json")
    wanted = "the config.json of a model; give the folder of a Hugging Face GPT-2"
    return size_of(read_json(file, CONFIG, wanted), str(file))


def import_folder(folder: str, run: str, size: Size, mesh: Mesh, gin: str) -> None:
    """Makes the run that has the folder's parameters as step 0, and its tokenizer.

    mesh: the checkpoint is cut as its devices will read it; any other mesh can read it too.
    gin: the resolved configuration, saved with the checkpoint.
    UserError names what is missing, left over, of the wrong shape or of an unknown type; then
    no run is left.
    """
    if Path(run).exists():
        raise UserError(f"{run} already exists; delete it or give another --run.")
    vocabulary = tokenizer.load(str(Path(folder, tokenizer.MODEL)))
    if vocabulary.size > size.vocabulary:
        raise UserError(
            f"{folder} has a tokenizer of {vocabulary.size} pieces but a model of "
            f"{size.vocabulary}; put the model's own {tokenizer.MODEL} there."
        )
    found = open_folder(folder)
    taken = matched({name: stored.shape for name, stored in found.items()}, size)
    sources = {place: found[name] for place, name in taken.items()}
    head = found.get(HEAD)
    for stored in [*sources.values(), *([head] if head else [])]:
        if stored.dtype not in DTYPES:
            raise UserError(
                f"{stored.file} holds {stored.dtype}; save it as float32, float16 or bfloat16."
            )
    if head and head.shape != sources["embedding", None].shape:
        raise _untied(head)
    meta = checkpoint.meta_of(size, 0, gin, {"tokenizer": vocabulary.fingerprint})
    with new_folder(run) as temporary:
        arrays = orbax_files.create(str(temporary), size, meta | {"imported": True})
        _write_arrays(arrays, size, mesh, sources, head)
        (temporary / tokenizer.MODEL).write_bytes(vocabulary.model)


def export_weights(arrays: Path, size: Size, folder: Path, dtype: str) -> None:
    """Writes a checkpoint's parameters into a folder as GPT2LMHeadModel's safetensors.

    arrays: folder of the step's arrays. dtype: a name in EXPORTED. More than SHARD bytes make
    several files and an index. UserError if a value is too large for float16.
    """
    files = _create_files(size, folder, EXPORTED[dtype])
    line, done = LiveLine(10), 0
    for name, parameter in (outer_parameters(size) | layer_parameters(size)).items():
        layered = name in layer_parameters(size)
        array = orbax_files.open_array(arrays, size, name)
        for chunk in _chunks(array.shape, array.chunk_layout.read_chunk.shape):
            values = array[chunk].read().result()
            layers = range(size.layers)[chunk[0]] if layered else (None,)
            inner = chunk[1:] if layered else chunk
            for layer, part in zip(layers, values if layered else [values], strict=True):
                stored = files[parameter.hugging_face.format(layer=layer)]
                out = np.memmap(
                    stored.file, DTYPES[stored.dtype], "r+", stored.offset, parameter.shape
                )
                with np.errstate(over="ignore"):
                    out[inner] = part
                if not np.isfinite(out[inner]).all():
                    raise UserError(
                        f"{name} has values that {dtype} cannot hold; give --dtype=bfloat16 or "
                        "--dtype=float32."
                    )
                done += part.size
            line.show(f"exported {done / count(size):.0%}", last=done == count(size))


def _write_arrays(
    arrays: Path,
    size: Size,
    mesh: Mesh,
    sources: dict[tuple[str, int | None], Stored],
    head: Stored | None,
) -> None:
    """Writes every parameter part by part, and compares the head, if there is one, as it goes."""
    shardings = parameter_shardings(size, mesh)
    line, done = LiveLine(10), 0
    for name, parameter in (outer_parameters(size) | layer_parameters(size)).items():
        layered = name in layer_parameters(size)
        sharding = shardings["layers"][name] if layered else shardings[name]
        shape = (size.layers, *parameter.shape) if layered else parameter.shape
        held = sharding.shard_shape(shape)[layered:]
        rows = _rows(parameter, held[0])
        chunks = (1,) * layered + (rows, *held[1:])
        array = orbax_files.create_array(arrays, size, name, shape, chunks)
        for layer in range(size.layers) if layered else (None,):
            target = array if layer is None else array[layer]
            for start in range(0, parameter.shape[0], rows):
                stop = min(start + rows, parameter.shape[0])
                values = _read(sources[name, layer], parameter, start, stop)
                tied = name == "embedding" and head
                if tied and not np.array_equal(values, _read(tied, parameter, start, stop)):
                    raise _untied(tied)
                target[start:stop].write(values).result()
                done += values.size
                line.show(f"imported {done / count(size):.0%}", last=done == count(size))


def _rows(parameter: Parameter, held: int) -> int:
    """Leading rows of a part: those a device holds, cut evenly into parts of PART bytes or less."""
    most = max(1, PART // (4 * math.prod(parameter.shape[1:])))
    return math.ceil(held / math.ceil(held / most))


def _read(stored: Stored, parameter: Parameter, start: int, stop: int) -> np.ndarray:
    """Leading rows of a tensor in our shape, which has the order of Hugging Face's."""
    row = math.prod(parameter.shape[1:])
    values = stored.read(start * row, stop * row)
    return values.reshape(stop - start, *parameter.shape[1:])


def _untied(head: Stored) -> UserError:
    return UserError(
        f"{head.file} has an {HEAD} that is not the embedding; the decoder ties the two, so this "
        "model cannot be imported."
    )


def _chunks(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """The slices that cover an array chunk by chunk."""
    axes = [
        [slice(start, min(start + step, length)) for start in range(0, length, step)]
        for length, step in zip(shape, chunk, strict=True)
    ]
    return itertools.product(*axes)


def _create_files(size: Size, folder: Path, dtype: str) -> dict[str, Stored]:
    """Makes the safetensors files, with an index where there are several; the place of each."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    total = filled = 0
    for _, parameter, layer in places(size):
        width = math.prod(parameter.shape) * DTYPES[dtype].itemsize
        if shards[-1] and filled + width > SHARD:
            shards.append({})
            filled = 0
        shards[-1][parameter.hugging_face.format(layer=layer)] = parameter.hugging_face_shape
        filled, total = filled + width, total + width
    if len(shards) == 1:
        return create_safetensors(folder / "model.safetensors", shards[0], dtype)
    files: dict[str, Stored] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        files |= create_safetensors(folder / name, shard, dtype)
    index: dict[str, Any] = {
        "metadata": {"total_size": total},
        "weight_map": {key: stored.file.name for key, stored in files.items()},
    }
    (folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=1))
    return files
