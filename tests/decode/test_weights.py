"""Int8 against its definition, on kernels of every shape."""

import jax
import jax.numpy as jnp
import numpy as np

from polylm_jax.decode.sampling import Sampling
from polylm_jax.decode.search import generate
from polylm_jax.decode.weights import Int8, for_decoding
from polylm_jax.model.decoder import Compute, Decoder
from tests import golden


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
