"""The programs of an engine by themselves: what a burst looks at, and what it writes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polylm_jax.decode import slots
from polylm_jax.decode.prefill import merged
from polylm_jax.decode.weights import for_decoding
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.model.parameters import Init
from polylm_jax.plan.hlo import parse
from polylm_jax.serve.programs import idle_rows
from polylm_jax.sizes import Size
from tests.conftest import AS_FOR_USERS, as_large

SIZE = Size(vocabulary=96, context=512, layers=1, heads=4, d_model=64, d_ff=64)
WIDTHS = (128, 192, 256, 512)


@pytest.fixture(scope="module")
def params():
    start = jax.jit(Decoder(SIZE, Compute("float32"), Init(std=0.3)).init)
    return start(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def texts(count):
    """A cache and what is held, made up, and rows that may go on."""
    dice, shape = np.random.default_rng(0), (count, SIZE.heads, 512, SIZE.head_size)
    held = np.zeros((count, SIZE.vocabulary), np.int32)
    cache = ({name: dice.normal(size=shape).astype(np.float32) for name in ("key", "value")},)
    rows = idle_rows(count)
    rows.left[:], rows.asked[:], rows.last[:] = 3, True, 5
    rows.lengths[:] = [3, 77, 200, 250, 9, 12][:count]
    return slots.cut(cache, WIDTHS), held, rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_burst_that_looks_at_more_slots_changes_no_bit(params, dtype):
    weights = for_decoding(params, SIZE, dtype, cpu=True)
    decoder = Decoder(SIZE, Compute(dtype))
    cache, held, rows = texts(4)
    rows.lengths[:] = [3, 77, 190, 187]  # of which a burst writes beyond what it looks at
    few, *more = (
        jax.jit(partial(slots.burst, decoder, width, 4, 4))(weights, cache, held, rows)
        for width in (192, 256, 512)
    )
    for found in more:
        jax.tree.map(np.testing.assert_array_equal, few, found)
    assert [n for n, (old, new) in enumerate(zip(cache, few[0], strict=True))
            if (old[0]["value"] != new[0]["value"]).any()] == [0, 1, 2]  # fmt: skip


def test_what_was_cut_is_whole_again():
    cache, _, _ = texts(2)
    whole = slots.joined(cache)
    assert whole[0]["key"].shape == whole[0]["value"].shape == (2, SIZE.heads, 512, SIZE.head_size)
    jax.tree.map(np.testing.assert_array_equal, slots.cut(whole, WIDTHS), cache)


def test_a_row_is_put_where_it_has_tokens_and_nothing_is_left_where_all_is_cleared():
    cache, held, _ = texts(3)
    [row] = jax.tree.map(lambda x: np.full_like(x[:1], np.nan), slots.joined(cache))
    row["key"][:, :, :150] = row["value"][:, :, :150] = 7
    insert = partial(slots.insert, Decoder(SIZE, Compute("float32")))

    def put(width, length):
        found, now = insert(width, cache, held, (row,), held[:1] + 5, 1, length)
        assert now.sum() == 5 * SIZE.vocabulary
        return slots.joined(found)[0], slots.joined(cache)[0]

    for name in ("key", "value"):
        new, old = (layer[name] for layer in put(192, 150))
        assert (new[1, :, :150] == 7).all()
        assert not new[1, :, 150:192].any()
        np.testing.assert_array_equal(new[1, :, 192:], old[1, :, 192:])
        np.testing.assert_array_equal(new[::2], old[::2])
        assert not put(512, 0)[0][name][1].any()


def test_a_cpus_burst_moves_nothing_of_the_cache(params):
    """Neither before the loop nor in it is anything made as large as a layer's keys."""
    cache, held, rows = texts(6)
    weights = for_decoding(params, SIZE, "bfloat16", cpu=True)
    burst = partial(slots.burst, Decoder(SIZE, Compute("bfloat16")), 256, 4, 4)
    lowered = jax.jit(burst, donate_argnums=(1, 2)).lower(weights, cache, held, rows)
    program, _ = parse(lowered.compile(AS_FOR_USERS).as_text())
    pieces = {piece[0]["key"].size for piece in cache}
    every = (one for part in program.values() for one in part)
    made = [
        one for one in as_large(every, pieces)
        if one.op not in ("while", "scatter") and "scatter" not in one.rest
    ]  # fmt: skip
    assert not made


def test_a_cpu_computes_as_exactly_with_a_narrow_cache(params):
    """What was written as bfloat16 is read as that; all else is float32."""
    cache, held, rows = texts(4)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), cache)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    weights = for_decoding(params, SIZE, "float32", cpu=True)
    burst = jax.jit(partial(slots.burst, Decoder(SIZE, Compute("float32")), 256, 4, 4))
    found = [burst(weights, one, held, rows)[2:] for one in (narrow, wide)]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_in_bfloat16_a_burst_of_some_texts_is_theirs_among_all_bit_for_bit(params):
    """On a CPU; in another order, and nothing of the others' is written."""
    cache, held, rows = texts(6)
    narrow = for_decoding(params, SIZE, "bfloat16", cpu=True)
    decoder = Decoder(SIZE, Compute("bfloat16"))
    burst = jax.jit(partial(slots.burst, decoder, 256, 4, 4))
    places = np.array([4, 1, 3, 2], np.int32)
    rows.left[[0, 2, 5]] = 0
    some = jax.tree.map(lambda x: x[places], rows)
    whole, part = burst(narrow, cache, held, rows), burst(narrow, cache, held, some, places)
    jax.tree.map(np.testing.assert_array_equal, part[:2], whole[:2])
    of_places = jax.tree.map(lambda x: x[places], whole[2:])
    jax.tree.map(np.testing.assert_array_equal, part[2:], of_places)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 1, 4]])
def test_a_tail_is_written_behind_each_text_and_nothing_else(dtype, order):
    dice = np.random.default_rng(1)
    held = jnp.asarray(dice.normal(size=(5, 2, 12, 3)), dtype)
    tail = jnp.asarray(dice.normal(size=(5, 2, 4, 3)), dtype)
    lengths, written = np.array([-2, 5, 9, 11, 12]), np.array([4, 2, 3, 1, 0])
    expected, order = np.array(held), np.array(order)
    for row in order:
        first, end = max(0, -lengths[row]), lengths[row] + written[row]
        expected[row, :, lengths[row] + first : end] = tail[row, :, first : written[row]]
    some = tail[order], order, lengths[order], written[order]
    found = jax.jit(merged)(held, *some)
    np.testing.assert_array_equal(np.array(found), expected)
    found = jax.jit(partial(merged, axis=3))(held.swapaxes(2, 3), *some)
    np.testing.assert_array_equal(np.array(found).swapaxes(2, 3), expected)
