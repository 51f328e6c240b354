"""Building a row store: documents are tokenized in parts, and shards are cut from the parts.

A part is the documents that begin in one stretch of a source's file, so that cores share a
large source. What a part or a shard holds depends on the text alone: not on who makes it, nor
in what order, nor on how often the build was stopped.

    <path>.partial/scratch/<source>.<split>.<part>.part   a tokenized part; kept if we are stopped
    <path>.partial/scratch/<source>.<split>.json         the manifest's entry, once shards are cut
    <path>.partial/whole/                                what will be <path>
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from struct import pack
from typing import NamedTuple

import numpy as np

from polylm_jax.console import LiveLine, format_duration
from polylm_jax.data import corpus
from polylm_jax.data.documents import batches, stretches
from polylm_jax.data.rows import LINE, RowSettings, Store, checksum, open_store
from polylm_jax.data.tokenizer import AT_ONCE, BATCH_CHARACTERS, EOS, Tokenizer
from polylm_jax.data.workers import shared_by
from polylm_jax.errors import UserError
from polylm_jax.files import already_made, new_file, resumed_folder, write_manifest

# A part is documents from about this much of a file; it fits in memory many times over.
PART_BYTES = 16_000_000

# A process more starts slower than it tokenizes less than this.
BYTES_PER_WORKER = 32_000_000

COUNTED = ("documents", "bytes", "tokens")
TOTALS = (*COUNTED, "rows", "dropped_tokens")

LINE_SECONDS = 10  # between two lines of progress where there is no terminal


class _Part(NamedTuple):
    source: str
    split: str
    number: int
    bytes: int  # of the source's file


class _Stretch(NamedTuple):
    """Text of a line. place: the line's first byte, or None in a stretch that does not begin it.

    begins, ends: whether the document does; what does not begin one goes on with the one before.
    """

    text: str
    place: int | None
    begins: bool
    ends: bool


@dataclass(frozen=True)
class _Job:
    """What every worker has to know.

    dtype: of the ids, little-endian.
    part_bytes: see PART_BYTES.
    extends: path of the store whose rows come first, "" for none.
    """

    corpus: str
    tokenizer: Tokenizer
    settings: RowSettings
    dtype: np.dtype
    part_bytes: int
    scratch: Path
    whole: Path
    extends: str = ""

    def text(self, source: str, split: str) -> Path:
        return Path(self.corpus, source, f"{split}.jsonl")

    def tokens(self, part: _Part) -> Path:
        return self.scratch / f"{part.source}.{part.split}.{part.number:06d}.part"

    def entry(self, source: str, split: str) -> Path:
        return self.scratch / f"{source}.{split}.json"


def build(
    settings: RowSettings,
    corpus_path: str,
    tokenizer: Tokenizer,
    workers: int = 0,
    extends: str = "",
) -> dict:
    """Tokenize a corpus into `settings.path` and return the store's manifest.

    workers: processes that share the work; 0 for as many as the text is worth, up to one a core.
    extends: path of a store whose rows come first, as they are and at the same places, each
        source's before what the corpus has of it. A run that has read some of them knows them
        again. What of its last text filled no row is not there, so that one text of each source
        ends early. UserError where its tokenizer or settings are others.

    A build that is stopped, be it by kill -9, leaves nothing at `settings.path`; the next one
    goes on from there, and the store is the same byte for byte. A store made from the same
    corpus, tokenizer and settings is kept. A UserError where it was made from others, where a
    no source has a single row to train on, where text is damaged, or where the disk is full. A
    source without one is left out, and said to be.
    """
    if "://" in settings.path:
        raise UserError(
            f"rows.path is {settings.path}: rows are read there but not made there; "
            "make them on a local disk and copy the folder."
        )
    text = corpus.manifest(corpus_path)
    made_from = {
        "corpus": text["sha256"],
        "tokenizer": tokenizer.fingerprint,
        "length": settings.length,
        "shard_rows": settings.shard_rows,
    }
    old = _extended(settings, tokenizer, extends)
    if old:
        made_from |= {"extends": old.fingerprint}
    if already_made(settings.path, made_from):
        print(f"rows: {settings.path} is already made; kept.")
        return open_store(settings.path).manifest

    dtype = np.dtype("<u2" if tokenizer.size <= 2**16 else "<u4")
    sources = list(dict.fromkeys([*text["sources"], *(old.sources if old else ())]))
    streams = [(source, split) for source in text["sources"] for split in corpus.SPLITS]
    with resumed_folder(settings.path, made_from | {"part": PART_BYTES, "parts": 2}) as (
        scratch,
        whole,
    ):
        job = _Job(corpus_path, tokenizer, settings, dtype, PART_BYTES, scratch, whole, extends)
        for source in sources:
            (whole / source).mkdir(exist_ok=True)
        parts = _parts(job, streams)
        with shared_by(job, workers or _worth(job, streams)) as run:
            _tokenize_all(job, parts, run)
            cut = dict(run(_cut_stream, [(s, split) for s in sources for split in corpus.SPLITS]))
        entries = {
            source: {split: cut[source, split] for split in corpus.SPLITS} for source in sources
        }
        left_out = {source: entry for source, entry in entries.items() if _is_short(entry)}
        if len(left_out) == len(entries):
            raise UserError(_short(corpus_path, left_out, settings.length, ""))
        for source in left_out:
            del entries[source]
            shutil.rmtree(whole / source)
        manifest = {
            "made_from": made_from,
            "dtype": dtype.name,
            **_totals(settings.length, entries),
            "left_out": {
                source: {split: {name: entry[split][name] for name in COUNTED} for split in entry}
                for source, entry in left_out.items()
            },
        }
        write_manifest(whole, manifest)
    if left_out:
        print("rows: " + _short(corpus_path, left_out, settings.length, ": left out"))
    rows = sum(splits["train"]["rows"] for splits in entries.values())
    print(
        f"rows: {rows:,} of {settings.length:,} tokens to train on, in {settings.path}; "
        f"{manifest['dropped_tokens']:,} tokens at the sources' ends fill no row."
    )
    return manifest


def _extended(settings: RowSettings, tokenizer: Tokenizer, path: str) -> Store | None:
    """The store to extend, if there is one; UserError where its rows and the new ones differ."""
    if not path:
        return None
    store = open_store(path)
    if store.tokenizer_fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{path} was made with another tokenizer; give the one that it was made with as "
            "--gin.tokenizer.path=FOLDER."
        )
    for name in ("length", "shard_rows"):
        was, now = store.manifest["made_from"][name], getattr(settings, name)
        if was != now:
            raise UserError(
                f"{path} was made with rows.{name} = {was}, not {now}; set the same here."
            )
    return store


def _is_short(entry: dict[str, dict]) -> bool:
    """Whether a source has not a single row to train on."""
    return not entry["train"]["rows"]


def _short(corpus_path: str, sources: dict[str, dict], length: int, done: str) -> str:
    """The sentence on sources that fill no row."""
    tokens = ", ".join(f"{name} {entry['train']['tokens']:,}" for name, entry in sources.items())
    return (
        f"one row needs {length + 1:,} tokens and of these sources of {corpus_path} there "
        f"are fewer to train on{done} ({tokens}); add text or lower rows.length."
    )


def _totals(length: int, entries: dict[str, dict[str, dict]]) -> dict:
    """The manifest's part about all sources, and the entries of each."""
    streams = [(*pair, entry) for pair, entry in _flat(entries)]
    hashes = [(source, split, entry["sha256"]) for source, split, entry in streams]
    return {
        "fingerprint": sha256(json.dumps((length, hashes)).encode()).hexdigest(),
        **{name: sum(entry[name] for *_, entry in streams) for name in TOTALS},
        # the share of a row's places that hold text: there is no padding
        "fill": 1.0,
        "sources": entries,
    }


def _flat(entries: dict[str, dict[str, dict]]) -> Iterator[tuple[tuple[str, str], dict]]:
    for source, splits in entries.items():
        for split, entry in splits.items():
            yield (source, split), entry


def _size(file: Path) -> int:
    if not file.is_file():
        raise UserError(f"{file} is missing; run polylm corpus again.")
    return file.stat().st_size


def _parts(job: _Job, streams: Iterable[tuple[str, str]]) -> list[_Part]:
    """The parts of all streams whose shards are not cut yet."""
    return [
        _Part(source, split, number, min(job.part_bytes, size - number * job.part_bytes))
        for source, split in streams
        if not job.entry(source, split).is_file()
        for size in [_size(job.text(source, split))]
        for number in range(-(-size // job.part_bytes))
    ]


def _worth(job: _Job, streams: Iterable[tuple[str, str]]) -> int:
    size = sum(_size(job.text(*stream)) for stream in streams)
    return min(len(os.sched_getaffinity(0)), 1 + size // BYTES_PER_WORKER)


# --- tokenizing


def _tokenize_all(job: _Job, parts: list[_Part], run: Callable) -> None:
    """Tokenize the parts that no earlier run has, with a line on stderr that says how far."""
    left = [part for part in parts if not job.tokens(part).is_file()]
    if len(left) < len(parts):
        print(f"rows: going on; {len(parts) - len(left):,} of {len(parts):,} parts are there.")
    total = sum(part.bytes for part in left)
    line, started = LiveLine(LINE_SECONDS), time.monotonic()
    done = tokens = 0
    for part, count in run(_tokenize, left):
        done += part.bytes
        tokens += count
        seconds = time.monotonic() - started
        line.show(
            f"rows: {part.source}, {done / total:.0%} of {total / 1e6:,.1f} MB, "
            f"{tokens / seconds:,.0f} tokens/s, "
            f"{format_duration(seconds * (total / done - 1))} left",
            last=done == total,
        )


def _tokenize(job: _Job, part: _Part) -> tuple[_Part, int]:
    """Write a part's tokens, with </s> after each document; return how many.

    The file holds the number of lines, of documents and of their text's bytes, the lines as in
    the store but with tokens counted from the part's first, and the tokens.
    """
    packed, places, begun, size, tokens = [], [], 0, 0, 0
    begin = part.number * job.part_bytes
    text = job.text(part.source, part.split)
    lines = _lines(text, begin, begin + job.part_bytes)
    for batch in batches(_stretches(lines), lambda one: len(one.text), BATCH_CHARACTERS):
        texts = [stretch.text.encode() for stretch in batch]
        size += sum(map(len, texts))
        for stretch, ids in zip(batch, _encoded(job.tokenizer, batch, texts), strict=True):
            begun += stretch.begins
            if stretch.place is not None:
                places.append((tokens, stretch.place))
            if stretch.ends:
                ids.append(EOS)
            tokens += len(ids)
            # half as dear again through NumPy, an integer at a time
            packed.append(pack(f"{len(ids)}{job.dtype.char}", *ids))
    lines_at = np.array(places, LINE)
    with new_file(job.tokens(part), job.scratch) as file:
        np.array([len(lines_at), begun, size], "<i8").tofile(file)
        lines_at.tofile(file)
        file.write(b"".join(packed))
    return part, tokens


def _encoded(tokenizer: Tokenizer, batch: list[_Stretch], texts: list[bytes]) -> list[list[int]]:
    """Ids of each stretch, in UTF-8 in `texts`, as they are inside its document."""
    if not tokenizer.adds_space:
        return tokenizer.processor.encode(texts, num_threads=1)
    # the space that is added before a text stands for one that is there, or goes again
    lacks = [not stretch.begins and not stretch.text.startswith(" ") for stretch in batch]
    texts = [
        text if stretch.begins else text.removeprefix(b" ")
        for text, stretch in zip(texts, batch, strict=True)
    ]
    space = tokenizer.processor.piece_to_id("▁")
    return [
        ids[1:] if lack and ids[:1] == [space] else ids
        for ids, lack in zip(tokenizer.processor.encode(texts, num_threads=1), lacks, strict=True)
    ]


def _stretches(lines: Iterable[_Stretch]) -> Iterator[_Stretch]:
    """The lines in stretches that are tokenized at once."""
    for line in lines:
        if len(line.text) <= AT_ONCE:
            yield line
            continue
        *some, last = stretches(line.text, AT_ONCE)
        for text in some:
            yield line._replace(text=text, ends=False)
            line = line._replace(place=None, begins=False)
        yield line._replace(text=last)


def _lines(file: Path, begin: int, end: int) -> Iterator[_Stretch]:
    """The lines that begin at these bytes of a source's file."""
    with open(file, "rb") as lines:
        if begin:
            # the line that the part's first byte may lie in belongs to the part before
            lines.seek(begin - 1)
            lines.readline()
        place = lines.tell()
        for line in lines:
            if place >= end:
                return
            try:
                record = json.loads(line.decode())
                text, part, more = record["text"], record.get("part", 1), record.get("more")
            except (ValueError, LookupError, TypeError):
                raise UserError(
                    f"{file} is damaged at its byte {place:,}; run polylm corpus again."
                ) from None
            yield _Stretch(text, place, begins=part == 1, ends=not more)
            place += len(line)


# --- cutting


def _cut_stream(job: _Job, stream: tuple[str, str]) -> tuple[tuple[str, str], dict]:
    """Cut the parts of a (source, split) into shards; return its entry in the manifest too."""
    source, split = stream
    done = job.entry(source, split)
    if done.is_file():
        return stream, json.loads(done.read_text())
    parts = _parts(job, [stream]) if job.text(source, split).parent.is_dir() else []
    files = [job.tokens(part) for part in parts]
    old = open_store(job.extends) if job.extends else None
    former = old.manifest["sources"][source][split] if old and source in old.sources else None
    digest = sha256()
    totals = {"documents": 0, "bytes": 0, "tokens": 0}
    index = job.whole / source / f"{split}.documents"

    def stream_of_parts() -> Generator[np.ndarray, None, None]:
        with new_file(index, job.scratch) as file:
            if old and former:
                totals["documents"], totals["bytes"] = former["documents"], former["bytes"]
                for ids in old.stream(source, split):
                    digest.update(ids.data)
                    totals["tokens"] += len(ids)
                    yield ids
            for path in files:
                with open(path, "rb") as part:
                    count, begun, size = np.fromfile(part, "<i8", 3).tolist()
                    lines, ids = np.fromfile(part, LINE, count), np.fromfile(part, job.dtype)
                lines["token"] += totals["tokens"]
                file.write(lines.data)
                digest.update(ids.data)
                totals["documents"] += begun
                totals["bytes"] += size
                totals["tokens"] += len(ids)
                yield ids

    length = job.settings.length
    shards = []
    # closed by hand, or a failed write would leave the index's temporary file to the collector
    with closing(stream_of_parts()) as ids:
        cut = _cut(ids, job.settings.shard_rows * length + 1)
        for number, pieces in groupby(cut, key=itemgetter(0)):
            path = job.whole / source / f"{split}-{number:05d}.tokens"
            if _write_shard(path, map(itemgetter(1), pieces), length, job.scratch):
                shards.append(_described(path))
    rows = max(0, totals["tokens"] - 1) // length
    kept = rows * length + 1 if rows else 0
    entry = totals | {
        "rows": rows,
        "dropped_tokens": totals["tokens"] - kept,
        "sha256": digest.hexdigest(),
        "shards": shards,
        "index": _described(index),
    }
    if former:
        begun = {"rows": former["rows"], "sha256": former["sha256"]}
        entry["extends"] = [*former.get("extends", []), begun]
    with new_file(done, job.scratch) as file:
        file.write(json.dumps(entry).encode())
    for path in files:
        path.unlink()
    return stream, entry


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


def _write_shard(path: Path, pieces: Iterable[np.ndarray], length: int, scratch: Path) -> int:
    """Write the whole rows of these tokens; return how many. Without one, leave no file."""
    tokens = 0
    with new_file(path, scratch) as file:
        for piece in pieces:
            file.write(piece.data)
            tokens += len(piece)
        rows = max(0, tokens - 1) // length
        file.truncate((rows * length + 1) * piece.itemsize)
    if not rows:
        path.unlink()
    return rows


def _described(path: Path) -> dict:
    with open(path, "rb") as file:
        return {"file": path.name, "bytes": path.stat().st_size, "crc32": checksum(file)}
