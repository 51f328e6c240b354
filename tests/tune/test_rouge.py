"""ROUGE-L against rouge_score, which we did not write, in all languages."""

import importlib.util
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from rouge_score import rouge_scorer

from polylm_jax.errors import UserError
from polylm_jax.tune import rouge
from polylm_jax.tune.words import SEGMENTERS, WORDPUNCT, words_of
from tests.data.sentences import SENTENCES

RELEASE = Path(__file__).parents[3] / "shared" / "multialpaca" / "es.jsonl"


class Words:
    """A tokenizer as rouge_score wants one."""

    tokenize = staticmethod(WORDPUNCT.findall)


def pairs(count):
    """Pairs of texts in 18 languages: sentences, parts of them, and one shuffled into another."""
    draw = random.Random(0)
    languages = list(SENTENCES)
    for number in range(count):
        some = SENTENCES[languages[number % len(languages)]]
        a, b = draw.choice(some), draw.choice(some)
        words = WORDPUNCT.findall(a + " " + b)
        draw.shuffle(words)
        yield a, draw.choice((b, a + " " + b, " ".join(words), a[: len(a) // 2]))


def test_it_is_rouge_scores_on_ten_thousand_pairs():
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Words())
    texts = list(pairs(10_000))
    theirs = [scorer.score(a, b)["rougeL"].fmeasure for a, b in texts]
    ours = []
    for first in range(0, len(texts), 100):
        some = rouge.Texts(WORDPUNCT.findall)
        some.add([b for _, b in texts[first : first + 100]])
        ours.append(np.diagonal(some.f([a for a, _ in texts[first : first + 100]])))
    np.testing.assert_allclose(np.concatenate(ours), theirs, rtol=0, atol=1e-12)
    assert len(set(theirs)) > 400


@pytest.mark.parametrize("language", SENTENCES)
def test_a_text_is_itself_in_every_language_or_its_segmenter_is_named(language):
    needs = SEGMENTERS.get(language, ((),))[0]
    if not all(map(importlib.util.find_spec, (name.replace("-", "_") for name in needs))):
        with pytest.raises(UserError, match=r'pip install "polylm_jax\[tune\]"'):
            words_of(language)
        return
    words = words_of(language)
    for text in SENTENCES[language]:
        assert rouge.f(text, text, words) == 1
        assert rouge.f(text, "", words) == rouge.f("", text, words) == rouge.f("", "", words) == 0
        assert needs or "".join(words(text)) == "".join(text.split())


def test_a_threshold_is_met_exactly():
    # 1 - 7/10 in floats is above 0.3
    assert rouge.f("a b c d e", "a b c x y", str.split) == 0.6
    assert rouge.f("a b c d e f g", "a x y", str.split) == 0.2
    assert rouge.f("a b c d e f g", "a b c d e f g h i j k l m", str.split) == 0.7


def test_the_nearest_of_all_is_that_of_every_pair(monkeypatch):
    monkeypatch.setattr(rouge, "BLOCK", 100)
    texts = [text for some in SENTENCES.values() for text in some]
    some = rouge.Texts(WORDPUNCT.findall)
    some.add(texts)
    every = some.f(texts)
    np.fill_diagonal(every, 0)
    np.testing.assert_array_equal(some.nearest(), every.max(-1))


def test_words_of_more_than_a_plane_of_unicode_stay_apart():
    texts = rouge.Texts(str.split)
    texts.add([" ".join(f"{i}" for i in range(60_000, 70_000))])
    texts.add([" ".join(f"{i}" for i in range(60_000))])
    assert texts.f(["69999 59999"]).tolist() == [[2 / 10_002, 2 / 60_002]]


def test_a_large_pool_is_searched_in_milliseconds():
    """20 ms an instruction are promised; a busy machine gets five times that."""
    draw = random.Random(1)
    words = [f"w{i}" for i in range(3000)]
    texts = rouge.Texts(str.split)
    texts.add([" ".join(draw.choices(words, k=12)) for _ in range(100_000)])
    asked = [" ".join(draw.choices(words, k=12)) for _ in range(17)]
    started = time.process_time()
    texts.f(asked)
    assert (time.process_time() - started) / len(asked) < 0.1


def test_no_instruction_of_the_release_is_too_like_another():
    if RELEASE.is_file():
        lines = RELEASE.read_text("utf-8").splitlines()
        instructions = [json.loads(line)["instruction"] for line in lines]
    else:
        instructions = [text for text in SENTENCES["es"] if len(text.split()) > 3]
    texts = rouge.Texts(words_of("es"))
    texts.add(instructions)
    assert texts.nearest().max() < 0.7
