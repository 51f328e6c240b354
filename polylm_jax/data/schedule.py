"""What a run wants to read, and the same resolved for a store: shares of sources over rows.

A schedule gives each source a share of the tokens at every moment. Which source each row comes
from then is in `curriculum`.
"""

import dataclasses
import hashlib
import itertools
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import numpy as np

from polylm_jax.data.languages import CODE, LANGUAGES, NON_ENGLISH, is_bilingual
from polylm_jax.errors import UserError
from polylm_jax.ranges import OneOf, Range, Seed, Share, check

Tokens = Annotated[float, Range(0, 1e18)]
Weight = Annotated[float, Range(0, 1e30)]
Points = tuple[tuple[Tokens, Share], ...]
HORIZON = 1 << 40  # rows after which a run has no order


@dataclass(frozen=True)
class Schedule:
    """What a run wants to read. Points are (tokens, value), linear in between; two points at
    the same tokens make a step; the last value holds for ever. Where several curves bend, each
    source's share of all tokens is what is linear from one point of any curve to the next.

    non_english: share of non-English among monolingual text (paper: 0.3, then 0.6); 1 where
        there is no English.
    weights: (tokens, {language: weight}) points for the languages of the non-English part;
        empty means the paper's stage-1 tokens (Table 2) of the languages that have rows.
    smoothing: exponent on the weights above 0; 1 keeps them, 0 makes all languages equal.
    extras: share of all tokens that goes to other sources, {"code": points}; the key
        "bilingual" stands for all other pairs of languages that have rows, in equal parts.
    on_end: what happens when a source has no unread rows left, "repeat" or "refuse".
    seed: of the order in which a source's rows are visited.
    """

    non_english: Points = ((0, 0.3),)
    weights: tuple[tuple[Tokens, dict[str, Weight]], ...] = ()
    smoothing: Annotated[float, Range(0, 10)] = 1.0
    extras: dict[str, Points] = field(default_factory=dict)
    on_end: Annotated[str, OneOf("repeat", "refuse")] = "repeat"
    seed: Seed = 0

    def __post_init__(self) -> None:
        check(self, "curriculum")
        curves = {"non_english": self.non_english}
        curves |= {f'extras["{name}"]': points for name, points in self.extras.items()}
        for name, points in curves.items():
            _check_order(name, [tokens for tokens, _ in points])
        if self.weights:
            _check_order("weights", [tokens for tokens, _ in self.weights])
        for _, table in self.weights:
            if not sum(weight**self.smoothing for weight in table.values() if weight) > 0:
                raise UserError("curriculum.weights: every table needs one above 0.")
            if misplaced := [name for name in table if name == "en" or name in self.extras]:
                raise UserError(
                    f'curriculum.weights names "{misplaced[0]}", whose share is set by '
                    "curriculum.non_english or extras; take it out of one of them."
                )
        if "en" in self.extras:
            raise UserError("curriculum.extras: English is what is left; take out the entry.")


def _check_order(name: str, tokens: list[float]) -> None:
    if not tokens or tokens != sorted(tokens):
        raise UserError(f"curriculum.{name}: give points in rising order of tokens, from 0 on.")


@dataclass(frozen=True, eq=False)
class Curriculum:
    """A schedule resolved for a store's sources and row length.

    sources: names, in the order of every array's source axis.
    rows: int64 [sources], rows that each source has.
    knots: float64 [knots], rows at which a share's slope changes, from 0 to past the HORIZON.
    starts, ends: float64 [knots - 1, sources], shares just after a knot and before the next.
    due: float64 [knots, sources], integral of the shares up to each knot, in rows.
    past: what was read before, where this one only holds from a row on, which is row 0 of its
        knots; None where it holds from the run's first row.
    """

    schedule: Schedule
    sources: tuple[str, ...]
    length: int
    rows: np.ndarray
    knots: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    due: np.ndarray
    past: "Past | None" = None

    @property
    def first(self) -> int:
        """The row of the run from which on this holds."""
        return self.past.row if self.past else 0

    @cached_property
    def bends(self) -> np.ndarray:
        """Whether any share changes between a knot and the next: bool [knots - 1]."""
        return (self.starts != self.ends).any(axis=1)

    @cached_property
    def pieces(self) -> tuple[np.ndarray, ...]:
        """The integral's parts between two knots, float64 [(knots - 1) * sources] each: least
        share, its rise, its fall, rows due at the first knot and at the second."""
        slope = self.ends - self.starts
        least, rise, fall = (
            np.minimum(self.starts, self.ends),
            np.maximum(slope, 0),
            np.maximum(-slope, 0),
        )
        return tuple(part.ravel() for part in (least, rise, fall, self.due[:-1], self.due[1:]))

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the order of sources and rows."""
        parts = [dataclasses.asdict(self.schedule), self.sources, self.length, self.rows.tolist()]
        if self.past:
            kept = np.stack([self.past.grown, self.past.rest, self.past.epochs]).tolist()
            parts += [self.past.former.fingerprint(), self.past.row, kept]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def with_end(self, on_end: str) -> "Curriculum":
        """The same order of rows with another end: what a run may change and go on."""
        return dataclasses.replace(self, schedule=dataclasses.replace(self.schedule, on_end=on_end))


@dataclass(frozen=True, eq=False)
class Past:
    """What a curriculum goes on from. All arrays are int64 [sources], of the later curriculum.

    former: the curriculum of the rows before. row: of the run, the first of the later one.
    index: of each source in the former, -1 where it was not there.
    read: rows read before. units: how many of them in the time of the former alone.
    rest: rows of the epoch under way that are still to be read first. grown: how many of them
        the former did not have. epochs: whole epochs and the one under way.
    """

    former: Curriculum
    row: int
    index: np.ndarray
    read: np.ndarray
    units: np.ndarray
    rest: np.ndarray
    grown: np.ndarray
    epochs: np.ndarray


def make_curriculum(
    schedule: Schedule,
    rows: dict[str, int],
    length: int,
    first: int = 0,
    kept: tuple[str, ...] = (),
) -> Curriculum:
    """Resolves a schedule for a store with these rows of each source, `length` tokens each.

    first: row of the run from which on it holds; what the schedule says of earlier ones is passed
    over. kept: sources that have a place whether or not they have rows or a share.
    A source without rows is left out where its share is 0 throughout. UserError where it is
    not, or where the extras take more than there is.
    """
    tables = schedule.weights or ((0, _paper_weights(schedule, rows)),)
    extras: dict[str, Points] = {}
    for name, points in schedule.extras.items():
        members = [name]
        if name == "bilingual":
            members = [s for s in rows if rows[s] and is_bilingual(s) and s not in schedule.extras]
        for member in members:
            extras[member] = tuple((tokens, share / len(members)) for tokens, share in points)
        if not members and any(share for _, share in points):
            raise UserError(
                "curriculum.extras asks for bilingual rows but the store has none; add text in "
                "pairs such as en-de or take the entry out of curriculum.extras."
            )
    named = list(dict.fromkeys(name for _, table in tables for name in table))
    sources = tuple(dict.fromkeys(("en", *named, *extras, *kept)))

    def shares(tokens: float, side: str) -> np.ndarray:
        extra = {name: _value(points, tokens, side) for name, points in extras.items()}
        rest = 1 - sum(extra.values())
        if rest < -1e-9:
            raise UserError(f"curriculum.extras take more than all tokens at {tokens:,.0f} tokens.")
        rest = max(rest, 0.0)
        non_english = _value(schedule.non_english, tokens, side) * rest
        inside = {
            name: _value(
                tuple((t, _normal(table, schedule.smoothing).get(name, 0)) for t, table in tables),
                tokens,
                side,
            )
            for name in named
        }
        result = {"en": rest - non_english}
        result |= {name: share * non_english for name, share in inside.items()} | extra
        return np.array([result.get(source, 0.0) for source in sources])

    everything = [schedule.non_english, tables, *extras.values()]
    begin = float(first * length)
    points_at = {float(t) for points in everything for t, _ in points}
    tokens_at = [begin, *sorted(t for t in points_at if t > begin)]
    at = (np.array(tokens_at) - begin) / length
    knots = np.append(at, max(HORIZON, at[-1]) + 1)
    starts = np.array([shares(t, "right") for t in tokens_at])
    ends = np.array([*(shares(t, "left") for t in tokens_at[1:]), starts[-1]])
    asked = starts.any(axis=0) | ends.any(axis=0)
    there = np.array([rows.get(source, 0) > 0 for source in sources])
    if (asked & ~there).any():
        raise _without_rows(sources[int((asked & ~there).argmax())], rows)
    there |= np.isin(sources, kept)
    sources = tuple(itertools.compress(sources, there))
    starts, ends = starts[:, there], ends[:, there]
    area = (starts + ends) / 2 * np.diff(knots)[:, None]
    due = np.vstack([np.zeros(len(sources)), np.cumsum(area, axis=0)])
    counts = np.array([rows.get(source, 0) for source in sources], np.int64)
    return Curriculum(schedule, sources, length, counts, knots, starts, ends, due)


def _without_rows(source: str, rows: dict[str, int]) -> UserError:
    """The refusal of a share for a source that the store has no rows of."""
    least = "add text and run `polylm rows` again (it tells which sources fill no row)"
    if source == "en":
        mend = "or set curriculum.non_english = ((0, 1.0),), which is all without English."
    else:
        mend = (
            "or take it out of curriculum.weights or extras "
            '(--gin.curriculum.extras="{}" takes out all extras).'
        )
    return UserError(
        f'the curriculum gives "{source}" a share but the row store has no rows of it, only of '
        f"{', '.join(name for name in rows if rows[name]) or 'nothing'}; {least}, {mend}"
    )


def every_source(schedule: Schedule) -> tuple[str, ...]:
    """Sources of a store that has all that the schedule may name, in all 18 languages."""
    named = [name for _, table in schedule.weights for name in table]
    extras = [name for name in schedule.extras if name != "bilingual"]
    pairs = [f"en-{code}" for code in NON_ENGLISH if "bilingual" in schedule.extras]
    return tuple(dict.fromkeys([*LANGUAGES, *named, *extras, *pairs]))


def _paper_weights(schedule: Schedule, rows: dict[str, int]) -> dict[str, float]:
    """Table 2's tokens of the store's languages but English; 1 each if all are equal or one."""
    others = {"en", CODE, *schedule.extras}
    languages = [
        name for name in rows if rows[name] and name not in others and not is_bilingual(name)
    ]
    foreign = any(share for _, share in schedule.non_english)
    if not languages and foreign:
        raise UserError(
            "the row store has no language but English; add text in other languages or set "
            "curriculum.non_english = ((0, 0),)."
        )
    if schedule.smoothing == 0 or not foreign or len(languages) == 1:
        return dict.fromkeys(languages, 1.0)
    unknown = [name for name in languages if name not in LANGUAGES]
    if unknown:
        raise UserError(
            f"the paper gives no share for {', '.join(unknown)}; set curriculum.smoothing = 0, "
            "which makes all languages equal, or curriculum.weights = "
            f"((0, {dict.fromkeys(languages, 1.0)}),) with the weights that you want."
        )
    return {name: LANGUAGES[name].tokens for name in languages}


def _normal(table: dict[str, float], smoothing: float) -> dict[str, float]:
    smoothed = {name: weight**smoothing for name, weight in table.items() if weight}
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
