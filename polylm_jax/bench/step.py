"""A run's training step, compiled, with a state and a batch of random tokens on the devices."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from polylm_jax.data.schedule import Schedule
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute
from polylm_jax.model.parameters import Init
from polylm_jax.parallel.mesh import MeshShape
from polylm_jax.parallel.sharding import batch_sharding
from polylm_jax.sizes import Size
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.train.step import abstract_state, make_state, make_update

WARM_UP = 2  # steps
ROUNDS = 5  # in which programs take turns, so that noise meets all


@dataclass(frozen=True)
class Work:
    """What is measured: a run's step. batch: rows of a step. rows: path of a row store."""

    size: Size
    init: Init
    compute: Compute
    mesh: MeshShape
    optimizer: OptimizerSettings
    batch: int
    microbatches: int
    length: int
    schedule: Schedule
    rows: str

    def __post_init__(self) -> None:
        if self.length > self.size.context:
            raise UserError(
                f"rows.length = {self.length} is more than model.context = {self.size.context}; "
                "lower it."
            )


@dataclass(frozen=True)
class Pace:
    """Seconds of the steps of one program, and the tokens per second of their median."""

    steps: int
    median: float
    p10: float
    p90: float
    tokens_per_second: float


@dataclass(frozen=True)
class Memory:
    """Bytes on one device: what the compiler plans, and the peak where the device counts it."""

    arguments: int
    temporary: int
    planned: int
    peak: int | None


def pace_of(seconds: list[float], tokens: int) -> Pace:
    """The pace of steps of so many tokens."""
    low, median, high = np.percentile(seconds, [10, 50, 90]).tolist()
    return Pace(len(seconds), median, low, high, tokens / median)


def rounds_of(steps: int) -> list[int]:
    """Steps of each round, which are so many together."""
    return [n for i in range(ROUNDS) if (n := (steps + i) // ROUNDS)]


def compile_step(work: Work, mesh: Mesh, sources: int) -> tuple[Any, float]:
    """The step compiled for the mesh in context, and the seconds that it took."""
    update = make_update(work.size, work.compute, work.optimizer, mesh, work.microbatches, sources)
    abstract = abstract_state(work.size, work.init, work.optimizer, mesh)
    lowered = update.lower(abstract, random_batch(work, mesh))  # type: ignore[attr-defined]
    started = time.perf_counter()
    compiled = lowered.compile()
    return compiled, time.perf_counter() - started


def memory_of(compiled: Any) -> Memory:
    """What the step needs on a device; donated outputs lie where their arguments lay."""
    plan = compiled.memory_analysis()
    counted = jax.local_devices()[0].memory_stats() or {}
    outputs = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return Memory(
        plan.argument_size_in_bytes,
        plan.temp_size_in_bytes,
        plan.argument_size_in_bytes + plan.temp_size_in_bytes + outputs,
        counted.get("peak_bytes_in_use"),
    )


class Step:
    """A step with its state and a batch, on the devices. compiled: of work, set before a step."""

    compiled: Any

    def __init__(self, work: Work, mesh: Mesh) -> None:
        self.batch = random_batch(work, mesh)
        abstract = abstract_state(work.size, work.init, work.optimizer, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        fresh = jax.jit(make_state(work.size, work.init, work.optimizer), out_shardings=shardings)
        self.state = fresh(jax.random.key(0))

    def once(self) -> None:
        """One step, from devices at rest to devices at rest."""
        self.state, values = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, values))

    def times(self, steps: int) -> list[float]:
        """Seconds of each of so many steps."""
        taken = []
        for _ in range(steps):
            started = time.perf_counter()
            self.once()
            taken.append(time.perf_counter() - started)
        return taken

    def free(self) -> None:
        """Gives the state's memory back; no step can follow."""
        self.state = None

    def fed(self, feed: Iterator[Any], steps: int) -> float:
        """Seconds of so many steps as the training loop takes them, its metrics one step late."""
        self.state, pending = self.compiled(self.state, next(feed))
        jax.block_until_ready(self.state)
        started = time.perf_counter()
        for _ in range(steps):
            self.state, values = self.compiled(self.state, next(feed))
            jax.device_get(pending)
            pending = values
        jax.block_until_ready((self.state, pending))
        return time.perf_counter() - started


def random_batch(work: Work, mesh: Mesh) -> dict[str, jax.Array]:
    """tokens int32 [batch, length + 1] and source int32 [batch], split as the run splits them."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * work.microbatches
    if work.batch % ways:
        raise UserError(
            f"train.batch = {work.batch} is not a multiple of mesh data x fsdp x "
            f"train.microbatches = {ways}; give one with --gin.train.batch."
        )
    shape = (work.batch, work.length + 1)
    tokens = np.random.default_rng(0).integers(0, work.size.vocabulary, shape, np.int32)
    batch = {"tokens": tokens, "source": np.zeros(work.batch, np.int32)}
    return jax.device_put(batch, batch_sharding(mesh))
