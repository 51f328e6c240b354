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
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from struct import pack
from typing import Any, NamedTuple

import numpy as np

from polylm_jax.console import LiveLine, format_duration
from polylm_jax.data import corpus, cutting
from polylm_jax.data.clean.engine import Beam, each
from polylm_jax.data.cutting import HEAD, Lines, Span
from polylm_jax.data.documents import batches, stretches
from polylm_jax.data.making import content, is_made, note, remove, resumed, there, written
from polylm_jax.data.rows import LINE, RowSettings, Store, open_store
from polylm_jax.data.shards import Text, lines_of
from polylm_jax.data.shards import texts as texts_of
from polylm_jax.data.tokenizer import AT_ONCE, BATCH_CHARACTERS, EOS, Tokenizer
from polylm_jax.data.workers import shared_by
from polylm_jax.errors import UserError
from polylm_jax.files import opened, write_manifest

# A part is documents from about this much of a file; it fits in memory many times over.
PART_BYTES = 16_000_000

# A process more starts slower than it tokenizes less than this.
BYTES_PER_WORKER = 32_000_000

COUNTED = ("documents", "bytes", "tokens")
TOTALS = (*COUNTED, "rows", "dropped_tokens")

LINE_SECONDS = 10  # between two lines of progress where there is no terminal


class _Part(NamedTuple):
    """The documents of a file that begin at these bytes of its lines.

    first: the byte of the whole split's lines that is the file's first.
    """

    source: str
    split: str
    number: int
    text: Text
    begin: int
    end: int
    first: int


class _Cut(NamedTuple):
    """A shard of rows to be cut, or, of number -1, the index of a split and its ids' hash."""

    source: str
    split: str
    number: int
    ids: list[Span]
    lines: list[Lines]


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
    scratch, whole: folders, here or elsewhere.
    """

    tokenizer: Tokenizer
    settings: RowSettings
    dtype: np.dtype
    scratch: str
    whole: str

    def tokens(self, part: _Part) -> str:
        return f"{self.scratch}/{_name(part)}"

    def entry(self, source: str, split: str) -> str:
        return f"{self.scratch}/{source}.{split}.json"


def _name(part: _Part) -> str:
    return f"{part.source}.{part.split}.{part.number:06d}.part"


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


def _parts(source: str, split: str, texts: list[Text]) -> list[_Part]:
    """The parts of a split's files."""
    parts: list[_Part] = []
    first = 0
    for text in texts:
        for begin in range(0, text.content, PART_BYTES):
            end = min(begin + PART_BYTES, text.content)
            parts.append(_Part(source, split, len(parts), text, begin, end, first))
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
    return min(len(os.sched_getaffinity(0)), 1 + size // BYTES_PER_WORKER)


# --- tokenizing


def _tokenize_all(parts: list[_Part], done: set[str], run: Callable) -> None:
    """Tokenize the parts that no earlier run has, with a line on stderr that says how far."""
    left = [part for part in parts if _name(part) not in done]
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


def _tokenize(job: _Job, part: _Part) -> tuple[_Part, int]:
    """Write a part's tokens, with </s> after each document; return how many.

    The file holds a HEAD, the lines as in the store but with tokens counted from the part's first,
    and the tokens. One that is there is not written again.
    """
    with suppress(FileNotFoundError):
        return part, int(_head(job.tokens(part))["tokens"])
    packed, places, begun, size, tokens = [], [], 0, 0, 0
    for batch in batches(_stretches(_lines(part)), lambda one: len(one.text), BATCH_CHARACTERS):
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
    head = np.array((len(places), begun, size, tokens), HEAD)
    with written(job.tokens(part), job.scratch) as file:
        file.write(head.tobytes() + np.array(places, LINE).tobytes())
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


def _lines(part: _Part) -> Iterator[_Stretch]:
    """The lines that begin in a part."""
    # the line that the part's first byte may lie in belongs to the part before
    place = max(0, part.begin - 1)
    with lines_of(part.text, place) as lines:
        if part.begin:
            place += len(lines.readline())
        for line in lines:
            if place >= part.end:
                return
            try:
                record = json.loads(line.decode())
                text, number, more = record["text"], record.get("part", 1), record.get("more")
            except (ValueError, LookupError, TypeError):
                raise UserError(
                    f"{part.text.place} is damaged at its byte {place:,}; run polylm corpus again."
                ) from None
            yield _Stretch(text, part.first + place, begins=number == 1, ends=not more)
            place += len(line)
    if place < part.end:
        raise UserError(f"{part.text.place} is cut short; make the corpus again.")


# --- cutting


def _cut_all(
    job: _Job, parts: dict[tuple[str, str], list[_Part]], old: Store | None, run: Callable
) -> Iterator[tuple[tuple[str, str], dict]]:
    """Cuts the shards of all splits, and gives the manifest's entry of each once it is there."""
    splits: dict[tuple[str, str], _Split] = {}

    def cuts() -> Iterator[_Cut]:
        for stream, some in parts.items():
            splits[stream] = split = _laid_out(job, stream, some, old)
            yield from split.cuts

    for cut, made in run(_cut, cuts()):
        split = splits[cut.source, cut.split]
        split.made[cut.number] = made
        if len(split.made) < len(split.cuts):
            continue
        stream = (cut.source, cut.split)
        entry = _entry(split)
        note(job.entry(*stream), entry, job.scratch)
        for part in parts[stream]:
            remove(job.tokens(part))
        yield stream, entry


@dataclass(frozen=True)
class _Split:
    """What is to be cut of a split, and what has been, by its number.

    totals: what its entry counts. former: of the store that it extends, what its entry says.
    """

    cuts: list[_Cut]
    totals: dict[str, int]
    former: dict
    made: dict[int, dict] = field(default_factory=dict)


def _entry(split: _Split) -> dict:
    """What the manifest says of a split, all of which is cut."""
    index = split.made[-1]
    shards = [split.made[number] for number in range(len(split.cuts) - 1)]
    return split.totals | index | {"shards": shards} | split.former


def _laid_out(job: _Job, stream: tuple[str, str], parts: list[_Part], old: Store | None) -> _Split:
    """Where a split's shards lie in its tokenized parts, and in the store that it extends."""
    source, split = stream
    size, length = job.dtype.itemsize, job.settings.length
    former = old.manifest["sources"][source][split] if old and source in old.sources else None
    ids: list[Span] = []
    totals = dict.fromkeys(COUNTED, 0)
    if old and former:
        ids = cutting.of_store(f"{old.path}/{source}", former["shards"], size)
        totals = {
            "documents": former["documents"],
            "bytes": former["bytes"],
            "tokens": sum(span.end - span.begin for span in ids) // size,
        }
    lines = []
    for part in parts:
        head = _head(job.tokens(part))
        of_lines, of_ids = cutting.of_part(job.tokens(part), head, totals["tokens"], size)
        lines.append(of_lines)
        ids.append(of_ids)
        for name in COUNTED:
            totals[name] += int(head[name])
    rows = max(0, totals["tokens"] - 1) // length
    cuts = [_Cut(source, split, -1, ids, lines)]
    for number, first in enumerate(range(0, rows, job.settings.shard_rows)):
        last = min(first + job.settings.shard_rows, rows)
        begin, end = first * length * size, (last * length + 1) * size
        cuts.append(_Cut(source, split, number, cutting.parts_of(ids, begin, end), []))
    kept = rows * length + 1 if rows else 0
    totals |= {"rows": rows, "dropped_tokens": totals["tokens"] - kept}
    if not former:
        return _Split(cuts, totals, {})
    begun = {"rows": former["rows"], "sha256": former["sha256"]}
    return _Split(cuts, totals, {"extends": [*former.get("extends", []), begun]})


def _head(place: str) -> np.void:
    files, path = opened(place)
    return np.frombuffer(files.cat_file(path, 0, HEAD.itemsize), HEAD)[0]


def _cut(job: _Job, cut: _Cut) -> tuple[_Cut, dict]:
    """Write a shard, or an index, and return what the entry says of it."""
    begin = f"{job.whole}/{cut.source}/{cut.split}"
    if cut.number >= 0:
        name = f"{begin}-{cut.number:05d}.tokens"
        return cut, cutting.write(name, cutting.read(cut.ids), job.scratch)
    index = cutting.write(f"{begin}.documents", cutting.counted(cut.lines), job.scratch)
    return cut, {"sha256": cutting.digest(cut.ids), "index": index}
