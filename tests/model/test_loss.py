"""The blocked cross-entropy against the plain formula, whole and split over a mesh."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polylm_jax.model.loss import cross_entropy, loss_and_gradients, positions_per_block
from polylm_jax.model.table import ONE_DEVICE, add_looked_up, no_sums, summed
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import LOSS_AXES
from tests.conftest import AS_FOR_USERS

ROWS, LENGTH, WIDTH, VOCABULARY = 8, 12, 16, 96


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(3), 4)
    hidden = jax.random.normal(keys[0], (ROWS, LENGTH, WIDTH), dtype)
    embedding = jax.random.normal(keys[1], (VOCABULARY, WIDTH))
    targets = jax.random.randint(keys[2], (ROWS, LENGTH), 0, VOCABULARY)
    weights = jax.random.uniform(keys[3], (ROWS, LENGTH))
    return hidden, embedding, targets, weights


def plain(hidden, embedding, targets, weights):
    scores = jnp.einsum("bld,vd->blv", hidden, embedding)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(scores), targets[..., None], -1)[..., 0]
    return jnp.sum(losses * weights), losses


def both(function, *arguments):
    return jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))(*arguments)


@pytest.mark.parametrize("block", [1, 8, 40, 10_000])
def test_equals_the_plain_formula(block):
    arguments = inputs()
    (total, losses), gradients = both(lambda *x: cross_entropy(*x, block), *arguments)
    (total_plain, losses_plain), gradients_plain = both(plain, *arguments)
    np.testing.assert_allclose(total, total_plain, rtol=1e-6)
    np.testing.assert_allclose(losses, losses_plain, atol=1e-5)
    for ours, theirs in zip(gradients, gradients_plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_equals_the_plain_formula_on_a_mesh(shape):
    arguments = inputs()
    expected, gradients_plain = both(plain, *arguments)
    with jax.set_mesh(make_mesh(MeshShape(*shape))):
        found, gradients = both(lambda *x: cross_entropy(*x, 8, LOSS_AXES), *arguments)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    for ours, theirs in zip(gradients, gradients_plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def some_learned(weights, share):
    """The weights with all but a share of them 0, the rows very unevenly; the first has none."""
    places = jnp.arange(weights.size).reshape(weights.shape)
    return jnp.where((places % 7 < 7 * share) & (places >= LENGTH), weights, 0)


@pytest.mark.parametrize(
    ("shape", "share"), [(None, 0), (None, 0.5), (None, 1), ((1, 1, 8), 0.5), ((2, 2, 2), 0.5)]
)
def test_of_tokens_not_learned_nothing_is_computed_and_the_rest_is_equal(shape, share):
    hidden, embedding, targets, weights = inputs()
    arguments = hidden, embedding, targets, some_learned(weights, share)
    (total_plain, losses_plain), gradients_plain = both(plain, *arguments)
    mesh = contextlib.nullcontext() if shape is None else jax.set_mesh(make_mesh(MeshShape(*shape)))
    axes = ONE_DEVICE if shape is None else LOSS_AXES
    with mesh:
        (total, losses), gradients = both(
            lambda *x: cross_entropy(*x, 8, axes, learned=True), *arguments
        )
    np.testing.assert_allclose(total, total_plain, rtol=1e-6)
    np.testing.assert_allclose(losses, np.where(arguments[3] > 0, losses_plain, 0), atol=1e-5)
    for ours, theirs in zip(gradients, gradients_plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("learned", [False, True])
def test_a_frozen_table_gets_no_gradient_and_costs_none(learned):
    hidden, embedding, targets, weights = inputs()
    embedding, targets = embedding[:80], targets % 80
    arguments = hidden, embedding, targets, weights
    frozen = lambda *x: loss_and_gradients(*x, None, 8, ONE_DEVICE, learned)  # noqa: E731
    losses, gradient, sums = frozen(*arguments)
    (_, expected), (of_hidden, _) = both(plain, *arguments)
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    np.testing.assert_allclose(gradient, of_hidden, atol=2e-6)
    assert sums is None
    assert f"f32[80,{WIDTH}] = " not in str(jax.make_jaxpr(frozen)(*arguments))


@pytest.mark.parametrize("shape", [None, (2, 4, 1), (2, 2, 2), (1, 1, 8)])
def test_both_uses_of_the_table_add_to_one_sum_whatever_the_mesh(shape):
    _, embedding, tokens, _ = inputs()
    of_rows = jax.random.normal(jax.random.key(4), (ROWS, LENGTH, WIDTH))
    mesh = contextlib.nullcontext() if shape is None else jax.set_mesh(make_mesh(MeshShape(*shape)))
    axes = ONE_DEVICE if shape is None else LOSS_AXES

    def twice(embedding, tokens, of_rows):
        sums = no_sums(embedding, axes)
        for _ in range(2):
            sums = add_looked_up(sums, tokens, of_rows, axes)
        return sums, summed(sums, axes), summed(sums, axes, jnp.dtype("bfloat16"))

    with mesh:
        sums, found, narrow = jax.jit(twice)(embedding, tokens, of_rows)
    expected = np.zeros(embedding.shape)
    np.add.at(expected, np.asarray(tokens), 2 * np.asarray(of_rows))
    # each device that holds rows of its own has a sum of its own until then
    assert sums.shape == ((1 if shape is None else shape[0] * shape[1]), *embedding.shape)
    np.testing.assert_allclose(sums.sum(0), expected, atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # an addition of at most eight devices in bfloat16 rounds by 2^-8 of the largest part
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, expected, atol=8 * 2**-8 * np.abs(sums).max())
    if shape is not None:
        assert np.abs(narrow - found).max() > 0


def test_embedding_gradient_accumulates_in_float32():
    hidden, embedding, targets, weights = inputs(jnp.bfloat16)
    _, (_, ours) = both(lambda *x: cross_entropy(*x, 8), hidden, embedding, targets, weights)
    rounded = embedding.astype(jnp.bfloat16).astype(jnp.float32)
    _, (_, theirs) = both(plain, hidden.astype(jnp.float32), rounded, targets, weights)
    assert ours.dtype == jnp.float32
    # what is left is the rounding of the operands, 2^-9 of a term
    assert np.abs(ours - theirs).max() < 4e-3 * np.abs(theirs).max()


def test_one_block_in_bfloat16_is_what_several_are():
    """A CPU's library once lacked the product that the compiler made of a single block's."""
    hidden, embedding, targets, weights = inputs(jnp.bfloat16)
    table = embedding.astype(jnp.bfloat16)

    def found(block):
        def run(*given):
            return loss_and_gradients(*given, no_sums(table, ONE_DEVICE), block, ONE_DEVICE)

        given = hidden, table, targets, weights
        return jax.jit(run).lower(*given).compile(AS_FOR_USERS)(*given)

    for one, several in zip(found(ROWS * LENGTH), found(8), strict=True):
        np.testing.assert_allclose(
            one.astype(jnp.float32), several.astype(jnp.float32), rtol=1e-2, atol=1e-4
        )


def test_scores_that_would_overflow_stay_finite():
    hidden, embedding, targets, weights = inputs()
    (total, _), gradients = both(
        lambda *x: cross_entropy(*x, 8), hidden * 1e4, embedding, targets, weights
    )
    assert np.isfinite(total)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_memory_does_not_grow_with_the_vocabulary_times_the_tokens():
    """The 1.7B head at 8 x 2048 tokens needs a small part of the plain formula's memory."""
    shape = jax.ShapeDtypeStruct
    arguments = (
        shape((8, 2048, 2048), jnp.bfloat16),
        shape((256_000, 2048), jnp.float32),
        shape((8, 2048), jnp.int32),
        shape((8, 2048), jnp.float32),
    )

    def temporaries(function):
        lowered = jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True)).lower(*arguments)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    def plain_bfloat16(hidden, embedding, targets, weights):
        return plain(hidden, embedding.astype(jnp.bfloat16), targets, weights)

    ours = temporaries(lambda *x: cross_entropy(*x, 512, ONE_DEVICE))
    assert ours < 0.15 * temporaries(plain_bfloat16)


@pytest.mark.parametrize(
    ("length", "rows", "block", "expected"),
    [(128, 4, 1024, 128), (2048, 8, 1024, 128), (12, 8, 40, 4), (7, 3, 1, 1), (7, 1, 6, 1)],
)
def test_a_block_divides_the_length(length, rows, block, expected):
    assert positions_per_block(length, rows, block) == expected
