"""Writing a source of the corpus: one pass over its documents, a second that parts train and valid.

The first pass writes lines of JSON and, of each document, a record; from the records alone
`sides` tells duplicates and what is held out; then lines are copied to their side.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from polylm_jax.console import LiveLine
from polylm_jax.data.documents import Reading, Stretch
from polylm_jax.data.sides import DUPLICATE, RECORD, TRAIN, VALID, sides

_COPIED = 2**20  # bytes that are copied at once
_TOLD = 2**24  # bytes that are read between two looks at the live line


def write(
    folder: Path,
    stretches: Iterable[Stretch],
    reading: Reading,
    share: float,
    most: float,
    scratch: Path,
) -> dict:
    """Writes train.jsonl and valid.jsonl and returns the source's entry in the manifest.

    "bytes" there has what was read of the source's files, after decompression, and what became of
    it: `documents` are text that is kept, `duplicates` text that has been before, `around` is what
    lies around the text, and `bad` what is in bad lines. The last four add up to the first.
    """
    folder.mkdir()
    lines, records = scratch / "lines", scratch / "records"
    _collect(stretches, reading, lines, records, folder.name)
    counts, digest = _part(folder, lines, records, share, most)
    documents, sizes = ({side: int(count[at]) for side, count in counts.items()} for at in (0, 1))
    became = {
        "read": reading.read,
        "documents": sizes[TRAIN] + sizes[VALID],
        "duplicates": sizes[DUPLICATE],
        "around": reading.around,
        "bad": reading.bad,
    }
    if became["read"] != sum(became.values()) - became["read"]:
        raise AssertionError(f"{folder.name}: bytes are lost or counted twice: {became}")
    return {
        "train": {"documents": documents[TRAIN], "bytes": sizes[TRAIN]},
        "valid": {"documents": documents[VALID], "bytes": sizes[VALID]},
        "sha256": digest,
        "bytes": became,
        "duplicates": documents[DUPLICATE],
        "bad_lines": {"lines": reading.bad_lines, "first": reading.places},
    }


def _collect(
    stretches: Iterable[Stretch], reading: Reading, lines: Path, records: Path, source: str
) -> None:
    """Writes the lines of all documents, and a RECORD of each."""
    live, told = LiveLine(10), 0
    with open(lines, "wb") as text, open(records, "wb") as file:
        for document in _lines(stretches, text):
            file.write(np.array(document, RECORD).tobytes())
            if reading.read - told > _TOLD:
                told = reading.read
                live.show(f"corpus: {source}, {told / 1e6:,.0f} MB read")
    live.close()


def _part(
    folder: Path, lines: Path, records: Path, share: float, most: float
) -> tuple[dict[int, np.ndarray], str]:
    """Copies lines to train and valid; returns number and bytes of the documents of each side,
    and the SHA-256 of train and valid, one after the other."""
    counts = dict.fromkeys((DUPLICATE, TRAIN, VALID), np.zeros(2, np.int64))
    digest = hashlib.sha256()
    with (
        tempfile.TemporaryDirectory(dir=records.parent) as work,
        open(lines, "rb") as source,
        open(folder / "train.jsonl", "wb") as train,
        open(folder / "valid.jsonl", "w+b") as valid,
    ):
        files: dict[int, IO[bytes]] = {TRAIN: train, VALID: valid}
        for chunk, side in sides(records, Path(work), share, most):
            for which in counts:
                sizes = chunk["text"][side == which]
                counts[which] = counts[which] + (len(sizes), sizes.sum())
            _copy(source, chunk["lines"], side, files, digest)
        valid.seek(0)
        while content := valid.read(_COPIED):
            digest.update(content)
    return counts, digest.hexdigest()


def _lines(stretches: Iterable[Stretch], file: BinaryIO) -> Iterator[tuple[int, int, int, int]]:
    """Writes the lines of each document, and gives its fields of a RECORD once it is there."""
    digest, part, written, size = hashlib.sha256(), 1, 0, 0
    for text, origin, ends in stretches:
        content = text.encode()
        digest.update(content)
        size += len(content)
        line: dict = {"text": text, "from": origin}
        if part > 1 or not ends:
            line["part"] = part
        if not ends:
            line["more"] = True
        written += file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        part += 1
        if ends:
            first, second = (int.from_bytes(digest.digest()[at : at + 8], "big") for at in (0, 8))
            yield first, second, written, size
            digest, part, written, size = hashlib.sha256(), 1, 0, 0


def _copy(
    source: BinaryIO,
    sizes: np.ndarray,
    side: np.ndarray,
    files: dict[int, IO[bytes]],
    digest: "hashlib._Hash",
) -> None:
    """Copies the next documents to the file of their side; what goes to train is digested."""
    changes = np.flatnonzero(np.diff(side)) + 1
    for first, last in pairwise([0, *changes.tolist(), len(side)]):
        left, which = int(sizes[first:last].sum()), int(side[first])
        if which == DUPLICATE:
            source.seek(left, os.SEEK_CUR)
            continue
        while left:
            content = source.read(min(left, _COPIED))
            files[which].write(content)
            if which == TRAIN:
                digest.update(content)
            left -= len(content)
