"""A curriculum that goes on from another: exact from the change on, and no row read too early."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polylm_jax.data.continued import continued
from polylm_jax.data.curriculum import (
    BLOCK,
    OutOfRows,
    consumed,
    integral,
    locate,
    rows_until_out,
    share,
)
from polylm_jax.data.schedule import Schedule, make_curriculum
from polylm_jax.errors import UserError

LENGTH = 4
ONE = Schedule(non_english=((0, 0.3),), weights=((0, {"de": 2.0, "th": 1.0}),))
# the paper's second stage: more of what is not English, from 100 rows on, and code besides
TWO = replace(
    ONE,
    non_english=((0, 0.3), (100 * LENGTH, 0.3), (150 * LENGTH, 0.6)),
    extras={"code": ((0, 0.0), (100 * LENGTH, 0.0), (100 * LENGTH, 0.1))},
)
ROWS = {"en": 90, "de": 31, "th": 17}
MORE = {"en": 120, "de": 31, "th": 40, "code": 25}


def by_source(plan, stop):
    """The rows of each source in the order in which they are read."""
    source, row = locate(plan, 0, stop)
    return {name: row[source == at].tolist() for at, name in enumerate(plan.sources)}


def simulated(reads, former_order, had, have):
    """Rows of a source after a change, as sets: what completes the epoch under way."""
    under_way = reads % had
    rest = set(former_order[reads : reads + had - under_way]) if under_way else set()
    return rest | set(range(had, have)) if reads else set()


def test_before_the_change_all_is_as_it_was():
    former = make_curriculum(ONE, ROWS, LENGTH)
    plan = continued(former, TWO, MORE, 110, ROWS)
    for start, stop in ((0, 110), (3, 60), (100, 240)):
        source, row = locate(plan, start, stop)
        names = np.array(plan.sources)[source]
        old, rows = locate(former, start, min(stop, 110))
        assert names[: len(old)].tolist() == np.array(former.sources)[old].tolist()
        assert row[: len(old)].tolist() == rows.tolist()
        whole = locate(plan, 0, 240)
        assert (source == whole[0][start:stop]).all()
        assert (row == whole[1][start:stop]).all()
    assert consumed(plan, 50)[plan.sources.index("code")] == 0
    assert consumed(plan, 50).sum() == 50
    assert integral(plan, 50).sum() == pytest.approx(50)
    assert share(plan, 50).sum() == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), st.integers(0, 200))
def test_from_the_change_on_each_source_keeps_to_the_new_schedule(first, more):
    """The second stage, decided late: shares are those of a run that had it from the start."""
    former = make_curriculum(ONE, ROWS, LENGTH)
    plan = continued(former, TWO, MORE, first, ROWS)
    asked = make_curriculum(TWO, MORE, LENGTH)
    place = [asked.sources.index(name) for name in plan.sources]
    n = first + more
    new = (integral(asked, n) - integral(asked, first))[place]
    due = integral(plan, np.arange(n, n + 9))
    np.testing.assert_allclose(due[0], consumed(plan, first) + new, atol=4e-6)
    np.testing.assert_allclose(share(plan, n), share(asked, n)[place], atol=1e-9)
    counts = np.array([consumed(plan, row) for row in range(n, n + 9)])
    assert np.abs(counts - due).max() < 1
    assert (counts.sum(axis=1) == np.arange(n, n + 9)).all()
    assert (np.diff(counts, axis=0) >= 0).all()


@pytest.mark.parametrize("first", [0, 1, 40, 110, 400, 1000])
def test_no_row_is_read_again_before_all_that_are_new(first):
    former = make_curriculum(ONE, ROWS, LENGTH)
    plan = continued(former, TWO, MORE, first, ROWS)
    stop = first + 1500
    before, order = by_source(former, first + 500), by_source(plan, stop)
    for name, had in ROWS.items():
        reads = int(consumed(former, first)[former.sources.index(name)])
        later, have = order[name][reads:], MORE[name]
        rest = simulated(reads, before[name], had, have)
        if had == have:  # nothing new: the same order as if nothing had happened
            assert later[:40] == by_source(former, 5000)[name][reads : reads + 40]
        assert set(later[: len(rest)]) == rest
        assert len(later) > len(rest) + have
        whole = later[len(rest) : len(rest) + have]
        assert sorted(whole) == list(range(have))
    assert sorted(order["code"][:25]) == list(range(25))


def test_new_rows_are_mixed_with_those_that_are_left():
    former = make_curriculum(ONE, {"en": 4000, "de": 500, "th": 500}, LENGTH)
    plan = continued(former, ONE, {"en": 8000, "de": 500, "th": 500}, 3000, {"en"})
    reads = int(consumed(former, 3000)[0])
    later = np.array(by_source(plan, 12000)["en"][reads:])[: 8000 - reads]
    new = later[:2000] >= 4000
    assert new.mean() == pytest.approx(4000 / (8000 - reads), abs=0.05)


def test_changes_follow_one_another_and_nothing_is_forgotten():
    first = make_curriculum(TWO, MORE, LENGTH)
    without = continued(first, ONE, MORE, 300, MORE)
    grown = {name: count + 20 for name, count in MORE.items()}
    plan = continued(without, TWO, grown, 330, MORE)
    code = by_source(plan, 2000)["code"]
    reads = int(consumed(first, 300)[first.sources.index("code")])
    assert 5 < reads < 25  # it was under way, is left out for a while, and goes on
    assert consumed(plan, 330)[plan.sources.index("code")] == reads
    assert sorted(code[:45]) == list(range(45))
    other = continued(without, TWO, grown, 331, MORE)
    assert len({p.fingerprint() for p in (first, without, plan, other)}) == 4


def test_other_rows_begin_anew_and_a_source_that_is_no_more_keeps_its_count():
    former = make_curriculum(ONE, ROWS, LENGTH)
    english = replace(ONE, weights=((0, {"de": 1.0}),))
    plan = continued(former, english, {"en": 80, "de": 40}, 110, {"en"})
    reads = consumed(former, 110)
    later = by_source(plan, 700)
    for name, have in (("en", 80), ("de", 40)):  # shrunk, and another text
        at = reads[former.sources.index(name)]
        assert sorted(later[name][at : at + have]) == list(range(have))
    thai = plan.sources.index("th")
    assert consumed(plan, 700)[thai] == reads[former.sources.index("th")]
    assert consumed(plan, 700).sum() == 700
    with pytest.raises(UserError, match='gives "th" a share'):
        continued(former, ONE, {"en": 80, "de": 40}, 110, {"en"})


@pytest.mark.parametrize("first", [0, 40, 110])
@pytest.mark.parametrize("most", [20, 100, 5 * BLOCK])
def test_where_a_continued_run_must_stop_is_known_before(first, most):
    former = make_curriculum(ONE, ROWS, LENGTH)
    plan = continued(former, replace(TWO, on_end="refuse"), MORE, first, ROWS)
    last, error = rows_until_out(plan, most)
    assert len(locate(plan, first, max(last, first))[0]) == max(last - first, 0)
    if last < most:
        with pytest.raises(OutOfRows) as raised:
            locate(plan, last, last + 1)
        assert str(raised.value) == str(error)
    else:
        assert error is None
