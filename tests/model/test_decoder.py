"""The decoder against Hugging Face's GPT-2, and its parameters against the paper's sizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polylm_jax.errors import UserError
from polylm_jax.interop.hugging_face import weights_from
from polylm_jax.model.decoder import REMAT_POLICIES, Compute, Decoder, gelu, logits
from polylm_jax.model.lora import Lora, adapter_shapes, initial_adapters
from polylm_jax.model.loss import cross_entropy
from polylm_jax.model.parameters import Init, count, shapes
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import attender
from polylm_jax.sizes import Size, flops_per_token
from tests import golden
from tests.tune.test_lora import merged_tree

FLOAT32 = Compute(dtype="float32", loss_block=64)
SMALL = Size(vocabulary=64, context=16, layers=2, heads=2, d_model=16, d_ff=32)


def drawn(size, init):
    """Fresh parameters."""
    start = jax.jit(Decoder(size, initial=init).init)
    return start(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


@pytest.fixture(scope="module")
def small():
    """Parameters of SMALL."""
    return drawn(SMALL, Init())


@partial(jax.jit, static_argnums=0)
def hidden_of(decoder, params, *arrays, **more):
    return decoder.apply({"params": params}, *arrays, **more)[0]


@pytest.mark.parametrize("name", golden.NAMES)
def test_logits_equal_hugging_face(name):
    size, params, content = golden.load(name)
    hidden = hidden_of(Decoder(size, FLOAT32), params, content["tokens"])
    ours = logits(hidden, params["embedding"])
    np.testing.assert_allclose(ours, content["logits"], atol=5e-5)


@pytest.mark.parametrize("name", ["a", "c"])
@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_loss_and_gradients_equal_hugging_face(name, remat):
    size, params, content = golden.load(name)
    tokens = content["tokens"]
    decoder = Decoder(size, Compute(dtype="float32", remat=remat, loss_block=32))

    def loss(params):
        hidden, _ = decoder.apply({"params": params}, tokens[:, :-1])
        weights = jnp.full(tokens[:, 1:].shape, 1 / tokens[:, 1:].size)
        return cross_entropy(hidden, params["embedding"], tokens[:, 1:], weights, 32)

    (_, losses), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(losses, content["loss_per_token"], atol=2e-5)
    ours = weights_from(gradient, size)
    for key, theirs in golden.select(content, "gradients/").items():
        np.testing.assert_allclose(ours[key], theirs, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        (Size(), 1_737_084_928),
        (Size(layers=40, heads=40, d_model=5120, d_ff=20480), 13_906_790_400),
    ],
)
def test_released_sizes_have_exactly_the_released_parameters(size, parameters):
    key, tokens = jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    tree = jax.eval_shape(partial(Decoder(size).init, key), tokens)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == parameters == count(size)
    assert jax.tree.map(lambda leaf: leaf.shape, tree) == jax.tree.map(
        lambda leaf: leaf.shape, shapes(size)
    )


def test_flops_per_token_of_the_release():
    # 11.60 and 88.39 GFLOP: the full-attention counts derived by hand from 6N + 12·L·d·T
    large = Size(layers=40, heads=40, d_model=5120, d_ff=20480)
    assert flops_per_token(Size(), 2048) == pytest.approx(11.60e9, rel=2e-3)
    assert flops_per_token(large, 2048) == pytest.approx(88.39e9, rel=2e-3)


def test_a_token_sees_only_what_came_before_it(small):
    tokens = np.random.default_rng(1).integers(6, 64, (1, 12))
    hidden = partial(hidden_of, Decoder(SMALL, FLOAT32), small)
    before = hidden(tokens)
    tokens[0, 7] = 5
    after = hidden(tokens)
    np.testing.assert_array_equal(before[0, :7], after[0, :7])
    assert np.abs(before[0, 7:] - after[0, 7:]).max() > 0


def test_attention_can_be_kept_inside_documents(small):
    reset = Compute(dtype="float32", attend_across_documents=False)
    tokens = np.array([[9, 8, 7, 2, 5, 6]])
    other = np.array([[4, 8, 3, 2, 5, 6]])
    one, two = (hidden_of(Decoder(SMALL, reset), small, x) for x in (tokens, other))
    np.testing.assert_array_equal(one[0, 4:], two[0, 4:])
    across = hidden_of(Decoder(SMALL, FLOAT32), small, tokens)
    assert np.abs(across[0, 4:] - one[0, 4:]).max() > 0


def test_bfloat16_keeps_the_residual_stream_in_float32():
    size, params, content = golden.load("b")
    hidden = hidden_of(Decoder(size, Compute()), params, content["tokens"])
    assert hidden.dtype == jnp.bfloat16
    ours = logits(hidden, params["embedding"])
    assert np.abs(ours - content["logits"]).max() < 0.5
    text = str(
        jax.make_jaxpr(lambda p: Decoder(size, Compute()).apply({"params": p}, content["tokens"]))(
            params
        )
    )
    assert f"f32[{content['tokens'].shape[0]},{size.context},{size.d_model}]" in text


@pytest.mark.parametrize("scheme", ["normal", "xavier"])
def test_initial_values_follow_their_scheme(scheme):
    size = Size(vocabulary=512, context=64, layers=8, heads=4, d_model=128, d_ff=512)
    layers = drawn(size, Init(scheme=scheme, std=0.01))["layers"]
    expected = {
        "normal": (0.01, 0.01 / np.sqrt(16)),
        "xavier": (np.sqrt(2 / (128 + 512)), np.sqrt(2 / (128 + 512))),
    }[scheme]
    assert np.std(layers["mlp_in"]) == pytest.approx(expected[0], rel=0.02)
    assert np.std(layers["mlp_out"]) == pytest.approx(expected[1], rel=0.02)
    assert not np.any(layers["qkv_bias"])
    assert np.all(np.asarray(layers["mlp_norm_scale"]) == 1)
    # layers are drawn apart
    assert np.abs(layers["mlp_in"][0] - layers["mlp_in"][1]).max() > 0


def test_each_remat_policy_keeps_more_than_the_one_before_it():
    size = Size(vocabulary=256, context=128, layers=4, heads=4, d_model=128, d_ff=512)
    params = {"params": shapes(size)}
    tokens = jax.ShapeDtypeStruct((4, 128), jnp.int32)

    def temporaries(remat):
        decoder = Decoder(size, Compute(remat=remat))
        loss = lambda params, tokens: decoder.apply(params, tokens)[0].sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(params, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    found = [temporaries(remat) for remat in REMAT_POLICIES]
    assert list(REMAT_POLICIES) == ["full", "attention_and_mlp", "dots", "none"]
    assert found == sorted(found)
    assert found[-1] > 1.5 * found[0]


def test_gelu_and_its_slope_equal_those_of_jax():
    x = jnp.linspace(-12.0, 12.0, 4801)
    plain = lambda x: jax.nn.gelu(x, approximate=True).sum()  # noqa: E731
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=True), atol=1e-6)
    ours = jax.grad(lambda x: gelu(x).sum())(x)
    np.testing.assert_allclose(ours, jax.grad(plain)(x), atol=2e-6)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match=r"model.heads = 3 does not divide model.d_model = 16"):
        Size(heads=3, d_model=16)


@pytest.mark.parametrize("attention", ["plain", "staircase"])
def test_packed_texts_have_the_losses_that_hugging_face_gives_each_alone(attention):
    size, params, content = golden.load("a")
    tokens, losses = content["tokens"], content["loss_per_token"]
    # the beginnings of three texts in one row: what a text's beginning loses needs no more of it
    lengths = [5, 1, size.context - 7]
    row = np.concatenate([tokens[i, :n] for i, n in enumerate(lengths)])[None]
    targets = np.concatenate([tokens[i, 1 : n + 1] for i, n in enumerate(lengths)])[None]
    documents = np.repeat(np.arange(3), lengths)[None]
    compute = Compute(dtype="float32", attention=attention)
    attend = attender(compute, make_mesh(MeshShape(1, 1, 1), jax.devices()[:1]))
    decoder = Decoder(size, compute, attend=attend)
    hidden = hidden_of(decoder, params, row, documents=documents)
    _, ours = cross_entropy(hidden, params["embedding"], targets, jnp.ones(row.shape), 64)
    expected = np.concatenate([losses[i, :n] for i, n in enumerate(lengths)])
    np.testing.assert_allclose(ours[0], expected, rtol=1e-5, atol=1e-6)
    # nothing of a text reaches another: not a bit of the others changes with the second
    other = hidden_of(decoder, params, row + 3 * (documents == 1), documents=documents)
    apart = documents[0] != 1
    np.testing.assert_array_equal(hidden[0, apart], other[0, apart])


def test_positions_without_a_cache_and_documents_with_one_are_refused(small):
    tokens = np.zeros((1, 4), np.int32)
    with pytest.raises(ValueError, match="positions go with a cache"):
        Decoder(SMALL, FLOAT32).apply({"params": small}, tokens, positions=tokens)


def test_adapters_beside_the_weights_equal_the_weights_merged_and_only_they_get_a_gradient(small):
    lora = Lora(rank=4, alpha=8.0)
    decoder = Decoder(SMALL, FLOAT32, adapter_scale=lora.scale)
    draw = np.random.default_rng(0)
    noisy = partial(
        jax.tree.map, lambda p: np.float32(np.asarray(p) + 0.1 * draw.normal(size=p.shape))
    )
    params = noisy(small)
    tokens = draw.integers(3, 64, (2, 12))
    adapters = jax.jit(initial_adapters, static_argnums=(1, 2))(jax.random.key(2), SMALL, lora)
    assert {n: a.shape for n, a in adapters.items()} == {
        n: s.shape for n, s in adapter_shapes(SMALL, lora).items()
    }

    @jax.jit
    def beside(adapters, params):
        return decoder.apply({"params": params, "lora": {"layers": adapters}}, tokens)[0]

    @jax.jit
    def inside(adapters, params):
        return decoder.apply({"params": merged_tree(params, adapters, lora)}, tokens)[0]

    plain = hidden_of(decoder, params, tokens)
    np.testing.assert_allclose(beside(adapters, params), plain, atol=1e-6)
    adapters = noisy(adapters)
    np.testing.assert_allclose(beside(adapters, params), inside(adapters, params), atol=2e-5)
    weigh = draw.normal(size=plain.shape)
    ours, theirs = (
        jax.jit(jax.grad(lambda a, f=f: (f(a, params) * weigh).sum()))(adapters)
        for f in (beside, inside)
    )
    for name in adapters:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-3, err_msg=name)
