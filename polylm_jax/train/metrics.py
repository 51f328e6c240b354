"""What a run says while it works: a live line, a JSONL file and TensorBoard."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from polylm_jax.console import LiveLine


class Metrics:
    """Writes records to FOLDER/metrics.jsonl and FOLDER/tensorboard; only process 0 does.

    folder: local, or a path that fsspec knows, such as gs://bucket/run. An object store appends
    to nothing: there the records wait on this machine's disk, and `publish` makes files of
    those that are new, FOLDER/metrics-STEP.jsonl.

    error: why the log cannot be written any more, None while it can. From then on records are
    kept in `unwritten`, for a checkpoint to take them along.
    """

    def __init__(self, folder: str, active: bool) -> None:
        self._active, self._line = active, LiveLine()
        self.error: OSError | None = None
        self.unwritten: list[dict[str, Any]] = []
        self._files, self._folder = url_to_fs(folder)
        self._local = isinstance(self._files, LocalFileSystem)
        if active:
            place = self._folder if self._local else tempfile.mkdtemp(prefix="polylm-metrics-")
            self._place, self._last = Path(place), 0
            self._open()

    def _open(self) -> None:
        path = self._place / "metrics.jsonl"
        (self._place / "tensorboard").mkdir(parents=True, exist_ok=True)
        _drop_half_line(path)
        self._file = path.open("ab", buffering=0)
        # the plain writer: SummaryWriter's thread waits by the wall clock, which may jump
        self._board = EventsWriter(f"{self._place}/tensorboard/events")

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record; its numbers go to TensorBoard as kind/name at record["step"]."""
        if not self._active:
            return
        self._last = record["step"]
        try:
            if self.error is None:
                self._append(json.dumps(record).encode() + b"\n")
        except OSError as error:
            self.error = error
        if self.error is not None:
            self.unwritten.append(record)
            return
        try:
            self._show(record)
        except OSError as error:
            self.error = error

    def _append(self, line: bytes) -> None:
        """Adds a line, or what there is no room for leaves no trace."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise

    def _show(self, record: dict[str, Any]) -> None:
        """Brings a record to TensorBoard."""
        values = [
            Summary.Value(tag=f"{record['kind']}/{name}", simple_value=value)
            for name, value in _flat(record)
        ]
        self._board.write_event(
            Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values))
        )
        self._board.flush()

    def publish(self) -> None:
        """Brings what was written since the last call to a folder in an object store."""
        if self._local or not self._active or not (self._place / "metrics.jsonl").stat().st_size:
            return
        self._close()
        name = f"metrics-{self._last:09d}.jsonl"
        self._files.put_file(str(self._place / "metrics.jsonl"), f"{self._folder}/{name}")
        for events in (self._place / "tensorboard").iterdir():
            target = f"{self._folder}/tensorboard/{events.name}.{self._last}"
            self._files.put_file(str(events), target)
        shutil.rmtree(self._place)
        self._open()

    def _close(self) -> None:
        self._file.close()
        self._board.close()

    def line(self, text: str, last: bool = False) -> None:
        """Shows the run's state: one line redrawn on a terminal, one line a call elsewhere."""
        if self._active:
            self._line.show(text, last)

    def say(self, text: str) -> None:
        """Prints a line that stays, above the live one."""
        if self._active:
            self._line.say(text)

    @property
    def live(self) -> bool:
        """Whether the line is redrawn in place."""
        return self._line.live

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._active:
            self._line.close()
            # what is full says so once, by `error`
            with contextlib.suppress(*(() if self.error is None else (OSError,))):
                self.publish()
                self._close()
            if not self._local:
                shutil.rmtree(self._place)


class Clock:
    """Where a run's time goes.

    last: the seconds of the last lap: "step", all of them, and what was spent on each thing.
    """

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self._start, self._spent = time.perf_counter(), dict[str, float]()

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Counts the block's time as spent on this."""
        start = time.perf_counter()
        yield
        self._spent[what] = self._spent.get(what, 0.0) + time.perf_counter() - start

    def lap(self) -> dict[str, float]:
        """Ends a lap and returns its seconds."""
        now = time.perf_counter()
        self.last = {"step": now - self._start, **self._spent}
        self._start, self._spent = now, {}
        return self.last


def _flat(record: dict[str, Any]) -> list[tuple[str, float]]:
    pairs = []
    for name, value in record.items():
        if name in ("kind", "step") or name.endswith("_counts"):
            continue
        items = value.items() if isinstance(value, dict) else [("", value)]
        pairs += [(f"{name}/{k}".rstrip("/"), v) for k, v in items if isinstance(v, int | float)]
    return pairs


def _drop_half_line(path: Path) -> None:
    """Cuts off what a killed run left half-written at the end of its log."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
