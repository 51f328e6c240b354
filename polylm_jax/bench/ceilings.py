"""What a device reaches in the very shapes of a run's step: copies, products, attention.

A step can be no faster than its parts are here, whatever the compiler does around them. Operands
are random: a GPU multiplies zeros faster than numbers.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
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
        for name, unit, amount, function, arguments in _work(size, compute, rows, length)
        for seconds in [seconds_of(function, *arguments())]
    ]
    return {
        "device": device.device_kind,
        "jax": jax.__version__,
        "rows": rows,
        "length": length,
        "ceilings": [asdict(one) for one in found],
    }


def _work(
    size: Size, compute: Compute, rows: int, length: int
) -> Iterator[tuple[str, str, float, Callable, Callable[[], tuple]]]:
    """Of each shape: its name, the unit, how much one call does, and what is called with what."""
    kind = COMPUTE_DTYPES[compute.dtype]
    tokens, d, ff, v = rows * length, size.d_model, size.d_ff, size.vocabulary

    def random(*shape: int, dtype: Any = kind) -> jax.Array:
        draw = jax.jit(lambda: jax.random.normal(jax.random.key(len(shape)), shape, dtype))
        return draw()

    moved = 2 * tokens * ff * kind.itemsize
    yield "copy", "TB/s", moved, jax.jit(jnp.negative), lambda: (random(tokens, ff),)

    forward = jax.jit(lambda x, w: dot("td,df->tf", x, w, kind))
    shapes = {"qkv": (d, 3 * d), "attention out": (d, d), "MLP in": (d, ff), "MLP out": (ff, d)}
    for name, (a, b) in shapes.items():
        flops = 2.0 * tokens * a * b
        yield name, "TFLOP/s", flops, forward, lambda a=a, b=b: (random(tokens, a), random(a, b))
    slope = jax.jit(lambda x, y: dot("td,tf->df", x, y, FLOAT32))
    for name, (a, b) in shapes.items():
        operands = lambda a=a, b=b: (random(tokens, a), random(tokens, b))  # noqa: E731
        yield f"{name}, weights' gradient", "TFLOP/s", 2.0 * tokens * a * b, slope, operands

    head = jax.jit(lambda x, w: dot("td,vd->tv", x, w, FLOAT32))
    table_slope = jax.jit(lambda total, y, x: total + dot("tv,td->vd", y, x, FLOAT32))
    for block in sorted({min(block, tokens) for block in BLOCKS}):
        flops = 2.0 * block * v * d
        operands = lambda block=block: (random(block, d), random(v, d))  # noqa: E731
        yield f"logits of {block} tokens", "TFLOP/s", flops, head, operands
        operands = lambda block=block: (  # noqa: E731
            random(v, d, dtype=FLOAT32),
            random(block, v),
            random(block, d),
        )
        yield f"table's gradient of {block} tokens", "TFLOP/s", flops, table_slope, operands

    attend = attender(compute, make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])) or staircase

    def both(*operands: jax.Array) -> Any:
        mixed, back = jax.vjp(lambda *three: attend(*three, None), *operands[:3])
        return mixed, back(operands[3])

    def heads(arrays: int) -> tuple:
        return (random(rows, length, size.heads, size.head_size),) * arrays

    # of two products forward and five backward, the half that is not masked
    flops = 2.0 * rows * length**2 * d
    alone = jax.jit(lambda *three: attend(*three, None))
    yield "attention", "TFLOP/s", flops, alone, lambda: heads(3)
    yield "attention with its gradient", "TFLOP/s", 3.5 * flops, jax.jit(both), lambda: heads(4)


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
