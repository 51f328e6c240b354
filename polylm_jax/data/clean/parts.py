"""Where a large file can be cut, so that its parts, read apart, give what it gives as a whole.

A .jsonl is cut behind a line that ends a document, a Parquet file between two row groups: a part
knows its place in the file, so that all ids stay the same. What is compressed is not cut, nor is
an archive: where a record begins there is known once all before it is unpacked.
"""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

from polylm_jax.data.compressed import Content, Damaged

PART = 2**28  # bytes of a file that one worker reads; its scores then take 100 MB


class Part(NamedTuple):
    """begin: its first byte, or row group. end: what follows its last one; None where the file
    ends. bytes: about how many it has."""

    begin: int
    end: int | None
    bytes: int


def lines(
    content: Content, longest: int, end: int | None = None
) -> Iterator[tuple[int, bytes | str]]:
    """Where each line begins, and the line with its \\n, or what is wrong with it.

    longest: bytes; a line that has more is wrong. end: no line that begins there or later.
    """
    while end is None or content.at < end:
        begin = content.at
        try:
            line = content.readline(longest)
            size = len(line)
            while len(line) == longest and not line.endswith(b"\n"):
                line = content.readline(longest)
                size += len(line)
        except Damaged as error:
            yield begin, str(error)
            continue
        if not size:
            return
        too_long = size > len(line) or size == longest
        yield begin, f"is longer than {longest:,} bytes" if too_long else line


def of_jsonl(plain: BinaryIO, size: int, key: str, longest: int) -> Iterator[Part]:
    """The parts of a file of `size` bytes. key, longest: of its lines, as they will be read."""
    cuts = [0]
    for wanted in range(PART, size, PART):
        if wanted > cuts[-1] and (cut := _cut(plain, wanted, key, longest)) < size:
            cuts.append(cut)
    for begin, end in pairwise([*cuts, size]):
        yield Part(begin, end if end < size else None, end - begin)


def _cut(plain: BinaryIO, wanted: int, key: str, longest: int) -> int:
    """The first byte after `wanted` where a document begins, whatever the line before it is."""
    plain.seek(wanted)
    content = Content(plain, "")
    some = lines(content, longest, PART)
    next(some, None)  # most likely the end of a line
    while line := next(some, None):
        if _ends(line[1], key):
            return wanted + content.at
    return 2**63  # no document ends before the next part


def _ends(line: bytes | str, key: str) -> bool:
    """Whether a line has a document, or the last part of one."""
    try:
        record: Any = json.loads(line.decode("utf-8-sig")) if isinstance(line, bytes) else None
        return isinstance(record[key], str) and record.get("more") is not True
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def of_groups(groups: int, size: int) -> Iterator[Part]:
    """The parts of a file of so many row groups and bytes; a group counts as large as others."""
    step = max(1, groups * PART // size)
    for begin, end in pairwise([*range(0, groups, step), groups]):
        yield Part(begin, end if end < groups else None, size * (end - begin) // groups)
