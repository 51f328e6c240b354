"""What TensorBoard shows of a run: a file of events for each start."""

import time
from collections.abc import Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

FLUSH = 10.0  # seconds between two writes to the disk: each takes 6 ms


class TensorBoard:
    """Writes a new file of events in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files by name, and two starts may fall into one second; the plain
        # writer, because SummaryWriter's thread waits by the wall clock, which may jump
        number = len(list(folder.iterdir()))
        self._events = EventsWriter(f"{folder}/events.part-{number:09d}")
        self._flushed = time.monotonic()

    def start(self, step: int) -> None:
        """Notes that the run goes on from a step: what was there beyond it is dropped."""
        # TensorBoard drops what it has of this step and later ones, and `step` itself was made
        first = step + 1 if step else 0
        self._write(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def log(self, step: int, values: Sequence[tuple[str, float]]) -> None:
        """Notes numbers, each with its tag."""
        summary = [Summary.Value(tag=tag, simple_value=value) for tag, value in values]
        self._write(Event(step=step, summary=Summary(value=summary)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)
        if time.monotonic() > self._flushed + FLUSH:
            self.flush()

    def flush(self) -> None:
        """Brings what was noted to the disk."""
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Ends the file."""
        self._events.close()
