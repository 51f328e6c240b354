"""Pairs of translations: the model against plain loops, and what it tells of wrong pairs."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from polylm_jax.data.clean import alignment, pairing
from polylm_jax.data.clean.bilingual import directions, limits, measure, pairs, without
from polylm_jax.data.clean.language import Identification
from tests.data.sentences import SENTENCES


def made_up(count=600, seed=0):
    """Sentences of made-up words and their translations, word by word in another order."""
    chance = random.Random(seed)
    words = ["".join(chance.choices("bcdfghklmnprstvwz", k=4)) for _ in range(150)]
    other = {word: "".join(chance.choices("бвгджзклмнпрстфх", k=4)) for word in words}
    found = []
    for _ in range(count):
        one = chance.choices(words, range(150, 0, -1), k=chance.randrange(4, 12))
        found.append((" ".join(one), " ".join(other[w] for w in chance.sample(one, len(one)))))
    return found


def plain(firsts, seconds, learned):
    """`aligned` one way, by loops over words."""
    told = [one.split() for one in seconds]
    given = [["", *one.split()] for one in firsts]
    chance = defaultdict(lambda: 1.0)
    for _ in range(alignment._ROUNDS):
        counted, totals = Counter(), Counter()
        own = [Counter() for _ in told]
        for at, (sources, targets) in enumerate(zip(given, told, strict=True)):
            for t in targets if at < learned else ():
                whole = sum(chance[s, t] for s in sources)
                for s in sources:
                    part = chance[s, t] / whole
                    for some in (counted, own[at]):
                        some[s, t] += part
                    totals[s] += part
        chance = {both: part / totals[both[0]] for both, part in counted.items()}
    frequent = Counter(t for targets in told[:learned] for t in targets)
    size, different = sum(frequent.values()), len({t for targets in told for t in targets})
    found = []
    for at, (sources, targets) in enumerate(zip(given, told, strict=True)):
        spent = Counter()
        for (s, _), part in own[at].items():
            spent[s] += part
        sum_of = 0.0
        for t in targets:
            alone = (frequent[t] + 1) / (size + different + 1)
            beside = sum(
                (counted[s, t] - own[at][s, t]) / max(totals[s] - spent[s], 1) for s in sources
            ) / len(sources)
            mixed = beside * (1 - alignment._UNRELATED) + alone * alignment._UNRELATED
            sum_of += math.log(mixed / alone)
        found.append(sum_of / max(len(targets), 1))
    return np.array(found)


@pytest.mark.parametrize("learned", [15, 20])
def test_alignment_is_that_of_plain_loops(learned):
    firsts, seconds = map(list, zip(*made_up(20), strict=True))
    firsts[3], seconds[4] = f"{firsts[3]} {firsts[3]}", ""
    expected = plain(firsts, seconds, learned) + plain(seconds, firsts, learned)
    assert measure(firsts, seconds, learned)["aligned"] == pytest.approx(expected / 2, abs=1e-9)


def test_documents_at_once_are_measured_as_one_by_one(monkeypatch):
    monkeypatch.setattr(pairing, "_GROUP", 2000)
    blocks = ["\n".join(pair) for pair in made_up(120)]
    documents = {at: "\n\n".join(blocks[at : at + at % 5]) for at in range(0, 120, 4)}
    one_by_one, at_once = (pairing.Pairs(Identification(), 10) for _ in range(2))
    for number, text in documents.items():
        one_by_one.add("en-ru", {number: text})
    at_once.add("en-ru", documents)
    assert np.array_equal(one_by_one.rows(), at_once.rows(), equal_nan=False)


@pytest.mark.parametrize("largest", [4000, 10**6])
def test_long_pairs_wait_until_there_are_enough_to_tell_which_words_go_together(
    monkeypatch, largest
):
    """A paragraph in each line: of a group of so many characters there are too few."""
    monkeypatch.setattr(pairing, "_GROUP", 1000)
    monkeypatch.setattr(pairing, "_LARGEST", largest)
    lines = made_up(600)
    each = [[*zip(*lines[at : at + 8], strict=True)] for at in range(0, 600, 8)]
    documents = {at: "\n".join(map(". ".join, sides)) for at, sides in enumerate(each)}
    one_by_one, at_once = (pairing.Pairs(Identification(), 20) for _ in range(2))
    for number, text in documents.items():
        one_by_one.add("en-ru", {number: text})
    at_once.add("en-ru", documents)
    rows = at_once.rows()
    assert one_by_one.rows().tobytes() == rows.tobytes()
    told = ~np.isnan(rows["alignment"])
    assert told.all() if largest > 4000 else not told.any()


def test_pairs_of_equal_length_that_do_not_belong_together_are_told():
    some = made_up()
    bad = len(some) // 10
    order = sorted(range(bad), key=lambda at: len(some[at][1]))
    wrong = list(some)
    for here, there in zip(order, [*order[1:], order[0]], strict=True):
        wrong[here] = (some[here][0], some[there][1])
    firsts, seconds = zip(*wrong, strict=True)
    fit = measure(firsts, seconds)["fit"]
    assert (fit[:bad] < np.quantile(fit[bad:], 0.05)).mean() > 0.95


def test_half_a_translation_a_copy_and_other_numbers_are_told():
    some = made_up(200)
    firsts = [a for a, _ in some] + ["abcd efgh ijkl mnop qrst", "12 of 1,000", "7 men", "no one"]
    seconds = [b for _, b in some]
    seconds[0] = seconds[0][: len(seconds[0]) // 3]
    seconds += ["abcd efgh ijkl mnop qrst", "١٢ من 1.000", "8 людей", "никто"]
    found = measure(firsts, seconds)
    assert found["length"][0] > np.quantile(found["length"], 0.97)
    assert found["copied"][-4] == 1
    assert found["copied"][:200].max() == 0
    assert found["numbers"][-4:].tolist() == [0, 0, 1, 0]


def test_words_of_another_pair_are_no_copy():
    found = measure(["alpha beta", "gamma delta"], ["gamma delta", "gamma delta"])
    assert found["copied"].tolist() == [0, 1]


def test_limits_drop_the_share_that_is_asked_for():
    firsts, seconds = zip(*made_up(), strict=True)
    scores = measure(firsts, seconds)
    limit = limits(scores, 0.05)
    assert (scores["fit"] < limit["fit"]).mean() == pytest.approx(0.05, abs=0.01)
    assert (scores["aligned"] < limit["aligned"]).mean() == pytest.approx(0.05, abs=0.01)
    assert limit["length"] == np.quantile(scores["length"], 0.95)


@pytest.mark.parametrize("texts", [[], [""], ["", "a"], ["!", "\ud800"]])
def test_pairs_of_nothing(texts):
    scores = measure(texts, texts[::-1])
    assert all(len(some) == len(texts) and np.isfinite(some).all() for some in scores.values())
    assert limits(scores).keys() == (scores.keys() if texts else set())
    measure(texts, ["漢字 words"] * len(texts))


def test_what_stands_there_a_thousand_times_makes_no_other_length_unusual():
    good = [(a, b + " " + b[: 3 * (at % 4)]) for at, (a, b) in enumerate(made_up())]
    many = good + 3 * len(good) * [("a", "b")]
    scores = [measure(*zip(*some, strict=True)) for some in (good, many)]
    alone, beside = (one["length"][: len(good)] for one in scores)
    assert np.allclose(alone, beside, rtol=0.1)


def test_pairs_of_a_document():
    text = "one\neins\n\nonly\n\n two\nzwei \n \nthree\ndrei\nmore\n\nfour\nvier"
    assert pairs(text) == [("one", "eins"), ("two", "zwei"), ("four", "vier")]


def test_pairs_are_taken_out_of_a_document_and_the_rest_stays():
    text = "one\neins\n\nonly\n\n two\nzwei \n \nthree\ndrei\nmore\n\nfour\nvier"
    assert without(text, ()) == text
    assert without(text, [1]) == "one\neins\n\nonly\n\nthree\ndrei\nmore\n\nfour\nvier"
    assert without(text, [0, 2]) == "only\n\n two\nzwei \n \nthree\ndrei\nmore"
    for places in ([0], [1, 2], [0, 1, 2]):
        left = [pair for at, pair in enumerate(pairs(text)) if at not in places]
        assert pairs(without(text, places)) == left


def test_directions_are_told_by_language():
    pytest.importorskip("fasttext")
    en, ru = SENTENCES["en"][0], SENTENCES["ru"][0]
    de = SENTENCES["de"][0]
    found = directions([en, ru, en, de, "12", "12"], [ru, en, en, ru, ru, "12"], ("en", "ru"))
    assert found.tolist() == [1, -1, 0, 0, 1, 1]


# what programs say, in languages with close relatives: Galician and Spanish, Malay and Javanese
SHORT = {
    "pt": [
        ("Save and go on", "Salvar e continuar"),
        ("Edit this page", "Editar esta página"),
        ("Use another link", "Usar outro link"),
        ("Task sent by", "Tarefa enviada por"),
        ("Yes, move it", "Sim, mover"),
        ("Sign in", "Entrar"),
        ("New folder", "Nova pasta"),
        ("View details", "Ver detalhes"),
        ("Remove all", "Remover tudo"),
    ],
    "id": [
        ("JSON object", "Objek JSON"),
        ("Change the password", "Ganti sandi"),
        ("Delete the selected data", "Hapus data terpilih"),
        ("Next page", "Halaman berikut"),
        ("Server error (500)", "Galat server (500)"),
        ("Add user", "Tambah pengguna"),
        ("New folder", "Map baru"),
        ("Your password is new now", "Sandi Anda telah diubah"),
        ("Search the files", "Cari berkas"),
    ],
}


@pytest.mark.parametrize("code", SHORT)
def test_short_lines_are_not_taken_for_a_close_language(code):
    firsts, seconds = zip(*SHORT[code], strict=True)
    assert directions(firsts, seconds, ("en", code)).tolist() == [1] * len(firsts)


def wrong_ones(code, spoil):
    """`directions` of English and a language, a document for each pair that is spoiled in it."""
    good = [*zip(SENTENCES["en"], SENTENCES[code], strict=False)]
    count = len(good)
    some = [
        spoil(*pair, at) if at == n else pair for n in range(count) for at, pair in enumerate(good)
    ]
    documents = np.repeat(np.arange(count), count)
    found = directions(*map(list, zip(*some, strict=True)), ("en", code), None, documents)
    found = found.reshape(count, count)
    return found.diagonal().tolist(), found[~np.eye(count, dtype=bool)]


def test_real_sentences_that_are_swapped_or_in_another_language_are_told():
    spoils = {
        "swapped": lambda one, other, at: (other, one),
        "de": lambda one, _, at: (one, SENTENCES["de"][at]),
        "es": lambda one, _, at: (one, SENTENCES["es"][at]),
        "en": lambda one, _, at: (one, SENTENCES["en"][at - 1]),
    }
    caught = {what: [] for what in spoils}
    for what, spoil in spoils.items():
        for code in ("pt", "id", "nl", "ru", "ja"):
            own, others = wrong_ones(code, spoil)
            assert (others == 1).all(), (what, code)
            caught[what] += [way != 1 for way in own]
    shares = {what: sum(some) / len(some) for what, some in caught.items()}
    assert shares["swapped"] > 0.97
    assert min(shares.values()) > 0.85, shares


def test_the_others_of_a_document_count():
    """Spanish that a line alone may leave open, and signs that are in no language."""
    firsts, seconds = SENTENCES["en"], SENTENCES["es"]
    whole, alone = (
        directions(firsts, seconds, ("en", "pt"), None, np.arange(len(firsts)) * step)
        for step in (0, 1)
    )
    assert (whole == 0).sum() > (alone == 0).sum()
    assert (whole == 0).mean() > 0.9
    turned = directions(
        [*SENTENCES["ru"][:3], "12"], [*firsts[:3], "12"], ("en", "ru"), None, np.zeros(4, int)
    )
    assert turned.tolist() == [-1] * 4


def test_a_language_that_the_model_does_not_know_is_taken_as_it_is():
    firsts, seconds = SENTENCES["en"][:4], SENTENCES["de"][:4]
    assert directions(firsts, seconds, ("en", "xho")).tolist() == [1] * 4
    assert directions(seconds, firsts, ("xho", "en")).tolist() == [1] * 4
