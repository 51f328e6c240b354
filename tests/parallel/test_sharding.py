"""Every mesh gives the loss and gradients of one device and splits parameters by the table."""

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.model.loss import cross_entropy
from polylm_jax.model.parameters import Init, shapes
from polylm_jax.parallel.mesh import MeshShape, make_mesh, resolve, slices_of
from polylm_jax.parallel.sharding import (
    batch_sharding,
    check_divides,
    constrainer,
    parameter_shardings,
)
from polylm_jax.sizes import Size
from polylm_jax.train.step import make_gradients

SIZE = Size(vocabulary=64, context=32, layers=2, heads=8, d_model=32, d_ff=64)
FLOAT32 = Compute(dtype="float32", loss_block=16)
MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
TOKENS = jax.random.randint(jax.random.key(1), (8, 17), 0, 64)


def loss_and_gradient(decoder, params):
    def loss(params):
        hidden, _ = decoder.apply({"params": params}, TOKENS[:, :-1])
        ones = np.ones(TOKENS[:, 1:].shape, np.float32)
        return cross_entropy(hidden, params["embedding"], TOKENS[:, 1:], ones, 16)[0]

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def one_device():
    decoder = Decoder(SIZE, FLOAT32, Init(std=0.1))
    params = jax.jit(decoder.init)(jax.random.key(0), TOKENS[:1, :1])["params"]
    return params, loss_and_gradient(decoder, params)


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        *((shape, {}) for shape in MESHES),
        ((1, 2, 4), {"shard_length": True, "table_sum": "use"}),
        ((2, 2, 2), {"shard_length": True}),
    ],
)
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(shape, changes, one_device, capfd):
    params, (loss, gradient) = one_device
    mesh, compute = make_mesh(MeshShape(*shape)), replace(FLOAT32, **changes)
    microbatches = 8 // (shape[0] * shape[1])
    with jax.set_mesh(mesh):
        split = jax.device_put(params, parameter_shardings(SIZE, mesh))
        tokens = jax.device_put(TOKENS, batch_sharding(mesh))
        step = jax.jit(make_gradients(SIZE, compute, mesh, microbatches))
        found_gradient, losses = step(split, {"tokens": tokens})
    # float32 sums in another order: 136 tokens of loss about 4
    np.testing.assert_allclose(losses.sum(), loss, rtol=1e-6)
    assert jax.tree.structure(found_gradient) == jax.tree.structure(gradient)
    for ours, expected in zip(
        jax.tree.leaves(found_gradient), jax.tree.leaves(gradient), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=2e-5)
    # the partitioner's confession that it copies a whole array to every device
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def test_a_length_split_over_tensor_leaves_smaller_activations():
    size = Size(vocabulary=64, context=256, layers=4, heads=4, d_model=64, d_ff=64)
    mesh = make_mesh(MeshShape(1, 2, 4))
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes(size),
        parameter_shardings(size, mesh),
    )
    tokens = jax.ShapeDtypeStruct((8, 256), np.int32, sharding=batch_sharding(mesh))

    def temporaries(shard_length):
        decoder = Decoder(size, Compute(), constrain=constrainer(mesh, shard_length))
        loss = lambda params, x: decoder.apply({"params": params}, x)[0].sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(params, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    with jax.set_mesh(mesh):
        assert temporaries(True) < 0.9 * temporaries(False)


# How each parameter's dimensions are split, written out by hand from the table in DESIGN.
SPLITS = {
    "embedding": ("tensor", "fsdp"),
    "positions": (None, "fsdp"),
    "final_norm_scale": (None,),
    "final_norm_bias": (None,),
    "attention_norm_scale": (None, None),
    "attention_norm_bias": (None, None),
    "qkv": (None, "fsdp", None, "tensor", None),
    "qkv_bias": (None, None, "tensor", None),
    "attention_out": (None, "tensor", None, "fsdp"),
    "attention_out_bias": (None, None),
    "mlp_norm_scale": (None, None),
    "mlp_norm_bias": (None, None),
    "mlp_in": (None, "fsdp", "tensor"),
    "mlp_in_bias": (None, "tensor"),
    "mlp_out": (None, "tensor", "fsdp"),
    "mlp_out_bias": (None, None),
}


@pytest.mark.parametrize("shape", [*MESHES, (1, 4, 2)])
def test_every_parameter_is_split_as_the_table_says(shape, one_device):
    params, _ = one_device
    mesh = make_mesh(MeshShape(*shape))
    split = jax.device_put(params, parameter_shardings(SIZE, mesh))
    leaves = {**split, **split["layers"]}
    del leaves["layers"]
    assert leaves.keys() == SPLITS.keys()
    for name, leaf in leaves.items():
        expected = tuple(
            n // (mesh.shape[axis] if axis else 1)
            for n, axis in zip(leaf.shape, SPLITS[name], strict=True)
        )
        assert {shard.data.shape for shard in leaf.addressable_shards} == {expected}, name


@pytest.mark.parametrize(
    ("shape", "devices", "expected"),
    [
        ((1, -1, 1), 8, (1, 8, 1)),
        ((2, -1, 2), 8, (2, 2, 2)),
        ((-1, 1, 4), 64, (16, 1, 4)),
        ((1, 1, 1), 1, (1, 1, 1)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(shape, devices, expected):
    assert resolve(MeshShape(*shape), devices) == expected


@dataclass(frozen=True)
class Described:
    """What a mesh asks of a device of a TPU pod."""

    id: int
    slice_index: int
    platform: str = "tpu"


def test_each_slice_holds_whole_copies_of_the_model():
    assert resolve(MeshShape(1, -1, 2), 16, slices=2) == (2, 4, 2)
    assert resolve(MeshShape(-1, 2, 1), 16, slices=4) == (8, 2, 1)
    mesh = make_mesh(MeshShape(1, -1, 2, slices=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert [[d.id for d in copy.flat] for copy in mesh.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_slices_that_tpus_say_they_are_in_are_taken_whatever_their_order():
    devices = [Described(i, i % 2) for i in range(8)]
    slices = slices_of(MeshShape(), devices)
    assert [[device.id for device in one] for one in slices] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    with pytest.raises(UserError, match=r"mesh\.slices = 4, but the devices are in 2 slices"):
        slices_of(MeshShape(slices=4), devices)
    with pytest.raises(UserError, match="slices of 4, 3"):
        slices_of(MeshShape(), devices[:7])
    with pytest.raises(UserError, match=r"mesh\.slices = 3 does not divide the 8 devices"):
        make_mesh(MeshShape(slices=3))
    with pytest.raises(UserError, match="does not make up the 4 devices of each slice"):
        make_mesh(MeshShape(data=8, slices=2))


@pytest.mark.parametrize("shape", [(3, 1, 1), (-1, 3, 1), (1, 1, 4), (-1, -1, 1), (0, 8, 1)])
def test_a_mesh_that_does_not_make_up_the_devices_is_refused(shape):
    with pytest.raises(UserError, match=r"mesh\.data"):
        make_mesh(MeshShape(*shape))


def test_a_mesh_axis_that_does_not_divide_the_model_is_refused():
    size = Size(vocabulary=64, context=32, layers=2, heads=4, d_model=32, d_ff=64)
    with pytest.raises(UserError, match=r"mesh\.tensor = 8 does not divide model\.heads = 4"):
        check_divides(size, make_mesh(MeshShape(1, 1, 8)))
