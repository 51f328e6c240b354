"""What a run's choices cost: each remat policy's step, and the blocked loss beside the plain one.

The programs take turns in one process, so that noise meets all.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from polylm_jax.bench.step import (
    Step,
    Work,
    compile_step,
    memory_of,
    random_batch,
    rounds_of,
)
from polylm_jax.model.decoder import COMPUTE_DTYPES, REMAT_POLICIES
from polylm_jax.model.loss import cross_entropy
from polylm_jax.model.products import FLOAT32, dot
from polylm_jax.parallel.mesh import make_mesh
from polylm_jax.parallel.sharding import batch_sharding, for_device, loss_axes, parameter_shardings


@dataclass(frozen=True)
class Choice:
    """One choice. temporary: bytes the compiler plans on a device beside arguments and results.

    seconds: median of the calls; None where the device has not the memory to run it.
    """

    part: str
    name: str
    temporary: int
    seconds: float | None


def run(work: Work, steps: int) -> list[Choice]:
    """Each remat policy's step, then the head's loss with its gradients, blocked and plain.

    steps: calls of each program. Raises UserError for a batch that the mesh cannot split.
    """
    rounds = rounds_of(steps)
    mesh = make_mesh(work.mesh)
    with jax.set_mesh(mesh):
        return _remat(work, rounds, mesh) + _loss(work, rounds, mesh)


def _remat(work: Work, rounds: list[int], mesh: Mesh) -> list[Choice]:
    programs = {}
    for policy in REMAT_POLICIES:
        compute = replace(work.compute, remat=policy)
        programs[policy] = compile_step(replace(work, compute=compute), mesh, 1)[0]
    step = Step(work, mesh)

    def call(program: Any) -> None:
        step.compiled = program
        step.once()

    return _in_turn("remat", programs, call, rounds)


def _loss(work: Work, rounds: list[int], mesh: Mesh) -> list[Choice]:
    """Of one microbatch. The plain loss is optax's, of the same narrow product in float32."""
    once = replace(work, batch=work.batch // work.microbatches, microbatches=1)
    targets = random_batch(once, mesh)["tokens"][:, 1:]
    weights = jnp.ones(targets.shape)
    split = batch_sharding(mesh), parameter_shardings(work.size, mesh)["embedding"]

    def normal() -> tuple[jax.Array, jax.Array]:
        size, key = work.size, jax.random.key(0)
        dtype = COMPUTE_DTYPES[work.compute.dtype]
        return (
            jax.random.normal(key, (*targets.shape, size.d_model), dtype),
            jax.random.normal(key, (size.vocabulary, size.d_model), FLOAT32),
        )

    operands = jax.jit(normal, out_shardings=split)()

    kind = mesh.devices.flat[0].device_kind
    block = for_device(work.compute, work.size.layers, kind).loss_block

    def blocked(hidden: jax.Array, table: jax.Array) -> jax.Array:
        return cross_entropy(hidden, table, targets, weights, block, loss_axes(mesh))[0]

    def plain(hidden: jax.Array, table: jax.Array) -> jax.Array:
        scores = dot("bld,vd->blv", hidden, table.astype(hidden.dtype), FLOAT32)
        return optax.softmax_cross_entropy_with_integer_labels(scores, targets).sum()

    programs = {
        name: jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=(None, split))
        .lower(*operands)
        .compile()
        for name, loss in (("blocked", blocked), ("plain", plain))
    }
    return _in_turn("loss", programs, lambda p: jax.block_until_ready(p(*operands)), rounds)


def _in_turn(
    part: str, programs: dict[str, Any], call: Callable[[Any], Any], rounds: list[int]
) -> list[Choice]:
    memory = {name: memory_of(program) for name, program in programs.items()}
    taken: dict[str, list[float]] = {name: [] for name in programs if _fits(memory[name].planned)}
    for name in taken:  # the first call warms
        call(programs[name])
    for calls in rounds:
        for name, seconds in taken.items():
            for _ in range(calls):
                started = time.perf_counter()
                call(programs[name])
                seconds.append(time.perf_counter() - started)
    return [
        Choice(
            part,
            name,
            memory[name].temporary,
            statistics.median(taken[name]) if name in taken else None,
        )
        for name in programs
    ]


def _fits(planned: int) -> bool:
    """Whether a device has so many bytes; a CPU does not say how many it has."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit is None or planned <= limit
