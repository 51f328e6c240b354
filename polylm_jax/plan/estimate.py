"""What a run needs of a chip by arithmetic: memory by kind, FLOPs, bytes moved, the bound.

Nothing is compiled here, so a search can ask it thousands of times.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from polylm_jax.model.decoder import COMPUTE_DTYPES, Compute, Decoder
from polylm_jax.model.lora import Lora, adapter_count, adapter_shapes, trained_flops
from polylm_jax.model.loss import positions_per_block
from polylm_jax.model.parameters import Init, count, shapes
from polylm_jax.parallel.mesh import AXES
from polylm_jax.parallel.sharding import MESH_AXES
from polylm_jax.plan.collectives import BETWEEN, Collective
from polylm_jax.plan.compile import Run, whole_mesh
from polylm_jax.plan.slices import Slice
from polylm_jax.sizes import Size
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.step import WHOLE, abstract_base, abstract_state, variables_of


@dataclass(frozen=True)
class Bound:
    """Least seconds of a step: what each part of a chip needs if nothing else held it up."""

    compute: float
    memory: float
    links: float
    network: float

    @property
    def seconds(self) -> float:
        """The bound: all four at once, perfectly overlapped."""
        return max(vars(self).values())

    @property
    def binds(self) -> str:
        return max(vars(self), key=lambda name: vars(self)[name])


def memory_by_kind(run: Run, where: Slice) -> dict[str, float]:
    """Bytes of one chip: parameters, optimizer, gradients, activations, logits and head.

    Parameters and optimizer are exact, from their shardings; frozen parameters are in the compute
    dtype. Gradients: one of what is trained, float32, sharded alike. Activations: what the layers
    keep of one microbatch for the backward pass. Logits and head: one block's float32 scores, the
    embedding gathered over fsdp in the compute dtype, and its gradient in float32 unless frozen.
    """
    data, fsdp, tensor = whole_mesh(run, where)
    frozen, trained, optimizer = state_on_chip(run, where)
    rows = run.training.batch // (data * fsdp * run.training.microbatches)
    positions = positions_per_block(run.length, rows, run.compute.loss_block)
    vocabulary = run.size.vocabulary // tensor
    table = vocabulary * run.size.d_model
    return {
        "parameters": frozen + trained,
        "optimizer": optimizer,
        "gradients": trained,
        "activations": rows * kept_by_layers(run.size, run.compute, run.length, tensor, run.lora),
        "logits and head": rows * positions * vocabulary * 4 + table * _of_head(run),
    }


def state_on_chip(run: Run, where: Slice) -> tuple[float, float, float]:
    """Bytes of one chip's parts of frozen parameters, of trained ones and of their moments."""
    # of compute the dtype alone matters, so that one answer serves all remat policies
    compute = Compute(run.compute.dtype)
    mesh = whole_mesh(run, where)
    return _state_on_chip(run.size, run.init, run.optimizer, compute, run.lora, mesh)


@lru_cache
def _state_on_chip(
    size: Size,
    init: Init,
    optimizer: OptimizerSettings,
    compute: Compute,
    lora: Lora,
    ways: tuple[int, int, int],
) -> tuple[float, float, float]:
    mesh: Any = AbstractMesh(ways, AXES)
    state = abstract_state(size, init, optimizer, mesh, lora)
    base = abstract_base(size, compute, mesh, lora)
    frozen, trained, moments = (
        sum(
            prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(part)
        )
        for part in (base, state["params"], state["optimizer"])
    )
    return frozen, trained, moments


def _of_head(run: Run) -> int:
    """Bytes that the head holds for each number of the embedding."""
    return _width(run.compute) + (0 if run.lora.rank else 4)


@lru_cache
def kept_by_layers(
    size: Size, compute: Compute, length: int, tensor: int, lora: Lora = WHOLE
) -> float:
    """Bytes that all layers keep of one row under the remat policy, on a chip of `tensor`.

    Asked of JAX, for any policy: what the backward pass of a decoder closes over, for one and
    two layers, one and two rows. The mixed difference has neither parameters nor the head in it.
    The stream, whose last dimension is d_model, is whole on every chip unless the table of
    logical axes splits its length; the rest is split over tensor.
    """
    whole = {
        n: _residuals(replace(size, layers=n[0]), compute, length, n[1], lora) for n in _SQUARE
    }
    stream, rest = (
        whole[2, 2][i] - whole[2, 1][i] - whole[1, 2][i] + whole[1, 1][i] for i in (0, 1)
    )
    if MESH_AXES["length"] == "tensor":
        stream /= tensor
    return size.layers * (stream + rest / tensor)


_SQUARE = ((1, 1), (1, 2), (2, 1), (2, 2))


@lru_cache
def _residuals(
    size: Size, compute: Compute, length: int, rows: int, lora: Lora
) -> tuple[float, float]:
    """Bytes kept by a decoder's forward pass: with d_model as last dimension, and others."""
    decoder = Decoder(size, compute, adapter_scale=lora.scale)

    def keep(trained: Any, tokens: jax.Array, *base: Any) -> Any:
        hidden = lambda x: decoder.apply(variables_of(x, lora, *base), tokens)[0]  # noqa: E731
        return jax.vjp(hidden, trained)[1]

    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    leaves = jax.tree.leaves(jax.eval_shape(keep, *_arguments(size, compute, lora, tokens)))
    stream = sum(_bytes(leaf) for leaf in leaves if leaf.shape[-1:] == (size.d_model,))
    return stream, sum(_bytes(leaf) for leaf in leaves) - stream


def _arguments(size: Size, compute: Compute, lora: Lora, tokens: Any) -> tuple[Any, ...]:
    """Shapes of what is trained, of tokens, and of what is frozen, if anything is."""
    if not lora.rank:
        return shapes(size), tokens
    dtype = COMPUTE_DTYPES[compute.dtype]
    base = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes(size))
    return adapter_shapes(size, lora), tokens, base


def recomputed_flops(size: Size, compute: Compute, length: int, lora: Lora = WHOLE) -> float:
    """FLOPs per token of matrix products that the backward pass does again, under the policy."""
    once = replace(compute, remat="none")
    both = [_of_a_row(size, policy, length, lora) for policy in (compute, once)]
    return (both[0] - both[1]) / length


@lru_cache
def _of_a_row(size: Size, compute: Compute, length: int, lora: Lora) -> float:
    """FLOPs of the matrix products of a row, forward and backward."""
    decoder = Decoder(size, compute, adapter_scale=lora.scale)

    def total(trained: Any, tokens: jax.Array, *base: Any) -> jax.Array:
        hidden, _ = decoder.apply(variables_of(trained, lora, *base), tokens)
        return hidden.astype(jnp.float32).sum()

    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    arguments = _arguments(size, compute, lora, tokens)
    return _products(jax.make_jaxpr(jax.grad(total))(*arguments).jaxpr)


def _products(jaxpr: Any) -> float:
    """FLOPs of all dot_general in a jaxpr: in scans times their length, of branches the most."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            out = prod(equation.outvars[0].aval.shape)
            total += 2 * out * prod(shape[axis] for axis in contracted)
        values = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda node: hasattr(node, "eqns")
        )
        inner = [getattr(value, "jaxpr", value) for value in values]
        parts = [_products(one) for one in inner if hasattr(one, "eqns")]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        # one product has a branch for each platform
        total += max(parts) if equation.primitive.name == "cond" else times * sum(parts)
    return total


def flops_on_chip(run: Run, where: Slice) -> tuple[float, float]:
    """FLOPs of one chip in a step: the model's, as trained_flops counts them, and recomputed."""
    tokens = run.training.batch * run.length / where.chips
    return (
        tokens * trained_flops(run.size, run.length, run.lora),
        tokens * recomputed_flops(run.size, run.compute, run.length, run.lora),
    )


def memory_traffic(run: Run, where: Slice) -> float:
    """Least bytes that move between a chip and its HBM in a step.

    The state and the gradient are read and written once; each microbatch writes and reads the
    gathered weights in the forward and in the backward pass (once more where that recomputes)
    and the kept activations; each block of the loss reads the embedding twice and updates its
    gradient, if there is one. What fusions cannot keep on the chip comes on top.
    """
    data, fsdp, tensor = whole_mesh(run, where)
    kinds = memory_by_kind(run, where)
    microbatches, width = run.training.microbatches, _width(run.compute)
    rows = run.training.batch // (data * fsdp * microbatches)
    blocks = run.length // positions_per_block(run.length, rows, run.compute.loss_block)
    table = run.size.vocabulary // tensor * run.size.d_model
    passes = 2 + (recomputed_flops(run.size, run.compute, run.length, run.lora) > 0)
    weights = 2 * width * (count(run.size) / tensor - table) * passes
    head = blocks * table * 2 * _of_head(run)
    _, trained, optimizer = state_on_chip(run, where)
    state = 2 * (trained + optimizer + kinds["gradients"])
    return state + microbatches * (weights + head + 2 * kinds["activations"])


def bound(run: Run, where: Slice, sent: Sequence[Collective]) -> Bound:
    """The roofline. Collectives at the rate of all links of a chip together; those of groups that
    do not fit into what the links reach, a GPU's host or a TPU's slice, at the network's."""
    data, fsdp, tensor = whole_mesh(run, where)
    steps = dict(zip(AXES, (fsdp * tensor, tensor, 1), strict=True))
    ways = dict(zip(AXES, (data // where.slices, fsdp, tensor), strict=True))
    chip, linked, crossing = where.chip, 0.0, 0.0
    for one in sent:
        between = one.axes == BETWEEN or where.wired < max(
            steps[axis] * ways[axis] for axis in one.axes.split("+")
        )
        if between:
            crossing += one.bytes
        else:
            linked += one.bytes
    return Bound(
        compute=sum(flops_on_chip(run, where)) / chip.flops,
        memory=memory_traffic(run, where) / chip.bandwidth,
        links=linked / chip.links,
        network=crossing / (chip.network or chip.links),
    )


def least_sent(run: Run, where: Slice) -> list[Collective]:
    """The collectives that a mesh needs at least, for ranking before anything is compiled.

    fsdp: each microbatch gathers the layers' weights for the forward and backward pass and
    scatters the gradient of those that are trained, in the compute dtype; of the table a step
    gathers and scatters each once. tensor: four sums of the
    stream a layer, two of them again where the backward pass recomputes. data: one sum of the
    gradient, float32, of which each chip of a slice sends its part to the other slices.
    """
    data, fsdp, tensor = whole_mesh(run, where)
    microbatches, width = run.training.microbatches, _width(run.compute)
    rows = run.training.batch // (data * fsdp * microbatches)
    adapters, table = adapter_count(run.size, run.lora), run.size.vocabulary * run.size.d_model
    trained = adapters or count(run.size)
    scattered = adapters or count(run.size) - table
    in_each = 2 * (count(run.size) - table) + scattered
    once = table if adapters else 2 * table
    again = recomputed_flops(run.size, run.compute, run.length, run.lora) > 0
    stream = rows * run.length * run.size.d_model * width
    copies = data // where.slices
    parts = zip((*AXES, BETWEEN), (copies, fsdp, tensor, where.slices), strict=True)
    share = {axis: (n - 1) / n for axis, n in parts}
    sums = (6 if again else 4) * run.size.layers
    sizes = {
        "data": 2 * share["data"] * trained / tensor / fsdp * 4,
        "fsdp": share["fsdp"] * (microbatches * in_each + once) / tensor * width,
        "tensor": 2 * microbatches * share["tensor"] * sums * stream,
        BETWEEN: 2 * share[BETWEEN] * trained / tensor / fsdp / copies * 4,
    }
    return [Collective("all-reduce", axis, 1, size) for axis, size in sizes.items() if size]


def _width(compute: Compute) -> int:
    return jnp.dtype(COMPUTE_DTYPES[compute.dtype]).itemsize


def _bytes(leaf: Any) -> float:
    return prod(leaf.shape) * leaf.dtype.itemsize
