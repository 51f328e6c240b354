"""One update against AdamW written out in numpy, and a step that must not happen."""

import jax
import numpy as np
import pytest

from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.model.loss import cross_entropy
from polylm_jax.model.parameters import Init
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import batch_sharding
from polylm_jax.sizes import Size
from polylm_jax.train.optimizer import OptimizerSettings, ahead_of, in_steps, learning_rate
from polylm_jax.train.step import abstract_state, make_state, make_update

SIZE = Size(vocabulary=64, context=16, layers=2, heads=4, d_model=16, d_ff=32)
FLOAT32 = Compute(dtype="float32", loss_block=32)
SETTINGS = OptimizerSettings(
    peak_learning_rate=0.1, warmup_steps=2, decay_steps=10, weight_decay=0.3, clip=0.05
)
TOKENS = np.random.default_rng(5).integers(3, 64, (8, 13)).astype(np.int32)


@pytest.fixture(scope="module")
def started():
    mesh = make_mesh(MeshShape(2, 2, 2))
    with jax.set_mesh(mesh):
        abstract = abstract_state(SIZE, Init(std=0.1), SETTINGS, mesh)
        fresh = jax.jit(
            make_state(SIZE, Init(std=0.1), SETTINGS),
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        )
        source = np.array([0, 0, 0, 1, 1, 2, 2, 2], np.int32)
        batch = jax.device_put({"tokens": TOKENS, "source": source}, batch_sharding(mesh))
        yield fresh, make_update(SIZE, FLOAT32, SETTINGS, mesh, 2, 3), batch


def gradient_of(params):
    def loss(params):
        hidden, _ = Decoder(SIZE, FLOAT32).apply({"params": params}, TOKENS[:, :-1])
        ones = np.full(TOKENS[:, 1:].shape, 1 / TOKENS[:, 1:].size, np.float32)
        return cross_entropy(hidden, params["embedding"], TOKENS[:, 1:], ones, 32)[0]

    return jax.device_get(jax.jit(jax.grad(loss))(params))


def test_two_updates_equal_adamw_in_numpy(started):
    fresh, update, batch = started
    state = fresh(jax.random.key(0))
    params = jax.device_get(state["params"])
    first = second = jax.tree.map(np.zeros_like, params)
    for step in (1, 2):
        gradient = gradient_of(params)
        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradient)))
        assert norm > SETTINGS.clip
        gradient = jax.tree.map(lambda g, n=norm: g * SETTINGS.clip / n, gradient)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g**2, second, gradient)
        rate = {1: 1e-7, 2: (1e-7 + 0.1) / 2}[step]

        def new(path, p, m, v, step=step, rate=rate):
            name = path[-1].key
            decay = 0.0 if "bias" in name or "scale" in name else 0.3
            adam = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
            return p - rate * (adam + decay * p)

        params = jax.tree_util.tree_map_with_path(new, params, first, second)
        state, metrics = update(state, batch)
        assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-4)
        assert float(metrics["learning_rate"]) == pytest.approx(rate, rel=1e-5, abs=1e-8)
    # Adam divides by the gradient's size, so rounding of tiny gradients shows
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), state["params"], params)
    np.testing.assert_array_equal(metrics["row_count"], [3, 2, 3])


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(started):
    fresh, update, batch = started
    state = fresh(jax.random.key(0))
    state["params"]["final_norm_bias"] = state["params"]["final_norm_bias"].at[0].set(np.nan)
    before = jax.device_get({name: state[name] for name in ("params", "optimizer")})
    state, metrics = update(state, batch)
    jax.tree.map(np.testing.assert_array_equal, before, {name: state[name] for name in before})
    assert (int(state["step"]), int(state["skipped"]), int(metrics["skipped"])) == (1, 1, 1)
    assert int(metrics["levels"]) == 0


def test_the_state_is_updated_in_place(started):
    fresh, update, batch = started
    state = fresh(jax.random.key(0))
    sizes = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)]
    memory = update.lower(state, batch).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= sum(sizes)


@pytest.mark.rare
def test_narrow_moments_halve_their_bytes_and_still_learn(started):
    *_, batch = started
    mesh = make_mesh(MeshShape(2, 2, 2))

    def run(moments):
        settings = OptimizerSettings(
            peak_learning_rate=0.01, warmup_steps=2, decay_steps=40, moments=moments
        )
        with jax.set_mesh(mesh):
            state = jax.jit(make_state(SIZE, Init(std=0.1), settings))(jax.random.key(0))
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state["optimizer"]))
            shardings = jax.tree.map(
                lambda leaf: leaf.sharding, abstract_state(SIZE, Init(), settings, mesh)
            )
            state = jax.device_put(state, shardings)
            update = make_update(SIZE, FLOAT32, settings, mesh, 1, 3)
            losses = []
            for _ in range(20):
                state, metrics = update(state, batch)
                losses.append(float(metrics["loss"]))
        return size, losses

    (wide, expected), (narrow, found) = run("float32"), run("bfloat16")
    assert narrow == pytest.approx(wide / 2, rel=1e-3)
    assert expected[-1] < 0.8 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_narrow_moments_refuse_a_beta_that_they_would_lose():
    with pytest.raises(UserError, match=r"loses the updates of optimizer\.beta1 or beta2"):
        OptimizerSettings(moments="bfloat16", beta2=0.999)


def test_the_learning_rate_warms_up_and_ends_at_its_share():
    rate = learning_rate(OptimizerSettings())
    assert float(rate(0)) == pytest.approx(1e-7, abs=1e-8)
    assert float(rate(2000)) == pytest.approx(1e-4)
    assert float(rate(305_000)) == pytest.approx(0.55e-4, rel=1e-2)
    assert float(rate(608_000)) == pytest.approx(1e-5)
    assert float(rate(700_000)) == pytest.approx(1e-5)


def test_a_learning_rate_in_tokens_is_that_in_steps_whatever_the_batch():
    steps = OptimizerSettings(warmup_steps=20, decay_steps=200)
    tokens = OptimizerSettings(warmup_tokens=20 * 64, decay_tokens=200 * 64)
    assert in_steps(tokens, 64) == steps
    half = learning_rate(in_steps(tokens, 32))
    for step in (0, 7, 20, 100, 200, 300):
        assert half(2 * step) == pytest.approx(float(learning_rate(steps)(step)), rel=1e-3)
    # a point between two steps is reached by the later one
    assert in_steps(OptimizerSettings(warmup_tokens=65), 64).warmup_steps == 2
    with pytest.raises(UserError, match=r"optimizer\.warmup_tokens = 9 is not below"):
        OptimizerSettings(warmup_tokens=9, decay_tokens=9)
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps = 2000 is not below"):
        in_steps(OptimizerSettings(decay_tokens=2000 * 64), 64)


def test_a_learning_rate_in_tokens_goes_on_where_the_batch_is_another():
    settings = OptimizerSettings(warmup_tokens=20 * 64, decay_tokens=200 * 64)
    whole = learning_rate(in_steps(settings, 64))
    # 100 steps of 64 tokens, then steps of 128 or of 32
    for tokens, of_one in ((128, 2), (32, 0.5)):
        ahead = ahead_of(settings, 100, 100 * 64, tokens)
        assert ahead_of(settings, 140, (100 + 40 * of_one) * 64, tokens) == ahead
        rate = learning_rate(in_steps(settings, tokens, ahead), ahead)
        for step in (100, 110, 140, 300):
            same = whole(100 + of_one * (step - 100))
            assert rate(step) == pytest.approx(float(same), rel=1e-3)
    # a warm-up in steps is over, or is not, whatever the batch
    mixed = OptimizerSettings(warmup_steps=90, decay_tokens=200 * 64)
    for tokens in (128, 32):
        ahead = ahead_of(mixed, 100, 100 * 64, tokens)
        rate = learning_rate(in_steps(mixed, tokens, ahead), ahead)
        assert rate(90) == pytest.approx(mixed.peak_learning_rate, rel=1e-2)
        assert rate(100) < rate(90)
    # nothing is moved where steps count, or where the batch stays; nor is what lies behind refused
    assert ahead_of(OptimizerSettings(), 100, 100 * 64, 32) == 0
    assert ahead_of(settings, 100, 100 * 64, 64) == 0
    past = in_steps(OptimizerSettings(warmup_tokens=64, decay_steps=2001), 64, -5000.0)
    assert (past.warmup_steps, past.decay_steps) == (0, 1)


def test_a_warm_up_longer_than_the_decay_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps = 9"):
        OptimizerSettings(warmup_steps=9, decay_steps=9)
