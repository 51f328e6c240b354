"""Thresholds carry English tails over to other languages, whole numbers add up in any order, and
what is written is read back by the one reader of gin."""

import numpy as np
import pytest

from polylm_jax import config
from polylm_jax.data.clean import thresholds
from polylm_jax.data.clean.thresholds import BINS, Thresholds, bins

SETTINGS = Thresholds(documents=1000)


def histogram(values):
    return np.bincount(bins(values[~np.isnan(values)]), minlength=BINS)


def test_bins_keep_quantiles_and_tails_to_their_width():
    chance = np.random.default_rng(0)
    for values in (chance.random(5000), chance.lognormal(3, 2, 5000), chance.integers(0, 40, 5000)):
        counts = histogram(values.astype(float))
        assert counts.sum() == 5000
        for share in (0, 0.01, 0.2):
            low = thresholds.bound(counts, share, above=False)
            high = thresholds.bound(counts, share, above=True)
            assert (values < low).mean() <= share
            assert (values > high).mean() <= share
            assert low <= np.quantile(values, share) <= 1.01 * low + 1.1
            assert high >= np.quantile(values, 1 - share) >= high / 1.01 - 1.1


def test_parts_add_up_and_what_is_no_number_is_left_out():
    values = np.array([0, 1e-30, 0.5, np.nan, 3, 1e300, 7, 7])
    parts = sum(histogram(some) for some in np.split(values, [1, 2, 6]))
    assert (parts == histogram(values[::-1])).all()
    assert parts.sum() == 7


def of(**features):
    return {name: histogram(np.asarray(values, float)) for name, values in features.items()}


def test_a_tail_of_english_is_cut_from_another_language():
    chance = np.random.default_rng(1)
    english, german = chance.random(4000), 3 * chance.random(4000)
    derived = thresholds.derive(
        {"en": of(x=english), "de": of(x=german)}, {}, {"x": (0.05, 0.97)}, {}, SETTINGS
    )
    least, most = derived["de"].limits["x"]
    assert (german < least).mean() == pytest.approx((english < 0.05).mean(), abs=0.004)
    assert (german > most).mean() == pytest.approx((english > 0.97).mean(), abs=0.012)
    assert derived["de"].shares["x"] == pytest.approx(
        ((german < least) | (german > most)).mean(), abs=0.008
    )
    published = Thresholds(method="english", documents=1000)
    derived = thresholds.derive({"de": of(x=german)}, {}, {"x": (0.05, 0.97)}, {}, published)
    assert derived["de"].limits["x"] == (0.05, 0.97)


def test_no_rule_drops_more_than_it_may_and_none_is_made_up():
    english, german = np.linspace(0, 1, 2000), np.linspace(0, 9, 2000)
    derived = thresholds.derive(
        {"en": of(x=english), "de": of(x=german)},
        {},
        {"x": (None, 0.2), "y": (1.0, None)},
        {},
        SETTINGS,
    )
    assert derived["de"].shares["x"] <= 0.05
    assert derived["de"].limits["y"] == (1.0, None)
    untouched = thresholds.derive(
        {"en": of(x=english), "de": of(x=english)}, {}, {"x": (None, 5.0)}, {}, SETTINGS
    )
    assert untouched["de"].limits["x"] == (None, 5.0)


def test_a_language_with_few_documents_takes_those_of_its_script_and_says_so():
    few, many = np.full(12, 0.5), np.linspace(0, 1, 2000)
    derived = thresholds.derive(
        {"en": of(x=many), "sw": of(x=few), "ru": of(x=many + 4), "he": of(x=few)},
        {"en": "LATIN", "sw": "LATIN", "ru": "CYRILLIC", "he": "HEBREW"},
        {"x": (None, 0.95)},
        {},
        SETTINGS,
    )
    assert derived["sw"].limits["x"] == (None, pytest.approx(0.95, rel=0.01))
    assert derived["sw"].pooled == "LATIN"
    assert not derived["ru"].pooled
    text = thresholds.as_gin(derived)
    assert '"sw": {  # 12 documents; too few, so of all in LATIN script' in text


@pytest.mark.parametrize("scale", [1.0, 3.7, 0.0113, 911.0])
def test_the_shares_that_stand_beside_limits_are_what_they_drop(scale):
    """A limit has four digits, by which it may lie in the bin beside its own."""
    for seed in range(6):
        values = scale * (5 + np.random.default_rng(seed).random(3000))
        published = {"x": (5.4 * scale, 5.9 * scale), "y": (None, 5.5 * scale), "z": (None, 0.0)}
        own = of(x=values, y=values, z=np.zeros(3000))
        derived = thresholds.derive({"de": own}, {}, published, {}, SETTINGS)["de"]
        for name in "xy":
            dropped = thresholds.outside(values, derived.limits[name]).mean()
            assert 0.01 < dropped <= 0.1
            assert derived.shares[name] == pytest.approx(dropped, abs=0.006)
        assert derived.shares["z"] == 0


def test_no_rule_takes_a_small_language_for_what_others_of_its_script_have():
    """Lao has no marks of sentences, Burmese has; Yoruba has none of the stop words of English."""
    chance = np.random.default_rng(2)
    many, few = 5 + chance.random(4000), np.zeros(300)
    few[:12] = 90
    derived = thresholds.derive(
        {"my": of(x=many, y=many, score=many / 6), "lo": of(x=few, y=few + 40, score=few / 100)},
        {"my": "UNSPACED", "lo": "UNSPACED"},
        {"x": (5.5, None), "y": (None, 5.5)},
        {},
        SETTINGS,
    )
    assert 0.02 < (many < derived["my"].limits["x"][0]).mean() <= 0.05
    assert derived["lo"].pooled == "UNSPACED"
    assert max(derived["lo"].shares[name] for name in "xy") <= 0.05
    assert derived["lo"].limits["y"][1] > 40  # 12 of 300 have more
    assert derived["lo"].limits["score"][0] >= 0.3  # who is in it is another question
    as_published = Thresholds(method="english", documents=1000)
    derived = thresholds.derive({"lo": of(x=few)}, {}, {"x": (5.5, None)}, {}, as_published)
    assert derived["lo"].limits["x"] == (5.5, None)


def test_a_language_that_the_reference_lacks_has_its_own_tails():
    chance = np.random.default_rng(3)
    english, hindi = chance.random(3000), 3 + chance.random(3000)
    derived = thresholds.derive(
        {"en": of(x=english), "hi": of(x=hindi), "km": of(x=hindi[:40]), "sw": of(x=english[:40])},
        {"en": "LATIN", "sw": "LATIN", "hi": "LETTER", "km": "UNSPACED"},
        {"x": (None, 0.98)},
        {},
        SETTINGS,
        {"en": of(x=english)},
    )
    assert not derived["hi"].pooled
    for language in ("hi", "km"):  # none of it is below what English may have
        assert derived[language].limits["x"][1] > 3.9
        assert derived[language].shares["x"] <= 0.05
    assert derived["sw"].limits["x"][1] == pytest.approx(0.98, rel=0.02)


def test_perplexity_keeps_its_share_and_scores_lie_between_the_two_ends():
    bits = np.linspace(1, 3, 2000)
    derived = thresholds.derive(
        {"de": of(bits=bits, good=bits, score=np.full(2000, 0.99))},
        {},
        {},
        {"bits": True, "good": False},
        SETTINGS,
    )
    limits = derived["de"].limits
    assert (bits <= limits["bits"][1]).mean() == pytest.approx(0.9, abs=0.03)
    assert (bits >= limits["good"][0]).mean() == pytest.approx(0.9, abs=0.03)
    assert limits["score"] == (0.9, None)


def test_the_gin_file_is_read_back_as_it_was_derived_and_can_be_edited(tmp_path):
    chance = np.random.default_rng(1)
    derived = thresholds.derive(
        {"en": of(x=chance.random(2000)), "zh-Hant": of(x=chance.random(9))},
        {},
        {"x": (0.05, 0.97), "y": (None, 3.0)},
        {},
        SETTINGS,
    )
    file = tmp_path / "thresholds.gin"
    file.write_text(thresholds.as_gin(derived))
    config.parse([str(file)], [])
    read = config.get("thresholds").limits
    assert read == {language: one.limits for language, one in derived.items()}
    before = file.read_bytes()
    assert not thresholds.is_edited(before)
    file.write_text(file.read_text().replace("(None, 3.0)", "(1, None)"))
    assert thresholds.is_edited(file.read_bytes())
    assert thresholds.origin(file.read_bytes()) == thresholds.origin(before)
    config.parse([str(file)], [])
    assert config.get("thresholds").limits["en"]["y"] == (1.0, None)
    config.parse([], [])


def test_what_is_given_goes_before_what_is_derived():
    given = {"*": {"x": (None, 0.3), "y": (1.0, None)}, "de": {"x": (0.1, None)}}
    settings = Thresholds(documents=1000, limits=given)
    values = np.linspace(0, 1, 2000)
    derived = thresholds.derive(
        {"en": of(x=values), "de": of(x=values)}, {}, {"x": (None, 0.99)}, {}, settings
    )
    assert derived["en"].limits == {"x": (None, 0.3), "y": (1.0, None)}
    assert derived["de"].limits == {"x": (0.1, None), "y": (1.0, None)}


def test_pairs_are_cut_where_chance_is_and_no_more_is_lost_than_may_be():
    some = np.random.default_rng(3)

    def cut(bad, apart):
        good, wrong = some.lognormal(apart, 0.6, 20000), some.lognormal(-0.4, 0.5, bad)
        strange = some.lognormal(-0.4, 0.5, 5000)
        edge = thresholds.chance(histogram(np.append(good, wrong)), histogram(strange), 0.05)
        return (good < edge).mean(), (wrong < edge).mean() if bad else np.nan

    for bad in (0, 2000, 9000):  # well apart: nearly all of the wrong ones
        lost, caught = cut(bad, 2.5)
        assert lost < 0.01
        assert not caught < 0.98
    for bad in (0, 2000, 9000):  # hardly apart: what may be lost bounds it, if roughly
        lost, caught = cut(bad, 0.5)
        assert 0.03 < lost < 0.11
        assert not caught < 0.4


def test_limits_of_pairs_are_derived_for_many_and_published_for_few():
    some = np.random.default_rng(4)
    published = {"x": (0.5, None), "y": (None, 0.5)}
    values = some.lognormal(2, 0.5, 3000)
    own = of(x=values, x_by_chance=some.lognormal(-1, 0.4, 700), y=np.zeros(3000))
    settings = Thresholds(documents=1000, limits={"*": {"words": (5, None), "y": (None, 0.7)}})
    derived = thresholds.of_pairs({"en-de": own}, published, settings)["en-de"]
    assert derived.documents == 3000
    assert derived.limits == {"x": (pytest.approx(0.9, abs=0.15), None), "y": (None, 0.7)}
    lower = thresholds.of_pairs({"en-de": own}, published | {"x": (1.5, None)}, settings)
    assert lower["en-de"].limits["x"] == (1.5, None)
    few = {name: counts // 4 for name, counts in own.items()}
    for histograms, settings in ((few, SETTINGS), (own, Thresholds(method="english"))):
        assert (
            thresholds.of_pairs({"en-de": histograms}, published, settings)["en-de"].limits
            == published
        )
    given = Thresholds(method="given", limits={"en-de": {"x": (2.0, None)}})
    assert thresholds.of_pairs({"en-de": own}, published, given)["en-de"].limits == {
        "x": (2.0, None)
    }
