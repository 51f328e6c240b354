"""A step with adapters: their gradient is that of the merged weights', and the base stays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polylm_jax.data.rows import FIRST, LEARNED
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute, Decoder, logits
from polylm_jax.model.lora import Lora, adapter_shapes, merged
from polylm_jax.model.parameters import Init
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import batch_sharding, parameter_shardings
from polylm_jax.sizes import Size
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.step import abstract_state, make_state, make_update

SIZE = Size(vocabulary=64, context=16, layers=2, heads=4, d_model=16, d_ff=32)
COMPUTE = Compute(dtype="float32", loss_block=16)
SETTINGS = OptimizerSettings(clip=1e9, beta1=0.5, warmup_steps=1, decay_steps=10, spike_sigmas=0)
LORA = Lora(rank=3, alpha=6.0)


def batch_of(dice):
    marks = (dice.random((8, 13)) < 0.6).astype(np.uint8) * LEARNED
    marks[:, [0, 5]] |= FIRST
    tokens = dice.integers(3, 64, (8, 13)).astype(np.int32)
    return {"tokens": tokens, "marks": marks, "source": np.zeros(8, np.int32)}


def merged_tree(params, adapters, lora):
    """Parameters with each target's adapter added."""
    kernels = {
        name: merged(params["layers"][name], *(adapters[f"{name}_{x}"] for x in "ab"), lora.scale)
        for name in lora.targets
    }
    return params | {"layers": params["layers"] | kernels}


def loss_of(adapters, params, batch):
    """Mean loss of learned tokens by the merged weights and plain logits."""
    whole = merged_tree(params, adapters, LORA)
    documents = jnp.cumsum(batch["marks"][:, :-1] & FIRST > 0, axis=1)
    hidden, _ = Decoder(SIZE, COMPUTE).apply(
        {"params": whole}, batch["tokens"][:, :-1], documents=documents
    )
    scores = logits(hidden, whole["embedding"])
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch["tokens"][:, 1:])
    learned = batch["marks"][:, 1:] & LEARNED
    return (losses * learned).sum() / learned.sum()


def test_a_step_moves_the_adapters_alone_by_the_merged_models_gradient():
    dice = np.random.default_rng(2)
    batch = batch_of(dice)
    adapters = {
        name: 0.1 * dice.standard_normal(shape.shape).astype(np.float32)
        for name, shape in adapter_shapes(SIZE, LORA).items()
    }
    mesh = make_mesh(MeshShape(2, 2, 2))
    with jax.set_mesh(mesh):
        params = jax.jit(Decoder(SIZE, initial=Init(std=0.1)).init)(
            jax.random.key(0), np.zeros((1, 1), np.int32)
        )["params"]
        base = jax.device_put(params, parameter_shardings(SIZE, mesh))
        abstract = abstract_state(SIZE, Init(), SETTINGS, mesh, LORA)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        fresh = jax.jit(make_state(SIZE, Init(), SETTINGS, LORA), out_shardings=shardings)
        state = fresh(jax.random.key(1))
        assert not any(x.any() for name, x in state["params"].items() if name.endswith("_b"))
        assert all(x.any() for name, x in state["params"].items() if name.endswith("_a"))
        state["params"] = jax.device_put(adapters, shardings["params"])
        placed = jax.device_put(batch, batch_sharding(mesh))
        update = make_update(SIZE, COMPUTE, SETTINGS, mesh, 1, 1, LORA)
        state, metrics = update(state, placed, base)
        gradient = jax.tree.map(
            lambda x: np.asarray(x) / 0.5, optax.tree.get(state["optimizer"], "mu")
        )
    wanted, slopes = jax.jit(jax.value_and_grad(loss_of))(adapters, params, batch)
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)
    assert gradient.keys() == slopes.keys() == state["params"].keys()
    for name, slope in slopes.items():
        np.testing.assert_allclose(gradient[name], slope, rtol=1e-3, atol=1e-5)
        assert (np.asarray(state["params"][name]) != adapters[name]).mean() > 0.9
    for leaf, before in zip(jax.tree.leaves(base), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(leaf, before)


def test_targets_are_kernels_of_a_layer():
    assert set(adapter_shapes(SIZE, Lora(2, targets=("mlp_in",)))) == {"mlp_in_a", "mlp_in_b"}
    with pytest.raises(UserError, match=r'lora\.targets\[0\] is "c_attn"; choose one of qkv, '):
        Lora(2, targets=("c_attn",))
