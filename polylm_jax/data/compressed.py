"""Files that may be compressed, read as a stream, past what is cut short or damaged in them.

A .gz is a row of members and a .zst of frames, each of which can be read without those before
it. So what is damaged costs its member, and reading goes on at the next that can be found.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from polylm_jax.errors import UserError, of_storage

_READ = 2**15  # bytes of a compressed file that are worked on at once; zeros grow a thousandfold


class Damaged(Exception):
    """What of a compressed file is cut short or damaged, or that it is no such file."""


class _Codec(NamedTuple):
    """magic: what a member begins with. new: a decompressor of one. error: what it raises."""

    magic: bytes
    new: Callable[[], Any]
    error: type[Exception]


def missing(package: str, file: object) -> UserError:
    return UserError(f"{file} needs {package} to be read: pip install {package}")


def of_bytes(error: Exception) -> bool:
    """Whether what Arrow raised is of bytes that make no sense, which may be an OSError, not of
    reading them."""
    theirs = type(error) is OSError and error.errno is None and not of_storage(error)
    return theirs or not isinstance(error, OSError)


def _codec(name: str) -> _Codec | None:
    """How a file of this name is compressed; None where it is not."""
    ending = PurePosixPath(name).suffix.lower()
    if ending == ".gz":
        return _Codec(b"\x1f\x8b\x08", lambda: zlib.decompressobj(31), zlib.error)
    if ending == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise missing("zstandard", name) from error
        return _Codec(
            b"\x28\xb5\x2f\xfd",
            # as much as `zstd --long=31` asks for
            lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
            zstandard.ZstdError,
        )
    return None


def opened(plain: BinaryIO, name: str) -> BinaryIO:
    """The content of a file of this name; Damaged is raised where it is so."""
    codec = _codec(name)
    return io.BufferedReader(_Blocks(_members(plain, codec)), 2**20) if codec else plain


class Content:
    """The content of a file that may be compressed, as a stream that is read on after Damaged.

    name: of the file. apart: whether a member's end is an end, until `onward` is called.
    at: which byte of the content is next; what could not be read does not count.

    Damaged is raised by the read that meets damage; the next one begins behind it.
    """

    def __init__(self, plain: BinaryIO, name: str, apart: bool = False):
        codec = _codec(name)
        self._blocks = _members(plain, codec) if codec else iter(lambda: plain.read(2**20), b"")
        self._apart, self._held, self._from, self._ended = apart, b"", 0, False
        self.at = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or fewer before an end."""
        parts = [self._taken(size)]
        while (size := size - len(parts[-1])) and self._more():
            parts.append(self._taken(size))
        return self._counted(parts)

    def readline(self, most: int) -> bytes:
        """The next line with its \\n, but at most `most` bytes of it."""
        parts = [self._line(most)]
        while (most := most - len(parts[-1])) and not parts[-1].endswith(b"\n") and self._more():
            parts.append(self._line(most))
        return self._counted(parts)

    def unread(self, content: bytes) -> None:
        """Puts back what has just been read."""
        if self._from >= len(content):  # it is still held
            self._from -= len(content)
        else:
            self._held, self._from = content + self._held[self._from :], 0
        self.at -= len(content)

    def onward(self) -> bool:
        """Whether there is more, be it behind the end of a member."""
        while self._from == len(self._held):
            if not self._more():
                if not self._ended:
                    return False
                self._ended = False
        return True

    def _line(self, most: int) -> bytes:
        """As `readline`, of what is held."""
        end = self._held.find(b"\n", self._from, self._from + most)
        return self._taken(end + 1 - self._from if end >= 0 else most)

    def _taken(self, size: int) -> bytes:
        """The next `size` bytes of what is held, or all."""
        taken = self._held[self._from : self._from + size]
        self._from += len(taken)
        return taken

    def _counted(self, parts: list[bytes]) -> bytes:
        # joined at once: a line of 100 MB has a thousand parts
        joined = b"".join(parts) if len(parts) > 1 else parts[0]
        self.at += len(joined)
        return joined

    def _more(self) -> bool:
        if self._ended:
            return False
        block = next(self._blocks, b"")
        while block is None and not self._apart:
            block = next(self._blocks, b"")
        if isinstance(block, Damaged):
            self._held, self._from = b"", 0
            raise block
        if block is None:
            self._ended = True
            return False
        self._held, self._from = self._held[self._from :] + block, 0
        return bool(block)


def _members(plain: BinaryIO, codec: _Codec) -> Iterator[bytes | Damaged | None]:
    """The content of a compressed file, None at each end of a member, Damaged where it is so.

    A block is given once what follows is good too: what comes out just before an error is seldom
    what was put in. The search for the next member begins with the bytes of that block, for a
    torn member may have taken another's begin for its own.
    """
    chunk, place = plain.read(_READ), 0  # place: of the chunk in the file
    before, held, member, lost = b"", b"", None, False
    while chunk:
        if member is None:
            before, member = b"", codec.new()
        try:
            content = member.decompress(chunk)
        except codec.error:
            if not lost:
                yield Damaged(f"is damaged at its byte {place:,} or shortly before")
            chunk, skipped = _next_member(before + chunk, plain, codec.magic)
            place += skipped - len(before)
            held, member, lost = b"", None, True
            continue
        if held:
            yield held
        held, before, lost = content, chunk, False
        place += len(chunk)
        chunk = b""
        if member.eof:
            chunk, member = member.unused_data, None
            place -= len(chunk)
            if held:
                yield held
            held = b""
            yield None
            # an archive of gzip's may be filled up with zeros
            place += len(chunk) - len(chunk := chunk.lstrip(b"\0"))
        chunk = chunk or plain.read(_READ)
    if held:
        yield held
    if member is not None:
        yield Damaged(f"is cut short at its byte {place:,}")


def _next_member(chunk: bytes, plain: BinaryIO, magic: bytes) -> tuple[bytes, int]:
    """The file from where a member begins after the chunk's first byte, and the bytes before it."""
    skipped = 0
    while (found := chunk.find(magic, 1)) < 0:
        keep = len(magic) - 1
        more = plain.read(_READ)
        if not more:
            return b"", skipped + len(chunk)
        skipped += len(chunk) - keep
        chunk = chunk[-keep:] + more
    return chunk[found:], skipped + found


class _Blocks(io.RawIOBase):
    """A file whose content is made block by block."""

    def __init__(self, blocks: Iterator[bytes | Damaged | None]):
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, b"")
            if isinstance(block, Damaged):
                raise block
            if block == b"":
                return 0
            self._rest = block or b""
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size
