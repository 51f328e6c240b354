"""What the passes of `polylm clean` have made: whole files whose folder tells the settings.

    <output>/.clean/measured-<settings>/<shard>.scores.arrow, .keys.npy, .hits.npy, .json
    <output>/.clean/duplicates-<settings>/…      and so on, a folder a pass

A folder's name has the hash of all settings and inputs that decide what is in it, a shard's that
of its files. So what is there need not be made again, and what was made otherwise is not taken.
"""

import io
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from mmap import ACCESS_READ, mmap
from typing import IO, Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from polylm_jax.data.clean.documents import Shard
from polylm_jax.files import info_of, opened, put

WORK = ".clean"


@dataclass(frozen=True)
class Piece:
    """A shard of the inputs. number: among all, by name. key: of what it holds, 16 letters."""

    number: int
    key: str
    shard: Shard


def pieces(shards: Sequence[Shard]) -> list[Piece]:
    """The shards as pieces, in their order; the key changes when a file does."""
    found = []
    for number, shard in enumerate(shards):
        states = []
        for file in shard.files:
            files, root = opened(file.place)
            states.append((file.name, files.ukey(root), file.begin, file.end, file.language))
        found.append(Piece(number, digest(shard.kind, shard.key, states), shard))
    return found


def digest(*parts: Any) -> str:
    """16 letters that depend on all parts, which are of JSON or have a repr that says all."""
    text = json.dumps(parts, sort_keys=True, default=repr)
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def names(folder: str) -> list[str]:
    """The names of the files in a folder, sorted; none where there is no folder."""
    files, root = opened(folder)
    files.invalidate_cache()
    try:
        found = files.ls(root, detail=False)
    except FileNotFoundError:
        return []
    return sorted(name.rpartition("/")[2] for name in found)


def exists(path: str) -> bool:
    opened(path)[0].invalidate_cache()
    return info_of(path) is not None


def read(path: str) -> bytes:
    files, root = opened(path)
    return files.cat_file(root)


def mapped(path: str) -> bytes | mmap:
    """A file's content, mapped and not read: all who use it on a machine share its memory."""
    files, root = opened(path)
    with ExitStack() as opening:
        if isinstance(files, LocalFileSystem):
            file: IO[bytes] = opening.enter_context(open(root, "rb"))
        else:
            file = opening.enter_context(tempfile.TemporaryFile())
            file.write(files.cat_file(root))
            file.flush()
        empty = not os.fstat(file.fileno()).st_size
        return b"" if empty else mmap(file.fileno(), 0, access=ACCESS_READ)


def save(path: str, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    put(path, content.getvalue())


def load(path: str) -> np.ndarray:
    return np.load(io.BytesIO(read(path)), allow_pickle=False)


def save_json(path: str, content: Any) -> None:
    put(path, json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")


def load_json(path: str) -> Any:
    return json.loads(read(path))


def save_table(path: str, columns: dict[str, Any]) -> None:
    """A file of columns, arrays or lists of strings: Parquet for all who read such files, or
    .arrow, as small, for ourselves, who write and read it in a fifth of the time."""
    import pyarrow
    from pyarrow import ipc, parquet

    typed = {
        name: pyarrow.array(column, pyarrow.string() if isinstance(column, list) else None)
        for name, column in columns.items()
    }
    table, content = pyarrow.table(typed), io.BytesIO()
    if path.endswith(".parquet"):
        parquet.write_table(table, content, compression="zstd")
    else:
        options = ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        with ipc.new_file(content, table.schema, options=options) as file:
            file.write_table(table)
    put(path, content.getvalue())


def load_table(path: str, *wanted: str) -> dict[str, Any]:
    """The wanted columns of such a file, or all: numbers as arrays, the rest as lists."""
    from pyarrow import BufferReader, ipc, parquet, types

    content = BufferReader(read(path))
    if path.endswith(".parquet"):
        table = parquet.ParquetFile(content).read([*wanted] or None)
    else:
        names = ipc.open_file(content).schema.names
        fields = [at for at, name in enumerate(names) if name in wanted] or None
        options = ipc.IpcReadOptions(use_threads=False, included_fields=fields)
        table = ipc.open_file(content, options=options).read_all()
    return {
        field.name: column.to_numpy()
        if types.is_primitive(field.type) and not types.is_boolean(field.type)
        else column.to_pylist()
        for field, column in zip(table.schema, table.columns, strict=True)
    }
