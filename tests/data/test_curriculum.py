"""The curriculum against exact fractions, from any place, whatever the schedule."""

import itertools
import tracemalloc
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polylm_jax import config
from polylm_jax.__main__ import main
from polylm_jax.data import curriculum as room
from polylm_jax.data.curriculum import (
    BLOCK,
    OutOfRows,
    consumed,
    epochs,
    integral,
    locate,
    rows_until_out,
    share,
)
from polylm_jax.data.languages import LANGUAGES, NON_ENGLISH
from polylm_jax.data.schedule import HORIZON, Schedule, every_source, make_curriculum
from polylm_jax.errors import UserError
from tests.conftest import gin_flags

LENGTH = 4


def forget():
    room._block.cache_clear()
    room._boundary.cache_clear()


def make(schedule, rows=1000):
    return make_curriculum(schedule, dict.fromkeys(every_source(schedule), rows), LENGTH)


def value(points, tokens, after):
    """Exact value of piecewise-linear points just before or just after a place."""
    earlier = [point for point in points if point[0] <= tokens and (after or point[0] < tokens)]
    later = points[len(earlier) :]
    if not earlier or not later:
        return Fraction((earlier[-1] if earlier else points[0])[1])
    (t0, v0), (t1, v1) = earlier[-1], later[0]
    along = (Fraction(tokens) - Fraction(t0)) / (Fraction(t1) - Fraction(t0))
    return Fraction(v0) + along * (Fraction(v1) - Fraction(v0))


def exact(schedule, source, n):
    """F of one source at row n, in fractions, straight from what a Schedule says."""
    tables = [
        (t, {name: Fraction(w) / sum(map(Fraction, table.values())) for name, w in table.items()})
        for t, table in schedule.weights
    ]
    curves = [schedule.non_english, tables, *schedule.extras.values()]
    end = Fraction(n * LENGTH)
    bends = sorted({0, *(Fraction(t) for points in curves for t, _ in points)} | {HORIZON**2})

    def share_at(tokens, after):
        extra = {name: value(points, tokens, after) for name, points in schedule.extras.items()}
        if source in extra:
            return extra[source]
        rest = 1 - sum(extra.values())
        foreign = value(schedule.non_english, tokens, after) * rest
        if source == "en":
            return rest - foreign
        return foreign * value([(t, table.get(source, 0)) for t, table in tables], tokens, after)

    total = Fraction(0)
    for low, high in itertools.pairwise(bends):
        if low < end:
            past = min(high, end) - low
            first, last = share_at(low, True), share_at(high, False)
            total += past * first + (last - first) * past**2 / (2 * (high - low))
    return total / LENGTH


@st.composite
def schedules(draw):
    """Steps, ramps, shares of 0 at either end, languages that begin, rest or stop, rare ones."""
    names = [f"l{number}" for number in range(draw(st.integers(1, 38)))]
    tokens = 10 ** draw(st.floats(2, 9)) * LENGTH
    times = st.one_of(st.just(0.0), st.floats(0, 1).map(lambda part: part * tokens))
    shares = st.one_of(st.sampled_from([0.0, 1.0, 1e-5]), st.floats(1e-5, 1))
    weight = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-5, 0).map(lambda power: 10**power))

    def points(values):
        pairs = draw(st.lists(st.tuples(times, values), min_size=1, max_size=4))
        return tuple(sorted(pairs, key=lambda pair: pair[0]))

    table = st.lists(weight, min_size=len(names), max_size=len(names)).map(
        lambda weights: dict(zip(names, [1.0, *weights[1:]], strict=True))
    )
    extras = {"code": points(shares.map(lambda share: share / 4))} if draw(st.booleans()) else {}
    return Schedule(non_english=points(shares), weights=points(table), extras=extras), tokens


@settings(derandomize=True, deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(schedules(), st.floats(0, 1))
def test_every_source_is_within_a_row_of_any_schedule_at_every_row(drawn, somewhere):
    schedule, tokens = drawn
    plan = make(schedule)
    last = int(tokens / LENGTH)
    for row in (0, int(somewhere * last), last):
        first = row // BLOCK * BLOCK
        order, before = locate(plan, first, first + BLOCK)[0], consumed(plan, first)
        steps = np.eye(len(plan.sources), dtype=np.int64)[order]
        counts = before + np.vstack([0 * before, np.cumsum(steps, axis=0)])
        rows = first + np.arange(BLOCK + 1)
        assert (counts.sum(axis=1) == rows).all()
        assert (counts[-1] == consumed(plan, first + BLOCK)).all()
        assert np.abs(counts - integral(plan, rows)).max() < 1
        for place in {0, row - first, BLOCK}:
            index = (place * 7 + last) % len(plan.sources)
            due = exact(schedule, plan.sources[index], first + place)
            assert abs(counts[place, index] - due) < 1
            assert abs(float(due) - integral(plan, first + place)[index]) < 2e-6


def test_counts_never_fall_between_places_far_apart():
    schedule = Schedule(non_english=((0, 0), (4e6, 1e-5), (8e9, 0.5), (8e9, 0)))
    plan = make(schedule)
    places = np.unique(np.geomspace(1, 4e9, 150).astype(np.int64))
    counts = np.array([consumed(plan, int(place)) for place in places])
    assert (np.diff(counts, axis=0) >= 0).all()
    assert np.abs(counts - integral(plan, places)).max() < 1
    assert (counts[places > 2e9] == counts[places > 2e9][0])[:, 1:].all()


def test_sources_too_rare_for_a_block_that_come_due_together():
    """All 38 pass one half at the same row: not all can be rounded up there."""
    weights = {f"l{number}": 1.0 for number in range(38)}
    plan = make(Schedule(non_english=((0, 38e-5),), weights=((0, weights),)))
    for row in (49_990, 50_000, 99_999, 100_000, 50_050_000, 950_000_001):
        assert np.abs(consumed(plan, row) - integral(plan, row)).max() < 1
        assert consumed(plan, row).sum() == row


def test_a_run_of_more_rows_than_the_horizon_is_refused():
    plan = make(Schedule())
    assert consumed(plan, HORIZON).sum() == HORIZON
    with pytest.raises(UserError, match=r"lower train\.steps"):
        consumed(plan, 2 * HORIZON)


@pytest.fixture(scope="module")
def realistic():
    """20 sources with shares from 1e-5 to 0.7, and a ramp."""
    names = [f"l{number}" for number in range(19)]
    weights = dict(zip(names, np.geomspace(3e-5, 0.5, 19).tolist(), strict=True))
    ramp = ((0, 0.3), (LENGTH * 1e8, 0.3), (LENGTH * 5e8, 0.6))
    return make(Schedule(non_english=ramp, weights=((0, weights),)), rows=100_000)


def test_a_row_is_the_same_however_the_range_is_cut_and_whatever_is_asked_first(realistic):
    random, first, rows = np.random.default_rng(0), 300_000_000, 3 * BLOCK
    whole = locate(realistic, first, first + rows)
    for size in (1, 7, 512, 5000):
        cuts = sorted({0, rows, *random.integers(0, rows, rows // size // 10 + 1).tolist()})
        spans = list(itertools.pairwise(cuts))
        random.shuffle(spans)
        forget()
        for low, high in spans[:40]:
            for part, all_rows in zip(
                locate(realistic, first + low, first + high), whole, strict=True
            ):
                np.testing.assert_array_equal(part, all_rows[low:high])


def test_a_new_process_finds_the_same_rows():
    """The order is a promise to runs that go on, so a change of it must be seen."""
    names = dict(zip(("zh", "de", "ko"), (0.9, 0.09, 0.01), strict=True))
    plan = make(Schedule(non_english=((0, 0.3), (1e9, 0.6)), weights=((0, names),)))
    sources, rows = locate(plan, 100_000_000, 100_000_012)
    assert sources.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1]
    assert rows.tolist() == [382, 254, 371, 775, 348, 230, 387, 575, 604, 385, 315, 757]


def test_to_start_anywhere_touches_as_little_as_to_start_at_the_beginning(realistic):
    peaks = []
    for row in (1000, 10**6, 3 * 10**8, 10**9):
        forget()
        tracemalloc.start()
        locate(realistic, row, row + 64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert room._boundary.cache_info().misses <= HORIZON.bit_length() + 1
        assert room._block.cache_info().misses == 1
    assert max(peaks) < 10e6
    assert max(peaks) < 1.2 * min(peaks)


def test_an_epoch_visits_every_row_once_and_the_next_in_another_order():
    plan = make(Schedule(non_english=((0, 0.5),), weights=((0, {"de": 1.0}),)), rows=50)
    sources, rows = locate(plan, 0, 400)
    german = rows[sources == 1]
    first, second = german[:50], german[50:100]
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).any()
    np.testing.assert_allclose(epochs(plan, 400), [4, 4], atol=0.02)
    assert epochs(plan, 0).tolist() == [0, 0]


def test_a_run_that_must_not_repeat_stops_where_a_source_runs_out():
    schedule = Schedule(non_english=((0, 0.5),), weights=((0, {"de": 1.0}),), on_end="refuse")
    plan = make_curriculum(schedule, {"en": 1000, "de": 50}, LENGTH)
    last = next(n for n in itertools.count() if consumed(plan, n)[1] == 50)
    assert len(locate(plan, 0, last)[0]) == last
    with pytest.raises(UserError, match='all 50 rows of "de" have been read'):
        locate(plan, 0, last + 2)


@pytest.mark.parametrize("most", [3, 60, 5 * BLOCK + 7])
@pytest.mark.parametrize("rows", [{"en": 40, "de": 7}, {"en": 10**6, "de": 3 * BLOCK // 2 + 5}])
def test_where_a_run_must_stop_is_known_before_it_starts(rows, most):
    schedule = Schedule(non_english=((0, 0.3), (LENGTH * 50, 0.6)), weights=((0, {"de": 1.0}),))
    plan = make_curriculum(replace(schedule, on_end="refuse"), rows, LENGTH)
    last, error = rows_until_out(plan, most)
    assert len(locate(plan, 0, last)[0]) == last
    if last < most:
        with pytest.raises(OutOfRows) as raised:
            locate(plan, last, last + 1)
        assert str(raised.value) == str(error)
    else:
        assert error is None
    assert rows_until_out(make_curriculum(schedule, rows, LENGTH), most) == (most, None)
    # a run may change its mind: the rows before are the same
    assert (
        plan.with_end("repeat").fingerprint()
        == make_curriculum(schedule, rows, LENGTH).fingerprint()
    )


def test_the_fingerprint_is_of_schedule_seed_and_rows():
    schedule = Schedule(weights=((0, {"de": 1.0}),))
    rows = {"en": 10, "de": 10}
    same = make_curriculum(schedule, dict(rows), LENGTH).fingerprint()
    assert same == make_curriculum(replace(schedule), rows, LENGTH).fingerprint()
    others = [
        make_curriculum(replace(schedule, seed=1), rows, LENGTH),
        make_curriculum(replace(schedule, non_english=((0, 0.31),)), rows, LENGTH),
        make_curriculum(replace(schedule, on_end="refuse"), rows, LENGTH),
        make_curriculum(schedule, rows | {"de": 11}, LENGTH),
        make_curriculum(schedule, rows, LENGTH + 1),
    ]
    assert len({same, *(other.fingerprint() for other in others)}) == 6


def test_another_seed_changes_the_rows_but_not_their_sources():
    one, two = (make(Schedule(seed=seed)) for seed in (0, 1))
    (sources, rows), (same, others) = locate(one, 0, 500), locate(two, 0, 500)
    assert (sources == same).all()
    assert (rows != others).any()


def test_shares_are_what_the_schedule_says():
    schedule = Schedule(
        non_english=((0, 0.3), (4000, 0.3), (8000, 0.6)),
        extras={"code": ((0, 0.0), (4000, 0.0), (4000, 0.1)), "bilingual": ((0, 0.2),)},
    )
    plan = make_curriculum(
        schedule, dict.fromkeys(["en", "zh", "ko", "code", "en-de", "en-fr"], 9), 4
    )
    shares = dict(zip(plan.sources, share(plan, 0), strict=True))
    assert shares["en"] == pytest.approx(0.7 * 0.8)
    assert shares["zh"] == pytest.approx(0.3 * 0.8 * 139.29 / (139.29 + 0.84))
    assert (shares["code"], shares["en-de"], shares["en-fr"]) == (0, 0.1, 0.1)
    assert dict(zip(plan.sources, share(plan, 1500), strict=True))["en"] == pytest.approx(
        0.55 * 0.7
    )
    assert share(plan, 10**9).sum() == pytest.approx(1)


@pytest.mark.parametrize(("smoothing", "ratio"), [(1.0, 100), (0.5, 10), (0.0, 1)])
def test_smoothing_draws_shares_together_but_leaves_out_what_has_none(smoothing, ratio):
    table = {"zh": 100.0, "ko": 1.0, "he": 0.0}
    plan = make(Schedule(weights=((0, table),), smoothing=smoothing))
    shares = dict(zip(plan.sources, share(plan, 0), strict=True))
    assert shares["zh"] / shares["ko"] == pytest.approx(ratio)
    assert shares["he"] == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"non_english": ()}, "curriculum.non_english: give points in rising order"),
        ({"non_english": ((5, 0.1), (0, 0.2))}, "curriculum.non_english: give points"),
        ({"non_english": ((-5, 0.1),)}, "non_english.0..0. = -5; it must lie between 0"),
        ({"non_english": ((0, 1.1),)}, "between 0 and 1"),
        ({"extras": {"code": ((0, -0.1),)}}, "curriculum.extras.'code'..0..1. = -0.1; it"),
        ({"extras": {"en": ((0, 0.1),)}}, "English is what is left"),
        ({"weights": ((5, {"de": 1.0}), (0, {"de": 1.0}))}, "curriculum.weights: give points"),
        ({"weights": ((0, {"de": 0.0}),)}, "one above 0"),
        ({"weights": ((0, {"de": -1.0, "fr": 2.0}),)}, "'de'. = -1.0; it must lie between 0"),
        ({"weights": ((0, {"de": 1e-300}),), "smoothing": 2.0}, "one above 0"),
        ({"weights": ((0, {"en": 1.0}),)}, 'curriculum.weights names "en"'),
        ({"on_end": "stop"}, "choose one of repeat, refuse"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        Schedule(**fields)


@pytest.mark.parametrize(
    ("fields", "rows", "words"),
    [
        ({}, {"en": 5, "hi": 5, "de": 5, "sw": 5}, "no share for hi, sw; set .*smoothing = 0, "),
        ({}, {"en": 5, "code": 5}, r"but English; .* curriculum.non_english = \(\(0, 0\),\)"),
        ({}, {"de": 5}, r'gives "en" a share .* only of de; .*non_english = \(\(0, 1.0\),\)'),
        ({}, {}, "no language but English"),
        ({"extras": {"code": ((0, 0.1),)}}, {"en": 5, "de": 5}, 'gives "code" a share'),
        ({"extras": {"bilingual": ((0, 0.1),)}}, {"en": 5, "de": 5}, "the store has none"),
        ({"weights": ((0, {"ko": 1.0}),)}, {"en": 5, "ko": 0}, 'gives "ko" a share'),
        ({"weights": ((0, {"de": 1.0}), (9, {"ko": 1.0}))}, {"en": 5, "de": 5}, 'gives "ko"'),
        (
            {"extras": {"code": ((0, 0.6),), "bilingual": ((0, 0.6),)}},
            {"en": 5, "de": 5, "code": 5, "en-de": 5},
            "more than all tokens",
        ),
    ],
)
def test_a_store_that_does_not_fit_is_refused(fields, rows, words):
    with pytest.raises(UserError, match=words):
        make_curriculum(Schedule(**fields), rows, LENGTH)


def test_a_store_without_english_is_the_schedules_languages():
    rows = {"hi": 5, "sw": 5, "zh-Hant": 5, "hi-sw": 5, "cs": 0}
    equal = Schedule(non_english=((0, 1.0),), smoothing=0.0, extras={"bilingual": ((0, 0.1),)})
    plan = make_curriculum(equal, rows, LENGTH)
    assert dict(zip(plan.sources, share(plan, 9), strict=True)) == pytest.approx(
        {"hi": 0.3, "sw": 0.3, "zh-Hant": 0.3, "hi-sw": 0.1}
    )
    weights = ((0, {"hi": 3.0, "sw": 1.0, "cs": 0.0}),)
    plan = make_curriculum(Schedule(((0, 1.0),), weights), rows, LENGTH)
    assert dict(zip(plan.sources, share(plan, 9), strict=True)) == {"hi": 0.75, "sw": 0.25}
    assert np.bincount(locate(plan, 0, 4)[0]).tolist() == [3, 1]


@pytest.mark.parametrize(("source", "foreign"), [("hi", 1.0), ("en", 0.0), ("ko", 1.0)])
def test_one_language_alone(source, foreign):
    schedule = Schedule(((0, foreign),), extras={"code": ((0, 0.0),)})
    plan = make_curriculum(schedule, {source: 7, "xh": 0}, LENGTH)
    assert plan.sources == (source,)
    assert sorted(locate(plan, 0, 7)[1]) == list(range(7))


def scheduled(name):
    config.parse([f"gin_configs/data/{name}.gin"], [])
    schedule = config.get("curriculum")
    plan = make_curriculum(schedule, dict.fromkeys(every_source(schedule), 1000), 2048)
    return lambda tokens: dict(zip(plan.sources, share(plan, round(tokens / 2048)), strict=True))


def foreign(shares):
    return sum(shares[code] for code in NON_ENGLISH) / sum(shares[code] for code in LANGUAGES)


def test_the_paper_in_two_stages():
    at = scheduled("polylm_paper")
    first, second = at(600e9), at(640e9)
    assert (foreign(first), foreign(second)) == pytest.approx((0.3, 0.6))
    assert (first["code"], second["code"]) == pytest.approx((0.0117, 0.0776))
    pairs = [sum(shares[f"en-{code}"] for code in NON_ENGLISH) for shares in (first, second)]
    assert pairs == pytest.approx([0.0016, 0.0476])
    assert first["ru"] / first["ko"] == pytest.approx(7.61 / 0.84)
    assert second["zh"] / sum(second[code] for code in LANGUAGES) == pytest.approx(0.2214, abs=1e-4)
    assert all(second[code] > 3 * first[code] for code in NON_ENGLISH if code != "zh")


def test_the_ramp_and_the_uniform_curriculum():
    at = scheduled("linear_30_60")
    assert [foreign(at(tokens)) for tokens in (0, 319e9, 638e9)] == pytest.approx([0.3, 0.45, 0.6])
    shares = scheduled("uniform")(100e9)
    assert shares == pytest.approx(dict.fromkeys(LANGUAGES, 1 / 18))


def test_the_verb_without_rows(tmp_path, capsys):
    flags = gin_flags({"train.folder": tmp_path / "run", "rows.path": tmp_path / "none"})
    assert main(["curriculum", "--gin_file=gin_configs/data/polylm_paper.gin", *flags]) == 0
    shown = capsys.readouterr().out
    assert "without epochs" in shown
    assert "en-ko" in shown
    assert "312,320,000 rows of 2048" in shown
    assert (tmp_path / "run/figures/schedule.png").stat().st_size > 10_000


def test_the_verb_with_rows_tells_what_is_read_too_often(tiny, tmp_path, capsys):
    flags = gin_flags(tiny | {"train.folder": tmp_path, "train.steps": 1000})
    assert main(["curriculum", *flags, "--gin.curriculum.on_end=refuse"]) == 0
    shown = capsys.readouterr().out
    assert "epochs" in shown
    assert "repeat more than 4 times" in shown
    assert "the run will stop early" in shown
    assert f"The figure is {tmp_path}/figures/schedule.png." in shown.replace("\n", "")
