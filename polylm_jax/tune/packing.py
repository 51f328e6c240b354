"""Examples side by side in rows of one length, and what each token of such a row is."""

from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from polylm_jax.data.permutation import permute
from polylm_jax.data.rows import FIRST, LEARNED
from polylm_jax.data.tokenizer import EOS

AHEAD = 256  # examples among which one or two are sought to fill a row's end


@dataclass(frozen=True)
class Encoded:
    """Examples as ids, one behind the other.

    ids: int32 [tokens]. learned: bool [tokens], whether a token is learned as a target.
    lengths: int64 [examples]. places: EXAMPLE [examples], the tokens not yet known.
    """

    ids: np.ndarray
    learned: np.ndarray
    lengths: np.ndarray
    places: np.ndarray


def pack(lengths: np.ndarray, room: int, key: int) -> np.ndarray:
    """Where in its source's rows each example begins, int64 [examples]; row r is from r * room.

    Examples are walked through in a keyed permutation. One goes into the row if it leaves room
    for a usual one; else what is left is filled from the next AHEAD, and where none of them fits
    the row is closed. So rows are full but for a token or two, and as mixed as the permutation.
    No length is above room.
    """
    count, usual = len(lengths), lengths.mean() if len(lengths) else 0
    order = permute(np.arange(count), [count], [key])
    waiting = lengths[order]  # 0 once placed
    starts = np.empty(count, np.int64)
    row, used, walked = 0, 0, 0
    while True:
        while walked < count and not waiting[walked]:
            walked += 1
        if walked == count:
            return starts
        gap, chosen = room - used, [walked]
        if waiting[walked] + usual > gap:
            chosen = (walked + _filling(waiting[walked : walked + AHEAD], gap)).tolist()
            if not chosen:
                row, used = row + 1, 0
        for place in chosen:
            starts[order[place]] = row * room + used
            used += int(waiting[place])
            waiting[place] = 0


def _filling(lengths: np.ndarray, gap: int) -> np.ndarray:
    """Indices of the one or two lengths above 0 that fill most of the gap; none where none fits."""
    fits = np.flatnonzero((lengths > 0) & (lengths <= gap))
    if not len(fits):
        return fits
    fits = fits[np.argsort(lengths[fits], kind="stable")]
    ranked = lengths[fits]
    # beside each, the longest before it in rank that still fits
    beside = np.minimum(np.searchsorted(ranked, gap - ranked, "right"), np.arange(len(ranked))) - 1
    best = int(np.where(beside >= 0, ranked + ranked[beside], ranked).argmax())
    return fits[[best]] if beside[best] < 0 else fits[[best, beside[best]]]


def laid_out(
    encoded: Encoded, starts: np.ndarray, room: int, apart: bool
) -> tuple[np.ndarray, ...]:
    """Tokens int32 and marks uint8, both [rows, room], of examples that begin at these places.

    apart: whether each example is marked as a FIRST, and the padding; else only each row is.
    """
    rows = int(starts.max(initial=-1)) // room + 1
    tokens, marks = np.zeros(rows * room, np.int32), np.zeros(rows * room, np.uint8)
    begins = np.cumsum(encoded.lengths) - encoded.lengths
    places = np.arange(len(encoded.ids)) + np.repeat(starts - begins, encoded.lengths)
    tokens[places] = encoded.ids
    marks[places] = LEARNED * encoded.learned
    marks[::room] |= FIRST
    if apart:
        marks[starts] |= FIRST
        used = np.zeros(rows, np.int64)
        np.maximum.at(used, starts // room, starts % room + encoded.lengths)
        padded = np.flatnonzero(used < room)
        marks[padded * room + used[padded]] |= FIRST
    return tokens.reshape(rows, room), marks.reshape(rows, room)


def spans(ids: np.ndarray, marks: np.ndarray) -> list[list[tuple[str, list[int]]]]:
    """A row's examples, each as (what it is, ids) in order: prompt, answer, end, padding."""
    padding = len(ids) - int(np.flatnonzero((ids != 0) | (marks & LEARNED > 0))[-1]) - 1

    def kind(place: int) -> str:
        if place >= len(ids) - padding:
            return "padding"
        if ids[place] == EOS:
            return "end"
        return "answer" if marks[place] & LEARNED else "prompt"

    firsts = [*np.flatnonzero(marks & FIRST).tolist(), len(ids)]
    return [
        [(what, ids[list(run)].tolist()) for what, run in groupby(range(begin, end), kind)]
        for begin, end in pairwise(firsts)
    ]
