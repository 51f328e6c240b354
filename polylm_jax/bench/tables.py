"""What `polylm bench train` and `polylm bench choices` found, as tables."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Column, Table

from polylm_jax.bench import tracing
from polylm_jax.bench.choices import Choice
from polylm_jax.bench.step import Pace
from polylm_jax.bench.train import FORMULA, Result


def show(result: Result, console: Console) -> None:
    """Prints the result as tables, and as JSON on the last line."""
    pace, peer, memory = result.pace, result.peer, result.memory
    table = Table("what", Column("measured", justify="right"), title="The training step")
    axes = " x ".join(f"{name} {ways}" for name, ways in result.mesh.items())
    rate = f"{result.flops_per_device / 1e12:.4g} TFLOP/s"
    limit = f"{result.limits.flops / 1e12:.4g} TFLOP/s"
    rows = [
        ("model", f"{result.parameters:,} parameters, {result.dtype}, remat {result.remat}"),
        ("device", f"{result.devices} x {result.device} ({axes})"),
        ("batch", f"{result.batch} rows of {result.length} tokens"),
        ("compiling", f"{result.compile_seconds:.1f} s"),
        (f"step, median of {pace.steps}", _spread(pace)),
        ("tokens/s", f"{pace.tokens_per_second:,.0f}"),
        ("model FLOP/s of a device", rate),
        ("MFU", f"n/a, no peak known; {result.of_measured:.1%} of a measured product's {limit}")
        if result.mfu is None
        else ("MFU", f"{result.mfu:.1%} of {limit} (data sheet, bfloat16)"),
        ("memory planned for a device", _bytes(memory.planned)),
        ("memory, peak", "not counted here" if memory.peak is None else _bytes(memory.peak)),
        ("wall time outside steps", result.no_feed)
        if result.feed is None
        else ("wall time outside steps", f"{result.feed.outside:.1%} of {result.feed.steps} fed"),
    ]
    if peer:
        how = "torch.compile" if peer.about["compiled"] else "eager: no C++ compiler here"
        rows += [
            ("beside it", f"{peer.about['who']}, {peer.about['dtype']}, {how}"),
            ("its microbatches", str(peer.about["microbatches"])),
            (f"its step, median of {peer.pace.steps}", _spread(peer.pace)),
            ("its tokens/s", f"{peer.pace.tokens_per_second:,.0f}"),
            ("its memory, peak", _bytes(peer.peak_bytes)),
            (f"ratio, median of {len(peer.ratios)} rounds in turn", f"{peer.ratio:.2f}"),
        ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(FORMULA)
    if result.operations:
        console.print(_operations_table(result.operations))
    if result.roofline:
        console.print(_roofline_table(result))
    print(json.dumps(asdict(result)))


def show_choices(choices: list[Choice], console: Console) -> None:
    """Prints the choices as a table, and as JSON on the last line."""
    right = [Column(name, justify="right") for name in ("temporary memory", "median")]
    table = Table("part", "choice", *right, title="What each choice costs")
    for choice in choices:
        took = "does not fit" if choice.seconds is None else f"{choice.seconds * 1e3:,.1f} ms"
        table.add_row(choice.part, choice.name, _bytes(choice.temporary), took)
    console.print(table)
    print(json.dumps([asdict(choice) for choice in choices]))


def _operations_table(operations: list[tracing.Operation]) -> Table:
    right = [Column(name, justify="right") for name in ("ms a step", "share")]
    table = Table("operation", "from", *right, title="The costliest operations")
    for cost in operations:
        origin = "/".join(cost.origin.split("/")[-3:])
        table.add_row(cost.name, origin, f"{cost.seconds * 1e3:.2f}", f"{cost.share:.1%}")
    return table


def _roofline_table(result: Result) -> Table:
    names = ("GFLOP", "GB", "bound", "measured", "of bound", "share")
    table = Table("part", *(Column(name, justify="right") for name in names), title="Roofline")
    for part in result.roofline or []:
        reached = part.bound_seconds / part.measured_seconds if part.measured_seconds > 0 else 0
        table.add_row(
            part.name,
            f"{part.work.flops / 1e9:,.1f}",
            f"{(part.work.bytes + part.work.moved) / 1e9:,.3f}",
            f"{part.bound_seconds * 1e3:,.2f} ms {part.bound}",
            f"{part.measured_seconds * 1e3:,.2f} ms",
            f"{reached:.0%}" if part.bound else "",
            f"{part.share:.1%}",
        )
    known = "measured here" if result.limits.measured else "data sheet"
    table.caption = (
        f"Of one device; limits: {known}. Work and bound: the least, nothing computed twice. "
        "Measured: each part compiled alone, forward and backward, but collectives, which are "
        "in the parts too and are taken from a trace of the step; rest: what is left of it."
    )
    return table


def _spread(pace: Pace) -> str:
    low, median, high = (f"{s * 1e3:,.0f}" for s in (pace.p10, pace.median, pace.p90))
    return f"{median} ms ({low} to {high}, p10 to p90)"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
