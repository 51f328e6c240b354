"""A Hugging Face folder to a run and back, in parts, so that no model has to fit in memory.

Coming in, a part is at most PART bytes of one layer of one tensor. Going out a chunk of the
checkpoint is read at a time: what one device held of one parameter, all layers of it, if a
training run wrote it; one such part if `import_folder` did.
"""

import json
import math
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from polylm_jax.console import LiveLine
from polylm_jax.data.tokenizer import MODEL
from polylm_jax.errors import UserError
from polylm_jax.files import new_folder
from polylm_jax.interop.found_tokenizer import find_tokenizer
from polylm_jax.interop.hugging_face import HEAD, SIZES, full_name, matched, places, size_of
from polylm_jax.interop.tensor_files import (
    DTYPES,
    INTEGERS,
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
from polylm_jax.train import arrays, checkpoint, checksum
from polylm_jax.train.door import Run, read_parts

# Most bytes, as float32, that are read, converted and written at a time.
PART = 1 << 26
# Most bytes of a safetensors file, but for a tensor that is larger by itself.
SHARD = 5 * 10**9
# What must be whole numbers in a config.json, where it is there.
CONFIG = {
    **{f"{name}?": range(2**31) for names in SIZES.values() for name in names},
    "n_inner?": (int, NoneType),
    "activation_function?": str,
}
# How the flag, config.json and safetensors name what an export is written in.
EXPORTED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def read_size(folder: str) -> Size:
    """The size of the model in a Hugging Face folder."""
    return size_of(_config(folder), str(Path(folder, "config.json")))


def _config(folder: str) -> dict[str, Any]:
    wanted = "the config.json of a model; give the folder of a Hugging Face GPT-2"
    config: dict[str, Any] = read_json(Path(folder, "config.json"), CONFIG, wanted)
    return config


def import_folder(
    folder: str, run: str, size: Size, mesh: Mesh, gin: str, tokenizer: str = ""
) -> None:
    """Makes the run that has the folder's parameters as step 0, and its tokenizer.

    mesh: the checkpoint is cut as its devices will read it; any other mesh can read it too.
    gin: the resolved configuration, saved with the checkpoint. tokenizer: the SentencePiece file,
    if it is not the folder's tokenizer.model.
    UserError names what is missing, left over, of the wrong shape or of an unknown type; then
    no run is left.
    """
    if Path(run).exists():
        raise UserError(f"{run} already exists; delete it or give another --run.")
    if Path(folder, "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds an adapter, adapter_config.json: merge it into the weights first "
            "(peft's merge_and_unload)."
        )
    vocabulary = find_tokenizer(folder, tokenizer)
    if vocabulary.size > size.vocabulary:
        raise UserError(
            f"{folder} has a tokenizer of {vocabulary.size} pieces but a model of "
            f"{size.vocabulary}; give the model's own with --tokenizer=FILE."
        )
    names = {parameter.hugging_face.format(layer=layer) for _, parameter, layer in places(size)}
    found = {
        name: stored
        for name, stored in open_folder(folder).items()
        if stored.dtype not in INTEGERS or full_name(name) in names
    }
    taken = matched({name: stored.shape for name, stored in found.items()}, size)
    sources = {place: found[name] for place, name in taken.items()}
    head = found.get(HEAD)
    if _config(folder).get("tie_word_embeddings") is False and not head:
        raise UserError(
            f"{folder}/config.json says tie_word_embeddings = false, but no file holds {HEAD}: the "
            "files are not whole, or the two are tied and config.json should say so."
        )
    for stored in [*sources.values(), *([head] if head else [])]:
        if stored.dtype not in DTYPES:
            raise UserError(
                f"{stored.file} holds {stored.dtype}; save it as float32, float16 or bfloat16."
            )
    if head and head.shape != sources["embedding", None].shape:
        raise _untied(head)
    meta = checkpoint.meta_of(size, 0, gin, {"tokenizer": vocabulary.fingerprint})
    with new_folder(run) as temporary:
        arrays.create(
            str(temporary),
            size,
            meta | {"imported": True},
            lambda folder: _write_arrays(folder, size, mesh, sources, head),
        )
        (temporary / MODEL).write_bytes(vocabulary.model)


def export_weights(run: Run, folder: Path, dtype: str) -> float:
    """Writes a run's parameters into a folder as GPT2LMHeadModel's safetensors.

    dtype: a name in EXPORTED. More than SHARD bytes make several files and an index. Returns by how
    much rounding to it changed a weight at most. UserError if the parameters are not as they were
    saved, not finite, or too large for float16; what is in the folder is good for nothing then.
    """
    size = run.size
    files = _create_files(size, folder, EXPORTED[dtype])
    table = outer_parameters(size) | layer_parameters(size)
    line, done, unfit, rounding = LiveLine(10), 0, "", 0.0
    for name, layer, place, values in read_parts(run):
        parameter = table[name]
        stored = files[parameter.hugging_face.format(layer=layer)]
        out = np.memmap(stored.file, DTYPES[stored.dtype], "r+", stored.offset, parameter.shape)
        with np.errstate(over="ignore"):
            out[place] = values
        if np.isfinite(out[place]).all():
            rounding = max(rounding, float(np.abs(out[place].astype(np.float32) - values).max()))
        else:
            unfit = unfit or unfit_for(name, values, dtype, "float32")
        done += values.size
        line.show(f"exported {done / count(size):.0%}", last=done == count(size))
    if unfit:
        raise UserError(unfit)
    return rounding


def unfit_for(name: str, values: np.ndarray, dtype: str, wide: str) -> str:
    """The sentence on values that are not finite once they are written as dtype.

    wide: the name of the type that holds them.
    """
    if np.isfinite(values).all():
        return f"{name} has values that {dtype} cannot hold; give --dtype={wide}."
    return (
        f"the run's parameters are not finite ({name} holds a NaN or an infinity), so no file of "
        "them is of use; export a checkpoint from before the run went wrong."
    )


def _write_arrays(
    folder: epath.Path,
    size: Size,
    mesh: Mesh,
    sources: dict[tuple[str, int | None], Stored],
    head: Stored | None,
) -> dict[str, int]:
    """Writes every parameter part by part, and compares the head, if there is one, as it goes.

    Returns each array's sum.
    """
    shardings = parameter_shardings(size, mesh)
    line, done, sums = LiveLine(10), 0, {}
    for name, parameter in (outer_parameters(size) | layer_parameters(size)).items():
        layered = name in layer_parameters(size)
        sharding = shardings["layers"][name] if layered else shardings[name]
        shape = (size.layers, *parameter.shape) if layered else parameter.shape
        held = sharding.shard_shape(shape)[layered:]
        rows = _rows(parameter, held[0])
        chunks = (1,) * layered + (rows, *held[1:])
        array = arrays.create_array(folder, size, name, shape, chunks)
        sums[name] = 0
        for layer in range(size.layers) if layered else (None,):
            target = array if layer is None else array[layer]
            for start in range(0, parameter.shape[0], rows):
                stop = min(start + rows, parameter.shape[0])
                values = _read(sources[name, layer], parameter, start, stop)
                tied = name == "embedding" and head
                if tied and not np.array_equal(values, _read(tied, parameter, start, stop)):
                    raise _untied(tied)
                target[start:stop].write(values).result()
                whole = values if layer is None else values[None]
                first = [*([] if layer is None else [layer]), start, *[0] * (values.ndim - 1)]
                sums[name] += checksum.part_sum(whole, first, shape)
                done += values.size
                line.show(f"imported {done / count(size):.0%}", last=done == count(size))
    return sums


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
