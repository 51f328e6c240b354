"""Where a step's time goes: the least work of each part, the bound on it, and what it took.

Work is arithmetic: products as in PaLM's count and nothing computed twice, every array read
or written as seldom as an ideal kernel would. Measured are the parts compiled alone, forward
and backward, in the run's shapes; what they do not explain is the row "rest".
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

from polylm_jax.chips import chip_of
from polylm_jax.model.decoder import COMPUTE_DTYPES, Compute
from polylm_jax.model.loss import cross_entropy
from polylm_jax.model.parameters import count, decay_mask, shapes
from polylm_jax.model.products import dot
from polylm_jax.parallel.sharding import (
    batch_sharding,
    constrainer,
    like_parameters,
    loss_axes,
    parameter_shardings,
)
from polylm_jax.sizes import Size, flops_by_part
from polylm_jax.train.optimizer import OptimizerSettings, make_optimizer
from polylm_jax.train.step import sharded_decoder

FLOAT32 = 4  # bytes
# what the compiler counts for the norm, the clipping, AdamW and its decay, per parameter
OPTIMIZER_FLOPS = 20
REPEATS = 10


@dataclass(frozen=True)
class Limits:
    """What one device can do at most: FLOP/s, bytes/s of memory, bytes/s of links into it.

    measured: by this machine's own product and copy, or known from a data sheet (bfloat16).
    """

    flops: float
    bandwidth: float
    links: float
    measured: bool


@dataclass(frozen=True)
class Work:
    """The least work of one device in one step. moved: bytes that come over links."""

    flops: float = 0
    bytes: float = 0
    moved: float = 0

    def bound(self, limits: Limits) -> tuple[float, str]:
        """Seconds that this takes at least, and what binds."""
        return max(
            (self.flops / limits.flops, "compute"),
            (self.bytes / limits.bandwidth, "bandwidth"),
            (self.moved / limits.links, "links"),
        )


@dataclass(frozen=True)
class Part:
    """A row of the roofline. share: of the step's median; seconds are of one step."""

    name: str
    work: Work
    bound_seconds: float
    bound: str
    measured_seconds: float
    share: float


def work(
    size: Size, batch: int, length: int, width: int, moments: float, mesh: dict[str, int]
) -> dict[str, Work]:
    """The least work of each part of one step, on one device of the mesh.

    batch, length: of the whole step. width: bytes of a number in the compute dtype.
    moments: bytes of the optimizer's state. mesh: ways of the axes data, fsdp, tensor.
    """
    data, fsdp, tensor = mesh["data"], mesh["fsdp"], mesh["tensor"]
    devices = data * fsdp * tensor
    tokens = batch * length / (data * fsdp)
    d, ff, layers = size.d_model, size.d_ff, size.layers
    flops = {
        name: each * batch * length / devices for name, each in flops_by_part(size, length).items()
    }
    stream = tokens * d * FLOAT32

    def layer(weights: int, kept: int) -> float:
        # weights read forward and backward, their gradient written; the stream read and
        # written in both directions; activations kept written once and read once
        once = (2 * width + FLOAT32) * weights / tensor
        return layers * (once + 4 * stream + 2 * width * tokens * kept / tensor)

    table = size.vocabulary * d / tensor
    parameters = FLOAT32 * count(size)
    between = lambda ways: (ways - 1) / ways  # noqa: E731
    gathered = parameters / tensor * between(fsdp) * (2 * width / FLOAT32 + 1)
    averaged = 2 * parameters / tensor / fsdp * between(data)
    summed = 2 * (4 * layers + 1) * stream * between(tensor)
    return {
        # rows read, the stream written; its slope read, the gradient's rows written
        "embedding": Work(flops["embedding"], tokens * d * (width + 3 * FLOAT32)),
        "attention": Work(flops["attention"], layer(4 * d * d, 5 * d)),
        "mlp": Work(flops["mlp"], layer(2 * d * ff, d + ff)),
        # one pass makes loss and gradient
        "head + loss": Work(flops["head"], (width + FLOAT32) * table + 2 * width * tokens * d),
        # the gradient is read for its norm and again; parameters and moments read and written
        "optimizer": Work(
            OPTIMIZER_FLOPS * count(size) / devices, (4 * parameters + 2 * moments) / devices
        ),
        "collectives": Work(moved=gathered + averaged + summed),
    }


def limits_of(mesh: Mesh, dtype: str) -> Limits:
    """A device's limits, from the table of chips; where it is not there, as measured here."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    if chip:
        return Limits(chip.flops, chip.bandwidth, chip.links, measured=False)
    kind = COMPUTE_DTYPES[dtype]
    square, product = jnp.ones((2048, 2048), kind), jax.jit(lambda x: dot("ij,jk->ik", x, x, kind))
    flops = 2 * 2048**3 / min(_seconds(product, square))
    vector = jnp.ones(2**25, jnp.float32)
    bandwidth = 2 * vector.nbytes / min(_seconds(jax.jit(lambda x: x + 1), vector))
    # fake devices share one processor and one memory, which is their link too
    return Limits(flops / mesh.size, bandwidth / mesh.size, bandwidth / mesh.size, measured=True)


def best(seen: list[Limits]) -> Limits:
    """The most that was seen of each limit: a busy machine shows less than it has."""
    flops, bandwidth, links = (
        max(getattr(one, name) for one in seen) for name in ("flops", "bandwidth", "links")
    )
    return Limits(flops, bandwidth, links, seen[0].measured)


def parts(
    size: Size,
    compute: Compute,
    optimizer: OptimizerSettings,
    mesh: Mesh,
    batch: int,
    length: int,
    microbatches: int,
    limits: Limits,
    step_seconds: float,
    collective_share: float,
) -> list[Part]:
    """The roofline of a step that takes step_seconds.

    collective_share: of the step's operations, from a trace; collectives are also in the
    parts' own seconds.
    """
    took, moments = measured(size, compute, optimizer, mesh, batch // microbatches, length)
    seconds = {
        name: each * (1 if name == "optimizer" else microbatches) for name, each in took.items()
    }
    rest = step_seconds - sum(seconds.values())
    seconds["collectives"] = collective_share * step_seconds
    width = COMPUTE_DTYPES[compute.dtype].itemsize
    rows = []
    for name, least in work(size, batch, length, width, moments, dict(mesh.shape)).items():
        bound, binds = least.bound(limits)
        rows.append(Part(name, least, bound, binds, seconds[name], seconds[name] / step_seconds))
    return [*rows, Part("rest", Work(), 0.0, "", rest, rest / step_seconds)]


def measured(
    size: Size,
    compute: Compute,
    optimizer: OptimizerSettings,
    mesh: Mesh,
    rows: int,
    length: int,
) -> tuple[dict[str, float], float]:
    """Seconds of each part compiled alone, for one microbatch; bytes of the optimizer's state.

    The layers are timed whole and with a quarter of the MLP's width: the difference is three
    quarters of the MLP, what it leaves is attention with the norms. A narrower one would be off:
    products of next to no width take slow ways.
    """
    functions = compiled_parts(size, compute, optimizer, mesh, rows, length)
    seconds = {}
    moments = 0.0
    for name, make in functions.items():
        function, arguments = make()
        seconds[name] = statistics.median(_seconds(function, *arguments))
        if name == "optimizer":
            moments = sum(leaf.nbytes for leaf in jax.tree.leaves(arguments[1]))
        del arguments
    layers, thin = seconds.pop("layers"), seconds.pop("layers with a quarter of the mlp")
    seconds["mlp"] = max(layers - thin, 0.0) / (1 - quarter(size, mesh) / size.d_ff)
    seconds["attention"] = max(layers - seconds["mlp"] - seconds["embedding"], 0.0)
    return seconds, moments


def quarter(size: Size, mesh: Mesh) -> int:
    """A quarter of the MLP's width, or what of it the tensor axis can split."""
    ways = mesh.shape["tensor"]
    return max(size.d_ff // 4 // ways, 1) * ways


def compiled_parts(
    size: Size,
    compute: Compute,
    optimizer: OptimizerSettings,
    mesh: Mesh,
    rows: int,
    length: int,
) -> dict[str, Callable[[], tuple[Any, tuple]]]:
    """By part, what makes its jitted function (forward and backward) and arguments for it."""
    dtype = COMPUTE_DTYPES[compute.dtype]
    across = batch_sharding(mesh)
    key = jax.random.key(0)
    pin = constrainer(mesh)

    def random(shape: tuple[int, ...], kind: Any) -> jax.Array:
        return jax.device_put(jax.random.normal(key, shape, kind), across)

    tokens = jax.device_put(jax.random.randint(key, (rows, length), 0, size.vocabulary), across)
    slope = random((rows, length, size.d_model), jnp.float32)
    splits = parameter_shardings(size, mesh)

    def fresh(size: Size) -> Any:
        ones = lambda: jax.tree.map(lambda s: jnp.full(s.shape, 0.01), shapes(size))  # noqa: E731
        return jax.jit(ones, out_shardings=parameter_shardings(size, mesh))()

    def embedding() -> tuple[Any, tuple]:
        def look_up(table: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = pin(table.astype(dtype), "vocabulary", None)[tokens].astype(jnp.float32)
            x = x + places[:length]
            return jnp.sum(x * slope), x  # the slope does not need x, and would leave it out

        params = fresh(size)
        split = ((splits["embedding"], splits["positions"]), across)
        function = jax.jit(jax.grad(look_up, (0, 1), has_aux=True), out_shardings=split)
        return function, (params["embedding"], params["positions"])

    def layers(size: Size) -> tuple[Any, tuple]:
        decoder = sharded_decoder(size, compute, mesh)

        def run(params: Any, tokens: jax.Array, slope: jax.Array) -> jax.Array:
            hidden, _ = decoder.apply({"params": params}, tokens)
            return jnp.sum(hidden * slope)

        function = jax.jit(jax.grad(run), out_shardings=parameter_shardings(size, mesh))
        return function, (fresh(size), tokens, slope)

    def head() -> tuple[Any, tuple]:
        ones = jax.device_put(jnp.ones((rows, length)), across)

        def loss(hidden: jax.Array, table: jax.Array) -> jax.Array:
            block = compute.loss_block
            return cross_entropy(hidden, table, tokens, ones, block, loss_axes(mesh))[0]

        split = (across, splits["embedding"])
        function = jax.jit(jax.grad(loss, (0, 1)), out_shardings=split)
        return function, (random(slope.shape, dtype), fresh(size)["embedding"])

    def update() -> tuple[Any, tuple]:
        transformation = make_optimizer(optimizer, decay_mask(size))
        params = fresh(size)
        abstract = jax.eval_shape(transformation.init, params)
        split = like_parameters(abstract, parameter_shardings(size, mesh), mesh)
        state = jax.jit(transformation.init, out_shardings=split)(params)

        def step(gradient: Any, state: Any, params: Any) -> Any:
            updates, state = transformation.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        # not donated, for it is called again with the same: twice the memory, the same traffic
        return jax.jit(step, out_shardings=(splits, split)), (params, state, params)

    thin = replace(size, d_ff=quarter(size, mesh))
    return {
        "embedding": embedding,
        "layers": lambda: layers(size),
        "layers with a quarter of the mlp": lambda: layers(thin),
        "head + loss": head,
        "optimizer": update,
    }


def _seconds(function: Any, *arguments: Any) -> list[float]:
    """Seconds of some calls, each from a device at rest to a device at rest."""
    jax.block_until_ready(function(*arguments))
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        taken.append(time.perf_counter() - started)
    return taken
