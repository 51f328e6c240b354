"""Our n-gram model against the formulas in plain Python, and against what lmplz estimated."""

import io
import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from polylm_jax.data.clean import perplexity, products
from polylm_jax.data.clean.perplexity import BEGIN, END, UNKNOWN, Sentences
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.files import put
from tests import scripted
from tests.data.sentences import SENTENCES

ARPA = Path(__file__).parent.parent.parent / "golden" / "lmplz.arpa"
PIECES = 300


def as_sentences(lists):
    words, begins = [], []
    for one in lists:
        words += [BEGIN, *(word + 3 for word in one), END]
        begins += [True, *[False] * (len(one) + 1)]
    return Sentences(np.array(words, np.int64), np.array(begins, bool))


def log10s(model, some):
    return perplexity.log10s(model, some, some.begins)[0]


def made_up(count=400, seed=0):
    """Sentences of numbers below PIECES, of which few are frequent and some follow others."""
    chance = random.Random(seed)
    lists = []
    for _ in range(count):
        one = [min(int(chance.paretovariate(0.6)), PIECES - 20)]
        while chance.random() < 0.9:
            follows = chance.random() < 0.6
            frequent = min(int(chance.paretovariate(0.6)), PIECES - 20)
            one.append((one[-1] * 7 + 1) % 40 if follows else frequent)
        lists.append(one)
    return lists


def plain(lists, order):
    """{n-gram: (probability, weight of what is below)} by the formulas, one n-gram at a time."""
    raw = [Counter() for _ in range(order)]
    for one in lists:
        words = [BEGIN, *(word + 3 for word in one), END]
        for size in range(1, order + 1):
            raw[size - 1].update(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    counts = [Counter() for _ in range(order)]
    counts[-1] = raw[-1]
    for size in range(1, order):
        for gram in raw[size]:
            counts[size - 1][gram[1:]] += 1
        for gram, times in raw[size - 1].items():
            if gram[0] == BEGIN:
                counts[size - 1][gram] = times
    counts[0][(UNKNOWN,)] = counts[0][(BEGIN,)] = 0
    model = {}
    vocabulary = len(counts[0])
    for some in counts:
        of = Counter(some.values())
        share = of[1] / (of[1] + 2 * of[2])
        taken = [0, *(n - (n + 1) * share * of[n + 1] / of[n] for n in (1, 2, 3))]
        if not all(0 <= one <= n for n, one in enumerate(taken)):
            taken = [0, 0.5, 1, 1.5]
        after = defaultdict(list)
        for gram, times in some.items():
            after[gram[:-1]].append(times)
        for gram, times in some.items():
            beside = after[gram[:-1]]
            weight = sum(taken[min(n, 3)] for n in beside) / sum(beside)
            below = model[gram[1:]][0] if len(gram) > 1 else 1 / (vocabulary - 1)
            chance = (times - taken[min(times, 3)]) / sum(beside) + weight * below
            model[gram] = (1.0 if gram == (BEGIN,) else chance, 1.0)
            if len(gram) > 1:
                model[gram[:-1]] = (model[gram[:-1]][0], weight)
    return model


def ngrams(model):
    """{n-gram: (log10, log10 of the backoff)} of a model, words as in `as_sentences`."""
    back = {int(word): piece for piece, word in enumerate(model.vocabulary) if word}
    back[UNKNOWN] = UNKNOWN
    grams = [(back[word],) for word in range(model.words)]
    found = {}
    for level, logs in enumerate(model.logs):
        if level:
            keys = model.keys[level - 1].astype(np.int64)
            grams = [
                (*grams[prefix], back[last])
                for prefix, last in zip(*np.divmod(keys, model.words), strict=True)
            ]
        backoffs = model.backoffs[level] if level < model.order - 1 else np.zeros(len(logs))
        found |= dict(zip(grams, zip(logs, backoffs, strict=True), strict=True))
    return found


def of_arpa(lines):
    """{n-gram: (log10, log10 of the backoff)} of an ARPA file whose words are numbers."""
    special = {"<unk>": UNKNOWN, "<s>": BEGIN, "</s>": END}
    found, size = {}, 0
    for line in lines:
        if line.startswith("\\"):
            size = int(line[1]) if line[1].isdigit() else 0
        elif size and line.strip():
            score, words, *backoff = line.split("\t")
            gram = tuple(special[w] if w in special else int(w) + 3 for w in words.split())
            found[gram] = (float(score), float(backoff[0]) if backoff else 0.0)
    return found


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_those_of_the_formulas(order):
    lists = made_up()
    found = ngrams(perplexity.train(as_sentences(lists), PIECES, order))
    expected = plain(lists, order)
    assert found.keys() == expected.keys()
    for gram, (chance, weight) in expected.items():
        assert found[gram] == pytest.approx((math.log10(chance), math.log10(weight)), abs=1e-5)


def test_probabilities_are_those_that_lmplz_estimated():
    """The ARPA file is what KenLM 0.3.0 wrote of them: `lmplz -o 5 --discount_fallback`."""
    found = ngrams(perplexity.train(as_sentences(made_up(60)), PIECES, 5))
    expected = of_arpa(ARPA.read_text().splitlines())
    assert found.keys() == expected.keys()
    for gram, both in expected.items():
        assert found[gram] == pytest.approx(both, abs=1e-4)


def test_the_chances_of_what_may_follow_sum_to_one():
    model = perplexity.train(as_sentences(made_up()), PIECES, 3)
    seen = [piece - 3 for piece, word in enumerate(model.vocabulary) if word > END]
    unseen = PIECES - 1
    for context in ([], [1], [1, 8], [unseen], [8, unseen, 1]):
        next_words = [*seen, unseen]
        lists = [[*context, word] for word in next_words]
        some = as_sentences(lists)
        scores = log10s(model, some)
        last = np.flatnonzero(some.words == END)
        total = (10.0 ** scores[last - 1]).sum()
        end = as_sentences([context])
        total += 10.0 ** log10s(model, end)[-1]
        assert total == pytest.approx(1, abs=1e-4)


def slow_log10(model, words, at):
    """By the ARPA format's rule: the longest n-gram there is, and the backoffs on the way."""
    for size in range(min(at + 1, 5), 0, -1):
        gram = tuple(words[at + 1 - size : at + 1])
        if gram in model:
            return model[gram][0]
        if size == 1:
            return model[(UNKNOWN,)][0]
        raise_by = model.get(gram[:-1], (0, 0.0))[1]
        return raise_by + slow_log10_below(model, gram[1:])
    raise AssertionError


def slow_log10_below(model, gram):
    if gram in model:
        return model[gram][0]
    if len(gram) == 1:
        return model[(UNKNOWN,)][0]
    return model.get(gram[:-1], (0, 0.0))[1] + slow_log10_below(model, gram[1:])


def test_scores_are_those_of_backing_off_word_by_word():
    model = perplexity.train(as_sentences(made_up()), PIECES, 5)
    known = ngrams(model)
    lists = [*made_up(30, seed=1), [PIECES - 1, 1, 8], [], [5] * 20]
    some = as_sentences(lists)
    scores = iter(log10s(model, some).tolist())
    for one in lists:
        words = [BEGIN, *(w + 3 for w in one), END]
        words = [w if (w,) in known else UNKNOWN for w in words]
        assert next(scores) == 0
        for at in range(1, len(words)):
            assert next(scores) == pytest.approx(slow_log10(known, words, at), abs=1e-4)


def test_a_saved_model_is_the_same_mapped_from_anywhere_and_another_file_is_refused(tmp_path):
    model = perplexity.train(as_sentences(made_up(50)), PIECES, 3)
    file = io.BytesIO()
    perplexity.save(model, file)
    some = as_sentences(made_up(20, seed=1))
    scores = log10s(model, some).tolist()
    for path in (str(tmp_path / "de.ngrams"), "memory://models/de.ngrams"):
        put(path, file.getvalue())
        again = perplexity.load(products.mapped(path), path)
        assert ngrams(again) == ngrams(model)
        assert log10s(again, some).tolist() == scores
        assert all(one.flags.aligned for one in (*again.keys, *again.slots, *again.logs))
    put(path, b"")
    assert products.mapped(path) == b""
    for content in (b"", b"no model", b"[]\n", b"[[1, 2, 3]]\n", file.getvalue()[:900]):
        with pytest.raises(UserError, match=r"de\.ngrams"):
            perplexity.load(content, "de.ngrams")


def test_training_on_nothing_gives_a_model():
    model = perplexity.train(as_sentences([]), 10, 5)
    assert np.isfinite(log10s(model, as_sentences([[1, 2]]))).all()


@pytest.fixture(scope="module")
def pieces():
    """A tokenizer of our kind, with EOS where it must be."""
    lines = (line for some in SENTENCES.values() for line in some)
    flags = scripted.SPACED | {"sentence_iterator": lines, "vocab_size": 1024}
    return Tokenizer(scripted.tokenizer(**flags)[0])


def auc(good, bad):
    return (good[:, None] < bad[None]).mean() + (good[:, None] == bad[None]).mean() / 2


def test_shuffled_text_takes_more_bits_and_a_text_the_same_in_every_batch(pieces):
    chance = random.Random(0)
    train, good, bad = [], [], []
    for language in ("en", "de", "ru"):
        for at, line in enumerate(SENTENCES[language] * 3):
            words = line.split()
            some = train if at < 30 else good
            some.append(line)
            if some is good:
                bad.append(" ".join(chance.sample(words, len(words))))
    some, _ = perplexity.sentences(pieces, train)
    model = perplexity.train(some, pieces.size, 5)
    ours = perplexity.bits_per_byte(model, pieces, good)
    theirs = perplexity.bits_per_byte(model, pieces, bad)
    assert auc(ours, theirs) > 0.97
    both, (bits, alone) = perplexity.bits(model, pieces, good), perplexity.bits(model, pieces, bad)
    assert auc(perplexity.disorder(*both), perplexity.disorder(bits, alone)) > 0.97
    assert both[0].tolist() == ours.tolist()
    # of shuffled words hardly any two belong together
    assert np.median(perplexity.disorder(*both)) < 0.8 < 0.9 < np.median(bits / alone)
    assert np.isfinite(perplexity.bits_per_byte(model, pieces, ["a\ud800 \0", "x" * 50_000])).all()
    singly = [perplexity.bits_per_byte(model, pieces, [one])[0] for one in good]
    assert ours.tolist() == singly
    assert np.isnan(perplexity.bits_per_byte(model, pieces, ["", " \n\n", "a"])).tolist() == [
        True,
        True,
        False,
    ]


def test_words_alone_take_what_each_would_as_a_sentence_cut_out(pieces):
    """The same as a model asked word by word, and in whatever order the words stand."""
    texts = [*SENTENCES["de"], *SENTENCES["ru"], *SENTENCES["zh"]]
    model = perplexity.train(perplexity.sentences(pieces, texts)[0], pieces.size, 4)
    known = ngrams(model)
    for text in (*SENTENCES["de"][:4], *SENTENCES["zh"][:4], "zwei  Wörter 12"):
        some, _ = perplexity.sentences(pieces, [text])
        names = ["", "", "", *(piece.decode("utf-8", "replace") for piece in pieces.pieces)]
        groups = [[]]
        for word in some.words[1:].tolist():
            first = names[word][:1]
            if word == END or first == " " or "\u4e00" <= first <= "\u9fff" or len(groups) == 1:
                groups.append([])
            groups[-1].append(word if (word,) in known else UNKNOWN)
        total = sum(
            slow_log10(known, group, at)
            for group in filter(None, groups)
            for at in range(len(group))
        )
        _, alone = perplexity.bits(model, pieces, [text])
        size = sum(len(line.encode()) + 1 for line in text.split("\n"))
        assert alone[0] == pytest.approx(-total * math.log2(10) / size, rel=1e-4), text
