"""Packing: each example once, rows full, and as mixed as next-fit leaves them."""

import time
from itertools import chain

import numpy as np
import pytest

from polylm_jax.data.permutation import permute
from polylm_jax.data.rows import FIRST, LEARNED
from polylm_jax.tune.packing import Encoded, laid_out, pack, spans


def drawn(count, seed=0):
    """Lengths like those of the release's Spanish file: mean 76, from 12 to 700."""
    lengths = np.random.default_rng(seed).lognormal(4.22, 0.45, count)
    return np.clip(lengths, 12, 700).astype(np.int64)


def next_fit(lengths, room, key):
    starts = np.empty(len(lengths), np.int64)
    row = used = 0
    for i in permute(np.arange(len(lengths)), [len(lengths)], [key]):
        if used + lengths[i] > room:
            row, used = row + 1, 0
        starts[i] = row * room + used
        used += lengths[i]
    return starts


def fill(starts, lengths, room):
    return lengths.sum() / ((starts.max() // room + 1) * room)


def spread(starts, lengths, room):
    """Standard deviation, over the rows, of a row's mean example length."""
    rows = starts // room
    return (np.bincount(rows, lengths) / np.bincount(rows)).std()


@pytest.mark.parametrize(("room", "least"), [(2049, 0.997), (513, 0.995)])
def test_rows_are_full_and_as_mixed_as_next_fit(room, least):
    for key in range(3):
        lengths = np.minimum(drawn(9_958, key), room)
        starts, plain = pack(lengths, room, key), next_fit(lengths, room, key)
        assert fill(starts, lengths, room) >= least
        assert spread(starts, lengths, room) <= 1.1 * spread(plain, lengths, room)


@pytest.mark.parametrize("seed", range(40))
def test_every_example_lies_in_one_row_and_on_no_other(seed):
    dice = np.random.default_rng(seed)
    room = int(dice.integers(1, 60))
    lengths = dice.integers(1, room + 1, int(dice.integers(0, 200)))
    starts = pack(lengths, room, seed)
    assert (starts % room + lengths <= room).all()
    taken = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)]
                           or [np.array([], int)])  # fmt: skip
    assert len(set(taken.tolist())) == lengths.sum()
    rows = set((starts // room).tolist())
    assert rows == set(range(len(rows)))
    np.testing.assert_array_equal(pack(lengths, room, seed), starts)


def test_the_papers_examples_pack_in_five_seconds():
    lengths = drawn(132_701)
    began = time.process_time()
    starts = pack(lengths, 2049, 0)
    assert time.process_time() - began < 5
    assert fill(starts, lengths, 2049) > 0.999


@pytest.mark.parametrize("apart", [True, False])
def test_a_row_shows_what_each_token_is(apart):
    parts = [[[5, 6], [7, 2]], [[8], [9, 2], [5], [2]], [[4], [3, 3, 2]]]
    ids = [list(chain(*example)) for example in parts]
    learned = [[n % 2 == 1] * len(part) for example in parts for n, part in enumerate(example)]
    lengths = np.array(list(map(len, ids)))
    encoded = Encoded(np.array([*chain(*ids)]), np.array([*chain(*learned)]), lengths, np.empty(0))
    tokens, marks = laid_out(encoded, np.array([0, 4, 11]), 11, apart)
    assert tokens.tolist() == [[5, 6, 7, 2, 8, 9, 2, 5, 2, 0, 0], [4, 3, 3, 2] + [0] * 7]
    assert (marks & LEARNED > 0).astype(int).tolist() == [
        [0, 0, 1, 1, 0, 1, 1, 0, 1, 0, 0],
        [0, 1, 1, 1] + [0] * 7,
    ]
    firsts = [np.flatnonzero(row & FIRST).tolist() for row in marks]
    assert firsts == ([[0, 4, 9], [0, 4]] if apart else [[0], [0]])
    first = [("prompt", [5, 6]), ("answer", [7]), ("end", [2])]
    talk = [("prompt", [8]), ("answer", [9]), ("end", [2]), ("prompt", [5]), ("end", [2])]
    rest = [("padding", [0, 0])]
    shown = spans(tokens[0], marks[0])
    assert shown == ([first, talk, rest] if apart else [[*first, *talk, *rest]])
