"""The keyed permutation: every index once, in an order that looks like chance."""

import numpy as np
import pytest

from polylm_jax.data.permutation import key_of, permute

COUNTS = [1, 2, 3, 4, 5, 7, 8, 16, 17, 100, 255, 256, 257, 1000, 1024, 4097, 2**16, 10**5]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_every_index_has_one_image(count, key):
    images = permute(np.arange(count), [count], [key])
    assert images.dtype == np.int64
    np.testing.assert_array_equal(np.sort(images), np.arange(count))


@pytest.mark.parametrize("count", [count for count in COUNTS if count >= 100])
def test_another_key_gives_another_order(count):
    orders = [permute(np.arange(count), [count], [key]) for key in range(8)]
    assert len({order.tobytes() for order in orders}) == 8


def test_both_orders_of_two_come_up():
    firsts = [permute(np.arange(2), [2], [key_of(key)])[0] for key in range(64)]
    assert 16 < sum(firsts) < 48


def test_an_image_does_not_depend_on_what_is_asked_with_it():
    whole = permute(np.arange(1000), [1000], [5])
    shuffled = np.random.default_rng(0).permutation(1000).reshape(20, 50)
    np.testing.assert_array_equal(permute(shuffled, [1000], [5]), whole[shuffled])
    assert permute(np.array([7]), [1000], [5]) == whole[7]


def test_the_order_is_scattered():
    """Steps, halves and fixed points are as in a random order, five deviations off at most."""
    count = 10**5
    images = permute(np.arange(count), [count], [key_of("scattered")])
    steps = np.diff(images)
    assert (np.abs(steps) == 1).sum() < 20  # 2 are expected
    assert abs(np.abs(steps).mean() - count / 3) < 5 * count * 0.24 / np.sqrt(count)
    assert (images == np.arange(count)).sum() < 10  # 1 is expected
    assert abs(np.corrcoef(images, np.arange(count))[0, 1]) < 5 / np.sqrt(count)
    rises = np.flatnonzero(np.diff(np.sign(steps)))
    assert np.diff(rises).max() < 12


@pytest.mark.parametrize("start", [0, 499_999_000, 10**9 - 10**5])
def test_a_billion_rows(start):
    images = permute(np.arange(start, start + 10**5), [10**9], [3])
    assert len(np.unique(images)) == 10**5
    assert images.min() >= 0
    assert images.max() < 10**9
    tenths = np.bincount(images // 10**8, minlength=10)
    assert np.abs(tenths - 10**4).max() < 5 * np.sqrt(10**4)


def test_keys_are_the_same_on_every_machine():
    assert key_of(0, "de", 1) == 2682181844374450475
    assert key_of(0, "de", 1) != key_of(0, "de", 2)
    assert permute(np.arange(10), [10], [0]).tolist() == [3, 1, 6, 0, 9, 2, 5, 8, 7, 4]


def plain(index, count, key):
    """The image as its definition has it, in Python's integers, a round at a time."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    while True:
        left, right = index >> half, index % 2**half
        for number in range(4):
            x = right ^ key_of(key, number)
            x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
            left, right = right, left ^ (x ^ x >> 31) % 2**half
        index = left << half | right
        if index < count:
            return index


def test_images_are_those_of_a_plain_feistel_network_also_of_many_at_once():
    counts, keys = [1, 2, 5, 1000, 10**6 + 3, 10**9, 2**33], [7, 2**64 - 1, 0, 7, 8, 9, 10]
    which = np.arange(70) % 7
    indices = np.random.default_rng(0).integers(0, np.array(counts)[which])
    expected = [
        plain(i, counts[of], keys[of]) for i, of in zip(indices.tolist(), which, strict=True)
    ]
    assert permute(indices, counts, keys, which).tolist() == expected
