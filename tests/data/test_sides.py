"""What is kept and what is held out, with sets and sorting in memory as judges."""

import numpy as np
import pytest

from polylm_jax.data import sides as room
from polylm_jax.data.sides import DUPLICATE, RECORD, VALID, hashed, sides


def decided(tmp_path, texts, share=0.1, most=np.inf):
    """The side of each text, which is given by its hash alone."""
    folder = tmp_path / f"of {len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    rows = [(hashed(text), hash(text) & 2**32 - 1, 1, len(text.encode())) for text in texts]
    np.array(rows, RECORD).tofile(folder / "records")
    chunks = list(sides(folder / "records", folder, share, most))
    assert sum(len(chunk) for chunk, _ in chunks) == len(texts)
    return np.concatenate([np.empty(0, int), *(side for _, side in chunks)])


def held_out(tmp_path, texts, share=0.1, most=np.inf):
    side = decided(tmp_path, texts, share, most)
    return {text for text, which in zip(texts, side, strict=True) if which == VALID}


@pytest.mark.parametrize("chunk", [7, 100, 2**18])
def test_all_but_the_first_of_equal_texts_are_duplicates(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(room, "CHUNK", chunk)
    random = np.random.default_rng(chunk)
    texts = [f"text {number}" for number in random.integers(0, 400, 1000)] + ["again"] * 300
    expected = [text in texts[:at] for at, text in enumerate(texts)]
    assert (decided(tmp_path, texts) == DUPLICATE).tolist() == expected


def test_equal_first_halves_of_a_hash_are_no_duplicates(tmp_path):
    rows = [(5, 1, 1, 1), (5, 2, 1, 1), (5, 1, 1, 1)]
    np.array(rows, RECORD).tofile(tmp_path / "records")
    [(_, side)] = sides(tmp_path / "records", tmp_path, 0.0, 0)
    assert (side == DUPLICATE).tolist() == [False, False, True]


def test_sides_are_near_the_share(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "CHUNK", 999)
    texts = [f"text {number}" for number in range(5000)]
    assert 400 < len(held_out(tmp_path, texts)) < 600
    assert 2300 < len(held_out(tmp_path, texts, 0.5)) < 2700


def test_a_text_stays_on_its_side_when_others_are_added(tmp_path):
    texts = [f"text {number}" for number in range(5000)]
    before, after = held_out(tmp_path, texts[:1000]), held_out(tmp_path, texts)
    assert before == after & set(texts[:1000])


def test_no_more_is_held_out_than_asked_for(tmp_path):
    texts = [f"text {number:05}" for number in range(20_000)]
    everything = held_out(tmp_path, texts)
    size = 10 * len(everything)
    for most in (size / 3, size / 11):
        some = held_out(tmp_path, texts, most=most)
        assert 0.95 * most < 10 * len(some) <= most
        lowest = sorted(everything, key=hashed)[: len(some)]
        assert set(lowest) == some


@pytest.mark.parametrize(("count", "least"), [(1, 0), (4, 0), (5, 1), (9, 1), (10, 2), (12, 2)])
@pytest.mark.parametrize("most", [0, np.inf])
def test_small_sources_have_both_sides(tmp_path, count, least, most):
    for start in range(30):
        texts = [f"{start} {n}" for n in range(count)]
        found = held_out(tmp_path, texts, most=most)
        assert least <= len(found) < count
        assert most or len(found) == least


def test_nothing_is_held_out_when_none_is_asked_for(tmp_path):
    assert held_out(tmp_path, [str(n) for n in range(20)], 0.0) == set()
    assert len(decided(tmp_path, [])) == 0
