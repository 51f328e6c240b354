"""The curriculum: which source row n of the run comes from, exact in tokens.

A schedule gives each source a share that is piecewise linear in the tokens read so far. Its
integral F(n), in rows, says how many of the first n rows each source is due. The realised
counts C(n) are whole numbers with floor F <= C <= ceil F at every n, so each source stays
less than one row from the schedule at every batch boundary, whatever the batch.

That such an order exists is the chairman assignment theorem (Tijdeman 1980), and giving each
row to the due source with the earliest deadline finds one. To start at any row without
replaying the run, the rows are cut into blocks: the counts at a block's ends come from F
alone (see `_counts_at_boundary`), and the deadlines order the rows between.
"""

import dataclasses
import hashlib
import heapq
import json
import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from polylm_jax.data.languages import LANGUAGES, is_bilingual
from polylm_jax.data.permutation import key_of, permute
from polylm_jax.errors import UserError

Points = tuple[tuple[float, float], ...]
BLOCK_BITS = (12, 18)


@dataclass(frozen=True)
class Schedule:
    """What a run wants to read. Points are (tokens, value), linear in between; two points at
    the same tokens make a step; the last value holds for ever.

    non_english: share of non-English among monolingual text (paper: 0.3, then 0.6).
    weights: (tokens, {language: weight}) points for the languages of the non-English part;
        empty means the paper's stage-1 tokens (Table 2) of the languages that have rows.
    smoothing: exponent on the weights; 1 keeps them, 0 makes all languages equal.
    extras: share of all tokens that goes to other sources, {"code": points}; the key
        "bilingual" stands for all en-xx sources that have rows, in equal parts.
    on_end: what happens when a source has no unread rows left, "repeat" or "refuse".
    seed: of the order in which a source's rows are visited.
    """

    non_english: Points = ((0, 0.3),)
    weights: tuple[tuple[float, dict[str, float]], ...] = ()
    smoothing: float = 1.0
    extras: dict[str, Points] = field(default_factory=dict)
    on_end: str = "repeat"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, points in {"non_english": self.non_english, **self.extras}.items():
            if [t for t, _ in points] != sorted(t for t, _ in points) or not points:
                raise UserError(f"curriculum.{name}: give points in rising order of tokens.")
            if any(not 0 <= share <= 1 for _, share in points):
                raise UserError(f"curriculum.{name}: every share must lie between 0 and 1.")
        if self.on_end not in ("repeat", "refuse"):
            raise UserError(f'curriculum.on_end is "{self.on_end}"; choose "repeat" or "refuse".')


@dataclass(frozen=True, eq=False)
class Curriculum:
    """A schedule resolved for a store's sources and row length.

    sources: names, in the order of every array's source axis.
    rows: int64 [sources], rows that each source has.
    knots: float64 [knots], rows at which a share's slope changes; starts with 0.
    starts, ends: float64 [knots, sources], shares just after a knot and just before the next.
    due: float64 [knots, sources], integral of the shares up to each knot, in rows.
    block: rows in a block.
    """

    schedule: Schedule
    sources: tuple[str, ...]
    length: int
    rows: np.ndarray
    knots: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    due: np.ndarray
    block: int

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the order of sources and rows."""
        parts = [dataclasses.asdict(self.schedule), self.sources, self.length, self.rows.tolist()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def make_curriculum(schedule: Schedule, rows: dict[str, int], length: int) -> Curriculum:
    """Resolves a schedule for a store with these rows of each source, `length` tokens each."""
    languages = [source for source in rows if source != "en" and not is_bilingual(source)]
    languages = [source for source in languages if source not in schedule.extras]
    tables = schedule.weights or ((0, _paper_weights(languages)),)
    extras: dict[str, Points] = {}
    for name, points in schedule.extras.items():
        members = [s for s in rows if is_bilingual(s)] if name == "bilingual" else [name]
        for member in members:
            extras[member] = tuple((tokens, share / len(members)) for tokens, share in points)
        if not members:
            raise UserError(
                "curriculum.extras asks for bilingual rows but the store has none; add en-xx "
                "text or drop the entry."
            )
    named = [name for _, table in tables for name in table]
    sources = tuple(dict.fromkeys(["en", *named, *extras]))
    for source in sources:
        if not rows.get(source):
            raise UserError(
                f'the curriculum names "{source}" but the row store has no rows of it; add text '
                "and run `polylm rows` again, or take it out of curriculum.weights and extras."
            )

    def shares(tokens: float, side: str) -> np.ndarray:
        extra = {name: _value(points, tokens, side) for name, points in extras.items()}
        rest = 1 - sum(extra.values())
        if rest < -1e-9:
            raise UserError(f"curriculum.extras take more than all tokens at {tokens:,.0f} tokens.")
        non_english = _value(schedule.non_english, tokens, side) * rest
        inside = {
            name: _value(
                tuple((t, _normal(table, schedule.smoothing).get(name, 0)) for t, table in tables),
                tokens,
                side,
            )
            for name in dict.fromkeys(named)
        }
        result = {"en": rest - non_english}
        result |= {name: share * non_english for name, share in inside.items()} | extra
        return np.array([result[source] for source in sources])

    everything = [schedule.non_english, tables, *extras.values()]
    tokens_at = sorted({0.0} | {float(t) for points in everything for t, _ in points})
    knots = np.array(tokens_at) / length
    starts = np.array([shares(t, "right") for t in tokens_at])
    ends = np.array([*(shares(t, "left") for t in tokens_at[1:]), starts[-1]])
    spans = np.diff(knots)[:, None]
    due = np.vstack([np.zeros(len(sources)), np.cumsum((starts + ends)[:-1] / 2 * spans, axis=0)])
    # Every source is due at least once in half a block, so that counts at a block's ends
    # leave room for any order between.
    smallest = np.concatenate([starts, ends])
    smallest = smallest[smallest > 0].min()
    bits = int(np.clip(math.ceil(math.log2(2 / smallest)), *BLOCK_BITS))
    counts = np.array([rows[source] for source in sources], np.int64)
    return Curriculum(schedule, sources, length, counts, knots, starts, ends, due, 1 << bits)


def _paper_weights(languages: list[str]) -> dict[str, float]:
    unknown = [name for name in languages if name not in LANGUAGES]
    if unknown:
        raise UserError(
            f'the paper gives no share for "{unknown[0]}"; set curriculum.weights, for example '
            f"((0, {{'{unknown[0]}': 1.0}}),)."
        )
    return {name: LANGUAGES[name].tokens for name in languages}


def _normal(table: dict[str, float], smoothing: float) -> dict[str, float]:
    smoothed = {name: weight**smoothing for name, weight in table.items()}
    return {name: weight / sum(smoothed.values()) for name, weight in smoothed.items()}


def _value(points: Points, tokens: float, side: str) -> float:
    """Value of piecewise-linear points just before ("left") or after ("right") a place."""
    at = [t for t, _ in points]
    later = int(np.searchsorted(at, tokens, side="right" if side == "right" else "left"))
    if later == 0:
        return points[0][1]
    if later == len(points):
        return points[-1][1]
    (t0, v0), (t1, v1) = points[later - 1], points[later]
    return v0 + (v1 - v0) * (tokens - t0) / (t1 - t0)


def integral(curriculum: Curriculum, n: np.ndarray | int) -> np.ndarray:
    """Rows of each source due among the first n: float64 [..., sources]; sums to n.

    Rounded to 1e-6 rows, so that whole numbers are met exactly.
    """
    n = np.asarray(n, np.float64)
    knot = np.searchsorted(curriculum.knots, n, side="right") - 1
    past = (n - curriculum.knots[knot])[..., None]
    spans = np.append(np.diff(curriculum.knots), np.inf)[knot][..., None]
    start, end = curriculum.starts[knot], curriculum.ends[knot]
    area = past * start + (end - start) * past * (past / (2 * spans))
    return np.round(curriculum.due[knot] + area, 6)


def share(curriculum: Curriculum, n: int) -> np.ndarray:
    """Share of each source at row n: float64 [sources], sums to 1."""
    knot = int(np.searchsorted(curriculum.knots, n, side="right")) - 1
    span = np.append(np.diff(curriculum.knots), np.inf)[knot]
    along = (n - curriculum.knots[knot]) / span
    return curriculum.starts[knot] + along * (curriculum.ends[knot] - curriculum.starts[knot])


def consumed(curriculum: Curriculum, n: int) -> np.ndarray:
    """Rows of each source among the first n rows of the run: int64 [sources]; sums to n."""
    block, inside = divmod(n, curriculum.block)
    order, counts = _block(curriculum, block)
    return counts + np.bincount(order[:inside], minlength=len(counts))


def locate(curriculum: Curriculum, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows start..stop-1 of the run as (source, row of that source), both int64 [stop - start].

    The source is an index into curriculum.sources. A source's rows are visited in the order
    of a permutation keyed by seed, source and epoch; after the last one a new epoch begins,
    or UserError is raised if the schedule says "refuse".
    """
    blocks = range(start // curriculum.block, -(-stop // curriculum.block))
    order = np.concatenate([_block(curriculum, block)[0] for block in blocks] or [[]])
    first = start - blocks.start * curriculum.block
    order = order[first : first + stop - start].astype(np.int64)
    visits = np.empty(len(order), np.int64)
    for source, seen in enumerate(consumed(curriculum, start)):
        mine = order == source
        visits[mine] = visited(curriculum, source, seen + np.arange(mine.sum()))
    return order, visits


def visited(curriculum: Curriculum, source: int, visits: np.ndarray) -> np.ndarray:
    """Rows of a source at these visits, counted from the start of the run."""
    count, name = int(curriculum.rows[source]), curriculum.sources[source]
    epochs, places = np.divmod(visits, count)
    if curriculum.schedule.on_end == "refuse" and epochs.any():
        raise UserError(
            f'all {count:,} rows of "{name}" have been read; add text, give it a smaller share, '
            'or set curriculum.on_end = "repeat".'
        )
    rows = np.empty_like(places)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        key = key_of(curriculum.schedule.seed, name, int(epoch))
        rows[mine] = permute(places[mine], count, key)
    return rows


def _counts_at_boundary(curriculum: Curriculum, boundary: int) -> np.ndarray:
    """Counts at a block boundary, from F alone: floor F, plus one for some of the sources.

    The units beyond the floors go to the sources with the earliest deadlines, as far as they
    could have been read by now: at every earlier row x, no more units may have become due
    since than rows have passed. The result is a state that an earliest-deadline order can
    both reach and go on from.
    """
    if boundary == 0:
        return np.zeros(len(curriculum.sources), np.int64)
    window = curriculum.block
    past = integral(curriculum, np.arange(boundary - window, boundary + 1))
    future = integral(curriculum, np.arange(boundary, boundary + window + 1))
    due = past[-1]
    counts = np.floor(due).astype(np.int64)
    left = boundary - counts.sum()
    owed = np.maximum(0, counts - np.ceil(past[:-1]))
    slack = window - np.arange(window) - owed.sum(axis=1)
    released = (past <= counts).sum(axis=0) - 1
    deadline = (future < counts + 1).sum(axis=0)
    slow = (due - past[0] < 1) & (due > counts)
    # A source so rare that one unit spans a block changes at the half, at every boundary alike.
    certain = np.flatnonzero(slow & (due - counts >= 0.5))
    open_ = np.flatnonzero(~slow & (due > counts))
    open_ = open_[np.lexsort((open_, -future[-1][open_], deadline[open_]))]
    for source in [*certain, *open_]:
        reach = slack[: released[source] + 1] if released[source] >= 0 else slack[:1]
        if left == 0:
            break
        if reach.min() >= 1 or source in certain:
            reach -= 1
            counts[source] += 1
            left -= 1
    assert left == 0, f"no counts at row {boundary}"
    return counts


@lru_cache(maxsize=16)
def _block(curriculum: Curriculum, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(source of each row of a block: int16 [block], counts before it: int64 [sources])."""
    size, first = curriculum.block, block * curriculum.block
    before = _counts_at_boundary(curriculum, first)
    after = _counts_at_boundary(curriculum, first + size)
    due = integral(curriculum, np.arange(first, first + size + 1))
    waiting = []
    for source in range(len(before)):
        units = np.arange(before[source], after[source])
        released = np.maximum(np.searchsorted(due[:, source], units, side="right") - 1, 0)
        deadline = np.searchsorted(due[:, source], units + 1, side="left") - 1
        waiting += [
            (r, d, source) for r, d in zip(released.tolist(), deadline.tolist(), strict=True)
        ]
    waiting.sort(reverse=True)
    ready: list[tuple[int, int]] = []
    order = np.empty(size, np.int16)
    for row in range(size):
        while waiting and waiting[-1][0] <= row:
            _, deadline, source = waiting.pop()
            heapq.heappush(ready, (deadline, source))
        order[row] = heapq.heappop(ready)[1]
    return order, before
