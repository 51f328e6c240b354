"""The log of a run: where its files are, what a record is, and which records are alive.

A run writes a record {"kind": "start", "step": n} each time that it starts, from step n. Where it
went back, by a kill or because someone took checkpoints away, an earlier start has logged steps
beyond n that are no part of the run any more. Read from its end, a log tells them by itself: a
record is alive if no later one stands at an earlier step.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from fsspec import AbstractFileSystem

from polylm_jax.errors import UserError
from polylm_jax.files import opened
from polylm_jax.jsonl import backwards

Record = dict[str, Any]

LOGS = re.compile(r"metrics(-(\d+))?\.jsonl")
LARGEST = 2**53  # what is counted stays below it, and so is exact as a float
COUNTS = ("row_counts", "schedule_counts")
# NaN and infinity are no JSON, but an older log may have them
DECODER = json.JSONDecoder(parse_constant=lambda _: None)


def logs(folder: str) -> tuple[AbstractFileSystem, list[str]]:
    """The file system of a run's folder and the logs there, oldest first; perhaps none."""
    files, place = opened(folder)
    try:
        paths = files.ls(place, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return files, []
    # names are compared, not globbed: a folder may be called "r[lr=1]"
    return files, sorted(path for path in paths if LOGS.fullmatch(_name(path)))


def part_number(path: str) -> int:
    """The number of a part, metrics-NUMBER.jsonl; -1 for a log that is in one piece."""
    match = LOGS.fullmatch(_name(path))
    return int(match[2]) if match and match[2] else -1


def alive(folder: str) -> Iterator[Record]:
    """The records of the branch that is alive, newest first, each kind of each step once.

    folder: the run's, local or on a path that fsspec knows. Memory is that of one block of a
    file. Numbers that are no numbers are None. A killed run may leave its last line half written;
    UserError where another line is not a record.
    """
    files, paths = logs(folder)
    last, seen = LARGEST, dict[str, int]()
    for path in reversed(paths):
        for record in _records(files, path):
            kind, step = record["kind"], record["step"]
            if kind == "start":
                last = min(last, step or -1)  # a start from nothing leaves nothing alive
            elif step <= last and step < seen.get(kind, LARGEST):
                # what was logged before a step was made is of the steps before it
                last, seen[kind] = step - (kind == "train"), step
                yield record


def _records(files: AbstractFileSystem, path: str) -> Iterator[Record]:
    """All records of a file, last one first."""
    with files.open(path, "rb") as file:
        lines = backwards(file)
        _, half = next(lines)
        if (record := _record(half)) is not None:
            yield record
        for start, line in lines:
            if (record := _record(line)) is None:
                _refuse(files, path, start)
            yield record


def _record(line: bytes) -> Record | None:
    try:
        record = DECODER.decode(line.decode())
        if b"\\u" in line:
            json.dumps(record, ensure_ascii=False).encode()  # half of a character cannot be shown
        return record if _is_whole(record) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _is_whole(record: Record) -> bool:
    kind, step = record["kind"], record["step"]
    if not (isinstance(kind, str) and type(step) is int and 0 <= step < LARGEST):
        return False
    if kind == "valid":
        return (
            _is_count(record["tokens"])
            and all(map(_is_number, record["bits_per_byte"].values()))
            and all(map(_is_number, record["loss"].values()))
        )
    if kind == "evaluation":
        tables = (record["score"], record["chance"], record.get("error", {}))
        return _is_count(record["tokens"]) and all(
            _is_number(value) for table in tables for value in table.values()
        )
    if kind in ("origin", "change"):
        return _is_count(record["tokens"]) and isinstance(record["said"], str)
    if kind == "train":
        return (
            step > 0
            and _is_count(record["tokens"])
            and record["tokens"] > 0
            and _is_number(record["loss"])
            and _is_number(record.get("deviation"))
            and _is_number(record.get("non_english"))
            and (COUNTS[0] in record) == (COUNTS[1] in record)
            and all(map(_is_count, record.get(COUNTS[0], {}).values()))
            and all(map(_is_count, record.get(COUNTS[1], {}).values()))
        )
    return True


def _is_count(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < LARGEST


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < 1e300)


def _refuse(files: AbstractFileSystem, path: str, start: int) -> NoReturn:
    """Says in which line the byte `start` of a file is."""
    number = 1
    with files.open(path, "rb") as file:
        while block := file.read(min(1 << 20, start)):
            number, start = number + block.count(b"\n"), start - len(block)
    raise UserError(f"{path}:{number} is not a record of a run: delete that line.")


def _name(path: str) -> str:
    return path.rpartition("/")[2]
