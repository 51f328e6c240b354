"""A user's folder of text: which files it has, and the documents in them, read as a stream.

    hi.txt   hi/a.txt   hi/2024/b.jsonl.gz   zh-Hant/c.jsonl.zst   en-hi.parquet   code/d.txt

The first name under the folder says the source. A .txt is one document, or several with a marker
between them; a .jsonl or .parquet has one in each line or row. Of a document nothing is held but
a stretch, and every byte is accounted for: it is text, lies around the text, or is bad.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from polylm_jax.data.compressed import Content, Damaged, missing, of_bytes
from polylm_jax.data.languages import source_named
from polylm_jax.errors import UserError

Item = TypeVar("Item")

STRETCH = 2**20  # characters of a document that are held and written as one
LONGEST_LINE = 2**26  # bytes of a JSONL line; a longer one is bad

_KINDS = re.compile(r".+(\.txt|\.jsonl)(\.gz|\.zst)?|.+\.parquet", re.IGNORECASE | re.DOTALL)
# what models are measured with, and so must not have read
HELD_OUT = re.compile(r"(?<![a-z])(ntrex|sib[-_]?200|udhr)(?![a-z])", re.IGNORECASE)
_BOM = "\ufeff"
_PLACES = 3  # of bad lines that are told


class Stretch(NamedTuple):
    """A document, or the next stretch of a long one.

    origin: the file. ends: whether the document does.
    """

    text: str
    origin: str
    ends: bool = True


@dataclass
class Reading:
    """How files are read, and what became of their bytes, counted after decompression.

    key: of the text in a line of .jsonl; the column of a .parquet.
    split: what stands between two documents of a .txt; "" where it is one.
    skip: whether a bad line is left out and counted, or refused.
    read: all bytes. around: those that are no text: JSON, line ends, marks, empty documents.
    bad: those of bad lines; bad_lines of them, the first at `places`.
    passed: kind: [number, bytes on disk] of the files that are passed over, of all sources.
    """

    key: str = "text"
    split: str = ""
    skip: bool = False
    passed: dict[str, list[int]] = field(default_factory=dict)
    read: int = 0
    around: int = 0
    bad: int = 0
    bad_lines: int = 0
    places: list[str] = field(default_factory=list)

    def refuse(self, place: str, why: str, size: int) -> None:
        """Counts a bad line of `size` bytes, or raises UserError where none may be."""
        if not self.skip:
            raise UserError(f"{place} {why}, or leave it out with --gin.corpus.on_bad_line=skip")
        self.bad += size
        self.bad_lines += 1
        if len(self.places) < _PLACES:
            self.places.append(place)


def tops(folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """What lies right in a user's folder, by its source; and what belongs to none."""
    by_source: dict[str, list[Path]] = {}
    others = []
    for top in _listed(folder):
        source = source_named(top.name if top.is_dir() else top.name.split(".")[0])
        if source is None:
            others.append(top)
        else:
            by_source.setdefault(source, []).append(top)
    return by_source, others


def pass_over(passed: dict[str, list[int]], kind: str, files: Iterable[Path]) -> None:
    """Counts files that are not read."""
    counted = passed.setdefault(kind, [0, 0])
    for file in files:
        counted[0] += 1
        counted[1] += file.stat().st_size if file.is_file() else 0


def documents(folder: Path, among: list[Path], reading: Reading) -> Iterator[Stretch]:
    """The documents of the files `among` what lies in a folder, one file after another.

    Links are followed, but no folder is entered from within itself. What a path from the folder's
    own name on, or what a link in it points to, names as NTREX, SIB-200 or UDHR is passed over.
    """
    root = Path(os.path.realpath(folder))
    for top in among:
        for file in files(top):
            target = Path(os.path.realpath(file))
            way = target.relative_to(root) if target.is_relative_to(root) else target
            path = f"{folder.name}/{root.name}/{file.relative_to(folder)}/{way}"
            if benchmark := HELD_OUT.search(path):
                kind = f"{benchmark[0]}, by its name text that models are measured with"
                pass_over(reading.passed, kind, [file])
            elif _KINDS.fullmatch(file.name) and file.is_file():
                # a name may hold bytes that are no text
                name = os.fsencode(file.relative_to(folder).as_posix()).decode("utf-8", "replace")
                yield from _read(file, name, reading)
            else:
                pass_over(reading.passed, file.suffix.lower() or "no ending", [file])


def files(path: Path, inside: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files in a folder and the folders in it, in order of their names; or a file alone."""
    real = os.path.realpath(path)
    if not path.is_dir():
        yield path
    elif real not in inside:
        for entry in _listed(path):
            yield from files(entry, (*inside, real))


def _listed(folder: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): make it readable") from error
    return map(folder.joinpath, names)


def _read(file: Path, origin: str, reading: Reading) -> Iterator[Stretch]:
    """The documents of a file. UserError names the line of what cannot be read."""
    match = _KINDS.fullmatch(file.name)
    kind = match[1] if match else None
    try:
        if kind is None:
            yield from _of_parquet(file, origin, reading)
            return
        with open(file, "rb") as plain:
            packed = file.suffix.lower() in (".gz", ".zst")
            content = Content(plain, str(file)) if packed else plain
            of_kind = _of_txt if kind.lower() == ".txt" else _of_jsonl
            yield from of_kind(content, file, origin, reading)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{file} cannot be read ({reason}): make it readable") from error


def stretches(text: str, most: int) -> Iterator[str]:
    """A text in stretches of at most `most` characters, cut before a space, else a line end.

    A piece has no space inside, and one of our tokenizers no line end, so the tokens of the
    stretches are those of the text. Only a text with neither for so long is cut anywhere.
    """
    begin = 0
    while len(text) - begin > most:
        end = begin + most
        space = text.rfind(" ", begin + 1, end + 1)
        # all spaces of a run stay together: a piece may have several
        while space > begin and text[space - 1] == " ":
            space -= 1
        cut = space if space > begin else text.rfind("\n", begin + 1, end + 1)
        end = cut if cut > begin else end
        yield text[begin:end]
        begin = end
    yield text[begin:]


def batches(items: Iterable[Item], size: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """The items in lists, each of which is full once its sizes come to `most`."""
    batch: list[Item] = []
    left = most
    for item in items:
        batch.append(item)
        left -= size(item)
        if left <= 0:
            yield batch
            batch, left = [], most
    if batch:
        yield batch


def _whole(text: str, origin: str) -> Iterator[Stretch]:
    *first, last = stretches(text, STRETCH)
    yield from (Stretch(some, origin, ends=False) for some in first)
    yield Stretch(last, origin)


def _of_txt(
    content: BinaryIO | Content, file: Path, origin: str, reading: Reading
) -> Iterator[Stretch]:
    marker, begun, rest = reading.split, False, ""

    def ended(text: str) -> Iterator[Stretch]:
        plain = text.rstrip("\n") if begun else text.strip("\n")
        empty = not begun and not plain.strip()
        reading.around += len(text.encode()) if empty else len(text) - len(plain)
        return iter(()) if empty else _whole(plain, origin)

    for text in _decoded(content, file, reading):
        *documents, rest = (rest + text).split(marker) if marker else [rest + text]
        for document in documents:
            yield from ended(document)
            reading.around += len(marker.encode())
            begun = False
        if len(rest) <= 2 * STRETCH:
            continue
        if not begun:
            reading.around += len(rest) - len(rest := rest.lstrip("\n"))
        # the end stays, for a marker or the line ends that go may begin in it
        *some, before, last = stretches(rest, STRETCH)
        yield from (Stretch(stretch, origin, ends=False) for stretch in some)
        begun, rest = begun or bool(some), before + last
    yield from ended(rest)


def _decoded(content: BinaryIO | Content, file: Path, reading: Reading) -> Iterator[str]:
    """A text file's text, a block at a time, with \\n at the ends of lines and without a BOM."""
    number, first = 1, True
    for block in _blocks(content, file, reading):
        try:
            text = block.decode()
        except UnicodeDecodeError:
            text = "".join(_decodable(block.split(b"\n"), file, number, reading))
        if first and text:
            first = False
            reading.around += 3 * text.startswith(_BOM)
            text = text.removeprefix(_BOM)
        number += block.count(b"\n")
        if "\r" in text:
            reading.around += text.count("\r\n")
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield text


def _decodable(lines: list[bytes], file: Path, number: int, reading: Reading) -> Iterator[str]:
    """The lines that are UTF-8, of which the first has this number."""
    for at, line in enumerate(lines):
        end = "\n" if at + 1 < len(lines) else ""
        try:
            yield line.decode() + end
        except UnicodeDecodeError as error:
            reading.refuse(f"{file}:{number + at}", not_utf8(error), len(line) + len(end))


def not_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8 at its byte {error.start + 1}: save the file as UTF-8"


def _blocks(content: BinaryIO | Content, file: Path, reading: Reading) -> Iterator[bytes]:
    """A file in blocks of about a megabyte that end with a line, or between its characters."""
    rest = b""
    while block := _undamaged(lambda: content.read(2**20) + content.readline(2**20), file, reading):
        reading.read += len(block)
        block = rest + block
        # no character has more than three bytes after its first; \r\n stays together as well
        inside = re.search(rb"(?:\r|[\xc0-\xff][\x80-\xbf]{0,2})\Z", block[-4:])
        keep = len(inside[0]) if inside else 0
        rest = block[len(block) - keep :]
        yield block[: len(block) - keep]
    yield rest


def _of_jsonl(
    content: BinaryIO | Content, file: Path, origin: str, reading: Reading
) -> Iterator[Stretch]:
    number = 0
    while line := _undamaged(lambda: content.readline(LONGEST_LINE), file, reading):
        number += 1
        reading.read += len(line)
        place = f"{file}:{number}"
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            size = len(line)
            while more := _undamaged(lambda: content.readline(LONGEST_LINE), file, reading):
                reading.read += len(more)
                size += len(more)
                if more.endswith(b"\n"):
                    break
            why = f"is longer than {LONGEST_LINE:,} bytes: write it as several documents"
            reading.refuse(place, why, size)
            continue
        text = _text_of(line, place, reading) if line.strip() else ""
        if text is None:
            continue
        blank = not text.strip()
        reading.around += len(line) - (0 if blank else len(text.encode()))
        if not blank:
            yield from _whole(text, origin)


def _text_of(line: bytes, place: str, reading: Reading) -> str | None:
    """The text in a line of JSON; None if it is bad."""
    key = reading.key
    try:
        record = json.loads(line.decode("utf-8-sig"))
        text = record[key]
        text.encode()  # JSON can spell half a character, which no UTF-8 can
        return text
    except UnicodeDecodeError as error:
        why = not_utf8(error)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        why = f'is not a JSON object with a string under "{key}": '
        why += f'write it as {{"{key}": "…"}}, or name another key with --gin.corpus.key=KEY'
    reading.refuse(place, why, len(line))
    return None


def _of_parquet(file: Path, origin: str, reading: Reading) -> Iterator[Stretch]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing("pyarrow", file) from error
    try:
        # without pre_buffer and in small steps, or a row group would be in memory whole
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as table:
            names = table.schema_arrow.names
            if reading.key not in names:
                raise UserError(
                    f'{file} has no column "{reading.key}", only {", ".join(names)}: '
                    "name it with --gin.corpus.key=COLUMN"
                )
            batches = table.iter_batches(64, columns=[reading.key])
            values = (value for batch in batches for value in batch.column(0))
            for number, value in enumerate(values, start=1):
                yield from _of_row(value, f"{file}:{number}", origin, reading)
    except (pyarrow.ArrowException, OSError) as error:
        if not of_bytes(error):
            raise
        reading.refuse(str(file), "is damaged or no Parquet file: fetch it again", 0)


def _of_row(value: Any, place: str, origin: str, reading: Reading) -> Iterator[Stretch]:
    try:
        text = value.as_py()
        size = len(text.encode())
    except (ValueError, AttributeError):
        why = f'has no text in its column "{reading.key}": put a string there'
        reading.refuse(place, why, 0)
        return
    reading.read += size
    if text.strip():
        yield from _whole(text, origin)
    else:
        reading.around += size


def _undamaged(read: Callable[[], bytes], file: Path, reading: Reading) -> bytes:
    """What is read next of a compressed file, past what is cut short or damaged, if one may."""
    while True:
        try:
            return read()
        except Damaged as error:
            reading.refuse(str(file), f"{error}: fetch it again", 0)
