"""Files that may be compressed, read as a stream, with an error where one is cut short."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from polylm_jax.errors import UserError


class Damaged(Exception):
    """A compressed file that is cut short or holds something else."""


def opened(plain: BinaryIO, file: Path) -> BinaryIO:
    """The content of a file that may be compressed."""
    if file.name.lower().endswith(".gz"):
        return io.BufferedReader(_Blocks(_gunzip(plain)), 2**20)
    if file.name.lower().endswith(".zst"):
        return io.BufferedReader(_Blocks(_unzstd(plain, file)), 2**20)
    return plain


def missing(package: str, file: Path) -> UserError:
    return UserError(f"{file} needs {package} to be read: pip install {package}")


def _gunzip(plain: BinaryIO) -> Iterator[bytes]:
    try:
        with gzip.open(plain) as content:
            while block := content.read1(2**17):
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Damaged from error


def _unzstd(plain: BinaryIO, file: Path) -> Iterator[bytes]:
    """A .zst file's content. zstandard's own reader takes a cut file for a whole one."""
    try:
        import zstandard
    except ImportError as error:
        raise missing("zstandard", file) from error
    frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
    while chunk := plain.read(2**14):
        while chunk:
            try:
                yield frame.decompress(chunk)
            except zstandard.ZstdError as error:
                raise Damaged from error
            chunk, begun = b"", True
            if frame.eof:
                chunk, begun = frame.unused_data, False
                frame = zstandard.ZstdDecompressor().decompressobj()
    if begun:
        raise Damaged


class _Blocks(io.RawIOBase):
    """A file whose content is made block by block."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            try:
                self._rest = next(self._blocks)
            except StopIteration:
                return 0
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size
