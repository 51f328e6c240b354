"""The programs of an engine by themselves: what a burst looks at, and what it writes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polylm_jax.decode import slots
from polylm_jax.decode.weights import for_decoding
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.model.parameters import Init
from polylm_jax.serve.programs import idle_rows
from polylm_jax.sizes import Size


def test_a_burst_that_looks_at_more_slots_changes_no_bit():
    size = Size(vocabulary=96, context=512, layers=1, heads=4, d_model=64, d_ff=64)
    decoder = Decoder(size, Compute("float32"))
    start = jax.jit(Decoder(size, Compute("float32"), Init(std=0.3)).init)
    params = start(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = for_decoding(params, size, "float32")
    dice, shape = np.random.default_rng(0), (4, size.heads, 512, size.head_size)
    held = np.zeros((4, size.vocabulary), np.int32)
    cache = ({name: dice.normal(size=shape).astype(np.float32) for name in ("key", "value")},)
    rows = idle_rows(4)
    rows.left[:], rows.asked[:], rows.last[:] = 3, True, 5
    rows.lengths[:] = 3, 77, 200, 250
    found = [
        jax.jit(partial(slots.burst, decoder, width, 4, 4))(params, cache, held, rows)
        for width in (256, 512)
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_tail_is_written_behind_each_text_and_nothing_else(dtype):
    dice = np.random.default_rng(1)
    held = jnp.asarray(dice.normal(size=(5, 2, 12, 3)), dtype)
    tail = jnp.asarray(dice.normal(size=(5, 2, 4, 3)), dtype)
    lengths, written = np.array([0, 5, 9, 11, 12]), np.array([4, 2, 3, 1, 0])
    expected = np.array(held)
    for row, (length, count) in enumerate(zip(lengths, written, strict=True)):
        expected[row, :, length : length + count] = tail[row, :, :count]
    found = jax.jit(slots._merged)(held, tail, lengths, written)
    np.testing.assert_array_equal(np.array(found), expected)
