"""Which documents of a source are kept and which are held out, told by their hashes alone.

What is known of a document is a record of 32 bytes in a file. Such files are worked through by
the chunk, and sorted by way of smaller files, so that memory does not grow with them; what grows
is the disk, by 56 bytes a document at most.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np

# first and second 64 bits of the text's SHA-256, bytes of its lines of JSON, bytes of the text
RECORD = np.dtype([("hash", "<u8"), ("more", "<u8"), ("lines", "<i8"), ("text", "<i8")])
CHUNK = 2**18  # records that are in memory at once

DUPLICATE, TRAIN, VALID = range(3)

_PLACE = np.dtype([("hash", "<u8"), ("more", "<u8"), ("at", "<i8")])
_FIRST_STEP = 1023 << 8


def hashed(text: str) -> int:
    """64 bits that depend on the text alone."""
    return hash_of(text.encode())


def hash_of(content: bytes) -> int:
    """As `hashed`, of a text in UTF-8."""
    return int.from_bytes(sha256(content).digest()[:8], "big")


def sides(
    records: Path, scratch: Path, share: float, most: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks of RECORDs [n] in order, with the side of each document: DUPLICATE, TRAIN or VALID.

    scratch: an empty folder. share, most: see `Hashes.threshold`. Of equal texts the first is kept.
    """
    _find_duplicates(records, scratch)
    below = threshold((chunk[~again] for chunk, again in _marked(records, scratch)), share, most)
    for chunk, again in _marked(records, scratch):
        yield chunk, np.where(again, DUPLICATE, np.where(chunk["hash"] < below, VALID, TRAIN))


def threshold(distinct: Iterable[np.ndarray], share: float, most: float) -> int:
    """The number below which the hash of a text is that is held out, given chunks of RECORDs.

    share, most: see `Hashes.threshold`.
    """
    seen = Hashes()
    for chunk in distinct:
        seen.add(chunk)
    return seen.threshold(share, most)


class Hashes:
    """What of a source's texts decides which are held out; 130 kB, however many they are."""

    def __init__(self) -> None:
        self._count = self._highest = 0
        self._lowest = np.empty(0, np.uint64)
        self._sizes = np.zeros(2**14 + 1)  # bytes of the texts in each step of hashes

    def add(self, chunk: np.ndarray) -> None:
        """Takes RECORDs of texts that have not been before."""
        self._count += len(chunk)
        self._highest = max(self._highest, int(chunk["hash"].max(initial=0)))
        self._lowest = np.sort(np.append(self._lowest, chunk["hash"]))[:2]
        self._sizes += np.bincount(_step(chunk["hash"]), chunk["text"], len(self._sizes))

    def threshold(self, share: float, most: float) -> int:
        """The number below which the hash of a text is that is held out.

        They are `share` of the texts, but no more than `most` bytes. So a text stays on its side
        when others are added, until `most` is reached. Only a source so small that this would hold
        out fewer than 2 texts of 10 (1 of 5) or leave nothing to train on is evened out.
        """
        edge = int(share * 2**64)
        if (full := np.cumsum(self._sizes) > most).any():
            edge = min(edge, _lowest_in(int(full.argmax())))
        least = min(2, self._count // 5) if share else 0
        if least:
            edge = max(edge, int(self._lowest[least - 1]) + 1)
        return min(edge, self._highest)


def _step(hashes: np.ndarray) -> np.ndarray:
    """Steps of 0.4% in which numbers lie: their exponent and 8 bits more, from a float's bits."""
    bits = hashes.astype(np.float64).view(np.int64) >> 44
    return np.maximum(bits - _FIRST_STEP, 0)


def _lowest_in(step: int) -> int:
    return int(np.array((step + _FIRST_STEP) << 44).view(np.float64))


def _marked(records: Path, scratch: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks of records, and of each whether its text has been before."""
    for number, chunk in enumerate(_chunks(records, RECORD)):
        again = np.zeros(len(chunk), bool)
        if (found := _again(scratch, number)).is_file():
            for places in _chunks(found, _PLACE):
                again[places["at"] - number * CHUNK] = True
        yield chunk, again


def _again(scratch: Path, number: int | str) -> Path:
    """The places in a chunk whose text has been before."""
    return scratch / f"again.{number}"


def _find_duplicates(records: Path, scratch: Path) -> None:
    """Writes the `_again` of each chunk that has some.

    What is new in its chunk goes to a file of its range of hashes, where equal texts meet.
    """
    ranges = (records.stat().st_size // RECORD.itemsize // CHUNK).bit_length()
    for number, chunk in enumerate(_chunks(records, RECORD)):
        places = np.empty(len(chunk), _PLACE)
        places["hash"], places["more"] = chunk["hash"], chunk["more"]
        places["at"] = np.arange(len(chunk)) + number * CHUNK
        new = _split(places, scratch)
        shift = np.uint64(63 - ranges)
        _append(new, new["hash"] >> np.uint64(1) >> shift, scratch / "range")
    for path in sorted(scratch.glob("range.*")):
        _split(np.fromfile(path, _PLACE), scratch)
        path.unlink()


def _split(places: np.ndarray, scratch: Path) -> np.ndarray:
    """The first place of each text; the others are written to their `_again`."""
    places = places[np.lexsort((places["at"], places["more"], places["hash"]))]
    equal = [places[name][1:] == places[name][:-1] for name in ("hash", "more")]
    later = np.append(False, equal[0] & equal[1])[: len(places)]
    again = places[later]
    _append(again, again["at"] // CHUNK, scratch / "again")
    return places[~later]


def _append(places: np.ndarray, keys: np.ndarray, name: Path) -> None:
    """Adds each place to the file `name`.key of its key."""
    order = np.argsort(keys, kind="stable")
    different, starts = np.unique(keys[order], return_index=True)
    for key, some in zip(different.tolist(), np.split(places[order], starts)[1:], strict=True):
        with open(f"{name}.{key}", "ab") as file:
            file.write(some.tobytes())


def _chunks(path: Path, dtype: np.dtype) -> Iterator[np.ndarray]:
    with open(path, "rb") as file:
        while len(chunk := np.fromfile(file, dtype, CHUNK)):
            yield chunk
