"""Metrics against the libraries and scripts that define them, in all languages."""

import random
import sys

import numpy as np
import pytest
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

from polylm_jax.errors import UserError
from polylm_jax.evaluation import metrics
from tests import golden
from tests.data.sentences import SENTENCES


def test_f1_is_squads_and_lm_evals_on_a_thousand_pairs():
    cases, content = golden.lm_eval()
    for (language, answer, gold), (squad, unicode) in zip(
        cases["words"], content["f1"], strict=True
    ):
        assert metrics.f1_squad(answer, [gold]) == squad
        assert metrics.f1_unicode(answer, [gold], language) == unicode
    assert (content["f1"][:, 0] != content["f1"][:, 1]).sum() > 100


@pytest.mark.parametrize(
    ("answer", "gold", "language", "squad", "unicode"),
    [
        ("«Война и мир»", "Война и мир", "ru", 1 / 3, 1.0),
        ("قاهرة", "القاهرة", "ar", 0.0, 1.0),
        ("The 1920s.", "1920s", "en", 1.0, 1.0),
        ("1985년에", "1985년", "ko", 0.0, 0.0),
        ("", "b", "en", 0.0, 0.0),
    ],
)
def test_the_two_f1_differ_where_they_should(answer, gold, language, squad, unicode):
    assert metrics.f1_squad(answer, [gold]) == pytest.approx(squad)
    assert metrics.f1_unicode(answer, [gold], language) == pytest.approx(unicode)
    assert metrics.f1_squad(answer, ["other", gold]) == pytest.approx(squad)
    assert metrics.exact_squad(answer, [gold, "x"]) == (squad == 1)
    assert metrics.exact_unicode(answer, [gold], language) == (unicode == 1)


@pytest.mark.parametrize("language", SENTENCES)
def test_identical_text_has_1_and_other_text_less(language):
    for text, other in zip(SENTENCES[language], SENTENCES[language][1:], strict=False):
        if len(metrics.words(text)) > 1:
            assert set(metrics.rouge(text, [text]).values()) == {1.0}
        assert metrics.rouge(text, [other])["rouge2"] < 1
        assert metrics.rouge(text, [other, text])["rougeL"] == 1


def test_words_are_letters_where_no_spaces_are_written():
    assert metrics.words("图书馆, 9点!") == ["图", "书", "馆", "9", "点"]
    assert metrics.words("パンを2個。") == ["パ", "ン", "を2", "個"]
    assert metrics.words("ห้องสมุด") == ["ห้", "อ", "ง", "ส", "มุ", "ด"]
    assert metrics.words("L’été, e\u0301té") == ["l", "été", "été"]
    assert metrics.words("도서관은 열") == ["도서관은", "열"]
    assert metrics.words("सही हाँ") == ["सही", "हाँ"]


def noisy(language, chance):
    """Answers and golds: sentences and what is left of them where some letters are not."""
    golds = [" ".join(text.split()) for text in SENTENCES[language]]
    answers = ["".join(c for c in gold if chance.random() < 0.9) for gold in golds]
    return answers, golds


def test_rouge_is_the_librarys_on_the_same_words():
    class Words:
        def tokenize(self, text):
            return metrics.words(text)

    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())
    default = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    chance = random.Random(1)
    for language in SENTENCES:
        for answer, gold in zip(*noisy(language, chance), strict=True):
            expected = theirs.score(gold, answer)
            found = metrics.rouge(answer, [gold])
            assert found == {name: one.fmeasure for name, one in expected.items()}
            if language == "en" and gold.isascii() and answer.replace("_", "").isascii():
                assert found["rougeL"] == default.score(gold, answer)["rougeL"].fmeasure


@pytest.mark.parametrize("language", SENTENCES)
def test_bleu_and_chrf_are_sacrebleus(language):
    answers, golds = noisy(language, random.Random(language))
    tokenizer = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}.get(language, "13a")
    for found, theirs in (
        (metrics.bleu(answers, golds, language), BLEU(tokenize=tokenizer)),
        (metrics.chrf(answers, golds), CHRF(word_order=2)),
    ):
        assert found.score == theirs.corpus_score(answers, [golds]).score
        assert found.signature.endswith(str(theirs.get_signature()))
        assert 0 < found.error < 20
    assert f"tok:{tokenizer}" in metrics.bleu(answers, golds, language).signature
    assert metrics.chrf(golds, golds).score == pytest.approx(100)


def test_the_bootstraps_error_is_that_of_many_samples():
    answers, golds = noisy("en", random.Random(3))
    answers, golds = answers * 3, golds * 3
    rows = np.random.default_rng(5).integers(len(golds), size=(200, len(golds)))
    metric = CHRF(word_order=2)
    scores = [
        metric.corpus_score([answers[i] for i in row], [[golds[i] for i in row]]).score
        for row in rows
    ]
    assert metrics.chrf(answers, golds).error == pytest.approx(np.std(scores), rel=0.2)


def test_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r'need.* sacrebleu; pip install "polylm_jax\[eval\]"'):
        metrics.bleu(["a"], ["a"], "en")
    metrics._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match="rouge-score"):
        metrics.rouge("a", ["a"])
    metrics._scorer.cache_clear()


def test_the_spread_is_sacrebleus_and_stands_where_a_draw_has_nothing_in_common():
    answers = ["the cat sat on the mat today", "nothing of it", "a dog barked at the moon"]
    golds = ["the cat sat on a mat today", "nothing at all of it", "the dog barked at a moon"]
    for found, metric in (
        (metrics.bleu(answers, golds, "en"), BLEU()),
        (metrics.chrf(answers, golds), CHRF(word_order=2)),
    ):
        spread = metric.corpus_score(answers, [golds], n_bootstrap=metrics.BOOTSTRAPS)._ci
        assert found.error == pytest.approx(spread / metrics.CONFIDENCE, rel=1e-4)
    assert metrics.chrf(["", "", "ab"], ["xyz", "uvw", "ab"]).error > 0
