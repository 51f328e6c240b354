"""A corpus in shards, written by as many processes as one likes and read from anywhere.

    <path>/<source>/train-00017-of-01024.jsonl.zst    {"text": …, "from": …, "id": …} a line
    <path>/<source>/valid-00017-of-01024.jsonl.zst    those that are held out, by their texts' hash
    <path>/manifest.json                              written last: what it says is there

A shard may be .jsonl, .jsonl.gz or .jsonl.zst. Its hash is of its lines, so it is the same in all
three. A shard without a document is no file. The lines of a split, one shard after another, are
those of a corpus in one file, train.jsonl or valid.jsonl, and mean the same.
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from fsspec.implementations.local import LocalFileSystem

from polylm_jax.console import LiveLine
from polylm_jax.data.compressed import Damaged, missing
from polylm_jax.data.compressed import opened as decompressed
from polylm_jax.data.documents import STRETCH, stretches
from polylm_jax.data.sides import hash_of
from polylm_jax.errors import UserError
from polylm_jax.files import MANIFEST, opened, output, put, reading

Wanted = TypeVar("Wanted")

SPLITS = ("train", "valid")
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")

COUNT = range(2**53)
SHARD = {"file": str, "documents": COUNT, "bytes": COUNT, "content": COUNT, "sha256": str}

_LEVEL = 3  # of zstd; gzip's 6 is as small and takes ten times as long
_json = json.JSONEncoder(ensure_ascii=False).encode
# how JSON spells them; a text with another control is rare
_ESCAPES = ((b"\\", rb"\\"), (b'"', rb"\""), (b"\n", rb"\n"), (b"\t", rb"\t"))
_CONTROLS = bytes({*range(32)} - {*b"\n\t"})


class Text(NamedTuple):
    """A file of a corpus. place: path or URL. content: bytes of its lines, decompressed."""

    place: str
    content: int


class Lined(NamedTuple):
    """A document as a shard has it. bytes, hash: of its text, the second by `sides.hashed`."""

    lines: bytes
    bytes: int
    hash: int


def name_of(split: str, number: int, count: int, ending: str = ".jsonl.zst") -> str:
    """The name of shard `number` of `count`, from 0."""
    return f"{split}-{number:05d}-of-{count:05d}{ending}"


def write_shard(
    path: str,
    source: str,
    number: int,
    count: int,
    documents: Iterable[tuple[str, str, int]],
    held_out: int = 0,
    ending: str = ".jsonl.zst",
) -> dict[str, dict]:
    """Writes shard `number` of `count` of a source and returns its entries, for `write_manifest`.

    documents: text, where it is from, and id of each, in order; no text holds half a character.
    held_out: texts whose `sides.hashed` is less go to valid, the others to train; what
        `sides.threshold` returns.
    ending: one of ENDINGS.

    Each file is whole or not there. The same documents give the same bytes.
    """
    texts = ((text.encode(), origin, identity) for text, origin, identity in documents)
    lined = (Lined(as_lines(*one), len(one[0]), hash_of(one[0])) for one in texts)
    return write_lines(path, source, number, count, lined, held_out, ending)


def write_lines(
    path: str,
    source: str,
    number: int,
    count: int,
    documents: Iterable[Lined],
    held_out: int,
    ending: str = ".jsonl.zst",
) -> dict[str, dict]:
    """As `write_shard`, of documents in lines."""
    if "://" not in path:  # elsewhere a folder is there when a file is
        Path(path, source).mkdir(parents=True, exist_ok=True)
    written: dict[str, _Writing] = {}
    with ExitStack() as files:
        for document in documents:
            split = SPLITS[document.hash < held_out]
            if split not in written:
                name = name_of(split, number, count, ending)
                file = files.enter_context(_new(f"{path}/{source}/{name}"))
                written[split] = _Writing(name, file)
            written[split].add(document)
    return {split: writing.entry() for split, writing in written.items()}


def as_lines(text: bytes, origin: str, identity: int) -> bytes:
    """The lines of a document, whose text is in UTF-8: one, or of a long text several."""
    about: dict[str, Any] = {"from": origin, "id": f"{identity:016x}"}
    if len(text) <= STRETCH:  # and so are its characters
        return _line(text, about)
    *first, last = (some.encode() for some in stretches(text.decode(), STRETCH))
    parts = [about | {"part": part, "more": True} for part, _ in enumerate(first, 1)]
    parts.append(about | ({"part": len(first) + 1} if first else {}))
    return b"".join(map(_line, (*first, last), parts))


def _line(text: bytes, about: dict[str, Any]) -> bytes:
    """What `json` makes of a record that begins with the text, in a quarter of the time."""
    if len(text.translate(None, _CONTROLS)) < len(text):
        return _json({"text": text.decode()} | about).encode() + b"\n"
    for sign, escaped in _ESCAPES:
        text = text.replace(sign, escaped)
    return b'{"text": "%b", %b\n' % (text, _json(about)[1:].encode())


def write_manifest(
    path: str, entries: Mapping[str, Iterable[dict[str, dict]]], **more: Any
) -> dict:
    """Writes the manifest of a corpus whose shards are all there, and returns it.

    entries: of each source, what `write_shard` returned, in order of the shards' numbers.
    more: what else it shall say.
    """
    sources = {}
    for source, shards in entries.items():
        shards = list(shards)
        of_split = {split: [one[split] for one in shards if split in one] for split in SPLITS}
        digests = [one["sha256"] for some in of_split.values() for one in some]
        sources[source] = {
            split: {
                "documents": sum(one["documents"] for one in some),
                "bytes": sum(one["bytes"] for one in some),
                "shards": some,
            }
            for split, some in of_split.items()
        } | {"sha256": hashlib.sha256("".join(digests).encode()).hexdigest()}
    content = json.dumps([(source, entry["sha256"]) for source, entry in sources.items()])
    manifest = more | {"sha256": hashlib.sha256(content.encode()).hexdigest(), "sources": sources}
    put(f"{path}/{MANIFEST}", json.dumps(manifest, indent=1).encode() + b"\n")
    return manifest


def texts(path: str, source: str, split: str, entry: dict) -> list[Text]:
    """The files of a source and split, in order, given its entry in the corpus's manifest."""
    if "shards" in entry:
        shards = entry["shards"]
        return [Text(f"{path}/{source}/{shard['file']}", shard["content"]) for shard in shards]
    place = f"{path}/{source}/{split}.jsonl"
    files, file = opened(place)
    try:
        return [Text(place, files.size(file))]
    except FileNotFoundError:
        raise UserError(f"{place} is missing; run polylm corpus again.") from None


def verify(path: str, manifest: dict) -> int:
    """Reads every file of a corpus and compares its lines' hash; returns how many files there are.

    UserError naming one that is missing, damaged or other than its manifest says.
    """
    wanted: list[tuple[list[Text], str]] = []
    for source, entry in manifest["sources"].items():
        files = [text for split in SPLITS for text in texts(path, source, split, entry[split])]
        shards = [shard for split in SPLITS for shard in entry[split].get("shards", ())]
        if shards:
            wanted += [([text], shard["sha256"]) for text, shard in zip(files, shards, strict=True)]
        else:  # one hash of train and valid
            wanted.append((files, entry.get("sha256", "")))
    read_all("corpus", _checked, wanted)
    return sum(len(files) for files, _ in wanted)


def read_all(what: str, read: Callable[[Wanted], str], wanted: Sequence[Wanted]) -> None:
    """Reads many files, several at once, and shows which, until one of them is refused.

    read: gives the name of what it has read.
    """
    line = LiveLine(10)
    with ThreadPoolExecutor(8) as pool:  # hashing lets others work beside it
        try:
            for name in pool.map(read, wanted):
                line.show(f"{what}: read {name}")
        finally:
            line.close()
            pool.shutdown(cancel_futures=True)


def _checked(wanted: tuple[list[Text], str]) -> str:
    """The places of files, once they have been read and have the wanted hash together."""
    files, sha256 = wanted
    digest = hashlib.sha256()
    for file in files:
        with lines_of(file) as lines:
            while content := lines.read(2**20):
                digest.update(content)
    places = [file.place for file in files]
    if digest.hexdigest() != sha256:
        raise UserError(
            f"{' or '.join(places)} is not as it was written; make the corpus again, or put back "
            "what it was."
        )
    return " and ".join(places)


@contextmanager
def lines_of(text: Text, begin: int = 0) -> Iterator[BinaryIO]:
    """The lines of a file of a corpus, from a byte of them on.

    UserError, also for reads inside the block, where it is missing, cut short or damaged.
    """
    files, path = opened(text.place)
    with reading(text.place):
        try:
            with files.open(path, "rb") as plain, decompressed(plain, text.place) as lines:
                if lines is not plain:
                    _pass(lines, begin)
                    yield lines
                    return
                lines.seek(begin)
                # elsewhere a file gives lines slowly
                yield lines if isinstance(files, LocalFileSystem) else BufferedReader(lines, 2**20)
        except FileNotFoundError:
            raise UserError(f"{text.place} is missing; make the corpus again.") from None
        except Damaged as error:
            raise UserError(f"{text.place} {error}; make the corpus again.") from None


def record_of(line: bytes) -> dict[str, Any] | None:
    """What a line of a corpus's file says, with a "text"; None where it is damaged."""
    try:
        record = json.loads(line.decode())
        return record if isinstance(record["text"], str) else None
    except (ValueError, LookupError, TypeError):
        return None


def _pass(lines: BinaryIO, size: int) -> None:
    while size and (passed := lines.read(min(size, 2**20))):
        size -= len(passed)


class _Writing:
    """A file of a shard as it is written, and what its entry will say."""

    def __init__(self, name: str, file: BinaryIO):
        self._name, self._file, self._digest = name, file, hashlib.sha256()
        self._documents = self._bytes = self._content = 0

    def add(self, document: Lined) -> None:
        self._file.write(document.lines)
        self._digest.update(document.lines)
        self._content += len(document.lines)
        self._bytes += document.bytes
        self._documents += 1

    def entry(self) -> dict:
        return {
            "file": self._name,
            "documents": self._documents,
            "bytes": self._bytes,
            "content": self._content,
            "sha256": self._digest.hexdigest(),
        }


@contextmanager
def _new(place: str) -> Iterator[BinaryIO]:
    """A file to write, compressed as its name says; the same content gives the same file."""
    with output(place) as plain:
        if place.endswith(".gz"):
            with gzip.GzipFile("", "wb", 6, plain, mtime=0) as file:
                yield file  # type: ignore[misc]
        elif place.endswith(".zst"):
            try:
                import zstandard
            except ImportError as error:
                raise missing("zstandard", place) from error
            with zstandard.ZstdCompressor(_LEVEL).stream_writer(plain, closefd=False) as file:
                yield file
        else:
            yield plain
