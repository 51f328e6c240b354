"""Tensors in files, found without reading them: safetensors and torch's .bin.

A tensor is its place in a file, and is read in parts straight from there, so that a file of any
size costs the memory of a part.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from polylm_jax.errors import UserError
from polylm_jax.files import take_room
from polylm_jax.interop.torch_files import torch_tensors

# Names of element types, as safetensors writes them.
DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# ... those of tensors that only a buffer can be, such as a mask.
INTEGERS = ("BOOL", "U8", "I8", "I16", "I32", "I64")
SAFETENSORS_INDEX = "model.safetensors.index.json"
# Where transformers looks for weights, in its order: the first file that is there is taken, and
# what lies beside it is passed over, be it an index that an earlier save left behind.
CHOICES = (
    "model.safetensors",
    SAFETENSORS_INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Stored:
    """A tensor in C order at `offset` bytes of `file`. dtype: a name, perhaps not in DTYPES."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The elements [start, stop) of the flattened tensor, float32 [stop - start]."""
        dtype = DTYPES[self.dtype]
        with open(self.file, "rb") as file:
            file.seek(self.offset + start * dtype.itemsize)
            part = file.read((stop - start) * dtype.itemsize)
        return np.frombuffer(part, dtype).astype(np.float32)


def open_folder(folder: str) -> dict[str, Stored]:
    """Every tensor in the files that transformers would load from a folder, see CHOICES.

    UserError names a file that is missing or broken, or a tensor that is in two.
    """
    tensors: dict[str, Stored] = {}
    for file in _files(Path(folder)):
        read = safetensors_tensors if file.suffix == ".safetensors" else _bin_tensors
        for name, stored in read(file).items():
            if name in tensors:
                raise UserError(f"{file} and {tensors[name].file} both hold the tensor {name}.")
            tensors[name] = stored
    return tensors


def safetensors_tensors(file: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, from its header alone; UserError if it is broken."""
    size = os.path.getsize(file)
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header = content.read(length) if length <= size else b""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {}
        for name, entry in entries.items():
            start, stop = entry["data_offsets"]
            stored = Stored(file, 8 + length + start, entry["dtype"], tuple(entry["shape"]))
            known = DTYPES.get(stored.dtype)
            whole = 0 <= start <= stop <= size - 8 - length
            if not whole or (known and stop - start != stored.size * known.itemsize):
                raise ValueError
            tensors[name] = stored
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file} is cut short or no safetensors file; fetch it again.") from None
    return tensors


def create_safetensors(
    file: Path, tensors: Mapping[str, tuple[int, ...]], dtype: str
) -> dict[str, Stored]:
    """Makes a safetensors file of the right length, its values still to be written in place.

    tensors: shapes by name. Returns the place of each. UserError where the disk is full.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        take_room(out, 8 + len(text) + end)
    return safetensors_tensors(file)


def _bin_tensors(file: Path) -> dict[str, Stored]:
    return {name: Stored(file, *place) for name, place in torch_tensors(file).items()}


def shards(index: Path) -> list[str]:
    """The names of the files that an index points to; UserError if it is none."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not all(Path(name).name == name for name in names):
            raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{index} is no index of shards; fetch it again.") from None
    return sorted(names)


def _files(folder: Path) -> list[Path]:
    chosen = next((name for name in CHOICES if (folder / name).is_file()), None)
    if chosen is None:
        raise UserError(
            f"{folder} holds no {CHOICES[0]}, no {CHOICES[2]} and no index of either; give a "
            "Hugging Face folder, its weights under the names that transformers knows."
        )
    if not chosen.endswith(".json"):
        return [folder / chosen]
    for name in shards(folder / chosen):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / chosen} names {name}, which is not in {folder}; fetch it, too."
            )
    return [folder / name for name in shards(folder / chosen)]
