"""The row store: token ids of each source, cut into rows of one length, read at random.

A source's documents are tokenized, each followed by `</s>`, and strung together. Row k is
`stream[k * length : k * length + length + 1]`: `length` inputs and their targets. Rows overlap
by one token, so that every token but the first is a target exactly once. There is no padding.

    <path>/manifest.json                        written last; what it does not say is not there
    <path>/<source>/<split>-00000.tokens        little-endian ids, `rows * length + 1` of them

A shard's last token is also the first of the next, so a row never crosses a border.
"""

import json
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from polylm_jax.data import corpus
from polylm_jax.data.tokenizer import EOS, Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.files import MANIFEST, already_made, new_folder, write_manifest

# Text is tokenized in batches of about this size, so that memory stays bounded.
BATCH_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class RowSettings:
    """How rows are cut.

    path: the folder that will hold the store.
    length: inputs of a row, in tokens; a row has one more for the last target.
    shard_rows: most rows in one file.
    """

    path: str = "data/rows"
    length: int = 2048
    shard_rows: int = 65_536

    def __post_init__(self) -> None:
        for name in ("length", "shard_rows"):
            if getattr(self, name) < 1:
                raise UserError(f"rows.{name} must be at least 1.")


@dataclass(frozen=True)
class Store:
    """An open row store. Reading is safe from any number of threads.

    path: its folder.
    manifest: the content of its manifest.
    shards: memory-mapped ids of every (source, split), each uint16 or uint32 [tokens].
    """

    path: str
    manifest: dict = field(repr=False)
    shards: dict[tuple[str, str], list[np.ndarray]] = field(repr=False)

    @property
    def length(self) -> int:
        return self.manifest["made_from"]["length"]

    @property
    def fingerprint(self) -> str:
        """sha256 over the length and all tokens; how they are sharded does not matter."""
        return self.manifest["fingerprint"]

    @property
    def tokenizer_fingerprint(self) -> str:
        return self.manifest["made_from"]["tokenizer"]

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self.manifest["sources"])

    def rows(self, source: str, split: str = "train") -> int:
        """Number of rows; a UserError where the store lacks the source or split."""
        if (source, split) not in self.shards:
            raise UserError(
                f'{self.path} has no {split} rows of "{source}"; it has {", ".join(self.sources)}.'
            )
        return self.manifest["sources"][source][split]["rows"]

    def read(self, source: str, indices: np.ndarray, split: str = "train") -> np.ndarray:
        """The rows of these indices [n], in their order: int32 [n, length + 1]."""
        indices = np.asarray(indices, np.int64)
        count = self.rows(source, split)
        if np.any((indices < 0) | (indices >= count)):
            raise IndexError(f"{source} {split} has rows 0 to {count - 1}")
        shards = self.shards[source, split]
        numbers, places = np.divmod(indices, self.manifest["made_from"]["shard_rows"])
        rows = np.empty((len(indices), self.length + 1), np.int32)
        for row, number, start in zip(rows, numbers, places * self.length, strict=True):
            row[:] = shards[number][start : start + self.length + 1]
        return rows


def build(settings: RowSettings, corpus_path: str, tokenizer: Tokenizer) -> dict:
    """Tokenize a corpus into `settings.path` and return the store's manifest.

    A store made from the same corpus, tokenizer and settings is kept; one made from others is
    a UserError, and so is a source without a single row to train on. A build that is stopped
    leaves nothing at `settings.path`.
    """
    text = corpus.manifest(corpus_path)
    made_from = {
        "corpus": text["sha256"],
        "tokenizer": tokenizer.fingerprint,
        "length": settings.length,
        "shard_rows": settings.shard_rows,
    }
    if already_made(settings.path, made_from):
        print(f"rows: {settings.path} is already made; kept.")
        return open_store(settings.path).manifest

    dtype = np.dtype("<u2" if tokenizer.size <= 2**16 else "<u4")
    progress = _progress(text["sources"])
    entries: dict[str, dict[str, dict]] = {}
    with new_folder(settings.path) as folder:
        for source in text["sources"]:
            (folder / source).mkdir()
            entries[source] = {}
            for split in corpus.SPLITS:
                batches = _encoded(corpus.documents(corpus_path, source, split), tokenizer, dtype)
                entries[source][split] = _write_split(
                    folder / source, split, progress(source, batches), settings
                )
            if not entries[source]["train"]["rows"]:
                raise UserError(
                    f"{corpus_path}/{source} has {entries[source]['train']['tokens']:,} tokens to "
                    f"train on and one row needs {settings.length + 1:,}; "
                    "add text or lower rows.length."
                )
        manifest = {
            "made_from": made_from,
            "dtype": dtype.name,
            "fingerprint": _fingerprint(settings.length, entries),
            "sources": entries,
        }
        write_manifest(folder, manifest)
    rows = sum(splits["train"]["rows"] for splits in entries.values())
    print(f"rows: {rows:,} of {settings.length:,} tokens to train on, in {settings.path}.")
    return manifest


def open_store(path: str) -> Store:
    """Open a store; a UserError where there is none, or where a shard is missing or cut short."""
    file = Path(path, MANIFEST)
    if not file.is_file():
        raise UserError(f"There are no rows at {path}; run polylm rows first.")
    manifest = json.loads(file.read_text())
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    shards = {
        (source, split): [
            _open_shard(Path(path, source, shard["file"]), shard["bytes"], dtype)
            for shard in entry["shards"]
        ]
        for source, splits in manifest["sources"].items()
        for split, entry in splits.items()
    }
    return Store(path, manifest, shards)


def verify(store: Store) -> None:
    """Read every shard and compare its checksum; a UserError names the first that differs."""
    for source, splits in store.manifest["sources"].items():
        for entry in splits.values():
            for shard in entry["shards"]:
                file = Path(store.path, source, shard["file"])
                if _checksum(file) != shard["crc32"]:
                    raise UserError(
                        f"{file} is damaged; delete {store.path} and run polylm rows again."
                    )


def _fingerprint(length: int, entries: dict[str, dict[str, dict]]) -> str:
    streams = [
        (source, split, entry["sha256"])
        for source, splits in entries.items()
        for split, entry in splits.items()
    ]
    return sha256(json.dumps((length, streams)).encode()).hexdigest()


@dataclass(frozen=True)
class _Batch:
    """Some documents as one array of ids [tokens], `</s>` after each."""

    tokens: np.ndarray
    documents: int
    bytes: int


def _encoded(texts: Iterable[str], tokenizer: Tokenizer, dtype: np.dtype) -> Iterator[_Batch]:
    for batch in _batches(texts):
        ids = tokenizer.encode(batch)
        tokens = np.fromiter(chain.from_iterable((*document, EOS) for document in ids), dtype)
        yield _Batch(tokens, len(batch), sum(len(text.encode()) for text in batch))


def _progress(sources: dict[str, dict]) -> Callable[[str, Iterable[_Batch]], Iterator[_Batch]]:
    """Wraps batches so that a line on stderr keeps saying how far the build is.

    sources: as in the corpus manifest, with the bytes that are to come.
    """
    total = sum(entry[split]["bytes"] for entry in sources.values() for split in corpus.SPLITS)
    names = list(sources)
    started = time.monotonic()
    tokens = done = 0

    def watched(source: str, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        nonlocal tokens, done
        for batch in batches:
            yield batch
            tokens += len(batch.tokens)
            done += batch.bytes
            seconds = time.monotonic() - started
            print(
                f"\rrows: {source} ({names.index(source) + 1} of {len(names)}), "
                f"{tokens / seconds:,.0f} tokens/s, {seconds * (total / done - 1):,.0f} s "
                "left   ",
                end="\n" if done == total else "",
                file=sys.stderr,
                flush=True,
            )

    return watched


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_split(
    folder: Path, split: str, batches: Iterable[_Batch], settings: RowSettings
) -> dict:
    """Write one token stream as shards in `folder`; return its entry in the manifest."""
    digest = sha256()
    totals = {"documents": 0, "bytes": 0, "tokens": 0}

    def stream() -> Iterator[np.ndarray]:
        for batch in batches:
            digest.update(batch.tokens.data)
            totals["documents"] += batch.documents
            totals["bytes"] += batch.bytes
            totals["tokens"] += len(batch.tokens)
            yield batch.tokens

    cut = _cut(stream(), settings.shard_rows * settings.length + 1)
    shards = []
    for number, pieces in groupby(cut, key=itemgetter(0)):
        file = folder / f"{split}-{number:05d}.tokens"
        if _write_shard(file, map(itemgetter(1), pieces), settings.length):
            shards.append(
                {"file": file.name, "bytes": file.stat().st_size, "crc32": _checksum(file)}
            )
    rows = max(0, totals["tokens"] - 1) // settings.length
    kept = rows * settings.length + 1 if rows else 0
    return totals | {
        "rows": rows,
        "dropped_tokens": totals["tokens"] - kept,
        "sha256": digest.hexdigest(),
        "shards": shards,
    }


def _cut(stream: Iterable[np.ndarray], capacity: int) -> Iterator[tuple[int, np.ndarray]]:
    """Split a stream [tokens] into (shard number, piece): `capacity` tokens in every shard but
    the last, and each shard's last token once more as the first of the next."""
    number, room = 0, capacity
    for tokens in stream:
        while len(tokens) >= room:
            yield number, tokens[:room]
            tokens = tokens[room - 1 :]
            number, room = number + 1, capacity
        yield number, tokens
        room -= len(tokens)


def _write_shard(path: Path, pieces: Iterable[np.ndarray], length: int) -> int:
    """Write the whole rows of these tokens; return how many. Without one, leave no file."""
    tokens = 0
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece.data)
            tokens += len(piece)
        rows = (tokens - 1) // length
        file.truncate((rows * length + 1) * piece.itemsize)
    if not rows:
        path.unlink()
    return rows


def _checksum(path: Path) -> int:
    return zlib.crc32(np.memmap(path, np.uint8, "r").data)


def _open_shard(path: Path, size: int, dtype: np.dtype) -> np.ndarray:
    found = path.stat().st_size if path.is_file() else 0
    if found != size:
        raise UserError(
            f"{path} has {found:,} of its {size:,} bytes; "
            f"delete {path.parent.parent} and run polylm rows again."
        )
    return np.asarray(np.memmap(path, dtype, "r"))
