"""What a run says while it works: a live line, a JSONL file, TensorBoard and other trackers."""

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fsspec.implementations.local import LocalFileSystem

from polylm_jax.console import LiveLine
from polylm_jax.errors import first_line, of_storage
from polylm_jax.files import opened
from polylm_jax.jsonl import backwards, dumps
from polylm_jax.train.log import alive, logs, part_number
from polylm_jax.train.tensorboard import TensorBoard
from polylm_jax.train.weights_and_biases import WeightsAndBiases, check_installed, failed

TRACKERS = ("tensorboard", "wandb")


class Metrics:
    """Writes records to FOLDER/metrics.jsonl and to trackers; only process 0 does.

    folder: local, or a path that fsspec knows, such as gs://bucket/run. An object store appends
    to nothing: there the records wait on this machine's disk, and `publish` makes files of
    those that are new, FOLDER/metrics-STEP.jsonl, or with the next number where a run went back,
    so that their names are in the order of time. Nothing is made before the first record.
    trackers: of TRACKERS; TensorBoard's files are in FOLDER/tensorboard. One that fails is told of
    and gets no more. gin: the resolved configuration, for those that show it.

    error: why nothing can be logged any more, None while it can. From then on records are kept in
    `unwritten`, for a checkpoint to take them along.
    """

    def __init__(
        self,
        folder: str,
        active: bool,
        trackers: Sequence[str] = ("tensorboard",),
        gin: str = "",
    ) -> None:
        if "wandb" in trackers:
            check_installed()
        self._active, self._line = active, LiveLine()
        self._wanted, self._gin = set(trackers), gin  # those that have not failed
        self._trackers = dict[str, TensorBoard | WeightsAndBiases]()  # that are at work
        self.error: OSError | None = None
        self.unwritten: list[dict[str, Any]] = []
        self._run, (self._files, self._folder) = folder, opened(folder)
        self._local = isinstance(self._files, LocalFileSystem)
        self._place: Path | None = None  # where the files lie that are open
        self._part: int | None = None  # the number of the newest part in an object store

    def _open(self) -> None:
        place = Path(self._folder if self._local else tempfile.mkdtemp(prefix="polylm-metrics-"))
        path = place / "metrics.jsonl"
        place.mkdir(parents=True, exist_ok=True)
        _drop_half_line(path)
        self._file = path.open("ab", buffering=0)
        self._place = place
        if "tensorboard" in self._wanted:
            self._begin("tensorboard", lambda: TensorBoard(place / "tensorboard"))

    def start(self, step: int) -> None:
        """Logs that the run goes on from a step, 0 for one from nothing.

        What earlier starts logged beyond it is dead from here on, here and in TensorBoard.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if self._active and "wandb" in self._wanted and "wandb" not in self._trackers:
            # before the first record: it looks up what was logged last
            self._begin("wandb", lambda: WeightsAndBiases(self._run, self._gin, self.say))
        self.write({"kind": "start", "step": step, "time": now})
        self._each(lambda tracker: tracker.start(step))

    def reaches_beyond(self, step: int) -> bool:
        """Whether the log has records of later steps: then the run went back."""
        return self._active and next(alive(self._run), {"step": 0})["step"] > step

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record; its numbers go to trackers as kind/name at record["step"]."""
        if not self._active:
            return
        try:
            if self.error is None:
                self._log(record)
        except OSError as error:
            self.error = error
        if self.error is not None:
            self.unwritten.append(record)
            return
        values = [(f"{record['kind']}/{name}", value) for name, value in _flat(record)]
        if values:
            self._each(lambda tracker: tracker.log(record["step"], values))

    def _log(self, record: dict[str, Any]) -> None:
        """Adds a line, of which nothing stays where there is no room for all of it."""
        if not self._place:
            self._open()
        self._last, line = record["step"], dumps(record).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise

    def _begin(self, name: str, make: Callable[[], TensorBoard | WeightsAndBiases]) -> None:
        """Makes a tracker, unless that fails."""
        try:
            self._trackers[name] = make()
        except Exception as error:
            self._give_up(name, error)

    def _each(self, tell: Callable[[TensorBoard | WeightsAndBiases], None]) -> None:
        """Tells each tracker."""
        if not self._active or self.error is not None:
            return
        for name, tracker in list(self._trackers.items()):
            try:
                tell(tracker)
            except Exception as error:
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        self._trackers.pop(name, None)
        self._wanted.discard(name)
        self.say(failed(name, error))

    def publish(self) -> None:
        """Makes what was written safe; in an object store, it comes to the folder only here.

        A store that does not answer ends no run: the records wait for the next time.
        """
        try:
            self._publish()
        except Exception as error:
            if not (isinstance(error, OSError) or of_storage(error)):
                raise
            self.say(
                f"The log cannot be written to {self._run} ({first_line(error).rstrip('.')}); that "
                "is tried again at the next checkpoint."
            )

    def _publish(self) -> None:
        if not self._place:
            return
        self._each(lambda tracker: tracker.flush())
        if self._local:
            return
        if self._part is None:
            self._part = max(map(part_number, logs(self._run)[1]), default=-1)
        number = max(self._last, self._part + 1)
        self._files.put_file(
            str(self._place / "metrics.jsonl"), f"{self._folder}/metrics-{number:09d}.jsonl"
        )
        for events in (self._place / "tensorboard").glob("*"):
            target = f"{self._folder}/tensorboard/events.part-{number:09d}.out.tfevents"
            self._files.put_file(str(events), target)
        self._part = number
        shutil.rmtree(self._close())

    def _close(self) -> Path:
        assert self._place
        self._file.close()
        if board := self._trackers.pop("tensorboard", None):
            with contextlib.suppress(OSError):
                board.close()
        place, self._place = self._place, None
        return place

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
            # what is full has been told by `error`
            with contextlib.suppress(*(() if self.error is None else (OSError,))):
                self._publish()
                if self._place:
                    self._close()
            for tracker in self._trackers.values():
                tracker.close()


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
    if path.exists():
        with path.open("rb+") as file:
            end, _ = next(backwards(file))
            file.truncate(end)
