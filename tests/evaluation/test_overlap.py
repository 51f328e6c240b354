"""Items that stand in the rows of a run, against a search that looks at every place."""

import numpy as np
import pytest

from polylm_jax.data.curriculum import locate
from polylm_jax.data.rows import open_store
from polylm_jax.data.schedule import Schedule, make_curriculum
from polylm_jax.data.tokenizer import load
from polylm_jax.errors import UserError
from polylm_jax.evaluation.items import Choice, Item, Prompt
from polylm_jax.evaluation.overlap import Found, overlap, texts_of
from tests.data.sentences import SENTENCES


@pytest.fixture(scope="module")
def read(tiny):
    store = open_store(str(tiny["rows.path"]))
    counts = {source: store.rows(source) for source in store.sources}
    plan = make_curriculum(Schedule(smoothing=0.0), counts, store.length)
    return store, plan, load(str(tiny["tokenizer.path"]))


def by_hand(store, plan, rows, least):
    """All runs of `least` ids in stretches of rows that follow one another and were read."""
    source, place = locate(plan, 0, rows)
    known = set()
    for number, name in enumerate(plan.sources):
        places = np.unique(place[source == number])
        for part in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
            if len(part):
                found = store.read(name, part)
                text = [*found[:, :-1].ravel().tolist(), int(found[-1, -1])]
                known |= {tuple(text[i : i + least]) for i in range(len(text) - least + 1)}
    return known


def longest(known, ids, least):
    best = 0
    for first in range(len(ids)):
        last = first
        while tuple(ids[last : last + least]) in known:
            last += 1
            best = max(best, last - first + least - 1)
    return best


@pytest.mark.parametrize("rows", [0, 40, 4000])
def test_what_was_read_is_what_a_search_finds(read, rows):
    store, plan, vocabulary = read
    texts = [SENTENCES[code][i] for code in ("en", "zh", "th", "de") for i in (0, 2)]
    texts += ["A sentence that nobody wrote in any of these documents, ever.", "short"]
    items = [Prompt(n, "", (), 1, ("x",), {"text": text}) for n, text in enumerate(texts)]
    found = overlap(store, plan, rows, vocabulary, items, 6)
    encoded = vocabulary.encode(texts)
    known = by_hand(store, plan, rows, 6)
    assert [one.longest for one in found] == [longest(known, ids, 6) for ids in encoded]
    assert not rows or 0 < sum(one.longest > 0 for one in found) < len(found)
    assert [one.short for one in found] == [len(ids) < 6 for ids in encoded]
    if rows == 4000:  # more than an epoch: everything has been read
        assert all(one.longest > 6 for one in found[:8])
        assert found[8].longest == 0


def test_an_item_says_its_choices_and_its_document():
    item = Item(0, (Choice("a b", " c"), Choice("a b", " d")), 0, {"x": "a b", "y": ["z", 3]})
    assert texts_of(item) == ["a b c", "a b d", "a b", "z"]
    assert texts_of(Prompt(0, "shown before", (), 1, ("x",), {"q": "asked"})) == ["asked"]


def test_a_run_of_tokens_longer_than_a_row_is_one_sentence(read):
    store, plan, vocabulary = read
    with pytest.raises(UserError, match="runs of 18 tokens cannot be in rows of 17"):
        overlap(store, plan, 3, vocabulary, [], 18)
    assert overlap(store, plan, 3, vocabulary, [], 17) == []
    assert Found(0, True) in overlap(
        store, plan, 3, vocabulary, [Prompt(0, "", (), 1, ("",), {})], 5
    )
