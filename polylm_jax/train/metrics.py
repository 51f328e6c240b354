"""What a run says while it works: a live line, a JSONL file and TensorBoard."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX import SummaryWriter

from polylm_jax.console import LiveLine


class Metrics:
    """Writes records to FOLDER/metrics.jsonl and FOLDER/tensorboard; only process 0 does."""

    def __init__(self, folder: str, active: bool) -> None:
        self._active = active
        self._line = LiveLine()
        if active:
            Path(folder).mkdir(parents=True, exist_ok=True)
            path = Path(folder) / "metrics.jsonl"
            _drop_half_line(path)
            self._file = path.open("a", encoding="utf-8", buffering=1)
            self._board = SummaryWriter(f"{folder}/tensorboard")

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record; its numbers go to TensorBoard as kind/name at record["step"]."""
        if not self._active:
            return
        self._file.write(json.dumps(record) + "\n")
        for name, value in _flat(record):
            self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

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
            self._file.close()
            self._board.close()


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
