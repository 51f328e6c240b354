"""A curriculum that goes on from another: from a row of the run on, another schedule or more rows.

The run's order of rows stays a function of the row number and of the schedules so far. Up to row r
it is the former one's, to the bit. From r on each source is due what was read of it before and
the integral of its new shares since r, as the new schedule has them at the run's tokens; so the
counts since r are those of a curriculum of its own that begins there, and they too stay less than
one row from what is due. Two roundings are not added up: what was read before is a whole number.

Which row of its source comes next follows from how many were read:
- where the rows are as they were, the epoch under way goes on in its order, and whole epochs
  follow;
- where they only grew, which means that the old ones are still the first, the epoch under way is
  completed with what it has not read and with what is new, mixed by a permutation of its own; so
  no row is read again before all have been, and the new text is spread as the old one is;
- where they are others, the source begins anew.
An order within the rest of an epoch leads back to the former's, and so through all changes; that
costs one permutation for each. Nothing is kept for it but the schedules and the numbers of rows.
"""

import dataclasses
from collections.abc import Collection

import numpy as np

from polylm_jax.data.curriculum import consumed
from polylm_jax.data.schedule import Curriculum, Past, Schedule, make_curriculum


def continued(
    former: Curriculum, schedule: Schedule, rows: dict[str, int], row: int, same: Collection[str]
) -> Curriculum:
    """The former curriculum up to a row of the run, and from there on this schedule.

    rows: of each source from there on. same: the sources whose first rows are the former's.
    UserError as of make_curriculum, of which only what is asked for after the row counts.
    """
    plan = make_curriculum(schedule, rows, former.length, row, former.sources)
    index = np.array([_place(former, source) for source in plan.sources])
    new = index < 0

    def of_former(numbers: np.ndarray) -> np.ndarray:
        return np.where(new, 0, numbers[index])

    read = consumed(former, row)
    units = read - (former.past.read if former.past else 0)
    had, since = of_former(former.rows), of_former(units)
    rest, before = np.zeros_like(since), np.zeros_like(since)
    if former.past:
        rest, before = of_former(former.past.rest), of_former(former.past.epochs)
    over = np.maximum(since - rest, 0)
    ended, place = np.divmod(over, np.maximum(had, 1))
    left = np.where(since < rest, rest - since, np.where(place > 0, had - place, 0))
    begun = before + ended + ((since >= rest) & (place > 0))
    grown = plan.rows - had
    goes_on = ~new & (grown >= 0) & np.isin(plan.sources, list(same)) & (begun > 0)
    past = Past(
        former,
        row,
        index,
        of_former(read),
        since,
        rest=np.where(goes_on, left + grown, 0),
        grown=np.where(goes_on, grown, 0),
        epochs=np.where(goes_on, begun, 0),
    )
    return dataclasses.replace(plan, past=past)


def _place(former: Curriculum, source: str) -> int:
    return former.sources.index(source) if source in former.sources else -1
