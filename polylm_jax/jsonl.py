"""JSON that others wrote, read whole and checked; logs, which may be long, read from their end."""

import json
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from polylm_jax.errors import UserError
from polylm_jax.files import nearest, opened

BLOCK = 1 << 20  # bytes of a log that are held at once


@dataclass(frozen=True)
class Record:
    """A record that a user gave.

    place: where, such as FILE:LINE. fault: what hinders its use and how to mend it, or "".
    """

    place: str
    content: dict[str, Any]
    fault: str = ""


def read_records(
    path: str, fields: tuple[str, ...], results: Collection[str] = (), skip: bool = False
) -> list[Record]:
    """The records of a JSONL file, local or at a URL, which have these fields, all strings.

    Blank lines are none. results: fields that will be added, so that no record may have them.
    UserError names a bad line; if one may skip, it is a record with a fault instead.
    """
    form = dict.fromkeys(fields, str)
    shown = ", ".join(f'"{field}": TEXT' for field in fields)
    wanted = f"is not a record {{{shown}}}; mend that line"
    records = []
    for number, line in enumerate(_content(path).splitlines(), 1):
        if not line.strip():
            continue
        record = Record(f"{path}:{number}", _parsed(line, {}) or {})
        if not has_form(record.content, form):
            record = faulty(record, wanted, skip)
        for field in results:
            if field in record.content:  # nor could a skipped one say its fault beside it
                raise UserError(
                    f'{record.place} has a field "{field}", which the results need; rename it.'
                )
        records.append(record)
    if not records:
        raise UserError(f"{path} is empty; give one record a line.")
    return records


def faulty(record: Record, fault: str, skip: bool) -> Record:
    """The record with a fault; a UserError that names its place, unless one may skip."""
    if not skip:
        raise UserError(f"{record.place} {fault}, or give --skip to go on without it.")
    return replace(record, fault=fault)


def read_json(path: str | Path, form: Any, wanted: str) -> Any:
    """The content of a JSON file, local or at a URL, that has a form as `has_form` knows it.

    wanted: what it should be and how to mend it, for the UserError of a file that is not.
    """
    return parse_json(_content(str(path)), form, str(path), wanted)


def parse_json(content: bytes | str, form: Any, name: str, wanted: str) -> Any:
    """As `read_json`, of content that came from `name`."""
    value = _parsed(content, form)
    if value is None:
        raise UserError(f"{name} is not {wanted}.")
    return value


def _parsed(content: bytes | str, form: Any) -> Any:
    """What JSON says, if it has the form; else None."""
    try:
        value = json.loads(content)
        # JSON can spell half a character, which no UTF-8 can
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if has_form(value, form) else None


def has_form(value: Any, form: Any) -> bool:
    """Whether a value of JSON has a form.

    A form is a type or a tuple of them (a whole number is a float; True, False and NaN are no
    numbers), a range for a whole number in it, a frozenset for one of its words, [form] for a
    list of such, {str: form} for an object of such, or {"name": form, …} for an object that has
    at least these; "name?" need not be there.
    """
    if isinstance(form, range):
        return type(value) is int and value in form
    if isinstance(form, frozenset):
        return isinstance(value, str) and value in form
    if isinstance(form, list):
        return isinstance(value, list) and all(has_form(item, form[0]) for item in value)
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return False
        if str in form:
            return all(has_form(item, form[str]) for item in value.values())
        return all(
            has_form(value[name.rstrip("?")], part)
            if name.rstrip("?") in value
            else name.endswith("?")
            for name, part in form.items()
        )
    types = form if isinstance(form, tuple) else (form,)
    if isinstance(value, bool):
        return bool in types
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, types) or (float in types and isinstance(value, int))


def _content(path: str) -> bytes:
    files, root = opened(path)
    try:
        # fsspec would seek in it, which a pipe, such as /dev/stdin, does not bear
        return Path(root).read_bytes() if "://" not in path else files.cat_file(root)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}{nearest(path)}.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a file in it.") from None


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
