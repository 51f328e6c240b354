"""What a device reaches in the very shapes of a run's step: copies, products, attention.

A step can be no faster than its parts are here, whatever the compiler does around them. Operands
are random: a GPU multiplies zeros faster than numbers.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Column, Table

from polylm_jax.model.attention import staircase
from polylm_jax.model.decoder import COMPUTE_DTYPES, Compute
from polylm_jax.model.products import FLOAT32, dot
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import attender
from polylm_jax.sizes import Size

ROUNDS = 5
ROUND_SECONDS, MOST_CALLS = 0.05, 50  # of one round: launches must not be what is timed
BLOCKS = (1024, 2048, 4096)  # tokens whose logits are held at a time


@dataclass(frozen=True)
class Ceiling:
    """One shape. rate: of `unit`, a second; seconds: of one call, the median of rounds."""

    name: str
    unit: str
    rate: float
    seconds: float


def run(size: Size, compute: Compute, rows: int, length: int) -> dict:
    """Every ceiling of one device, for so many rows of so many tokens at a time."""
    device = jax.devices()[0]
    found = [
        Ceiling(name, unit, amount / 1e12 / seconds, seconds)
        for name, unit, amount, function, shapes, first in _work(size, compute, rows, length)
        for seconds in [seconds_of(jax.jit(function), *_operands(shapes, first, compute))]
    ]
    return {
        "device": device.device_kind,
        "jax": jax.__version__,
        "rows": rows,
        "length": length,
        "ceilings": [asdict(one) for one in found],
    }


Shape = tuple[int, ...]


def _work(
    size: Size, compute: Compute, rows: int, length: int
) -> Iterator[tuple[str, str, float, Callable, list[Shape], Any]]:
    """Of each ceiling: its name and unit, how much a call does, what is called, and with arrays of
    which shapes; the first one's dtype, the others' is that of the products."""
    kind = COMPUTE_DTYPES[compute.dtype]
    tokens, d, ff, v = rows * length, size.d_model, size.d_ff, size.vocabulary
    moved = 2.0 * tokens * ff * kind.itemsize
    yield "copy", "TB/s", moved, jnp.negative, [(tokens, ff)], kind

    kernels = {"qkv": (d, 3 * d), "attention out": (d, d), "MLP in": (d, ff), "MLP out": (ff, d)}
    for name, (a, b) in kernels.items():
        flops = 2.0 * tokens * a * b
        forward = partial(dot, "td,df->tf", dtype=kind)
        yield name, "TFLOP/s", flops, forward, [(tokens, a), (a, b)], kind
        slope = partial(dot, "td,tf->df", dtype=FLOAT32)
        name = f"{name}, weights' gradient"
        yield name, "TFLOP/s", flops, slope, [(tokens, a), (tokens, b)], kind

    def added(total: jax.Array, slope: jax.Array, x: jax.Array) -> jax.Array:
        return total + dot("tv,td->vd", slope, x, FLOAT32)

    for block in sorted({min(block, tokens) for block in BLOCKS}):
        flops = 2.0 * block * v * d
        head = partial(dot, "td,vd->tv", dtype=FLOAT32)
        yield f"logits of {block} tokens", "TFLOP/s", flops, head, [(block, d), (v, d)], kind
        shapes: list[Shape] = [(v, d), (block, v), (block, d)]
        yield f"table's gradient of {block} tokens", "TFLOP/s", flops, added, shapes, FLOAT32

    attend = attender(compute, make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])) or staircase

    def alone(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return attend(query, key, value, None)

    def both(slope: jax.Array, *three: jax.Array) -> Any:
        mixed, back = jax.vjp(alone, *three)
        return mixed, back(slope)

    # of two products forward and five backward, the half that is not masked
    flops, heads = 2.0 * rows * length**2 * d, (rows, length, size.heads, size.head_size)
    yield "attention", "TFLOP/s", flops, alone, [heads] * 3, kind
    yield "attention with its gradient", "TFLOP/s", 3.5 * flops, both, [heads] * 4, kind


def _operands(shapes: list[Shape], first: Any, compute: Compute) -> list[jax.Array]:
    dtypes = [first, *[COMPUTE_DTYPES[compute.dtype]] * (len(shapes) - 1)]
    draw = jax.jit(jax.random.normal, static_argnums=(1, 2))
    return [draw(jax.random.key(0), *each) for each in zip(shapes, dtypes, strict=True)]


def seconds_of(function: Callable, *arguments: Any) -> float:
    """Seconds of one call among many that are waiting, the median of rounds."""

    def took(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            result = function(*arguments)
        jax.block_until_ready(result)
        return time.perf_counter() - started

    took(1)  # compiles
    calls = max(1, min(MOST_CALLS, round(ROUND_SECONDS / took(1))))
    return statistics.median(took(calls) / calls for _ in range(ROUNDS))


def show(result: dict, console: Console) -> None:
    """Prints the ceilings as a table."""
    right = [Column(name, justify="right") for name in ("ms", "rate")]
    title = f"{result['device']}, {result['rows']} rows of {result['length']} tokens"
    table = Table("what", *right, title=title)
    for one in result["ceilings"]:
        rate = f"{one['rate']:.4g} {one['unit']}"
        table.add_row(one["name"], f"{one['seconds'] * 1e3:.3f}", rate)
    console.print(table)
