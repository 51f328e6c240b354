"""A trace of some steps, and what each operation of the compiled step cost in it."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.profiler import ProfileData

from polylm_jax.errors import UserError

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
)
# an operation that runs others would be counted twice
CONTAINERS = ("while", "conditional", "call")


@dataclass(frozen=True)
class Operation:
    """One operation of the compiled program.

    name: in the program. origin: what JAX traced it from. seconds: of one device in one step,
    added up over threads and streams. share: of all operations' seconds.
    """

    name: str
    origin: str
    seconds: float
    share: float


def trace(step: Callable[[], None], steps: int, folder: str) -> None:
    """Runs step() some times and writes a trace of it to the folder, for TensorBoard or xprof."""
    with jax.profiler.trace(folder):
        for _ in range(steps):
            step()


def operations(folder: str, program: str, steps: int, devices: int) -> list[Operation]:
    """The operations in the newest trace of a folder, the costliest first.

    program: the compiled step as text, which tells where an operation comes from.
    """
    traces = sorted(Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not traces:
        raise UserError(f"the profiler left no trace in {folder}; give a folder on a local disk.")
    # what the compiler made by itself, such as a transposed copy, has no origin
    named = re.findall(r'^ *(?:ROOT )?%?([\w.-]+) = (?:.*op_name="([^"]*)")?', program, re.M)
    origins = dict(named)
    cost: Counter[str] = Counter()
    for plane in ProfileData.from_file(str(traces[-1])).planes:
        for line in plane.lines:
            for event in line.events:
                if line.name == "XLA Ops":  # a TPU's line, where an event is named by its text
                    name = event.name.partition(" = ")[0].lstrip("%")
                else:
                    name = str(dict(event.stats).get("hlo_op", ""))
                if name in origins or name.startswith(COLLECTIVES):
                    cost[name] += event.duration_ns
    leaves = {name: ns for name, ns in cost.items() if not name.startswith(CONTAINERS)}
    total = sum(leaves.values()) or 1
    return [
        Operation(name, origins.get(name, ""), ns / 1e9 / steps / devices, ns / total)
        for name, ns in sorted(leaves.items(), key=lambda item: -item[1])
    ]


def collectives(costs: list[Operation]) -> float:
    """Share of the operations' seconds that moves data between devices."""
    return sum(cost.share for cost in costs if cost.name.startswith(COLLECTIVES))
