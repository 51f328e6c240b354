"""What a run says while it works: a live line, a JSONL file and TensorBoard."""

import itertools
import json
import statistics
import time
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


class Speed:
    """Median pace of the last steps, so that a validation or a save between them leaves no mark."""

    def __init__(self, steps: int = 20) -> None:
        self._ticks: list[float] = []
        self._steps = steps

    def tick(self) -> None:
        """Call once a step."""
        self._ticks = [*self._ticks[-self._steps :], time.perf_counter()]

    def steps_per_second(self) -> float | None:
        """None until two steps have been seen."""
        gaps = [later - sooner for sooner, later in itertools.pairwise(self._ticks)]
        return 1 / statistics.median(gaps) if gaps else None


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
