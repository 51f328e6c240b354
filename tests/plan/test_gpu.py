"""What the GPU's compiler makes of a step and of decoding, where it is installed.

Counted on compiled programs; no GPU is needed. See docs/speed.md for the environment.
"""

import jax
import numpy as np
import pytest

from polylm_jax.model.decoder import Compute
from polylm_jax.model.parameters import Init
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.platform import compiler_options
from polylm_jax.parallel.sharding import batch_sharding
from polylm_jax.plan.decode import plan_decode
from polylm_jax.plan.slices import devices_of, missing_compiler, slice_of
from polylm_jax.plan.text import kernels, whole
from polylm_jax.sizes import Size
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.step import abstract_state, make_update

WHERE = slice_of("h100-1")
SIZE = Size(vocabulary=1024, context=256, layers=3, heads=4, d_model=512, d_ff=2048)
pytestmark = pytest.mark.skipif(
    bool(missing_compiler(WHERE)), reason="the compiler for GPUs is not installed"
)


@pytest.fixture(autouse=True)
def compiled_anew():
    """Programs for devices that are not here cannot be read from the cache; as `polylm plan`."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    with jax.default_matmul_precision("default"):  # a run's, not that of these tests
        yield
    jax.config.update("jax_enable_compilation_cache", before)


def step(compute: Compute) -> str:
    """The text of a step of 4 rows on one H100, compiled as a run compiles it."""
    mesh, settings = make_mesh(MeshShape(1, 1, 1), devices_of(WHERE)), OptimizerSettings()
    rows = batch_sharding(mesh)
    batch = {
        "tokens": jax.ShapeDtypeStruct((4, 257), np.int32, sharding=rows),
        "source": jax.ShapeDtypeStruct((4,), np.int32, sharding=rows),
    }
    state = abstract_state(SIZE, Init(), settings, mesh)
    update = make_update(SIZE, compute, settings, mesh, 1, 1)
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        lowered = update.trace(state, batch).lower()
    return lowered.compile(compiler_options("gpu")).as_text()


@pytest.mark.parametrize("remat", ["full", "attention_and_mlp", "dots"])
def test_attention_runs_forward_once_a_layer_where_the_policy_keeps_it(remat):
    found = kernels(step(Compute(remat=remat, unroll=1)))
    forward = sum(one.times for one in found if one.attention and one.way != "backward")
    backward = sum(one.times for one in found if one.attention and one.way == "backward")
    assert backward == SIZE.layers
    assert forward == SIZE.layers * (2 if remat == "full" else 1)


def test_layers_are_products_attention_and_few_copies():
    text = step(Compute(remat="dots"))
    found = kernels(text)
    # by default all layers are unrolled: nothing is put into arrays of a loop
    assert not [one for one in found if one.scope == "rest" and one.way == "again"]
    products = [one for one in found if one.flops and not one.attention]
    ways = {way: [one for one in products if one.way == way] for way in ("forward", "backward")}
    qkv = {
        way: sum(one.times * one.flops for one in some if one.scope == "qkv")
        for way, some in ways.items()
    }
    # of kernels so small the compiler makes one product of three that share an operand
    once = 2 * 4 * 256 * SIZE.d_model * 3 * SIZE.d_model * SIZE.layers
    assert (qkv["forward"], qkv["backward"]) == (once, 2 * once)
    assert all(one.op == "custom-call" for one in products)
    # GELU is made of one exponential, which the compiler computes again rather than keeps
    assert " tanh(" not in text


def test_int8_moves_half_the_bytes_a_token():
    # as wide as the 1.7B: of narrow kernels the compiler writes products before it sums them
    size = Size(vocabulary=4096, context=256, layers=2, heads=16, d_model=2048, d_ff=8192)
    moved = {}
    for int8 in (False, True):
        plan = plan_decode(size, Compute(), int8, WHERE)
        moved[int8] = whole(plan.token).bytes
        # each weight once and the cache once, besides what a token itself is
        assert 0.9 * plan.weights < moved[int8] < 1.2 * (plan.weights + plan.cache)
    assert moved[True] < 0.7 * moved[False]
