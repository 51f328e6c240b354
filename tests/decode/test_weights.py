"""Int8 against its definition, on kernels of every shape; what a CPU reads while it decodes."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polylm_jax.decode.prefill import prefill
from polylm_jax.decode.sampling import Sampling
from polylm_jax.decode.search import _decode, decode_some, generate, rules
from polylm_jax.decode.weights import for_decoding, outputs_first
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.model.parameters import Init
from polylm_jax.model.products import COLUMNS, Int8, weighed
from polylm_jax.sizes import Size
from tests import golden
from tests.conftest import AS_FOR_USERS


def test_every_kernel_is_within_half_a_step_of_its_output_channel():
    size, params, _ = golden.load("a")
    tree = for_decoding(params, size, "float32", int8=True)
    channels = {"qkv": (1, 3, 3, 8), "attention_out": (1, 1, 24), "mlp_in": (1, 96)}
    channels |= {"mlp_out": (1, 24)}
    for layer in range(size.layers):
        for name, shape in channels.items():
            kernel, found = params["layers"][name][layer], tree[f"layer_{layer}"][name]
            assert found.weights.dtype == jnp.int8
            assert found.scales.shape == shape
            error = np.abs(found.astype(jnp.float32) - kernel)
            assert (error <= 0.501 * np.asarray(found.scales)).all()
    assert tree["embedding"].scales.shape == (size.vocabulary, 1)
    rows = jnp.array([3, 1])
    np.testing.assert_array_equal(
        tree["embedding"][rows], tree["embedding"].astype(jnp.float32)[rows]
    )


def test_a_column_of_zeros_stays_zero():
    size, params, _ = golden.load("c")
    params["layers"]["mlp_in"] = jnp.asarray(params["layers"]["mlp_in"]).at[:, :, 5].set(0)
    found = for_decoding(params, size, "float32", int8=True)["layer_0"]["mlp_in"]
    assert not found.astype(jnp.float32)[:, 5].any()


def test_int8_and_bfloat16_generate_through_the_same_decoder():
    size, params, _ = golden.load("c")
    prompts = [[5, 6, 7], [9]]
    for dtype, int8 in (("bfloat16", True), ("bfloat16", False)):
        tree = for_decoding(params, size, dtype, int8)
        kinds = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Int8))
        assert any(isinstance(kind, Int8) for kind in kinds) == int8
        found = generate(Decoder(size, Compute(dtype)), tree, prompts, Sampling(new_tokens=4))
        assert all(0 < len(ids) <= 4 for ids in found)


def decoding(size, dtype="bfloat16"):
    """A decoder for a CPU, with the cache in float32: so all that is cast is weights."""
    return Decoder(size, Compute(dtype, cache_dtype="float32"))


@pytest.fixture(scope="module")
def model():
    size = Size(vocabulary=512, context=64, layers=1, heads=2, d_model=64, d_ff=256)
    start = jax.jit(Decoder(size, Compute(), Init(std=0.1)).init)
    return size, start(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def largest_cast(size, tree, rows):
    """Elements of the largest array that the program which adds tokens makes float32."""
    decoder, greedy = decoding(size), Sampling(new_tokens=4)
    state = jax.eval_shape(lambda tree: prefill(decoder, greedy, tree, [[5]] * rows), tree)
    lowered = _decode.lower(decoder, rules(greedy), 4, tree, state)
    text = lowered.compile(AS_FOR_USERS).as_text()
    shapes = re.findall(r"= f32\[([\d,]+)\]\S* convert\(", text)
    return max((math.prod(map(int, shape.split(","))) for shape in shapes), default=0)


@pytest.mark.parametrize("tokens", [(1, 1), (3, 1), (1, COLUMNS), (2, COLUMNS + 1)])
def test_a_product_is_the_same_with_the_outputs_first(tokens):
    chance = np.random.default_rng(0)
    shapes = {
        "bld,dkhe->blkhe": ((8,), (3, 2, 5)),
        "blhe,hed->bld": ((2, 5), (12,)),
        "bld,df->blf": ((8,), (12,)),
        "...d,dv->...v": ((8,), (12,)),
    }
    for equation, (inputs, outputs) in shapes.items():
        x = jnp.asarray(chance.standard_normal((*tokens, *inputs)), jnp.bfloat16)
        weight = jnp.asarray(chance.standard_normal((*inputs, *outputs)), jnp.float32)
        held = outputs_first(weight, tuple(range(len(inputs))))
        assert held.weights.shape == (*outputs, *inputs)
        expected = np.einsum(equation, *(np.asarray(y, np.float64) for y in (x, _bfloat16(weight))))
        equation = equation.replace("dv->", "vd->")  # a table has its outputs first anyway
        found = weighed(equation, x, held, jnp.dtype("float32"))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_row_of_a_product_has_the_same_bits_among_few_and_among_many():
    chance = np.random.default_rng(0)
    held = outputs_first(jnp.asarray(chance.standard_normal((96, 192)), jnp.float32), (0,))
    x = jnp.asarray(chance.standard_normal((COLUMNS + 3, 1, 96)), jnp.bfloat16)
    product = jax.jit(lambda x: weighed("bld,df->blf", x, held, jnp.dtype("float32")))
    for rows in (1, 5):
        np.testing.assert_array_equal(product(x[:rows]), product(x)[:rows])


def _bfloat16(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def test_rows_of_a_table_are_looked_up_as_they_are():
    table = jnp.asarray(np.random.default_rng(0).standard_normal((7, 5)), jnp.float32)
    rows = jnp.array([[3, 1], [6, 6]])
    np.testing.assert_array_equal(outputs_first(table, (1,))[rows], table.astype("bfloat16")[rows])


def test_a_cpu_reads_weights_as_they_are_kept(model):
    size, params = model
    tree = for_decoding(params, size, "bfloat16", cpu=True)
    least = size.d_model**2  # of the smallest kernel
    assert largest_cast(size, tree, 1) < least
    # what this is for: plain ones are all cast anew, at every call
    assert largest_cast(size, for_decoding(params, size, "bfloat16"), 1) >= least

    prompts, exact = [[5, 6, 7], [9]], for_decoding(params, size, "float32")
    sampling, found = Sampling(new_tokens=4), []
    for name, some in (("float32", exact), ("bfloat16", tree)):
        decoder = decoding(size, name)
        state, new, _ = decode_some(
            decoder, sampling, some, prefill(decoder, sampling, some, prompts), 4
        )
        found.append((state.scores, new))
    (scores, new), (narrow, same) = found
    np.testing.assert_array_equal(new, same)
    np.testing.assert_allclose(narrow, scores, atol=0.03 * float(jnp.abs(scores).max()))
