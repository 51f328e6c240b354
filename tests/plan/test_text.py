"""Kernels, bytes and FLOPs of a program's text, as worked out by hand."""

import functools
import inspect
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from polylm_jax.model.decoder import Compute
from polylm_jax.model.products import Int8, weighed
from polylm_jax.parallel import platform, sharding
from polylm_jax.plan.text import Rates, kernels, parts, table, whole
from polylm_jax.verbs import bench

# A GPU's program, shortened: five turns of a loop that take a slice of the weights, multiply, put
# the result into its place of an array, and then one attention forward and one backward.
GPU = """HloModule jit_step, is_scheduled=true

%fused_slice (p0: f32[5,64,32], p1: s32[]) -> bf16[64,32] {
  %p0 = f32[5,64,32]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %c = s32[] constant(0)
  %slice = f32[1,64,32]{2,1,0} dynamic-slice(%p0, %p1, %c, %c), dynamic_slice_sizes={1,64,32}
  %flat = f32[64,32]{1,0} bitcast(%slice)
  ROOT %narrow = bf16[64,32]{1,0} convert(%flat)
}

%fused_update (p0: bf16[5,16,32], p1: s32[], p2: bf16[16,32]) -> bf16[5,16,32] {
  %p0 = bf16[5,16,32]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = bf16[16,32]{1,0} parameter(2)
  %c = s32[] constant(0)
  %new = bf16[1,16,32]{2,1,0} bitcast(%p2)
  ROOT %put = bf16[5,16,32]{2,1,0} dynamic-update-slice(%p0, %new, %p1, %c, %c)
}

%body (p: (s32[], f32[5,64,32], bf16[16,64], bf16[5,16,32])) -> (s32[], f32[5,64,32], bf16[16,64], bf16[5,16,32]) {
  %p = (s32[], f32[5,64,32]{2,1,0}, bf16[16,64]{1,0}, bf16[5,16,32]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %w = f32[5,64,32]{2,1,0} get-tuple-element(%p), index=1
  %x = bf16[16,64]{1,0} get-tuple-element(%p), index=2
  %y = bf16[5,16,32]{2,1,0} get-tuple-element(%p), index=3
  %weight = bf16[64,32]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(step)/jvp(Decoder)/while/body/layers/mlp_in/convert_element_type"}
  %product = (bf16[16,32]{1,0}, s8[4194304]{0}) custom-call(%x, %weight), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/jvp(Decoder)/while/body/layers/mlp_in/dot_general"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]},"epilogue":"BIAS"}}
  %result = bf16[16,32]{1,0} get-tuple-element(%product), index=0
  %all = bf16[5,16,32]{2,1,0} fusion(%y, %i, %result), kind=kLoop, calls=%fused_update, metadata={op_name="jit(step)/jvp(Decoder)/while/body/dynamic_update_slice"}
  ROOT %out = (s32[], f32[5,64,32]{2,1,0}, bf16[16,64]{1,0}, bf16[5,16,32]{2,1,0}) tuple(%i, %w, %x, %all)
}

%condition (p: (s32[], f32[5,64,32], bf16[16,64], bf16[5,16,32])) -> pred[] {
  %p = (s32[], f32[5,64,32]{2,1,0}, bf16[16,64]{1,0}, bf16[5,16,32]{2,1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (w: f32[5,64,32], x: bf16[16,64], q: bf16[2,128,4,64]) -> bf16[5,16,32] {
  %w = f32[5,64,32]{2,1,0} parameter(0)
  %x = bf16[16,64]{1,0} parameter(1)
  %q = bf16[2,128,4,64]{3,2,1,0} parameter(2)
  %zero = s32[] constant(0)
  %y = bf16[5,16,32]{2,1,0} broadcast(%zero), dimensions={}
  %start = (s32[], f32[5,64,32]{2,1,0}, bf16[16,64]{1,0}, bf16[5,16,32]{2,1,0}) tuple(%zero, %w, %x, %y)
  %loop = (s32[], f32[5,64,32]{2,1,0}, bf16[16,64]{1,0}, bf16[5,16,32]{2,1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %fwd = (bf16[2,4,128,64]{3,1,2,0}, f32[2,4,128]{2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(step)/transpose(jvp(Decoder))/rematted_computation/attention/fwd"}, backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "4", "128", "128"]}, "mask_type": "CAUSAL"}}
  %bwd = (bf16[2,4,128,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmaxBackward", metadata={op_name="jit(step)/transpose(jvp(Decoder))/attention/bwd"}, backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "4", "128", "128"]}, "mask_type": "CAUSAL"}}
  ROOT %end = bf16[5,16,32]{2,1,0} get-tuple-element(%loop), index=3
}
"""  # noqa: E501

# A TPU's: products are convolutions. Sixteen heads' are one whose window is as wide as they are
# many, each place of which meets one; what lies in S(1) is on the chip already.
TPU = """HloModule jit_step, is_scheduled=true

ENTRY %main (a: bf16[512,128], b: bf16[128,256], c: bf16[16,64,32], d: bf16[16,32,48]) -> f32[512,256] {
  %a = bf16[512,128]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %c = bf16[16,64,32]{2,1,0} parameter(2)
  %d = bf16[16,32,48]{2,1,0} parameter(3)
  %heads = f32[16,64,48]{2,1,0} convolution(%c, %d), window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0io->0bf
  %splash_mha_dkv_no_residuals.1 = (f32[2,64,128]{2,1,0:T(8,128)}, bf16[2,4,64,128]{3,2,1,0}, bf16[2,4,64,128]{3,2,1,0}) custom-call(%c, %d), custom_call_target="tpu_custom_call"
  %slice-start.1 = ((bf16[512,128]{1,0:T(8,128)(2,1)}), bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:64], [0:128]}
  %near = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start.1)
  %again = bf16[8,128]{1,0:T(8,128)(2,1)} slice(%near), slice={[0:8], [0:128]}
  ROOT %plain = f32[512,256]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}
"""  # noqa: E501

# Fusions within fusions, as a TPU's compiler makes them: a product takes one layer of all, a row
# is put into an array where it lies, and another into one that a sum then reads.
WITHIN = """HloModule jit_step, is_scheduled=true

%of_layer (a: f32[8,512,128], i: s32[]) -> bf16[512,128] {
  %a = f32[8,512,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %c = s32[] constant(0)
  %slice = f32[1,512,128]{2,1,0} dynamic-slice(%a, %i, %c, %c), dynamic_slice_sizes={1,512,128}
  %flat = f32[512,128]{1,0} bitcast(%slice)
  ROOT %narrow = bf16[512,128]{1,0} convert(%flat)
}

%product (a: f32[8,512,128], i: s32[], b: bf16[128,256]) -> f32[512,256] {
  %a = f32[8,512,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = bf16[128,256]{1,0} parameter(2)
  %layer = bf16[512,128]{1,0} fusion(%a, %i), kind=kLoop, calls=%of_layer
  ROOT %dot = f32[512,256]{1,0} convolution(%layer, %b), dim_labels=bf_io->bf
}

%of_row (a: f32[64,128], i: s32[], r: f32[1,128]) -> f32[64,128] {
  %a = f32[64,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %r = f32[1,128]{1,0} parameter(2)
  %c = s32[] constant(0)
  ROOT %put = f32[64,128]{1,0} dynamic-update-slice(%a, %r, %i, %c)
}

%put (a: f32[64,128], i: s32[], r: f32[1,128]) -> f32[64,128] {
  %a = f32[64,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %r = f32[1,128]{1,0} parameter(2)
  ROOT %row = f32[64,128]{1,0} fusion(%a, %i, %r), kind=kLoop, calls=%of_row
}

%sum (a: f32[64,128], i: s32[], r: f32[1,128], z: f32[]) -> f32[128] {
  %a = f32[64,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %r = f32[1,128]{1,0} parameter(2)
  %z = f32[] parameter(3)
  %row = f32[64,128]{1,0} fusion(%a, %i, %r), kind=kLoop, calls=%of_row
  ROOT %all = f32[128]{0} reduce(%row, %z), dimensions={0}, to_apply=%add
}

ENTRY %main (a: f32[8,512,128], i: s32[], b: bf16[128,256], d: f32[64,128], r: f32[1,128], z: f32[]) -> f32[512,256] {
  %a = f32[8,512,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = bf16[128,256]{1,0} parameter(2)
  %d = f32[64,128]{1,0} parameter(3)
  %r = f32[1,128]{1,0} parameter(4)
  %z = f32[] parameter(5)
  %placed = f32[64,128]{1,0} fusion(%d, %i, %r), kind=kLoop, calls=%put
  %summed = f32[128]{0} fusion(%d, %i, %r, %z), kind=kLoop, calls=%sum
  ROOT %layer = f32[512,256]{1,0} fusion(%a, %i, %b), kind=kOutput, calls=%product
}
"""  # noqa: E501


def test_fusions_within_fusions_count_as_what_they_move():
    found = {one.name: one for one in kernels(WITHIN)}
    one_layer, other, result = 512 * 128 * 4, 128 * 256 * 2, 512 * 256 * 4
    assert found["layer"].bytes == one_layer + 4 + other + result
    assert found["layer"].flops == 2 * 512 * 128 * 256
    assert found["placed"].bytes == 2 * 128 * 4 + 4
    assert found["summed"].bytes == 64 * 128 * 4 + 4 + 128 * 4 + 4 + 128 * 4


def test_slices_updates_and_trips_count_as_what_they_move():
    found = {one.name: one for one in kernels(GPU)}
    assert {name: one.times for name, one in found.items()} == {
        **{"y": 1, "weight": 5, "product": 5, "all": 5, "fwd": 1, "bwd": 1}
    }
    # a fifth of the weights, float32, and where the slice begins; written in bfloat16
    assert found["weight"].bytes == 64 * 32 * 4 + 4 + 64 * 32 * 2
    # a product's workspace is no result; what is put in place is read and written, the rest stays
    assert found["product"].bytes == (16 * 64 + 64 * 32 + 16 * 32) * 2
    assert found["all"].bytes == 2 * 16 * 32 * 2 + 4
    assert found["y"].bytes == 5 * 16 * 32 * 2 + 4
    assert found["product"].flops == 2 * 16 * 64 * 32


def test_attention_counts_the_scores_that_are_not_masked():
    found = {one.name: one for one in kernels(GPU) if one.attention}
    scores = 2 * 4 * 128 * 128 / 2
    assert found["fwd"].flops == 2 * 2 * scores * 64
    assert found["bwd"].flops == 5 * 2 * scores * 64
    assert (found["fwd"].way, found["bwd"].way) == ("again", "backward")


def test_one_turn_of_the_loop_is_a_token():
    assert [one.name for one in kernels(GPU, loop=True)] == ["weight", "product", "all"]


def test_parts_take_the_longer_of_bytes_and_flops():
    rates = Rates(products=1e9, attention=2e9, memory=1e6, kernel=1e-3)
    found = {part.name: part for part in parts(kernels(GPU), rates)}
    mlp = found["mlp_in, forward"]
    assert mlp.kernels == 10
    weight, product = 64 * 32 * 6 + 4, (16 * 64 + 64 * 32 + 16 * 32) * 2
    assert mlp.bytes == 5 * (weight + product)
    assert mlp.seconds == pytest.approx(5 * (weight + product) / 1e6)
    # an update of 2052 bytes, a broadcast of 5124
    assert found["rest, forward"].seconds == pytest.approx(5 * 2052e-6)
    # one operand, though given thrice; the result and the sums of the softmax
    moved = 2 * (2 * 128 * 4 * 64 * 2) + 2 * 4 * 128 * 4
    assert found["attention, again"].seconds == pytest.approx(moved / 1e6)
    every = whole(list(found.values()))
    assert every.kernels == 18
    words = "\n".join(table(list(found.values()), rates))
    assert "0.001 TFLOP/s of products" in words
    assert "all assumed" in words


def test_a_tpus_convolutions_are_products_and_its_own_memory_is_free():
    found = {one.name: one for one in kernels(TPU)}
    assert found["plain"].flops == 2 * 512 * 128 * 256
    assert found["plain"].bytes == 512 * 128 * 2 + 512 * 256 * 4
    assert found["heads"].flops == 16 * 2 * 64 * 32 * 48
    # a slice that is fetched into the chip is read, no more; from there it costs its writing
    assert found["slice-start.1"].bytes == 64 * 128 * 2
    assert found["again"].bytes == 8 * 128 * 2
    assert "near" not in found
    attention = found["splash_mha_dkv_no_residuals.1"]
    assert (attention.scope, attention.way, attention.attention) == ("attention", "backward", True)
    # scores, their slopes, keys and values: four products of half the scores of 2 x 4 heads
    assert attention.flops == 4 * 2 * (2 * 4 * 64 * 64 / 2) * 128


def test_a_scan_compiled_here_has_the_flops_of_its_products_and_reads_each_weight_once():
    def run(x, weights):
        with jax.named_scope("mlp_in"):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    x, weights = jnp.ones((32, 256)), jnp.ones((7, 256, 256))
    found = kernels(jax.jit(run).lower(x, weights).compile().as_text())
    assert sum(one.times * one.flops for one in found) == 7 * 2 * 32 * 256 * 256
    moved = sum(one.times * one.bytes for one in found)
    # each of seven slices read, perhaps copied to lie as the product wants it; never all of them
    assert weights.nbytes < moved < 4 * weights.nbytes
    assert {one.scope for one in found if one.flops} == {"mlp_in"}


def test_xlas_own_analysis_counts_the_same_bytes_and_flops():
    """XLA's counts of a whole program are of each loop's body once, so the judge has no loop."""
    layer = lambda x, w: jnp.tanh(x @ w)  # noqa: E731
    scanned = lambda x, ws: jax.lax.scan(lambda x, w: (layer(x, w), None), x, ws)[0]  # noqa: E731
    unrolled = lambda x, ws: functools.reduce(layer, ws, x)  # noqa: E731
    slope = jax.grad(lambda x, ws: unrolled(x, ws).sum(), 1)
    x, weights = jnp.ones((256, 256)), jnp.ones((7, 256, 256))

    def both(function):
        program = jax.jit(function).lower(x, weights).compile()
        found = kernels(program.as_text())
        ours = [sum(one.times * getattr(one, name) for one in found) for name in ("bytes", "flops")]
        analysis = program.cost_analysis()
        return ours, [analysis["bytes accessed"], analysis["flops"]]

    for function in (unrolled, slope):
        (moved, multiplied), (accessed, flops) = both(function)
        assert moved == accessed
        # theirs have the few of what is no product
        assert multiplied == pytest.approx(flops, rel=0.01)
    once, seven = both(unrolled)[1], both(scanned)[0]
    assert seven == pytest.approx(once, rel=0.05)


def test_an_int8_weight_is_never_multiplied_by_its_scales_in_memory():
    weight = Int8(jnp.ones((256, 512), jnp.int8), jnp.ones((1, 512)))
    x = jnp.ones((1, 1, 256), jnp.bfloat16)
    product = jax.jit(lambda x, w: weighed("bld,df->blf", x, w, x.dtype))
    text = product.lower(x, weight).compile().as_text()
    multiplied = [line for line in text.splitlines() if " multiply(" in line]
    assert multiplied
    assert not any("[256,512]" in line.split(" multiply(")[0] for line in multiplied)


def test_training_flags_are_for_training_alone(monkeypatch):
    """Products of few rows want the kernels that they switch off: twice the bytes a token."""
    monkeypatch.setattr(
        platform.importlib.util,
        "find_spec",
        lambda name: SimpleNamespace() if "cuda13" in name else None,
    )
    options = platform.compiler_options("gpu")
    environment: dict[str, str] = {}
    platform.set_flags(environment)
    assert {f"--{name}" for name in options} == {
        word.partition("=")[0] for word in environment["XLA_FLAGS"].split()
    }
    assert options["xla_gpu_enable_triton_gemm"] is False
    verbs = Path(bench.__file__).parent
    callers = {path.stem for path in verbs.glob("*.py") if "set_flags(" in path.read_text()}
    assert callers == {"train", "bench"}
    # of the benches only those of a step make the platform ready for one
    assert "_work()" not in inspect.getsource(bench._decode)
    assert options["xla_disable_hlo_passes"] == "rematerialization"


@pytest.mark.parametrize(
    ("kind", "unroll", "block"),
    [
        ("NVIDIA H100 80GB HBM3", 24, 2048),
        ("TPU v5", 1, 1024),
        ("TPU v6 lite", 1, 2048),
        ("cpu", 1, 1024),
    ],
)
def test_what_is_left_to_the_device_is_chosen_in_one_place(kind, unroll, block):
    chosen = sharding.for_device(Compute(), 24, kind)
    assert (chosen.unroll, chosen.loss_block) == (unroll, block)
    assert sharding.for_device(Compute(), 40, kind).unroll == 1
    given = Compute(unroll=3, loss_block=512)
    assert sharding.for_device(given, 24, kind) == given
