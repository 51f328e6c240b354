"""Collectives are read from compiled programs: trips, pieces, groups, bytes of the ring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from polylm_jax.model.loss import cross_entropy
from polylm_jax.parallel.sharding import LOSS_AXES, batch_sharding
from polylm_jax.plan.collectives import BETWEEN, collectives
from polylm_jax.plan.hlo import trips

# Lines of a program for 16 v5e chips, shortened: a loop over 24 layers, in it a product whose
# operand goes round a ring two steps a trip, and a gather cut into two pieces, one in that loop.
TPU = """HloModule jit_update, is_scheduled=true

%piece.1 (param_0: bf16[1,128,64]) -> bf16[1,2048,64] {
  %param_0 = bf16[1,128,64]{2,1,0} parameter(0)
  ROOT %all-gather.45 = bf16[1,2048,64]{2,1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=93, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={1}, use_global_device_ids=true
}

%piece.2 (param_0: bf16[1,128,64]) -> bf16[1,2048,64] {
  %param_0 = bf16[1,128,64]{2,1,0} parameter(0)
  ROOT %all-gather.47 = bf16[1,2048,64]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%param_0), channel_id=93, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={1}, use_global_device_ids=true
}

%ring_condition (p: (bf16[128,64], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(8)
  %p = (bf16[128,64]{1,0}, u32[]{:T(128)}) parameter(0)
  %counter = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%ring_body (p: (bf16[128,64], u32[])) -> (bf16[128,64], u32[]) {
  %p = (bf16[128,64]{1,0}, u32[]{:T(128)}) parameter(0)
  %two = u32[]{:T(128)} constant(2)
  %counter = u32[]{:T(128)} get-tuple-element(%p), index=1
  %part = bf16[128,64]{1,0} get-tuple-element(%p), index=0
  %next = u32[]{:T(128)} add(%counter, %two)
  %send = (bf16[128,64]{1,0:T(8,128)(2,1)S(1)}, bf16[128,64]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%part), channel_id=4, source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,8},{8,9},{9,10},{10,11},{11,12},{12,13},{13,14},{14,15},{15,0}}
  %goes_on = bf16[1,2048,64]{2,1,0} fusion(%part), kind=kCustom, calls=%piece.2
  %sent = bf16[128,64]{1,0} collective-permute-done(%send)
  ROOT %out = (bf16[128,64]{1,0}, u32[]{:T(128)}) tuple(%sent, %next)
}

%layers_condition (p: (s32[], bf16[128,64])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(24)
  %p.1 = (s32[]{:T(128)}, bf16[128,64]{1,0}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %less.1 = pred[]{:T(512)} compare(%counter.1, %limit.1), direction=LT
}

%layers_body (p: (s32[], bf16[128,64])) -> (s32[], bf16[128,64]) {
  %p.1 = (s32[]{:T(128)}, bf16[128,64]{1,0}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %none = u32[]{:T(128)} constant(0)
  %zero.1 = u32[]{:T(128)} copy(%none)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %part.1 = bf16[128,64]{1,0} get-tuple-element(%p.1), index=1
  %async-collective-start.1 = bf16[1,2048,64]{2,1,0} fusion(%part.1), kind=kCustom, calls=%piece.1
  %start = (bf16[128,64]{1,0}, u32[]{:T(128)}) tuple(%part.1, %zero.1)
  %ring = (bf16[128,64]{1,0}, u32[]{:T(128)}) while(%start), condition=%ring_condition, body=%ring_body
  %next.1 = s32[]{:T(128)} add(%counter.1, %one)
  %part.2 = bf16[128,64]{1,0} get-tuple-element(%ring), index=0
  ROOT %out.1 = (s32[]{:T(128)}, bf16[128,64]{1,0}) tuple(%next.1, %part.2)
}

ENTRY %main (a: bf16[128,64]) -> bf16[128,64] {
  %a = bf16[128,64]{1,0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %begin = (s32[]{:T(128)}, bf16[128,64]{1,0}) tuple(%zero, %a)
  %layers = (s32[]{:T(128)}, bf16[128,64]{1,0}) while(%begin), condition=%layers_condition, body=%layers_body
  ROOT %end = bf16[128,64]{1,0} get-tuple-element(%layers), index=1
}
"""  # noqa: E501

# One line of a program for 64 H100, mesh 8 x 4 x 2, and the axes along which its groups differ.
GROUPS = {
    "replica_groups=[16,4]<=[32,2]T(1,0)": "fsdp",
    "replica_groups=[2,32]<=[32,2]T(1,0)": "data+fsdp",
    "replica_groups=[8,8]<=[8,4,2]T(2,1,0)": "data",
    "replica_groups=[32,2]<=[64]": "tensor",
    "replica_groups=mesh['x'=8,'y'=4,'z'=2] {'y'}": "fsdp",
    "replica_groups=mesh['x'=1,'y'=4,'z'=16], device_ids=([8,4,2]T(1,0,2)) {'y'}": "fsdp",
    "replica_groups={}": "data+fsdp+tensor",
}


def test_a_ring_of_two_steps_a_trip_and_a_gather_in_pieces_count_as_often_as_they_run():
    assert trips(TPU) == {"ring": 4, "layers": 24}
    gather, ring = sorted(collectives(TPU, {"data": 1, "fsdp": 16}), key=lambda one: one.kind)
    assert (gather.kind, gather.axes, gather.count) == ("all-gather", "fsdp", 24)
    assert gather.bytes == 24 * 2048 * 64 * 2 * 15 / 16
    assert (ring.kind, ring.axes, ring.count) == ("collective-permute", "fsdp", 24 * 4)
    assert ring.bytes == 24 * 4 * 128 * 64 * 2
    # a gather within fusions and a ring of starts and ends: all of both while the chip computes
    assert (gather.overlapped, ring.overlapped) == (gather.bytes, ring.bytes)
    assert (gather.beside, ring.beside) == (gather.count, ring.count)


# Of a loop over five layers the compiler has peeled off the last turn, and a sum of two gradients,
# its channel and all, is there twice: a fusion around an all-reduce, of which each chip keeps half.
PEELED = """HloModule jit_update, is_scheduled=true

%all-reduce-scatter.1 (a: f32[128,256], b: f32[256,128]) -> (f32[64,256], f32[128,128]) {
  %a = f32[128,256]{1,0} parameter(0)
  %b = f32[256,128]{1,0} parameter(1)
  %both = (f32[128,256]{1,0}, f32[256,128]{1,0}) all-reduce(%a, %b), channel_id=7, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %kept = (f32[64,256]{1,0}, f32[128,128]{1,0}) custom-call(%both), custom_call_target="own"
}

%all-reduce-scatter.1.clone (a: f32[128,256], b: f32[256,128]) -> (f32[64,256], f32[128,128]) {
  %a = f32[128,256]{1,0} parameter(0)
  %b = f32[256,128]{1,0} parameter(1)
  %both = (f32[128,256]{1,0}, f32[256,128]{1,0}) all-reduce(%a, %b), channel_id=7, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %kept = (f32[64,256]{1,0}, f32[128,128]{1,0}) custom-call(%both), custom_call_target="own"
}

%piece.1 (p: bf16[64,256]) -> bf16[128,256] {
  %p = bf16[64,256]{1,0} parameter(0)
  ROOT %gather.1 = bf16[128,256]{1,0} all-gather(%p), channel_id=9, replica_groups={{0,1},{2,3}}, dimensions={0}
}

%piece.2 (p: bf16[64,256]) -> bf16[128,256] {
  %p = bf16[64,256]{1,0} parameter(0)
  ROOT %gather.2 = bf16[128,256]{1,0} all-gather(%p), channel_id=9, replica_groups={{0,1},{2,3}}, dimensions={0}
}

%piece.1.clone (p: bf16[64,256]) -> bf16[128,256] {
  %p = bf16[64,256]{1,0} parameter(0)
  ROOT %gather.3 = bf16[128,256]{1,0} all-gather(%p), channel_id=9, replica_groups={{0,1},{2,3}}, dimensions={0}
}

%body (p: (s32[], f32[128,256], f32[256,128], bf16[64,256])) -> (s32[], f32[128,256], f32[256,128], bf16[64,256]) {
  %p = (s32[], f32[128,256]{1,0}, f32[256,128]{1,0}, bf16[64,256]{1,0}) parameter(0)
  %x = f32[128,256]{1,0} get-tuple-element(%p), index=1
  %y = f32[256,128]{1,0} get-tuple-element(%p), index=2
  %w = bf16[64,256]{1,0} get-tuple-element(%p), index=3
  %async-collective-start.1 = bf16[128,256]{1,0} fusion(%w), kind=kCustom, calls=%piece.1
  %product = bf16[128,256]{1,0} fusion(%w), kind=kCustom, calls=%piece.2
  ROOT %sum = (f32[64,256]{1,0}, f32[128,128]{1,0}) fusion(%x, %y), kind=kCustom, calls=%all-reduce-scatter.1.clone
}

%condition (p: (s32[], f32[128,256], f32[256,128], bf16[64,256])) -> pred[] {
  %p = (s32[], f32[128,256]{1,0}, f32[256,128]{1,0}, bf16[64,256]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (p: (s32[], f32[128,256], f32[256,128], bf16[64,256])) -> (f32[64,256], f32[128,128]) {
  %p = (s32[], f32[128,256]{1,0}, f32[256,128]{1,0}, bf16[64,256]{1,0}) parameter(0)
  %loop = (s32[], f32[128,256]{1,0}, f32[256,128]{1,0}, bf16[64,256]{1,0}) while(%p), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %x = f32[128,256]{1,0} get-tuple-element(%loop), index=1
  %y = f32[256,128]{1,0} get-tuple-element(%loop), index=2
  %w = bf16[64,256]{1,0} get-tuple-element(%loop), index=3
  %async-collective-start.2 = bf16[128,256]{1,0} fusion(%w), kind=kCustom, calls=%piece.1.clone
  ROOT %sum = (f32[64,256]{1,0}, f32[128,128]{1,0}) fusion(%x, %y), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501

# What a start and its end have between them: a product, nothing but another start, and a sum that
# a SparseCore does while the TensorCore multiplies.
STARTS = """HloModule jit_update, is_scheduled=true

%called (p: f32[64,32]) -> f32[32,32] {
  %p = f32[64,32]{1,0} parameter(0)
  ROOT %scattered = f32[32,32]{1,0} reduce-scatter(%p), channel_id=3, replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (a: bf16[64,32], b: f32[64,32], c: f32[16,8]) -> f32[64,64] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = f32[64,32]{1,0} parameter(1)
  %c = f32[16,8]{1,0} parameter(2)
  %gather = (bf16[64,32]{1,0}, bf16[128,32]{1,0}) all-gather-start(%a), channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={0}
  %near = f32[16,8]{1,0} all-reduce-start(%c), channel_id=2, replica_groups={{0,2},{1,3}}, to_apply=%add
  %far = f32[16,8]{1,0} all-reduce-done(%near)
  %ready = s32[] custom-call(), custom_call_target="PrepareAsyncCallStart"
  %sum = ((f32[64,32]{1,0}), f32[32,32]{1,0}) call-start(%b), async_execution_thread="sparsecore", to_apply=%called
  %on = ((f32[64,32]{1,0}), f32[32,32]{1,0}) call-update(%sum)
  %product = f32[64,64]{1,0} convolution(%b, %b), dim_labels=bf_oi->bf
  %gathered = bf16[128,32]{1,0} all-gather-done(%gather)
  %summed = f32[32,32]{1,0} call-done(%on)
  ROOT %end = f32[64,64]{1,0} copy(%product)
}
"""  # noqa: E501


def test_what_a_peeled_turn_sends_counts_beside_what_the_loop_does():
    found = {one.kind: one for one in collectives(PEELED, {"data": 2, "fsdp": 2})}
    assert found.keys() == {"reduce-scatter", "all-gather"}
    sums, gathers = found["reduce-scatter"], found["all-gather"]
    # five turns; of two chips each sends the other half of both
    assert (sums.axes, sums.count, sums.bytes) == ("fsdp", 5, 5 * 2 * 128 * 256 * 4 / 2)
    assert (sums.overlapped, sums.beside) == (0, 0)
    # a piece that goes on is no gather of its own
    assert (gathers.count, gathers.bytes) == (5, 5 * 128 * 256 * 2 / 2)
    assert (gathers.overlapped, gathers.beside) == (gathers.bytes, 5)


def test_only_what_has_work_between_start_and_end_is_sent_beside_it():
    found = {one.kind: one for one in collectives(STARTS, {"data": 2, "fsdp": 2})}
    gather, scatter, reduce = (
        found[kind] for kind in ("all-gather", "reduce-scatter", "all-reduce")
    )
    assert (gather.axes, gather.bytes, gather.beside) == ("fsdp", 128 * 32 * 2 / 2, 1)
    assert (scatter.axes, scatter.bytes, scatter.beside) == ("fsdp", 32 * 32 * 4, 1)
    assert (reduce.axes, reduce.bytes, reduce.beside) == ("data", 2 * 16 * 8 * 4 / 2, 0)
    alone = STARTS.replace("  %product = ", "  %product.1 = ").replace(" convolution(", " bitcast(")
    assert not any(one.beside for one in collectives(alone, {"data": 2, "fsdp": 2}))


# One slice's program for two slices of 4 v5e chips, shortened: a sum within the slice, and its
# result handed to the host, which sums it with the other slice's.
SLICES = """HloModule jit_update, is_scheduled=true

ENTRY %main (p: f32[8,8,128]) -> f32[8,8,128] {
  %p = f32[8,8,128]{2,1,0} parameter(0)
  %after-all.1 = token[] after-all()
  %sum = f32[8,8,128]{2,1,0:T(8,128)} all-reduce(%p), channel_id=1, replica_groups={{0,1},{2,3}}, use_global_device_ids=true, to_apply=%add
  %recv.1 = (f32[8,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after-all.1), channel_id=14, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send.1 = (f32[8,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%sum, %after-all.1), channel_id=15, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv-done.1 = (f32[8,8,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv.1), channel_id=14, is_host_transfer=true
  ROOT %end = f32[8,8,128]{2,1,0} get-tuple-element(%recv-done.1), index=0
}
"""  # noqa: E501


def test_what_a_slice_hands_to_its_host_is_sent_between_slices():
    shape = {"data": 4, "fsdp": 2, "tensor": 1}
    found = {one.axes: one for one in collectives(SLICES, shape, slices=2)}
    assert found.keys() == {"fsdp", BETWEEN}
    size = 8 * 8 * 128 * 4
    # in a ring of two, as much comes in as the array is large
    assert (found["fsdp"].bytes, found[BETWEEN].bytes) == (size, size)
    assert (found[BETWEEN].kind, found[BETWEEN].count) == ("all-reduce", 1)
    assert (found["fsdp"].overlapped, found["fsdp"].beside) == (0, 0)


@pytest.mark.parametrize(("groups", "axes"), GROUPS.items())
def test_groups_in_every_notation_name_the_axes_along_which_they_differ(groups, axes):
    line = f"  ROOT %r = f32[8]{{0}} all-reduce(%p), channel_id=1, {groups}, to_apply=%add\n"
    text = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  %p = f32[8]{{0}} parameter(0)\n{line}}}\n"
    (one,) = collectives(text, {"data": 8, "fsdp": 4, "tensor": 2})
    ways = {"data": 8, "fsdp": 4, "tensor": 2, "data+fsdp": 32, "data+fsdp+tensor": 64}[axes]
    assert one.axes == axes
    assert one.bytes == pytest.approx(2 * 8 * 4 * (ways - 1) / ways)


def test_a_scan_compiled_here_sums_as_many_bytes_as_it_must():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "tensor"))
    columns, rows = NamedSharding(mesh, P(None, "tensor")), NamedSharding(mesh, P("tensor", None))

    def run(x, weights):
        def step(x, _):
            x = jax.lax.with_sharding_constraint(x, columns)
            return jax.lax.with_sharding_constraint(x @ weights, NamedSharding(mesh, P())), None

        return jax.lax.scan(step, x, length=5)[0]

    x, weights = jnp.ones((16, 64)), jnp.ones((64, 64))
    program = jax.jit(run, in_shardings=(columns, rows)).lower(x, weights).compile()
    found = {one.kind: one for one in collectives(program.as_text(), dict(mesh.shape))}
    assert found["all-reduce"].axes == "tensor"
    assert found["all-reduce"].bytes == pytest.approx(5 * 2 * 3 / 4 * 16 * 64 * 4)


def test_all_kinds_in_a_loop_compiled_here_send_what_the_ring_algorithm_does():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))

    def turn(_, x):
        x = x + jax.lax.psum_scatter(jax.lax.all_gather(jnp.sin(x), "fsdp"), "fsdp")
        x = x * jax.lax.psum(jnp.cos(x), "data")
        x = x + jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)])
        return jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True) + 1

    run = jax.shard_map(
        lambda x: jax.lax.fori_loop(0, 5, turn, x),
        mesh=mesh,
        in_specs=P(),
        out_specs=P(),
        check_vma=False,
    )
    text = jax.jit(run).lower(jnp.ones((8, 16))).compile().as_text()
    sent = {(one.kind, one.axes): one for one in collectives(text, dict(mesh.shape))}
    size = 8 * 16 * 4  # of a chip
    assert {key: one.bytes / 5 / size for key, one in sent.items()} == {
        ("all-gather", "fsdp"): 3,
        ("reduce-scatter", "fsdp"): 3,
        ("all-reduce", "data"): 2 * 1 / 2,
        ("collective-permute", "fsdp"): 1,
        ("all-to-all", "fsdp"): 3 / 4,
    }
    assert {one.count % 5 for one in sent.values()} == {0}
    assert not any(one.beside for one in sent.values())  # a CPU waits for each


def test_the_embeddings_gradient_is_scattered_over_fsdp_before_it_is_summed_over_data():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4, 1), ("data", "fsdp", "tensor"))
    rows, columns = batch_sharding(mesh), NamedSharding(mesh, P("tensor", "fsdp"))
    hidden, table = jnp.ones((8, 16, 32)), jnp.ones((64, 32))
    targets, weights = jnp.ones((8, 16), int), jnp.ones((8, 16))

    def loss(hidden, table):
        return cross_entropy(hidden, table, targets, weights, 16, LOSS_AXES)[0]

    gradient = jax.grad(loss, (0, 1))
    with jax.set_mesh(mesh):
        program = jax.jit(gradient, in_shardings=(rows, columns), out_shardings=(rows, columns))
        text = program.lower(hidden, table).compile().as_text()
    sent = {(one.kind, one.axes): one.bytes for one in collectives(text, dict(mesh.shape))}
    size = table.nbytes
    assert sent["reduce-scatter", "fsdp"] == 3 / 4 * size
    assert sent["all-reduce", "data"] == pytest.approx(size / 4, rel=0.1)
    assert ("all-reduce", "data+fsdp") not in sent
