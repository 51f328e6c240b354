"""Results of a file of records: a line of JSON for each, in the same order.

What is done is kept beside the output, so that a process that is stopped or killed goes on where
it was. The output takes its name when it is whole.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from polylm_jax.console import LiveLine, format_duration
from polylm_jax.errors import FULL, UserError
from polylm_jax.files import lock, output, written_through
from polylm_jax.jsonl import Record

PARTIAL = ".partial"
HEAD = b'{"made_from": '


@dataclass
class Results:
    """What is done of some records, by their number, and what is left to do."""

    records: Sequence[Record]
    name: str
    file: BinaryIO
    done: dict[int, dict[str, Any]]
    _line: LiveLine = field(default_factory=lambda: LiveLine(seconds=10))

    def __post_init__(self) -> None:
        self.left = [
            number
            for number, record in enumerate(self.records)
            if not record.fault and number not in self.done
        ]
        self._all, self._before = len(self.left) + len(self.done), len(self.done)
        self._started = time.monotonic()

    def add(self, results: dict[int, dict[str, Any]]) -> None:
        """Keeps the fields that are added to some records, and shows how far we are."""
        lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in results.items())
        self.file.write("".join(lines).encode())
        self.file.flush()
        self.done |= results
        pace = (time.monotonic() - self._started) / (len(self.done) - self._before)
        left = self._all - len(self.done)
        self._line.show(
            f"{len(self.done)} of {self._all} {self.name}, ETA {format_duration(pace * left)}",
            last=not left,
        )


@contextlib.contextmanager
def results(
    records: Sequence[Record], out: str, made_from: dict[str, Any], name: str
) -> Iterator[Results]:
    """Results that become the file `out`, a `files.destination`, if the block ends well.

    Else they stay in <out>.partial, and whoever asks for the same records, made_from the same,
    has them again; others begin anew. Where `out` is a URL or a pipe nothing stays. name: what
    the records are, as in "3 of 7 prompts". A record with a fault gets it as its "error".
    """
    content = json.dumps([record.content for record in records]).encode()
    head = HEAD + json.dumps(made_from | {"records": sha256(content).hexdigest()}).encode() + b"}\n"
    target = os.path.realpath(out)
    path = None if "://" in out or written_through(out) else Path(target + PARTIAL)
    with tempfile.TemporaryFile() if path is None else _opened(path, out) as file:
        kept = Results(records, name, file, _read(file, head, path))
        if kept.done:
            print(f"{len(kept.done)} of {len(records)} are done already, in {path}.")
        try:
            yield kept
        except BaseException as error:
            if path and not kept.done:
                path.unlink()
            elif path and isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(
                    f"what is done is kept in {path}, and the same command goes on from there"
                ) from None
            raise
        with output(out) as whole:
            for number, record in enumerate(records):
                fault = {"error": f"{record.place} {record.fault}."}
                line = record.content | (fault if record.fault else kept.done[number])
                whole.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        if path:
            path.unlink()
    skipped = sum(bool(record.fault) for record in records)
    print(f"{out} is written" + (f"; {skipped} have an error." if skipped else "."))


@contextlib.contextmanager
def _opened(path: Path, out: str) -> Iterator[BinaryIO]:
    """The file of what is done, held so that no other process is at it; UserError, too, where the
    disk is full."""
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            try:
                lock(file)
            except BlockingIOError:
                raise UserError(
                    f"Another process is making {out}; wait for it or stop it."
                ) from None
            yield file
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"there is no room left for {path} and what becomes of it; free some and run the same "
            "command again: what is done is kept."
        ) from error


def _read(file: BinaryIO, head: bytes, path: Path | None) -> dict[int, dict[str, Any]]:
    """What was done before, if it was of the same; the file is then ready for more."""
    found, done = file.readline(), {}
    if found and not found.startswith(HEAD):
        raise UserError(
            f"{path} is in the way and not from here; move it or give another name for the output."
        )
    end = len(head)
    if found == head:
        for line in file:
            try:
                number, result = json.loads(line)
            except ValueError:  # it was killed while it wrote this one
                break
            if not line.endswith(b"\n"):
                break
            done[number] = result
            end += len(line)
    elif found:
        print(f"note: {path} was of other records or settings; begun anew.", file=sys.stderr)
    file.seek(0)
    if not done:
        file.write(head)
    file.seek(end)
    file.truncate()
    file.flush()
    return done
