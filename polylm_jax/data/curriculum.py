"""The curriculum: which source row n of the run comes from, exact in tokens.

A schedule gives each source a share of the tokens at every moment. The integral F(n) of the
shares, in rows, says how many of the first n rows each source is due. The realised counts C(n)
are whole numbers with floor F <= C <= ceil F at every n, so each source stays less than one row
from the schedule at every batch boundary, whatever the batch.

That such an order exists is the chairman assignment theorem (Tijdeman 1980). To start at any row
without replaying the run, the counts are found by halving: those at a boundary follow from F
and the counts at the ends of the interval it halves (`_boundary`). Inside the smallest blocks
each row goes to the due source with the earliest deadline (`_block`).

Proved, for any schedule: no step of this gets stuck. Unit u of a source may be read between
the rows where F passes u and u + 1, so the counts A at a and B at b have an order between them
if A <= B and for all rows x and y between a and b (Hall's condition, in a stronger form)
    sum of A - F(y) over the sources that finish no unit from a to y is below 1, and
    sum of B - F(x) over the sources that finish no unit from x to b is above -1.
At the middle m the choice is which sources to round up. Row by row, the first condition caps
the number rounded up in nested sets (late deadlines), and the second asks for a number of them
in nested sets (early releases). The fractions of F(m) meet every cap and demand, so, two
families of nested sets being totally unimodular, whole numbers do too, also with the sources
that A or B leave no choice for; and taking sources by release as the caps allow, a matroid
greedy, meets every demand that can be met. MARGIN below leaves this true of rounded sums.
Tested, with exact fractions as judge: what float64 adds to F stays far below a row.

A run may go on with another schedule or more rows: see `continued`.
"""

import itertools
from bisect import bisect_left
from functools import lru_cache

import numpy as np

from polylm_jax.data.permutation import key_of, permute
from polylm_jax.data.schedule import HORIZON, Curriculum, Past
from polylm_jax.errors import UserError

MOST_EPOCHS = 4  # reading a source again is nearly as good as new text, Muennighoff et al. 2023
BLOCK = 1 << 14  # rows that are ordered at once
UNIT = 1_000_000  # F is compared in millionths of a row, so that whole rows are met exactly
MARGIN = UNIT // 4  # by which a cap is met, far above the rounding of F summed over sources


class OutOfRows(UserError):
    """A source has no unread rows left and the schedule says "refuse"."""


def integral(curriculum: Curriculum, n: np.ndarray | int) -> np.ndarray:
    """Rows of each source due among the first n rows: float64 [..., sources]; sums to n.

    Rounded to 1e-6 rows, so that whole numbers are met exactly. Where the curriculum goes on from
    a past, what was read then counts as it was read.
    """
    n, past = np.asarray(n), curriculum.past
    since = np.maximum(n - curriculum.first, 0)[..., None]
    due = _due(curriculum, since, np.arange(len(curriculum.sources))) / UNIT
    if past is None:
        return due
    due += past.read
    before = n < past.row
    if before.any():
        due[before] = _widened(past, integral(past.former, n[before]))
    return due


def share(curriculum: Curriculum, n: int) -> np.ndarray:
    """Share of each source at row n: float64 [sources], sums to 1."""
    if curriculum.past and n < curriculum.first:
        return _widened(curriculum.past, share(curriculum.past.former, n))
    knots, n = curriculum.knots, n - curriculum.first
    knot = np.searchsorted(knots[1:-1], n, side="right")
    along = (n - knots[knot]) / (knots[knot + 1] - knots[knot])
    return curriculum.starts[knot] + along * (curriculum.ends[knot] - curriculum.starts[knot])


def consumed(curriculum: Curriculum, n: int) -> np.ndarray:
    """Rows of each source among the first n rows of the run: int64 [sources]; sums to n."""
    past = curriculum.past
    if past is None:
        return _counted(curriculum, n)
    if n < past.row:
        return _widened(past, consumed(past.former, n))
    return past.read + _counted(curriculum, n - past.row)


def _counted(curriculum: Curriculum, n: int) -> np.ndarray:
    """Rows of each source among the first n from row `first` on: int64 [sources]."""
    block, inside = divmod(n, BLOCK)
    counts = _boundary(curriculum, block * BLOCK)
    if not inside:
        return counts.copy()
    return counts + np.bincount(_block(curriculum, block)[0, :inside], minlength=len(counts))


def _widened(past: Past, of_former: np.ndarray) -> np.ndarray:
    """Numbers of the former's sources at the places of the later ones, 0 for a new source."""
    return np.where(past.index >= 0, of_former[..., past.index], 0)


def epochs(curriculum: Curriculum, n: int) -> np.ndarray:
    """How often each source's rows have been read after n rows of the run: float64 [sources]."""
    return consumed(curriculum, n) / np.maximum(curriculum.rows, 1)


def locate(curriculum: Curriculum, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows start..stop-1 of the run as (source, row of that source), both int64 [stop - start].

    The source is an index into curriculum.sources. A source's rows are visited in the order
    of a permutation keyed by seed, source and epoch; after the last one a new epoch begins,
    or OutOfRows is raised if the schedule says "refuse".
    """
    first, past = curriculum.first, curriculum.past
    if past and start < first:
        index, rows = locate(past.former, start, min(stop, first))
        names = np.argsort(np.where(past.index < 0, len(past.index), past.index))
        later = locate(curriculum, first, max(stop, first))
        return np.append(names[index], later[0]), np.append(rows, later[1])
    start, stop = start - first, stop - first
    parts = [np.empty((3, 0), np.int64)]
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        begin = block * BLOCK
        parts.append(_block(curriculum, block)[:, max(start - begin, 0) : stop - begin])
    source, epoch, row = np.concatenate(parts, axis=1)
    if curriculum.schedule.on_end == "refuse" and epoch.any():
        raise _out_of_rows(curriculum, int(source[epoch > 0][0]))
    return source, row


def rows_until_out(curriculum: Curriculum, most: int) -> tuple[int, OutOfRows | None]:
    """How many rows of the run, `most` at most, come before a source has none that is unread.

    With it what `locate` raises at the next row; None where `most` can be read.
    """
    past = curriculum.past
    if past and most <= past.row:
        return rows_until_out(past.former, most)
    unread = curriculum.rows
    if past:
        unread = np.select([past.epochs == 0, past.epochs == 1], [unread, past.rest], 0)
    out = lambda n: bool((_counted(curriculum, n) > unread).any())  # noqa: E731
    first, until = curriculum.first, most - curriculum.first
    if curriculum.schedule.on_end != "refuse" or not out(until):
        return most, None
    # whole blocks first, whose counts cost next to nothing
    block = bisect_left(range(until // BLOCK), True, key=lambda i: out((i + 1) * BLOCK))
    begin = block * BLOCK
    rows = begin + bisect_left(
        range(min(BLOCK, until - begin)), True, key=lambda i: out(begin + i + 1)
    )
    over = _counted(curriculum, rows + 1) > unread
    return first + rows, _out_of_rows(curriculum, int(over.argmax()))


def _out_of_rows(curriculum: Curriculum, source: int) -> OutOfRows:
    return OutOfRows(
        f'all {curriculum.rows[source]:,} rows of "{curriculum.sources[source]}" have been read; '
        'set curriculum.on_end = "repeat" to go on and read them again, or begin another run '
        "with more text or a smaller share of it."
    )


def _due(curriculum: Curriculum, n: np.ndarray, source: np.ndarray) -> np.ndarray:
    """F of each source at row n, in UNITs: int64, the shape of n and source broadcast.

    Every term rises with n also in floating point, so F never falls.
    """
    knot: np.ndarray | np.integer = np.searchsorted(curriculum.knots[1:-1], n, side="right")
    if knot.size and knot.min() == knot.max():
        knot = knot.ravel()[:1].reshape(())  # of one piece there is less to look up
    piece = knot * len(curriculum.sources) + source
    least, rise, fall, due, most = curriculum.pieces
    past = n - curriculum.knots[knot]
    area = past * least[piece]
    if curriculum.bends[knot].any():
        span = np.diff(curriculum.knots)[knot]
        along = past / span
        area += span / 2 * (rise[piece] * along**2 + fall[piece] * (1 - (1 - along) ** 2))
    return np.rint(np.minimum(due[piece] + area, most[piece]) * UNIT).astype(np.int64)


def _last(
    curriculum: Curriculum, source: np.ndarray, level: np.ndarray, low: int, high: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each source, the last row from low to high - 1 where F is at most its level, or low,
    and F at the row after it.

    It is looked for where a straight line meets the level, and in every third step halfway.
    """
    found, beyond = np.full(len(level), low), np.full(len(level), high)
    every = np.arange(len(curriculum.sources))
    under, over = (_due(curriculum, np.array(row), every)[source] for row in (low, high))
    open_: np.ndarray | slice = slice(None)  # all, as a view
    for step in itertools.count():
        still = beyond[open_] - found[open_] > 1
        if not still.all():
            open_ = np.flatnonzero(beyond - found > 1)
        if not still.any():
            return found, over
        first, width = found[open_], beyond[open_] - found[open_]
        if step % 3 < 2:
            part = (level[open_] - under[open_]) / np.maximum(over[open_] - under[open_], 1)
        else:
            part = 0.5
        row = first + np.clip(width * part, 1, width - 1).astype(np.int64)
        due = _due(curriculum, row, source[open_])
        within = due <= level[open_]
        found[open_], under[open_] = np.where(within, (row, due), (first, under[open_]))
        beyond[open_], over[open_] = np.where(within, (beyond[open_], over[open_]), (row, due))
    raise AssertionError


@lru_cache(maxsize=256)
def _boundary(curriculum: Curriculum, at: int) -> np.ndarray:
    """Counts before row `at`, a multiple of BLOCK: int64 [sources], floor F or ceil F.

    `at` halves the interval between two boundaries that are multiples of a higher power of two,
    and whose counts come first; the last interval ends at HORIZON.
    """
    if at == 0:
        return np.zeros(len(curriculum.sources), np.int64)
    if at > HORIZON:
        raise UserError(f"a run reads at most {HORIZON:,} rows; lower train.steps or train.batch.")
    step = at & -at
    low, high = at - step, at + step
    every = np.arange(len(curriculum.sources))
    counts, part = np.divmod(_due(curriculum, np.array([at]), every), UNIT)
    up = _boundary(curriculum, low) > counts
    free = (part > 0) & ~up
    if at < HORIZON:
        free &= _boundary(curriculum, high) > counts
    # Late deadlines: from each deadline on, those that are due still later may be this many.
    deadline = 1 + _last(curriculum, every, (counts + 1) * UNIT - 1, at, high)[0]
    ends = np.unique(deadline[(part > 0) & (deadline < high)])
    late = deadline > ends[:, None]
    owed = _due(curriculum, ends[:, None], every) - counts * UNIT
    room = (np.sum(owed, axis=1, where=late) + UNIT - MARGIN - 1) // UNIT
    room -= late[:, up].sum(axis=1)
    # Early releases come first.
    release = _last(curriculum, every, counts * UNIT, low, at)[0]
    left = at - counts.sum() - up.sum()
    for source in np.lexsort((deadline, release)):
        if left and free[source] and (room[late[:, source]] > 0).all():
            room -= late[:, source]
            up[source] = True
            left -= 1
    assert left == 0, f"no counts at row {at}"
    return counts + up


@lru_cache(maxsize=16)
def _block(curriculum: Curriculum, block: int) -> np.ndarray:
    """Source, epoch and row of that source at each row of a block: int64 [3, BLOCK]."""
    first, every = block * BLOCK, np.arange(len(curriculum.sources))
    before, after = _boundary(curriculum, first), _boundary(curriculum, first + BLOCK)
    source = np.repeat(every, after - before)
    unit = np.arange(BLOCK) + (after - np.cumsum(after - before))[source]
    deadline, over = _last(curriculum, source, (unit + 1) * UNIT - 1, first, first + BLOCK + 1)
    # A unit is released when the one before is overdue, unless F rests on the whole number between.
    released, rests = np.roll(deadline, 1), np.roll(over, 1) == unit * UNIT
    alone = np.flatnonzero(rests | (unit == before[source]))
    released[alone] = _last(curriculum, source[alone], unit[alone] * UNIT, first, first + BLOCK)[0]
    # Each unit, by deadline, has the first free row from its release on; a later source yields.
    # So no row goes to a unit while another that is released has an earlier deadline.
    earliest = np.argsort((deadline - first).astype(np.uint16), kind="stable")
    taken, rows = bytearray(BLOCK), list[int]()
    free, put = taken.find, rows.append  # looked up once: each row of a run comes by
    for release in (released[earliest] - first).tolist():
        row = free(0, release)
        taken[row] = 1
        put(row)
    epoch, visited = visited_rows(curriculum, source, unit)
    named = np.empty((3, BLOCK), np.int64)
    named[:, rows] = np.stack([source, epoch, visited])[:, earliest]
    return named


def visited_rows(
    curriculum: Curriculum, source: np.ndarray, unit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and row of its source that each unit stands for, counted from row `first`: all int64
    [n]. Units of the same source and epoch stand together.

    After a past, the epoch under way comes first: what it has not read yet and what it did not
    know, mixed; where nothing is new, in the order in which it would have gone on.
    """
    past, rows = curriculum.past, np.empty_like(unit)
    rest, epochs = (past.rest[source], past.epochs[source]) if past else (0, 0)
    epoch, place = np.divmod(unit - rest, np.maximum(curriculum.rows[source], 1))
    whole = unit >= rest
    epoch = np.where(whole, epoch, -1) + epochs
    rows[whole] = _visited(curriculum, source[whole], epoch[whole], place[whole])
    if not past:
        return epoch, rows
    for one in np.unique(source[~whole]).tolist():
        here = ~whole & (source == one)
        left, grown, former = unit[here], int(past.grown[one]), int(past.index[one])
        if grown:
            key = key_of(curriculum.schedule.seed, curriculum.sources[one], "rest", past.row)
            left = permute(left, [int(past.rest[one])], [key])
        old = left < past.rest[one] - grown
        # what is new lies after all that the former had
        found = curriculum.rows[one] - past.rest[one] + left
        units = past.units[one] + left[old]
        found[old] = visited_rows(past.former, np.full(len(units), former), units)[1]
        rows[here] = found
    return epoch, rows


def _visited(
    curriculum: Curriculum, source: np.ndarray, epoch: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """Row of its source that each place in an epoch stands for: int64, all [n].

    Places of the same source and epoch stand together.
    """
    if not len(source):
        return place
    begins = np.append(True, (np.diff(source) != 0) | (np.diff(epoch) != 0))
    seed, names = curriculum.schedule.seed, curriculum.sources
    pairs = zip(source[begins].tolist(), epoch[begins].tolist(), strict=True)
    keys = [key_of(seed, names[index], number) for index, number in pairs]
    counts = curriculum.rows[source[begins]].tolist()
    return permute(place, counts, keys, np.cumsum(begins) - 1)
