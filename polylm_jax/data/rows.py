"""The row store: token ids of each source, cut into rows of one length, read at random.

A source's documents are tokenized, each followed by `</s>`, and strung together. Row k is
`stream[k * length : k * length + length + 1]`: `length` inputs and their targets. Rows overlap
by one token, so that every token but the first is a target exactly once. There is no padding.

    <path>/manifest.json                        written last; what it does not say is not there
    <path>/<source>/<split>-00000.tokens        little-endian ids, `rows * length + 1` of them
    <path>/<source>/<split>.documents           where each line lies, here and in the corpus

A shard's last token is also the first of the next, so a row never crosses a border.

Rows of examples to learn from (`polylm_jax.tune.instruct`) overlap by no token, and each token of
theirs has marks, one byte: whether it is LEARNED as a target, whether it is the FIRST of an
example. Padding, of id 0, is one more example.

    <path>/<source>/<split>-00000.marks         beside the tokens, `rows * (length + 1)` of them
    <path>/<source>/<split>.examples            where each example lies, here and in its file

A store is read from a local disk or from any path that fsspec knows, such as gs://bucket/rows.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.lib.stride_tricks import as_strided

from polylm_jax.data import corpus
from polylm_jax.data.clean.engine import Beam, each
from polylm_jax.data.shards import COUNT, lines_of, read_all
from polylm_jax.errors import UserError
from polylm_jax.files import MANIFEST, Place, opened
from polylm_jax.jsonl import parse_json
from polylm_jax.ranges import Range, check

# Of a line of the corpus, which has a document or a part of a long one: its first token in its
# stream, and its first byte in its file.
LINE = np.dtype([("token", "<i8"), ("byte", "<i8")])
# An example's first token in the source's rows, and its file, of the manifest's, and line.
EXAMPLE = np.dtype([("token", "<i8"), ("file", "<i4"), ("line", "<i4")])

# Bits of a token's marks.
LEARNED, FIRST = 1, 2

FILE = {"file": str, "bytes": COUNT, "crc32": COUNT}
ENTRY = {"rows": COUNT, "shards": [FILE], "index": FILE}
STORE = {
    "made_from": {
        "corpus": str,
        "tokenizer": str,
        "length": range(1, 2**31),
        "shard_rows": range(1, 2**53),
    },
    "dtype": frozenset(("uint16", "uint32")),
    "fingerprint": str,
    "sources": {str: {"train": ENTRY, "valid": ENTRY}},
}

# (file of each row, its first byte there, bytes of a row) to the rows' bytes, uint8 [n, bytes]
Fetch = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class RowSettings:
    """How rows are cut.

    path: the folder that will hold the store, or any path that fsspec knows once it is there.
    length: inputs of a row, in tokens; a row has one more for the last target.
    shard_rows: most rows in one file.
    """

    path: Place = "data/rows"
    length: Annotated[int, Range(1)] = 2048
    shard_rows: Annotated[int, Range(1)] = 65_536

    def __post_init__(self) -> None:
        check(self, "rows")


@dataclass(frozen=True)
class Origin:
    """A document that a row has tokens of.

    file, line: where it lies in the corpus, or in what was learned from; lines count from 1.
    name: what the corpus says it is from, a package or a file.
    """

    file: str
    line: int
    name: str


@dataclass(frozen=True)
class Store:
    """An open row store. Reading is safe from any number of threads.

    path: its folder.
    manifest: the content of its manifest.
    """

    path: str
    manifest: dict = field(repr=False)
    _files: fsspec.AbstractFileSystem = field(repr=False)
    _root: str = field(repr=False)
    _numbers: dict[tuple[str, str], int] = field(repr=False)  # of a source's split
    _rows: np.ndarray = field(repr=False)  # how many it has, by its number
    _first: np.ndarray = field(repr=False)  # number of its first shard's file, by its number
    _fetch: Fetch = field(repr=False)
    _fetch_marks: Fetch = field(repr=False)  # of files that are numbered as the shards

    @property
    def length(self) -> int:
        return self.manifest["made_from"]["length"]

    @property
    def fingerprint(self) -> str:
        """sha256 over the length and all tokens and marks, however they are sharded."""
        return self.manifest["fingerprint"]

    @property
    def marked(self) -> bool:
        """Whether its rows are of examples, with marks."""
        return self.manifest.get("marked", False)

    @property
    def tokenizer_fingerprint(self) -> str:
        return self.manifest["made_from"]["tokenizer"]

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self.manifest["sources"])

    def rows(self, source: str, split: str = "train") -> int:
        """Number of rows; a UserError where the store lacks the source or split."""
        if (source, split) not in self._numbers:
            raise UserError(
                f'{self.path} has no {split} rows of "{source}"; it has {", ".join(self.sources)}.'
            )
        return self.manifest["sources"][source][split]["rows"]

    def read(self, source: str, indices: np.ndarray, split: str = "train") -> np.ndarray:
        """The rows of these indices [n], in their order: int32 [n, length + 1]."""
        return self.read_mixed((source,), np.zeros(len(indices), np.int64), indices, split)

    def read_mixed(
        self, sources: Sequence[str], which: np.ndarray, indices: np.ndarray, split: str = "train"
    ) -> np.ndarray:
        """Row indices[i] of sources[which[i]] for each i: int32 [n, length + 1]."""
        size = np.dtype(self.manifest["dtype"]).itemsize
        rows = self._read(self._fetch, size, sources, which, indices, split)
        # no id is so large that it needs the highest of 32 bits
        return rows.view("<i4" if size == 4 else "<u2").astype(np.int32, copy=False)

    def marks_mixed(
        self, sources: Sequence[str], which: np.ndarray, indices: np.ndarray, split: str = "train"
    ) -> np.ndarray:
        """The marks of read_mixed's tokens, uint8 [n, length + 1]; of a marked store only."""
        return self._read(self._fetch_marks, 1, sources, which, indices, split)

    def _read(
        self,
        fetch: Fetch,
        size: int,
        sources: Sequence[str],
        which: np.ndarray,
        indices: np.ndarray,
        split: str,
    ) -> np.ndarray:
        """The bytes of rows, of which each token has `size`: uint8 [n, (length + 1) * size]."""
        indices = np.asarray(indices, np.int64)
        # a run may have read sources that are no more: the last number has no rows
        numbers = np.array([self._numbers.get((source, split), -1) for source in sources])[which]
        missing = (indices < 0) | (indices >= self._rows[numbers])
        if missing.any():
            source = sources[which[missing][0]]
            raise IndexError(f"{source} {split} has rows 0 to {self.rows(source, split) - 1}")
        shard, place = np.divmod(indices, self.manifest["made_from"]["shard_rows"])
        starts = place * (self._stride * size)
        return fetch(self._first[numbers] + shard, starts, (self.length + 1) * size)

    @property
    def _stride(self) -> int:
        """Tokens from a row's first to the next one's."""
        return self.length + 1 if self.marked else self.length

    def stream(self, source: str, split: str = "train") -> Iterator[np.ndarray]:
        """All tokens of a source in order, those between two rows once, in pieces [tokens]."""
        dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        for number, shard in enumerate(self.manifest["sources"][source][split]["shards"]):
            with self._files.open(f"{self._root}/{source}/{shard['file']}", "rb") as file:
                file.seek(dtype.itemsize * (number > 0))
                while piece := file.read(2**24):
                    yield np.frombuffer(piece, dtype)

    def origins(
        self, corpus_path: str, source: str, row: int, split: str = "train"
    ) -> list[Origin]:
        """The documents or examples that a row has tokens of, in order; their </s> is theirs.

        A UserError where the corpus is no longer the one that the rows were made from.
        """
        index = self.manifest["sources"][source][split]["index"]["file"]
        path = f"{self._root}/{source}/{index}"
        if self.marked:
            examples = _array(self._files, path, EXAMPLE)
            first = row * self._stride
            begin, end = np.searchsorted(examples["token"], [first, first + self._stride])
            files = self.manifest["files"]
            return [
                Origin(files[file], line, Path(files[file]).name)
                for _, file, line in examples[begin:end].tolist()
            ]
        if corpus.manifest(corpus_path)["sha256"] != self.manifest["made_from"]["corpus"]:
            raise UserError(
                f"{corpus_path} is not the text that {self.path} was made from, so the "
                "documents cannot be told; give its folder as --gin.corpus.path=FOLDER."
            )
        lines_at = _array(self._files, path, LINE)
        first = row * self.length
        begin = np.searchsorted(lines_at["token"], first, "right") - 1
        if begin < 0:
            raise UserError(
                f"row {row} of {source} is of the rows that {self.path} extends; ask there for its "
                "documents."
            )
        end = np.searchsorted(lines_at["token"], first + self.length, "right")
        texts = corpus.files_of(corpus_path, source, split)
        firsts = np.cumsum([0, *(text.content for text in texts)])  # bytes of the split's lines
        found = []
        for number in range(begin, end):
            byte = lines_at["byte"][number]
            file = np.searchsorted(firsts, byte, "right") - 1
            with lines_of(texts[file], byte - firsts[file]) as lines:
                name = json.loads(lines.readline()).get("from", "")
            line = number - np.searchsorted(lines_at["byte"], firsts[file]) + 1
            found.append(Origin(texts[file].place, int(line), name))
        return found


def open_store(path: str) -> Store:
    """Open a store on a local disk or on a path that fsspec knows.

    A UserError where there is none, or where a file of it is missing or cut short.
    """
    files, root = opened(path)
    try:
        content = files.cat_file(f"{root}/{MANIFEST}")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"There are no rows at {path}; run polylm rows first.") from None
    wanted = f"the manifest of rows; delete {path} and run polylm rows again"
    manifest = parse_json(content, STORE, f"{path}/{MANIFEST}", wanted)
    found = files.find(root, detail=True)
    numbers: dict[tuple[str, str], int] = {}
    first: list[int] = []
    rows: list[int] = []
    shards: list[str] = []
    marks: list[str] = []
    for source, splits in manifest["sources"].items():
        for split, entry in splits.items():
            for file in _described(entry):
                size = found.get(f"{root}/{source}/{file['file']}", {"size": 0})["size"]
                if size != file["bytes"]:
                    raise UserError(
                        f"{path}/{source}/{file['file']} has {size:,} of its {file['bytes']:,} "
                        f"bytes; delete {path} and run polylm rows again."
                    )
            numbers[source, split] = len(numbers)
            first.append(len(shards))
            rows.append(entry["rows"])
            shards += [f"{root}/{source}/{shard['file']}" for shard in entry["shards"]]
            marks += [f"{root}/{source}/{file['file']}" for file in entry.get("marks", ())]
    fetch = _mapped if isinstance(files, LocalFileSystem) else _ranged
    places = numbers, np.array([*rows, 0]), np.array([*first, 0])
    return Store(path, manifest, files, root, *places, fetch(files, shards), fetch(files, marks))


def _described(entry: dict) -> list[dict]:
    """All files of a source and split."""
    return [*entry["shards"], *entry.get("marks", ()), entry["index"]]


def verify(store: Store, beam: Beam | None = None) -> int:
    """Read every file and compare its checksum; return how many there are.

    beam: what shares the work, in place of threads. A UserError names a file that differs.
    """
    files = [
        (f"{source}/{file['file']}", file["crc32"])
        for source, splits in store.manifest["sources"].items()
        for entry in splits.values()
        for file in _described(entry)
    ]
    if beam:
        each(beam, partial(_check, store.path), files)
        return len(files)
    read_all("rows", partial(_check, store.path), files)
    return len(files)


def _check(path: str, file: tuple[str, int]) -> str:
    """The file's name; UserError where its checksum is another."""
    name, crc32 = file
    files, root = opened(path)
    with files.open(f"{root}/{name}", "rb") as content:
        if checksum(content) == crc32:
            return name
    raise UserError(f"{path}/{name} is damaged; delete {path} and run polylm rows again.")


def checksum(file: BinaryIO) -> int:
    """crc32 of all that is in an open file."""
    value = 0
    while chunk := file.read(2**24):
        value = zlib.crc32(chunk, value)
    return value


def _array(files: fsspec.AbstractFileSystem, path: str, dtype: np.dtype) -> np.ndarray:
    if isinstance(files, LocalFileSystem) and files.size(path):
        return np.asarray(np.memmap(path, dtype, "r"))
    return np.frombuffer(files.cat_file(path), dtype)


def _mapped(files: fsspec.AbstractFileSystem, shards: list[str]) -> Fetch:
    """Parts of local files, of memory maps that stay open, copied once.

    The maps lie in one memory: places in it are counted from the lowest on, so that one view of
    all, of which only what is mapped is touched, gives rows of many files at once.
    """
    maps = [np.memmap(shard, mode="r") for shard in shards]
    begins = np.array([map_.ctypes.data for map_ in maps], np.int64)
    lowest = int(begins.argmin()) if maps else 0

    def fetch(numbers: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
        places = begins[numbers] - begins[lowest] + starts
        if not len(places):
            return np.empty((0, size), np.uint8)
        everything = (int(places.max()) + 1, size)
        return as_strided(maps[lowest], everything, (1, 1), writeable=False)[places]

    return fetch


def _ranged(files: fsspec.AbstractFileSystem, shards: list[str]) -> Fetch:
    """Parts of remote files, each by one ranged read, all at once where the store can."""

    def fetch(numbers: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
        paths = [shards[number] for number in numbers.tolist()]
        ends = (starts + size).tolist()
        parts = files.cat_ranges(paths, starts.tolist(), ends, on_error="raise")
        return np.frombuffer(bytearray().join(parts), np.uint8).reshape(-1, size)

    return fetch
