"""Building a row store: documents are tokenized in parts, and shards are cut from the parts.

A part is the documents that begin in one stretch of a file of a source, so that cores share a
large source. What a part or a shard holds depends on the text alone: not on who makes it, nor
in what order, nor on how often the build was stopped.

    <scratch>/<source>.<split>.<part>.part    a tokenized part; kept if we are stopped
    <scratch>/<source>.<split>.json           the manifest's entry, once shards are cut
    <whole>/                                  what will be <path>

Both folders are in <path>.partial, or, on a file system that is not of this machine, <path>.partial
and <path> itself. `making.resumed` says more.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from polylm_jax.chips import cores
from polylm_jax.console import LiveLine, format_duration
from polylm_jax.data import corpus, cutting, tokenizing
from polylm_jax.data.clean.engine import Beam, each
from polylm_jax.data.cutting import COUNTED, Cut, Split
from polylm_jax.data.making import content, is_made, note, remove, resumed, there
from polylm_jax.data.rows import RowSettings, Store, open_store
from polylm_jax.data.shards import Text
from polylm_jax.data.shards import texts as texts_of
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.data.tokenizing import Part
from polylm_jax.data.workers import shared_by
from polylm_jax.errors import UserError
from polylm_jax.files import write_manifest

# A part is documents from about this much of a file; it fits in memory many times over.
PART_BYTES = 16_000_000

# A process more starts slower than it tokenizes less than this.
BYTES_PER_WORKER = 32_000_000

TOTALS = (*COUNTED, "rows", "dropped_tokens")

LINE_SECONDS = 10  # between two lines of progress where there is no terminal


@dataclass(frozen=True)
class _Job:
    """What every worker has to know.

    dtype: of the ids, little-endian.
    scratch, whole: folders, here or elsewhere.
    """

    tokenizer: Tokenizer
    settings: RowSettings
    dtype: np.dtype
    scratch: str
    whole: str

    def tokens(self, part: Part) -> str:
        return f"{self.scratch}/{part.name}"

    def entry(self, source: str, split: str) -> str:
        return f"{self.scratch}/{source}.{split}.json"


def build(
    settings: RowSettings,
    corpus_path: str,
    tokenizer: Tokenizer,
    workers: int = 0,
    extends: str = "",
    beam: Beam | None = None,
) -> dict:
    """Tokenize a corpus into `settings.path` and return the store's manifest.

    workers: processes that share the work; 0 for as many as the text is worth, up to one a core.
    extends: path of a store whose rows come first, as they are and at the same places, each
        source's before what the corpus has of it. A run that has read some of them knows them
        again. What of its last text filled no row is not there, so that one text of each source
        ends early. UserError where its tokenizer or settings are others.

    beam: what shares the work in place of processes; both paths must be ones that its workers
        reach.

    A build that is stopped, be it by kill -9, leaves nothing at `settings.path`; the next one
    goes on from there, and the store is the same byte for byte. A store made from the same
    corpus, tokenizer and settings is kept. A UserError where it was made from others, where a
    no source has a single row to train on, where text is damaged, or where the disk is full. A
    source without one is left out, and said to be.
    """
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
    if is_made(settings.path, made_from):
        print(f"rows: {settings.path} is already made; kept.")
        return open_store(settings.path).manifest

    dtype = np.dtype("<u2" if tokenizer.size <= 2**16 else "<u4")
    sources = list(dict.fromkeys([*text["sources"], *(old.sources if old else ())]))
    streams = [(source, split) for source in sources for split in corpus.SPLITS]
    texts = {
        (source, split): texts_of(corpus_path, source, split, text["sources"][source][split])
        for source, split in streams
        if source in text["sources"]
    }
    with resumed(settings.path, made_from | {"part": PART_BYTES, "parts": 3}) as (scratch, whole):
        job = _Job(tokenizer, settings, dtype, scratch, whole)
        done = there(scratch)
        parts = {
            stream: _parts(*stream, texts.get(stream, []))
            for stream in streams
            if f"{stream[0]}.{stream[1]}.json" not in done
        }
        with _run_by(beam, job, workers or _worth(texts.values())) as run:
            _tokenize_all([part for some in parts.values() for part in some], done, run)
            cut = dict(_cut_all(job, parts, old, run))
        for source, split in set(streams) - set(cut):
            cut[source, split] = json.loads(content(job.entry(source, split)) or b"")
        entries = {
            source: {split: cut[source, split] for split in corpus.SPLITS} for source in sources
        }
        left_out = {source: entry for source, entry in entries.items() if _is_short(entry)}
        if len(left_out) == len(entries):
            raise UserError(_short(corpus_path, left_out, settings.length, ""))
        for source in left_out:
            del entries[source]
            remove(f"{whole}/{source}")
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


def _parts(source: str, split: str, texts: list[Text]) -> list[Part]:
    """The parts of a split's files."""
    parts: list[Part] = []
    first = 0
    for text in texts:
        for begin in range(0, text.content, PART_BYTES):
            end = min(begin + PART_BYTES, text.content)
            parts.append(Part(source, split, len(parts), text, begin, end, first))
        first += text.content
    return parts


@contextmanager
def _run_by(beam: Beam | None, job: _Job, workers: int) -> Iterator[Callable]:
    """As `workers.shared_by`, or by Beam, where a result that is no piece is a note on the way."""
    if beam is None:
        with shared_by(job, workers) as run:
            yield run
        return

    def by_beam(function: Callable, pieces: Iterable) -> Iterator[tuple]:
        listed = list(pieces)
        notes = [f"{job.scratch}/{function.__name__}.{n:06d}.json" for n in range(len(listed))]
        each(beam, _Noted(function, job), list(zip(notes, listed, strict=True)))
        for piece, place in zip(listed, notes, strict=True):
            yield piece, json.loads(content(place) or b"")

    yield by_beam


@dataclass(frozen=True)
class _Noted:
    """function(job, piece), whose result beside the piece is noted."""

    function: Callable
    job: _Job

    def __call__(self, piece: tuple[str, Any]) -> None:
        note(piece[0], self.function(self.job, piece[1])[1], self.job.scratch)


def _worth(texts: Iterable[list[Text]]) -> int:
    size = sum(text.content for some in texts for text in some)
    return min(cores(), 1 + size // BYTES_PER_WORKER)


# --- tokenizing


def _tokenize_all(parts: list[Part], done: set[str], run: Callable) -> None:
    """Tokenize the parts that no earlier run has, with a line on stderr that says how far."""
    left = [part for part in parts if part.name not in done]
    if len(left) < len(parts):
        print(f"rows: going on; {len(parts) - len(left):,} of {len(parts):,} parts are there.")
    total = sum(part.end - part.begin for part in left)
    line, started = LiveLine(LINE_SECONDS), time.monotonic()
    worked = tokens = 0
    for part, count in run(_tokenize, left):
        worked += part.end - part.begin
        tokens += count
        seconds = time.monotonic() - started
        line.show(
            f"rows: {part.source}, {worked / total:.0%} of {total / 1e6:,.1f} MB, "
            f"{tokens / seconds:,.0f} tokens/s, "
            f"{format_duration(seconds * (total / worked - 1))} left",
            last=worked == total,
        )


def _tokenize(job: _Job, part: Part) -> tuple[Part, int]:
    """Write a part's file, if it is not there; return how many tokens it has."""
    place = job.tokens(part)
    with suppress(FileNotFoundError):
        return part, int(tokenizing.head(place)["tokens"])
    return part, tokenizing.write(part, job.tokenizer, job.dtype, place, job.scratch)


# --- cutting


def _cut_all(
    job: _Job, parts: dict[tuple[str, str], list[Part]], old: Store | None, run: Callable
) -> Iterator[tuple[tuple[str, str], dict]]:
    """Cuts the shards of all splits, and gives the manifest's entry of each once it is there."""
    splits: dict[tuple[str, str], Split] = {}

    def cuts() -> Iterator[Cut]:
        for stream, some in parts.items():
            places = [job.tokens(part) for part in some]
            size = job.dtype.itemsize
            splits[stream] = split = cutting.laid_out(*stream, places, job.settings, size, old)
            yield from split.cuts

    for cut, made in run(_cut, cuts()):
        split = splits[cut.source, cut.split]
        split.made[cut.number] = made
        if len(split.made) < len(split.cuts):
            continue
        stream = (cut.source, cut.split)
        entry = split.entry()
        note(job.entry(*stream), entry, job.scratch)
        for part in parts[stream]:
            remove(job.tokens(part))
        yield stream, entry


def _cut(job: _Job, cut: Cut) -> tuple[Cut, dict]:
    """Write a shard, or an index, and return what the entry says of it."""
    begin = f"{job.whole}/{cut.source}/{cut.split}"
    if cut.number >= 0:
        name = f"{begin}-{cut.number:05d}.tokens"
        return cut, cutting.write(name, cutting.read(cut.ids), job.scratch)
    index = cutting.write(f"{begin}.documents", cutting.counted(cut.lines), job.scratch)
    return cut, {"sha256": cutting.digest(cut.ids), "index": index}
