"""All runs below a folder, one line each: where they stand and how far they have come."""

import time
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from rich.table import Table
from rich.text import Text

from polylm_jax.console import format_duration, visible
from polylm_jax.data.languages import is_language
from polylm_jax.errors import UserError
from polylm_jax.files import opened
from polylm_jax.runs.status import status_of
from polylm_jax.train.heartbeat import NAME, read_heartbeat
from polylm_jax.train.log import LOGS, Record, alive


class Line(NamedTuple):
    """What is told of one run; None where it is not known.

    run: its folder. state, healthy: as `status` judges them. bits: bits per byte, the mean of the
    languages at the last validation. speed: tokens a second. silent: seconds since its heartbeat.
    note: what is wrong with its log, or "".
    """

    run: str
    state: str
    healthy: bool
    step: int | None
    steps: int | None
    tokens: int | None
    loss: float | None
    bits: float | None
    speed: float | None
    silent: float | None
    note: str


def find_runs(folder: str) -> list[str]:
    """The runs in a folder, itself or below it, by name; links below it are not followed.

    folder: local, or a path that fsspec knows. UserError where there is none.
    """
    files, root = opened(folder)
    found = [
        place if isinstance(files, LocalFileSystem) else files.unstrip_protocol(place)
        for place in _below(files, root)
    ]
    if not found:
        raise UserError(
            f"there is no run in {folder} or below it; give the folder that holds them."
        )
    return found


def _below(files: AbstractFileSystem, place: str) -> Iterator[str]:
    try:
        entries = files.ls(place, detail=True)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    kinds = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in entries}
    if NAME in kinds or "checkpoints" in kinds or any(map(LOGS.fullmatch, kinds)):
        yield place
        return
    for name in sorted(kinds):
        if kinds[name]["type"] == "directory" and not kinds[name].get("islink"):
            yield from _below(files, f"{place}/{name}")


def line_of(run: str, now: float | None = None) -> Line:
    """What is told of the run in a folder. now: seconds since the epoch, the present by default."""
    now = time.time() if now is None else now
    status, beat, note = status_of(run, now), read_heartbeat(run) or {}, ""
    last: Record | None = None
    try:
        last = next((record for record in alive(run) if record["kind"] == "valid"), None)
    except UserError as error:
        note = str(error)
    bits = [
        value
        for source, value in (last or {"bits_per_byte": {}})["bits_per_byte"].items()
        if is_language(source) and value is not None
    ]
    return Line(
        run,
        status.state,
        status.healthy,
        beat.get("step"),
        beat.get("steps"),
        beat.get("tokens"),
        beat.get("loss"),
        fmean(bits) if bits else None,
        beat.get("tokens_per_second"),
        max(0.0, now - beat["time"]) if "time" in beat else None,
        note,
    )


def table_of(lines: Sequence[Line], folder: str) -> Table:
    """The lines as a table; runs are named as they lie below the folder."""
    table = Table(box=None, pad_edge=False)
    for head in ("run", "state", "step", "tokens", "loss", "bits/byte", "tokens/s", "seen"):
        table.add_column(head, justify="left" if head in ("run", "state") else "right")
    root = opened(folder)[1]
    for line in lines:
        name = opened(line.run)[1].removeprefix(root).strip("/") or line.run
        step = "–" if line.step is None else f"{line.step:,} of {line.steps:,}"
        table.add_row(
            Text(visible(name)),
            Text(line.state, style="green" if line.healthy else "red"),
            step,
            _shown(line.tokens, ","),
            _shown(line.loss, ".3f"),
            _shown(line.bits, ".3f"),
            _shown(line.speed, ",.0f"),
            "–" if line.silent is None else f"{format_duration(line.silent)} ago",
        )
    return table


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
