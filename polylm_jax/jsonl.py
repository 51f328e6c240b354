"""JSONL files that a person wrote: read whole, and what is wrong with a line said."""

import json
from pathlib import Path

from polylm_jax.errors import UserError


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
