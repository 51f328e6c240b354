"""The step compiled ahead of time for a TPU: no [length, length] of scores, gathers beside work."""

import re

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding

from polylm_jax.evaluation.score import score_batch
from polylm_jax.model.decoder import Compute
from polylm_jax.model.parameters import Init, count, shapes
from polylm_jax.model.table import summed
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.platform import compiler_options
from polylm_jax.parallel.sharding import LOSS_AXES, batch_sharding, parameter_shardings
from polylm_jax.plan.collectives import Collective, collectives
from polylm_jax.plan.slices import devices_of, slice_of
from polylm_jax.sizes import Size
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.step import abstract_state, make_update, sharded_decoder

SIZE = Size(vocabulary=1024, context=1024, layers=2, heads=4, d_model=512, d_ff=1536)


@pytest.fixture
def devices(monkeypatch):
    """A slice that is not here."""
    pytest.importorskip("libtpu", reason="libtpu is not installed")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)


def test_on_a_tpu_no_scores_of_a_whole_row_are_held(devices):
    mesh, settings = make_mesh(MeshShape(1, 2, 2), devices), OptimizerSettings()
    rows = batch_sharding(mesh)
    batch = {
        "tokens": jax.ShapeDtypeStruct((4, 1025), np.int32, sharding=rows),
        "source": jax.ShapeDtypeStruct((4,), np.int32, sharding=rows),
    }
    compute = Compute(attend_across_documents=False)
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        state = abstract_state(SIZE, Init(), settings, mesh)
        update = make_update(SIZE, compute, settings, mesh, 1, 1)
        # as a run compiles it
        text = update.lower(state, batch).compile(compiler_options("tpu")).as_text()
    assert "tpu_custom_call" in text
    assert not re.findall(r"(?:f32|bf16)\[(?:\d+,)*1024,1024\]", text)
    # under the run's flags much of what is gathered comes while something is computed
    sent = collectives(text, {"data": 1, "fsdp": 2, "tensor": 2})
    gathers = [one for one in sent if one.kind == "all-gather" and "fsdp" in one.axes]
    assert sum(one.overlapped for one in gathers) > sum(one.bytes for one in gathers) / 3
    # the loss hands each device its columns of the embedding's gradient, no more
    assert "reduce-scatter" in {one.kind for one in sent}


# Its table and its kernels are about as large; over two ways of fsdp a chip has 64 columns of the
# table, as of the 1.7B's over 32: too few for a tile.
FLAT, MICROBATCHES = Size(8192, 128, layers=2, heads=2, d_model=128, d_ff=2048), 4


def sums_between(devices, **changes) -> dict[tuple[str, str], Collective]:
    """What FLAT's step, two ways of data and two of fsdp, sends to add up gradients."""
    mesh, settings = make_mesh(MeshShape(2, 2, 1), devices), OptimizerSettings()
    rows = batch_sharding(mesh)
    batch = {
        "tokens": jax.ShapeDtypeStruct((16, 129), np.int32, sharding=rows),
        "source": jax.ShapeDtypeStruct((16,), np.int32, sharding=rows),
    }
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        state = abstract_state(FLAT, Init(), settings, mesh)
        update = make_update(FLAT, Compute(**changes), settings, mesh, MICROBATCHES, 1)
        text = update.lower(state, batch).compile(compiler_options("tpu")).as_text()
    found = collectives(text, dict(mesh.shape))
    return {(one.kind, one.axes): one for one in found if one.kind != "all-gather"}


def test_the_embeddings_gradient_is_sent_once_a_step_and_half_of_it_in_bfloat16(devices):
    table = FLAT.vocabulary * FLAT.d_model * 4
    layers = 4 * (count(FLAT) - (FLAT.vocabulary + FLAT.context) * FLAT.d_model) * MICROBATCHES
    whole = lambda found: sum(one.bytes for one in found.values())  # noqa: E731
    sent = sums_between(devices)
    # scattered over fsdp, half comes in: of the layers in each microbatch, of the table once
    assert sent["reduce-scatter", "fsdp"].bytes == pytest.approx((layers + table) / 2, rel=0.05)
    # and so is the half of it that is summed over data; the table's columns change places
    assert sent["all-reduce", "data"].bytes == pytest.approx((layers + table) / 2, rel=0.05)
    assert sent["all-to-all", "fsdp"].bytes == pytest.approx(table / 4, rel=0.05)
    assert whole(sent) < layers + 1.5 * table
    narrow = sums_between(devices, sum_dtype="bfloat16")
    assert whole(narrow) < 0.55 * whole(sent)


def test_the_13bs_table_is_scattered_as_it_lies_and_never_summed_whole_on_every_chip(devices):
    mesh = make_mesh(MeshShape(2, 32, 1), devices_of(slice_of("v5p-128")))
    split = NamedSharding(mesh, LOSS_AXES.sums)
    sums = jax.ShapeDtypeStruct((64, 256_000, 5120), np.float32, sharding=split)
    with jax.set_mesh(mesh):
        program = jax.jit(lambda sums: summed(sums, LOSS_AXES), donate_argnums=0).trace(sums)
        compiled = program.lower().compile(compiler_options("tpu"))
    table = 256_000 * 5120 * 4
    found = collectives(compiled.as_text(), dict(mesh.shape))
    assert {(one.kind, one.axes): one.bytes / table for one in found} == {
        ("reduce-scatter", "fsdp"): pytest.approx(31 / 32, rel=0.01),
        ("all-reduce", "data"): pytest.approx(1 / 32, rel=0.01),
        ("all-to-all", "fsdp"): pytest.approx(31 / 32**2, rel=0.01),
    }
    assert compiled.memory_analysis().temp_size_in_bytes < table / 4


def test_on_a_tpu_trees_of_choices_go_through_the_kernel(devices):
    mesh, compute = make_mesh(MeshShape(2, 1, 2), devices), Compute()
    decoder = sharded_decoder(SIZE, compute, mesh)
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes(SIZE),
        parameter_shardings(SIZE, mesh),
    )
    row, flat = jax.ShapeDtypeStruct((4, 640), np.int32), jax.ShapeDtypeStruct((2560,), np.int32)
    arrays = (row, row, row, flat, flat, jax.ShapeDtypeStruct((), np.int32))
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        text = score_batch.lower(decoder, {"params": params}, *arrays).compile().as_text()
    assert len(re.findall(r"= .* custom-call\(.*tpu_custom_call", text)) >= 2
    assert not re.findall(r"(?:f32|bf16)\[(?:\d+,)*640,640\]", text)
