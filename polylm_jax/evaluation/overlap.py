"""Which items of a benchmark stand in the rows that a run has read.

A text counts as read from `length` tokens in a row on, in the ids of the run's own tokenizer, so
that languages without spaces need no words. Where a text begins and ends its tokens may be
others than inside a document; those between are the same.

Runs of tokens are told by 64 bits: the hash of t_1 … t_n is the sum of t_i · BASE ** (n - i),
modulo 2 ** 64. Of 10 ** 12 read and 10 ** 6 asked, one in twenty benchmarks has a false one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polylm_jax.data.curriculum import locate
from polylm_jax.data.rows import Store
from polylm_jax.data.schedule import Curriculum
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.evaluation.items import Item, Prompt

BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: 2 ** 64 over the golden ratio, as Knuth multiplies
AT_ONCE = 2**20  # tokens of rows that are held
LOCATED = 2**16  # rows of the run whose places are found at once
SIEVE = 2**24  # bits that most hashes are turned away by


@dataclass(frozen=True)
class Found:
    """Of an item: the most tokens in a row of a text of it such that each `length` of them that
    follow one another were read so, 0 for none; and whether every text is too short to tell."""

    longest: int
    short: bool


def texts_of(item: Item | Prompt) -> list[str]:
    """What an item says: the texts of its document, and each whole choice."""
    choices = item.choices if isinstance(item, Item) else ()
    whole = [choice.context + choice.continuation for choice in choices]
    return list(dict.fromkeys([*whole, *_strings(item.document)]))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def overlap(
    store: Store,
    curriculum: Curriculum,
    rows: int,
    tokenizer: Tokenizer,
    items: Sequence[Item | Prompt],
    length: int,
    done: Callable[[int, int], None] = lambda read, of: None,
) -> list[Found]:
    """What of each item stands in the first so many rows of the run.

    length: least tokens in a row that count. done: told how many rows are looked through, of how
    many; a row that was read twice is looked through once.
    """
    if not 1 <= length <= store.length + 1:
        raise UserError(f"runs of {length} tokens cannot be in rows of {store.length + 1}.")
    said = [texts_of(item) for item in items]
    encoded = iter(tokenizer.encode([text for some in said for text in some]))
    hashes = [[_hashes(np.array([next(encoded)]), length)[0] for _ in some] for some in said]
    wanted = np.unique(np.concatenate([one for some in hashes for one in some] or [_NONE]))
    seen = np.zeros(len(wanted), bool)
    sieve = np.zeros(SIEVE, bool)
    sieve[_sieved(wanted)] = True
    read, every = 0, read_rows(curriculum, rows)
    total = sum(len(places) for places in every.values())
    for source, places in every.items():
        step = max(1, AT_ONCE // store.length)
        for first in range(0, len(places), step):
            # one more, so that what lies over the border of two is seen
            found = _hashes(
                _joined(store, source, places[first : first + step + 1], length), length
            )
            likely = found[sieve[_sieved(found)]]
            at = np.searchsorted(wanted, likely).clip(max=max(0, len(wanted) - 1))
            if len(wanted):
                seen[at[wanted[at] == likely]] = True
            read += min(step, len(places) - first)
            done(read, total)
    return [_found([seen[np.searchsorted(wanted, one)] for one in some], length) for some in hashes]


def read_rows(curriculum: Curriculum, rows: int) -> dict[str, np.ndarray]:
    """Of each source, the rows that are among the first so many of the run, in order, each once."""
    read: dict[int, list[np.ndarray]] = {}
    for first in range(0, rows, LOCATED):
        source, row = locate(curriculum, first, min(first + LOCATED, rows))
        for number in np.unique(source).tolist():
            read.setdefault(number, []).append(np.unique(row[source == number]))
    return {
        curriculum.sources[number]: np.unique(np.concatenate(some))
        for number, some in sorted(read.items())
    }


_NONE = np.zeros(0, np.uint64)
_NO_TOKEN = -1


def _joined(store: Store, source: str, places: np.ndarray, length: int) -> np.ndarray:
    """Rows, and behind each the beginning of the next one where that goes on from it."""
    rows = store.read(source, places)
    more = np.full((len(rows), length - 1), _NO_TOKEN, np.int32)
    if not store.marked:
        # a row's last token is the next one's first
        begins = rows[1:, 1:length]
        follows = np.flatnonzero(np.diff(places) == 1)
        more[follows, : begins.shape[1]] = begins[follows]
    return np.concatenate([rows, more], axis=1)


def _hashes(ids: np.ndarray, length: int) -> np.ndarray:
    """uint64 [rows, places] of each run of so many ids [rows, tokens]."""
    tokens = ids.astype(np.uint64)
    places = ids.shape[1] - length + 1
    if places < 1:
        return np.zeros((len(ids), 0), np.uint64)
    total = np.zeros((len(ids), places), np.uint64)
    for first in range(length):
        total = total * BASE + (tokens[:, first : first + places] + np.uint64(1))
    return total


def _sieved(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(40)).astype(np.int64)


def _found(seen: Sequence[np.ndarray], length: int) -> Found:
    """seen: of each text, whether the run that begins at each of its tokens was read."""
    longest = 0
    for one in seen:
        ends = np.flatnonzero(np.diff(np.concatenate([[0], one, [0]])))
        together = (ends[1::2] - ends[::2]).max(initial=0)
        longest = max(longest, int(together) + length - 1 if together else 0)
    return Found(longest, not any(len(one) for one in seen))
