"""The documents in a shard of what is to be cleaned, read on past what is broken.

A document's id is made of its file's name and its place there and nothing else: not of who reads
it, nor in what order. So whoever reads a shard again finds the same.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, BinaryIO, NamedTuple

from polylm_jax.data.clean import archives, parts
from polylm_jax.data.compressed import Content, Damaged, missing, of_bytes
from polylm_jax.data.documents import LONGEST_LINE, not_utf8
from polylm_jax.errors import UserError, first_line
from polylm_jax.files import opened, reading


class File(NamedTuple):
    """A file, or one part of a large one.

    name: relative to its input. place: path or URL. bytes: on the disk. begin: the part's first
    byte or, of a Parquet, row group. end: what follows its last one; None where the file ends.
    language: a source's name such as "de" or "en-de", or "" where it is not known.
    """

    name: str
    place: str
    bytes: int
    begin: int = 0
    end: int | None = None
    language: str = ""


@dataclass(frozen=True)
class Shard:
    """One file, a part of a large one, or several small files, which one worker reads.

    name: of its first file, relative to its input, and where in it a later part begins; no other
        shard of these inputs has it.
    kind: "warc" (WET too), "jsonl", "parquet" or "txt".
    key: of the text in a line of JSON, and its column in a Parquet.
    """

    name: str
    kind: str
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


def _of_warc(plain: BinaryIO, file: File, shard: Shard) -> Iterator[Document | Broken]:
    for page in archives.pages(Content(plain, file.name, apart=True)):
        if page.fault:
            yield Broken(file.name, page.at, page.fault)
        else:
            yield Document(page.text, file.name, page.at, page.url, file.language)


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
        record = json.loads(line.removeprefix(BOM_UTF8).decode())
        text = record[shard.key]
        if isinstance(text, str):
            url, part = record.get("url"), record.get("part")
            url = url.encode("utf-8", "replace").decode() if isinstance(url, str) else ""
            more = record.get("more") is True and isinstance(part, int)
            return Document(text, file.name, at, url, file.language), part, more
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
            yield Document(text, file.name, 0, "", file.language)


def _of_parquet(plain: BinaryIO, file: File, shard: Shard) -> Iterator[Document | Broken]:
    try:
        table = table_of(plain, file)
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
            if not of_bytes(error):
                raise
            yield Broken(file.name, row, f"is damaged, and so are all up to row {end - 1:,}")


def table_of(plain: BinaryIO, file: File) -> Any:
    """A Parquet file, opened. Damaged where it is none, UserError where pyarrow is missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing("pyarrow", file.place) from error
    try:
        return parquet.ParquetFile(plain, pre_buffer=False, buffer_size=2**20)
    except (pyarrow.ArrowException, OSError) as error:
        if not of_bytes(error):
            raise
        raise Damaged(f"is damaged or no Parquet file ({first_line(error)})") from None


def _of_row(text: Any, url: Any, file: File, row: int, shard: Shard) -> Document | Broken:
    try:
        value, link = text.as_py(), url.as_py() if url is not None else None
    except UnicodeDecodeError as error:
        return Broken(file.name, row, not_utf8(error))
    if not isinstance(value, str):
        return Broken(file.name, row, f'has no text in its column "{shard.key}"')
    return Document(value, file.name, row, link if isinstance(link, str) else "", file.language)


_READERS: dict[str, Callable[[BinaryIO, File, Shard], Iterator[Document | Broken]]] = {
    "warc": _of_warc,
    "jsonl": _of_jsonl,
    "parquet": _of_parquet,
    "txt": _of_txt,
}
