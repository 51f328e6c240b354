"""Attention kernels against the softmax formula, gradients too, on one device and on a mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polylm_jax.errors import UserError
from polylm_jax.model.attention import (
    Trees,
    attention,
    causal,
    documents_of,
    in_parts,
    same_document,
    splash,
    staircase,
)
from polylm_jax.model.decoder import Compute
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import attender

ROWS, LENGTH, HEADS, SIZE = 4, 128, 2, 32
DOCUMENTS = jnp.repeat(jnp.array([[0, 1, 2], [0, 0, 3], [1, 1, 1], [0, 5, 9]]), 43, 1)[:, :LENGTH]
QKV = [
    jax.random.normal(key, (ROWS, LENGTH, HEADS, SIZE))
    for key in jax.random.split(jax.random.key(7), 3)
]


def visible(documents):
    mask = causal(jnp.arange(LENGTH)[None], LENGTH)
    return mask if documents is None else mask & same_document(documents)


def formula(query, key, value, documents):
    """The definition, differentiated by JAX."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(SIZE)
    scores = jnp.where(visible(documents)[:, None], scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)


def with_gradients(function, documents):
    def total(*qkv):
        mixed = function(*qkv, documents)
        return jnp.sum(jnp.sin(mixed)), mixed

    (_, mixed), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*QKV)
    return [mixed, *gradients]


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["row", "documents"])
def test_plain_attention_equals_the_formula(documents):
    ours = lambda q, k, v, documents: attention(q, k, v, visible(documents))  # noqa: E731
    assert_equal(with_gradients(ours, documents), with_gradients(formula, documents))


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["row", "documents"])
def test_splash_attention_equals_the_formula(documents):
    found = with_gradients(partial(splash, interpret=True), documents)
    assert_equal(found, with_gradients(formula, documents))


def test_splash_attention_on_a_mesh_equals_the_formula():
    mesh = make_mesh(MeshShape(2, 2, 2))
    attend = attender(Compute(attention="splash"), mesh, interpret=True)
    with jax.set_mesh(mesh):
        found = with_gradients(attend, DOCUMENTS)
    assert_equal(found, with_gradients(formula, DOCUMENTS))


BRANCHES = jnp.array(
    [
        [0] * 40 + [1] * 3 + [0] * 20 + [1] * 11 + [2] * 12 + [0] * 42,
        [0] * 86 + [0] * 10 + [1] * 10 + [2] * 22,
        [1] * 30 + [2] * 40 + [3] * 58,  # no stem
        [0] + [1] * 42 + [0] * 42 + [1] + [2] * 42,
    ]
)


def test_kernels_know_trees():
    """A token sees, up to itself, its document's stem and its own branch."""
    trees = Trees(DOCUMENTS, BRANCHES)
    documents, branches = map(np.asarray, trees)
    place = np.arange(LENGTH)
    seen = (
        (place[None, :, None] >= place[None, None])
        & (documents[:, :, None] == documents[:, None])
        & ((branches[:, None] == 0) | (branches[:, None] == branches[:, :, None]))
    )
    query, key, value = map(np.asarray, QKV)
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(SIZE)
    weights = np.where(seen[:, None], np.exp(scores), 0)
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, value)
    mesh = make_mesh(MeshShape(2, 2, 2))
    on_mesh = attender(Compute(attention="splash"), mesh, interpret=True)
    with jax.set_mesh(mesh):
        for kernel in staircase, partial(splash, interpret=True), on_mesh:
            np.testing.assert_allclose(jax.jit(kernel)(*QKV, trees), expected, atol=1e-5)


@pytest.mark.parametrize("lanes", [32, 128], ids=["long", "short"])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["row", "documents"])
def test_attention_in_steps_equals_the_formula(documents, lanes, monkeypatch):
    monkeypatch.setattr("polylm_jax.model.attention.LANES", lanes)
    assert_equal(with_gradients(staircase, documents), with_gradients(formula, documents))


def test_automatic_attention_is_in_steps_on_a_cpu_and_plain_where_asked():
    mesh = make_mesh(MeshShape(1, 8, 1))
    attend = attender(Compute(), mesh)
    row = np.zeros((1, 256, 2, 8), np.float32)
    steps = [str(jax.make_jaxpr(each)(row, row, row, None)) for each in (attend, staircase)]
    assert steps[0] == steps[1]
    assert attend is attender(Compute(), mesh)
    assert attender(Compute(attention="plain"), mesh) is None


def test_splash_attention_refuses_other_lengths_than_its_blocks():
    attend = attender(Compute(attention="splash"), make_mesh(MeshShape(1, 8, 1)))
    with pytest.raises(UserError, match=r"rows of a multiple of 128 tokens, not 100"):
        attend(*[x[:, :100] for x in QKV], None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attention": "flash"}, r'compute\.attention is "flash"; choose one of auto'),
        ({"attention": "cudnn", "dtype": "float32"}, r"needs compute\.dtype"),
    ],
)
def test_attention_that_does_not_exist_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        Compute(**settings)


def test_a_document_includes_its_end():
    tokens = jnp.array([[9, 2, 2, 7, 8]])
    np.testing.assert_array_equal(documents_of(tokens, 2), [[0, 0, 1, 2, 2]])


@pytest.mark.parametrize("heads", [2, 17])
def test_what_all_heads_take_at_once_is_the_plain_formula(heads):
    chance, (batch, size, lengths) = np.random.default_rng(0), (3, 8, (5, 2))
    query = jnp.asarray(chance.standard_normal((batch, 1, heads, size)), jnp.bfloat16)
    parts = [
        tuple(
            jnp.asarray(chance.standard_normal((batch, heads, length, size)), jnp.bfloat16)
            for _ in range(2)
        )
        for length in lengths
    ]
    seen = jnp.asarray(chance.random((batch, 1, sum(lengths))) < 0.7).at[:, :, 0].set(True)
    key, value = (jnp.concatenate(two, axis=2).swapaxes(1, 2) for two in zip(*parts, strict=True))
    wide = [x.astype(jnp.float32) for x in (query, key, value)]
    expected = attention(*wide, seen)
    mixed = jax.jit(in_parts)(wide[0], parts, seen)
    np.testing.assert_allclose(mixed, expected, atol=0.02)  # its weights are bfloat16
    exact = in_parts(wide[0], jax.tree.map(lambda x: x.astype(jnp.float32), parts), seen)
    np.testing.assert_allclose(exact, expected, atol=1e-5)
