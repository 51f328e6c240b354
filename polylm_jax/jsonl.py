"""JSONL files: those that a person wrote, read whole; logs, which may be long, from their end."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from polylm_jax.errors import UserError

BLOCK = 1 << 20  # bytes of a log that are held at once


def read_records(path: str, fields: tuple[str, ...]) -> list[dict[str, str]]:
    """The file's records, which have these fields, all strings. UserError names a bad line."""
    records = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            record = json.loads(line)
            whole = all(isinstance(record[field], str) for field in fields)
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            form = ", ".join(f'"{field}": TEXT' for field in fields)
            raise UserError(f"{path}:{number} is not a record {{{form}}}; mend that line.")
        records.append(record)
    if not records:
        raise UserError(f"{path} is empty; give one record a line.")
    return records


def dumps(value: Any) -> str:
    """One line of JSON as RFC 8259 has it, where no number is NaN or infinite: null instead."""
    return json.dumps(_without_nan(value), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def backwards(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, last one first, each with the byte where it starts.

    The first is what follows the last line's end: nothing, or a line that is half written.
    """
    start, rest = file.seek(0, os.SEEK_END), b""
    while start:
        end = start + len(rest)
        start = max(0, start - BLOCK)
        file.seek(start)
        rest, *lines = (file.read(end - len(rest) - start) + rest).split(b"\n")
        for line in reversed(lines):
            end -= len(line)
            yield end, line
            end -= 1
    yield 0, rest
