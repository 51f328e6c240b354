"""Packed examples cost what Hugging Face says each costs alone: JSONL, store, feed, step."""

import functools
import json
import math

import jax
import numpy as np
import optax
import pytest

from polylm_jax.data.curriculum import locate
from polylm_jax.data.feed import batches
from polylm_jax.data.rows import FIRST, LEARNED, RowSettings, open_store
from polylm_jax.data.schedule import make_curriculum
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.decode.chat import ChatSettings
from polylm_jax.interop.hugging_face import params_from
from polylm_jax.model.decoder import Compute
from polylm_jax.model.parameters import Init
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import batch_sharding
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.step import abstract_state, make_evaluate, make_state, make_update
from polylm_jax.tune.examples import ExampleSettings
from polylm_jax.tune.instruct import TuneSettings, build, schedule_of
from tests import golden

LENGTH, BATCH = 159, 32
COMPUTE = Compute("float32", loss_block=64)
# one step whose first moment is the gradient
SETTINGS = OptimizerSettings(clip=1e9, beta1=0.5, warmup_steps=1, decay_steps=10, spike_sigmas=0)
MESHES = [(1, 1, 1), (2, 2, 2)]


def mesh_of(*ways):
    return make_mesh(MeshShape(*ways), jax.devices()[: math.prod(ways)])


@pytest.fixture(scope="module")
def tuned():
    return golden.load("tuned")


@pytest.fixture(scope="module")
def talks(tuned):
    lines = tuned[2]["examples"].tobytes().decode().split("\n")
    return [json.loads(line) for line in lines]


def fed(folder, talks, vocabulary):
    """Every row of the talks once, as the feed hands them out: batch, lines of each row."""
    folder.mkdir()
    file = folder / "en.jsonl"
    file.write_text("\n".join(map(json.dumps, talks)))
    settings = TuneSettings((str(file),), validation=0)
    rows = RowSettings(str(folder / "rows"), LENGTH, shard_rows=4)
    chat = ChatSettings(format="chat", keep_ends=True)
    build(settings, ExampleSettings(), chat, rows, vocabulary)
    store = open_store(rows.path)
    counts = {"en": store.rows("en")}
    order = make_curriculum(schedule_of(counts, 0), counts, LENGTH)
    feed = batches(store, order, batch_sharding(mesh_of(1, 1, 1)), counts["en"], 0)
    batch = jax.device_get(next(feed))
    feed.close()
    _, places = locate(order, 0, counts["en"])
    lines = [[origin.line - 1 for origin in store.origins("", "en", int(n))] for n in places]
    assert sorted(line for row in lines for line in row) == list(range(len(talks)))
    return batch, lines


@pytest.fixture(scope="module")
def packed(tuned, talks, tmp_path_factory):
    vocabulary = Tokenizer(tuned[2]["tokenizer"].tobytes())
    batch, lines = fed(tmp_path_factory.mktemp("oracle") / "a", talks, vocabulary)
    assert max(map(len, lines)) > 3
    return batch, lines


def spaced(batch):
    """The batch's rows at even places, and rows of which nothing is learned between them."""
    rows = len(batch["tokens"])
    assert 2 * rows <= BATCH
    wide = {name: np.zeros((BATCH, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    for name, x in batch.items():
        wide[name][0 : 2 * rows : 2] = x
    return wide


def losses_of_examples(evaluate, params, batch, lines):
    """Each example's summed loss, in the order of the talks: the others' marks are taken away."""
    found = np.zeros(sum(map(len, lines)))
    number = np.cumsum(batch["marks"] & FIRST > 0, axis=1) - 1
    for nth in range(max(map(len, lines))):
        marks = np.where(number == nth, batch["marks"], batch["marks"] & ~np.uint8(LEARNED))
        losses = np.asarray(evaluate(params, {"tokens": batch["tokens"], "marks": marks}))
        for row, of_row in enumerate(lines):
            if nth < len(of_row):
                found[of_row[nth]] = losses[row]
    return found


@pytest.fixture(scope="module", params=MESHES, ids=str)
def mesh(request):
    mesh = mesh_of(*request.param)
    with jax.set_mesh(mesh):
        yield mesh


def padded_to(batch, rows):
    return {
        name: np.concatenate([x, np.zeros((rows - len(x), *x.shape[1:]), x.dtype)])
        for name, x in batch.items()
    }


def test_each_example_costs_what_it_costs_alone(tuned, packed, mesh):
    size, params, content = tuned
    batch, lines = packed
    found = losses_of_examples(
        make_evaluate(size, COMPUTE, mesh), params, padded_to(batch, 16), lines
    )
    np.testing.assert_allclose(found, content["loss"], rtol=1e-5)


def test_changing_one_example_changes_no_other_by_a_bit(tuned, talks, packed, tmp_path):
    size, params, content = tuned
    vocabulary = Tokenizer(content["tokenizer"].tobytes())
    asked = [talk["messages"][0]["content"] for talk in talks]
    lengths = list(map(len, vocabulary.encode(asked)))
    changed, other = next(
        (i, j)
        for i in range(len(talks))
        for j in range(len(talks))
        if lengths[i] == lengths[j] and asked[i] != asked[j] and i in first_of(packed[1])
    )
    said = json.loads(json.dumps(talks))
    said[changed]["messages"][0]["content"] = asked[other]
    batch, lines = fed(tmp_path / "b", said, vocabulary)
    assert lines == packed[1]
    mesh = mesh_of(1, 1, 1)
    with jax.set_mesh(mesh):
        evaluate = make_evaluate(size, COMPUTE, mesh)
        before, after = (
            losses_of_examples(evaluate, params, padded_to(one, 16), lines)
            for one in (packed[0], batch)
        )
    assert np.flatnonzero(before != after).tolist() == [changed]


def first_of(lines):
    """The first examples of rows that have others behind them."""
    return {row[0] for row in lines if len(row) > 1}


@functools.cache
def update_of(size, mesh, microbatches):
    """The step, compiled once for all tests."""
    return make_update(size, COMPUTE, SETTINGS, mesh, microbatches, 1)


def one_step(tuned, mesh, microbatches, batch):
    """Metrics and gradient of one step from the golden parameters."""
    size, params, _ = tuned
    update = update_of(size, mesh, microbatches)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(size, Init(), SETTINGS, mesh))
    state = jax.jit(make_state(size, Init(), SETTINGS), out_shardings=shardings)(jax.random.key(0))
    # a copy, for the state is donated
    state["params"] = jax.device_put(jax.tree.map(np.array, params), shardings["params"])
    state, metrics = update(state, jax.device_put(batch, batch_sharding(mesh)))
    gradient = jax.tree.map(lambda x: np.asarray(x) / 0.5, optax.tree.get(state["optimizer"], "mu"))
    return jax.device_get(metrics), gradient


def close(found, wanted, relative):
    """Each array to this share of its largest number."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=relative * np.abs(other).max())


@pytest.mark.parametrize(
    ("ways", "microbatches"), [((1, 1, 1), 1), ((1, 1, 1), 8), ((2, 2, 2), 2), ((2, 2, 2), 4)]
)
def test_the_gradient_is_that_of_all_answers_whatever_the_microbatches(
    tuned, packed, ways, microbatches
):
    """Half of the microbatches, or more, have nothing to learn from."""
    size, _, content = tuned
    mesh = mesh_of(*ways)
    with jax.set_mesh(mesh):
        metrics, gradient = one_step(tuned, mesh, microbatches, spaced(packed[0]))
    learned = content["learned"].sum()
    np.testing.assert_allclose(metrics["loss"], content["loss"].sum() / learned, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_sum"], [content["loss"].sum()], rtol=1e-5)
    np.testing.assert_array_equal(metrics["token_count"], [learned])
    np.testing.assert_array_equal(metrics["skipped"], 0)
    close(gradient, params_from(golden.select(content, "gradients/"), size), 1e-4)


def test_microbatches_of_very_uneven_learned_tokens_give_one_gradient(tuned, packed):
    """Of eight, one learns from whole rows, two from a token or three of each, five nothing."""
    batch = spaced(packed[0])
    learned = batch["marks"] & LEARNED > 0
    most = np.array([1, 0, 10_000, 0, 0, 0, 3, 0])[np.arange(BATCH) % 8]
    kept = learned & (np.cumsum(learned, axis=1) <= most[:, None])
    batch["marks"] = np.where(kept, batch["marks"], batch["marks"] & ~np.uint8(LEARNED))
    counts = kept[:, 1:].sum(axis=1)
    of_eight = counts.reshape(-1, 8).sum(axis=0)
    assert (of_eight > 0).tolist() == [1, 0, 1, 0, 0, 0, 1, 0]
    assert of_eight.max() > 20 * of_eight[0]
    found = {}
    for ways, microbatches in [((1, 1, 1), 1), ((2, 2, 2), 2), ((2, 2, 2), 4), ((1, 1, 1), 8)]:
        mesh = mesh_of(*ways)
        with jax.set_mesh(mesh):
            metrics, gradient = one_step(tuned, mesh, microbatches, batch)
        np.testing.assert_array_equal(metrics["token_count"], [counts.sum()])
        found[microbatches] = metrics["loss"], gradient
    for microbatches in (2, 4, 8):
        close(found[microbatches], found[1], 1e-5)


def test_a_batch_with_nothing_to_learn_is_skipped(tuned, packed):
    mesh = mesh_of(1, 1, 1)  # as above, so that the step is compiled once
    nothing = {name: x.copy() for name, x in spaced(packed[0]).items()}
    nothing["marks"] &= FIRST
    with jax.set_mesh(mesh):
        metrics, gradient = one_step(tuned, mesh, 1, nothing)
    assert (metrics["skipped"], metrics["token_count"].tolist()) == (1, [0])
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))
