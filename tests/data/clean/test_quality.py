"""The classifier of English: what it learns, and that a text's score is its own."""

import io
import random

import numpy as np
import pytest

from polylm_jax.data.clean import quality
from polylm_jax.errors import UserError
from tests.data.sentences import SENTENCES


def texts(count, seed):
    """Prose, and what shops and menus say."""
    chance = random.Random(seed)
    shop = ["buy", "cheap", "now", "click", "here", "best", "price", "free", "login", "cart", "%"]
    good = [" ".join(chance.sample(SENTENCES["en"], 3)) for _ in range(count)]
    web = [
        " ".join([*chance.choices(shop, k=20), chance.choice(SENTENCES["en"])])
        for _ in range(count)
    ]
    return good, web


@pytest.fixture(scope="module")
def classifier():
    return quality.train(*texts(80, 0))


def test_it_tells_new_texts_of_both_kinds(classifier):
    good, web = (quality.score(classifier, some) for some in texts(40, 1))
    assert good.min() > web.max()
    assert good.mean() > 0.6 > 0.4 > web.mean()


def test_pairs_of_words_count():
    good = ["red apple green pear", "green pear red apple"] * 20
    web = ["red pear green apple", "green apple red pear"] * 20
    scores = quality.score(
        quality.train(good, web), ["red apple green pear", "red pear green apple"]
    )
    assert scores[0] > 0.5 > scores[1]


def test_a_text_scores_the_same_in_every_batch_and_from_a_file(classifier):
    some = [*texts(10, 2)[0], *texts(10, 2)[1], "", "  ", "!!!", "unseen"]
    scores = quality.score(classifier, some)
    assert scores.tolist() == [float(quality.score(classifier, [one])[0]) for one in some]
    file = io.BytesIO()
    quality.save(classifier, file)
    again = quality.load(file.getvalue(), "en.npz")
    assert (quality.score(again, some) == scores).all()
    with pytest.raises(UserError, match=r"en\.npz"):
        quality.load(b"no classifier", "en.npz")


def test_training_twice_gives_the_same(classifier):
    again = quality.train(*texts(80, 0))
    assert (again.weights == classifier.weights).all()
    assert np.isfinite(again.weights).all()
