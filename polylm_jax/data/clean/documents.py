"""What is to be cleaned: which shards the inputs have, and the documents in each, read on past
what is broken.

    gs://crawl/*.warc.gz    …/*.warc.wet.gz    folder/of/*.txt    a.jsonl.zst    hf://datasets/…

A document's id is made of its file's name and its place there and nothing else: not of who reads
it, nor in what order. So whoever reads a shard again finds the same.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from polylm_jax.data import corpus
from polylm_jax.data import documents as users
from polylm_jax.data.clean import archives, parts
from polylm_jax.data.compressed import Content, Damaged, missing
from polylm_jax.data.documents import HELD_OUT, LONGEST_LINE, not_utf8
from polylm_jax.data.languages import source_named
from polylm_jax.data.shards import SPLITS, texts
from polylm_jax.errors import UserError, first_line, of_storage
from polylm_jax.files import MANIFEST, info_of, nearest, opened, reading

SHARD_BYTES = 2**26  # of text files that make one shard

_KIND = re.compile(
    r".+\.(warc|wet|jsonl|ndjson|json|txt)(?:\.gz|\.zst)?|.+\.(parquet)", re.IGNORECASE | re.DOTALL
)
_KINDS = {"wet": "warc", "ndjson": "jsonl", "json": "jsonl"}
_WILD = re.compile(r"[*?\[]")


class File(NamedTuple):
    """A file, or one part of a large one.

    name: relative to its input. place: path or URL. bytes: on the disk. begin: the part's first
    byte or, of a Parquet, row group. end: what follows its last one; None where the file ends.
    """

    name: str
    place: str
    bytes: int
    begin: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Shard:
    """One file, a part of a large one, or several files of text, which one worker reads.

    name: of its first file, relative to its input, and where in it a later part begins; no other
        shard of these inputs has it.
    kind: "warc" (WET too), "jsonl", "parquet" or "txt".
    language: a source's name such as "de" or "en-de", or "" where it is not known.
    key: of the text in a line of JSON, and its column in a Parquet.
    """

    name: str
    kind: str
    language: str
    files: tuple[File, ...]
    key: str = "text"

    @property
    def bytes(self) -> int:
        """Of its files, on the disk."""
        return sum(file.bytes for file in self.files)


class Document(NamedTuple):
    """One text, as it was found.

    text: may hold what JSON can spell and UTF-8 cannot: halves of surrogate pairs.
    file: name of its file. record: where it is in the file: the byte of the content, once that
        is decompressed, where it or its line begins; in a Parquet the number of its row, from 0.
    """

    text: str
    file: str
    record: int
    url: str
    language: str

    @property
    def id(self) -> int:
        """64 bits that tell it from the others."""
        return identity(self.file, self.record)

    @property
    def origin(self) -> str:
        """What a corpus says that it is from."""
        return self.url or f"{self.file}@{self.record}"


class Broken(NamedTuple):
    """What should be a document and is none, and why. It has no id.

    file, record: as of a Document, where what is broken begins.
    """

    file: str
    record: int
    reason: str


def identity(file: str, record: int) -> int:
    """A document's id: 64 bits of a hash. Written as 16 hexadecimal digits, `f"{id:016x}"`."""
    name = file.encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(b"%b\0%d" % (name, record), digest_size=8).digest(), "big")


def shards(
    inputs: Mapping[str, str],
    key: str = "text",
    passed: dict[str, list[int]] | None = None,
) -> list[Shard]:
    """All shards of the inputs, in order of their names.

    inputs: path of a file or folder, local or at a URL, or a pattern of them (*, **, ?, [ab]), and
        the language of its text, "" where that is to be found out; a corpus knows its own.
    passed: is told what is passed over, kind: [files, bytes].

    UserError for an input that has nothing to read, for a language that is none, and for a file
    that two inputs have.
    """
    passed = {} if passed is None else passed
    found = [one for path, language in inputs.items() for one in _found(path, language, passed)]
    if not found:
        raise UserError("there is nothing to clean; name files, folders or patterns as its inputs.")
    for path, language in inputs.items():
        if language and source_named(language) != language:
            raise UserError(f'{path} is said to be in "{language}", which is no language\'s code.')
    result = []
    for language, before, files in _told_apart(found):
        by_kind: dict[str, list[File]] = {}
        for file in files:
            name = f"{before}{file.name}"
            by_kind.setdefault(_kind(file.name) or "", []).append(file._replace(name=name))
        for kind, some in by_kind.items():
            groups = _groups(some) if kind == "txt" else _parted(some, kind, key)
            result += [Shard(_named(group[0]), kind, language, group, key) for group in groups]
    return sorted(result, key=lambda shard: (shard.files[0].name, shard.files[0].begin))


def holds(path: str, folder: str) -> bool:
    """Whether an input would read what is written into a folder, be it still to come."""
    (files, root), (others, inside) = opened(path), opened(folder)
    if type(files) is not type(others):
        return False
    if isinstance(files, LocalFileSystem):
        root, inside = os.path.realpath(root), os.path.realpath(inside)
    if not _WILD.search(root) or files.exists(root):
        return f"{inside}/".startswith(f"{root}/")
    matches = re.compile(glob_translate(root)).match
    parents = [inside[:at] for at, sign in enumerate(f"{inside}/") if sign == "/" and at]
    return any(map(matches, (*parents, f"{inside}/de/train.jsonl.zst", f"{inside}/x/0.parquet")))


def read(shard: Shard) -> Iterator[Document | Broken]:
    """What a shard has, in order. It is a stream: a record is held at a time.

    UserError where a file cannot be read at all, or needs a package that is missing.
    """
    for file in shard.files:
        files, path = opened(file.place)
        with reading(file.place), files.open(path, "rb") as plain:
            some: Document | Broken | None = None
            for some in _READERS[shard.kind](plain, file, shard):
                yield some
            if not some and (not file.bytes or shard.kind in ("txt", "jsonl")):
                yield Broken(file.name, 0, "is empty")


# --- which files there are


def _found(
    path: str, language: str, passed: dict[str, list[int]]
) -> list[tuple[str, str, list[File]]]:
    """The files of an input, by language, and the folder with "/" at its end that all are below."""
    here = info_of(path)
    sources: dict[str, Any] = {}
    if here and not language and info_of(f"{path}/{MANIFEST}"):
        with suppress(UserError):  # it is no corpus
            sources = corpus.manifest(path)["sources"]
    if sources:
        return [(name, f"{path}/", _of_corpus(path, name, of)) for name, of in sources.items()]
    return [(language, *_files(path, here, passed))]


def _of_corpus(path: str, source: str, entry: dict[str, Any]) -> list[File]:
    found = [text for split in SPLITS for text in texts(path, source, split, entry[split])]
    return [File(one.place.removeprefix(f"{path}/"), one.place, _size(one.place)) for one in found]


def _size(place: str) -> int:
    if info := info_of(place):
        return info.get("size") or 0
    raise UserError(f"{place} is missing; make the corpus again.")


def _files(
    path: str, here: dict[str, Any] | None, passed: dict[str, list[int]]
) -> tuple[str, list[File]]:
    """As `_found`, of what is no corpus. here: as of `info_of`."""
    files, root = opened(path)
    with reading(path):
        if here and here["type"] == "directory":
            found, folder = _below(files, root), f"{root}/"
        elif here:
            found, folder = {root: here}, root[: root.rfind("/") + 1]
        elif _WILD.search(root):
            found = files.glob(root, detail=True)
            for place, info in [*found.items()] if "**" not in root else ():
                found |= _below(files, place) if info["type"] == "directory" else {}
            fixed = _WILD.split(root)[0]
            folder = fixed[: fixed.rfind("/") + 1]
        else:
            raise UserError(f"there is nothing at {path}{nearest(path)}.")
    result = []
    for place, info in sorted(found.items()):
        # a name may hold bytes that are no text
        name = os.fsencode(place.removeprefix(folder)).decode("utf-8", "replace")
        size = info.get("size") or 0
        if info["type"] == "directory":
            continue
        if info["type"] != "file":
            kind = "no file, or a link to none"
        elif benchmark := HELD_OUT.search(f"{Path(folder).name}/{name}"):
            kind = f"{benchmark[0]}, by its name text that models are measured with"
        elif _kind(name) is None:
            kind = Path(name).suffix.lower() or "no ending"
        else:
            url = place if isinstance(files, LocalFileSystem) else files.unstrip_protocol(place)
            result.append(File(name, url, size))
            continue
        count = passed.setdefault(kind, [0, 0])
        count[0] += 1
        count[1] += size
    if not result:
        raise UserError(
            f"{path} has nothing to read: name .warc, .wet, .jsonl or .txt files, perhaps with .gz "
            "or .zst, or .parquet files."
        )
    return folder, result


def _below(files: AbstractFileSystem, root: str) -> dict[str, Any]:
    """All files below a folder. fsspec's own search follows links here without end."""
    if isinstance(files, LocalFileSystem):
        nothing = {"type": "link", "size": 0}
        found = [str(path) for path in users.files(Path(root))]
        return {path: files.info(path) if os.path.exists(path) else nothing for path in found}
    return files.find(root, detail=True)


def _kind(name: str) -> str | None:
    match = _KIND.fullmatch(name.rpartition("/")[2])
    ending = match and (match[1] or match[2]).lower()
    return _KINDS.get(ending, ending) if ending else None


def _told_apart(
    found: list[tuple[str, str, list[File]]],
) -> list[tuple[str, str, list[File]]]:
    """The inputs with what to put before their files' names: as many of the last names of all
    their folders as tell all files apart, mostly none."""
    places = Counter(file.place for *_, files in found for file in files)
    place, times = places.most_common(1)[0]
    if times > 1:
        raise UserError(f"{place} is in two inputs; name it in one.")
    for depth in range(max(folder.count("/") for _, folder, _ in found) + 1):
        befores = ["".join(f"{name}/" for name in _last(folder, depth)) for _, folder, _ in found]
        each = list(zip(befores, found, strict=True))
        names = [f"{before}{file.name}" for before, (*_, files) in each for file in files]
        if len(set(names)) == len(names):
            return [(language, before, files) for before, (language, _, files) in each]
    raise UserError("two files of the inputs have names that differ in no letter; rename one.")


def _last(folder: str, count: int) -> list[str]:
    names = folder.strip("/").split("/")
    return names[len(names) - count :] if count else []


def _groups(files: list[File]) -> Iterator[tuple[File, ...]]:
    """Files in groups that come to SHARD_BYTES; a file counts a kilobyte more, to be opened."""
    return map(tuple, users.batches(files, lambda file: file.bytes + 2**10, SHARD_BYTES))


def _named(file: File) -> str:
    return f"{file.name}@{file.begin}" if file.begin else file.name


def _parted(files: list[File], kind: str, key: str) -> Iterator[tuple[File, ...]]:
    """Each file alone, or each part of a large one."""
    for file in files:
        found = _parts(file, kind, key) if file.bytes > parts.PART else []
        for begin, end, size in found or [parts.Part(0, None, file.bytes)]:
            yield (file._replace(begin=begin, end=end, bytes=size),)


def _parts(file: File, kind: str, key: str) -> list[parts.Part]:
    """The parts of a large file; none where it can only be read as a whole."""
    files, path = opened(file.place)
    # damage is told when it is read
    with suppress(Damaged), reading(file.place), files.open(path, "rb") as plain:
        if kind == "jsonl" and not file.name.lower().endswith((".gz", ".zst")):
            return [*parts.of_jsonl(plain, file.bytes, key, LONGEST_LINE)]
        if kind == "parquet":
            return [*parts.of_groups(_table(plain, file).num_row_groups, file.bytes)]
    return []


# --- what is in them


def _of_warc(plain: BinaryIO, file: File, shard: Shard) -> Iterator[Document | Broken]:
    for page in archives.pages(Content(plain, file.name, apart=True)):
        if page.fault:
            yield Broken(file.name, page.at, page.fault)
        else:
            yield Document(page.text, file.name, page.at, page.url, shard.language)


def _of_jsonl(plain: BinaryIO, file: File, shard: Shard) -> Iterator[Document | Broken]:
    plain.seek(file.begin)
    content = Content(plain, file.name)
    content.at = file.begin
    begun: Document | None = None  # a document of a corpus may have several lines
    last = 0  # its part that was read
    for begin, line in parts.lines(content, LONGEST_LINE, file.end):
        if isinstance(line, str):
            yield Broken(file.name, begin, line)
        elif line.strip():
            found, part, more = _of_line(line, file, begin, shard)
            if isinstance(found, Broken):
                yield found
                continue
            if begun and part != last + 1:
                yield _torn(begun, last)
                begun = None
            found = begun._replace(text=begun.text + found.text) if begun else found
            begun, last = (found, part) if more and len(found.text) < LONGEST_LINE else (None, 0)
            if not begun:
                yield found
    if begun:
        yield _torn(begun, last)


def _torn(begun: Document, last: int) -> Broken:
    return Broken(begun.file, begun.record, f"is a document without its part {last + 1}")


def _of_line(line: bytes, file: File, at: int, shard: Shard) -> tuple[Document | Broken, int, bool]:
    """What a line of JSON has, which part of a document of several lines, and whether more come."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
        text = record[shard.key]
        if isinstance(text, str):
            url, part = record.get("url"), record.get("part")
            url = url.encode("utf-8", "replace").decode() if isinstance(url, str) else ""
            more = record.get("more") is True and isinstance(part, int)
            return Document(text, file.name, at, url, shard.language), part, more
    except UnicodeDecodeError as error:
        return Broken(file.name, at, not_utf8(error)), 0, False
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return Broken(file.name, at, f'is no JSON object with a string under "{shard.key}"'), 0, False


def _of_txt(plain: BinaryIO, file: File, shard: Shard) -> Iterator[Document | Broken]:
    content = Content(plain, file.name)
    try:
        whole = content.read(LONGEST_LINE + 1)
        text = whole.decode("utf-8-sig")
    except Damaged as error:
        yield Broken(file.name, 0, str(error))
    except UnicodeDecodeError as error:
        yield Broken(file.name, 0, not_utf8(error))
    else:
        if len(whole) > LONGEST_LINE:
            yield Broken(file.name, 0, f"is longer than {LONGEST_LINE:,} bytes")
        elif whole:
            yield Document(text, file.name, 0, "", shard.language)


def _of_parquet(plain: BinaryIO, file: File, shard: Shard) -> Iterator[Document | Broken]:
    try:
        table = _table(plain, file)
    except Damaged as error:
        yield Broken(file.name, 0, str(error))
        return
    import pyarrow

    names = table.schema_arrow.names
    if names.count(shard.key) != 1:
        many = "has several columns" if shard.key in names else "has no column"
        raise UserError(f'{file.place} {many} "{shard.key}", only {", ".join(names)}.')
    columns = [shard.key, *({"url"} & set(names))]
    sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    groups = range(table.num_row_groups)[file.begin : file.end]
    for group in groups:
        row, end = sum(sizes[:group]), sum(sizes[: group + 1])
        try:
            for batch in table.iter_batches(64, row_groups=[group], columns=columns):
                urls = batch.column("url") if "url" in columns else [None] * len(batch)
                for text, url in zip(batch.column(shard.key), urls, strict=True):
                    yield _of_row(text, url, file, row, shard)
                    row += 1
        except (pyarrow.ArrowException, OSError) as error:
            if not _of_bytes(error):
                raise
            yield Broken(file.name, row, f"is damaged, and so are all up to row {end - 1:,}")


def _table(plain: BinaryIO, file: File) -> Any:
    """A Parquet file, opened. Damaged where it is none, UserError where pyarrow is missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing("pyarrow", file.place) from error
    try:
        return parquet.ParquetFile(plain, pre_buffer=False, buffer_size=2**20)
    except (pyarrow.ArrowException, OSError) as error:
        if not _of_bytes(error):
            raise
        raise Damaged(f"is damaged or no Parquet file ({first_line(error)})") from None


def _of_bytes(error: Exception) -> bool:
    """Whether it is of bytes that make no sense, which may be an OSError, not of reading them."""
    ours = type(error) is OSError and error.errno is None and not of_storage(error)
    return ours or not isinstance(error, OSError)


def _of_row(text: Any, url: Any, file: File, row: int, shard: Shard) -> Document | Broken:
    try:
        value, link = text.as_py(), url.as_py() if url is not None else None
    except UnicodeDecodeError as error:
        return Broken(file.name, row, not_utf8(error))
    if not isinstance(value, str):
        return Broken(file.name, row, f'has no text in its column "{shard.key}"')
    return Document(value, file.name, row, link if isinstance(link, str) else "", shard.language)


_READERS: dict[str, Callable[[BinaryIO, File, Shard], Iterator[Document | Broken]]] = {
    "warc": _of_warc,
    "jsonl": _of_jsonl,
    "parquet": _of_parquet,
    "txt": _of_txt,
}
