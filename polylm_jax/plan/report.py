"""A plan: what the compiler and the arithmetic say of a run on a slice, in words and a figure."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from polylm_jax.model.lora import adapter_count
from polylm_jax.model.parameters import count
from polylm_jax.parallel.mesh import AXES
from polylm_jax.plan.collectives import Collective
from polylm_jax.plan.compile import Compiled, Run, whole_mesh
from polylm_jax.plan.estimate import Bound, bound, flops_on_chip, least_sent, memory_by_kind
from polylm_jax.plan.slices import Slice, missing_compiler
from polylm_jax.plan.text import GB, RATES, table, whole

GIB = 2**30
COLOURS = {
    "parameters": "#1f6f9f",
    "optimizer": "#86a8bf",
    "gradients": "#2f9c8a",
    "activations": "#d9982b",
    "logits and head": "#8a6fb3",
    "other": "#98a4af",
}
BINDS = {"compute": "compute", "memory": "HBM", "links": "links", "network": "network"}
COLUMNS = (
    *("run", "mesh", "microbatches", "compiles", "GiB a chip", "bound of a step", "days"),
    *("GB sent", "overlapped", "by its text", "gathers beside work", "sums beside work"),
)
# What the columns call gathers and sums.
GATHERS, SUMS = ("all-gather",), ("reduce-scatter", "all-reduce")
TABLE_HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


@dataclass(frozen=True)
class Plan:
    """A run on a slice. compiled is None where no compiler for the slice is installed.

    kinds: bytes of one chip by kind, by arithmetic; "other" is the compiler's peak less these.
    """

    name: str
    run: Run
    where: Slice
    compiled: Compiled | None
    kinds: dict[str, float]
    bound: Bound
    efficiency: float

    @property
    def fits(self) -> bool:
        if self.compiled is None:
            return sum(self.kinds.values()) <= self.where.chip.memory
        return self.compiled.fits

    @property
    def step_seconds(self) -> float:
        return self.bound.seconds / self.efficiency

    @property
    def tokens_per_second(self) -> float:
        return self.run.training.batch * self.run.length / self.step_seconds

    @property
    def days(self) -> float:
        return self.run.training.steps * self.step_seconds / 86400

    @property
    def chip_hours(self) -> float:
        return 24 * self.days * self.where.chips


def make_plan(
    name: str, run: Run, where: Slice, compiled: Compiled | None, efficiency: float
) -> Plan:
    """Puts what the compiler says, if there is one, beside the arithmetic."""
    kinds = memory_by_kind(run, where)
    if compiled and compiled.fits:
        kinds["other"] = max(0.0, compiled.peak - sum(kinds.values()))
    # what does not fit sends nothing: the least it would have to
    sent = compiled.collectives if compiled and compiled.fits else least_sent(run, where)
    return Plan(name, run, where, compiled, kinds, bound(run, where, sent), efficiency)


def by_text(plan: Plan) -> list[str]:
    """Where the step's time goes by the compiled program's text, in words."""
    compiled, rates = plan.compiled, RATES[plan.where.family]
    if not (compiled and compiled.fits):
        return ["There is no compiled program to read."]
    head, *rest = table(compiled.parts, rates)
    return [
        "",
        f"A step by its compiled program, without collectives, {head}",
        *rest,
        f"With what is sent while nothing is computed: {text_seconds(plan):.3f} s.",
    ]


def lines(plan: Plan) -> list[str]:
    """The plan in words."""
    run, where, compiled = plan.run, plan.where, plan.compiled
    mesh = whole_mesh(run, where)
    axes = " x ".join(f"{axis} {ways}" for axis, ways in zip(AXES, mesh, strict=True))
    training = run.training
    model, again = flops_on_chip(run, where)
    out = [
        f"{plan.name}: {_parameters(run)}, {where.name}, {where.chips} chips ({axes}); "
        f"{training.batch} rows of {run.length} a step in {training.microbatches} "
        f"microbatch{'es' if training.microbatches > 1 else ''}, remat {run.compute.remat}.",
        _verdict(plan),
        "",
        f"HBM of a chip, {where.chip.memory / GIB:.1f} GiB:",
        *(f"  {kind:16}{size / GIB:8.2f} GiB" for kind, size in plan.kinds.items()),
    ]
    if compiled and compiled.fits:
        known = sum(size for kind, size in plan.kinds.items() if kind != "other")
        note = "other is the rest up to it" if compiled.peak > known else "not all exist at once"
        out.append(f"  {'compiler, peak':16}{compiled.peak / GIB:8.2f} GiB ({note})")
    out += [
        "",
        f"A step: {model:.3g} FLOPs a chip, and {again:.3g} recomputed. At the least",
        f"  compute{plan.bound.compute:10.3f} s   at {where.chip.flops:.3g} FLOP/s",
        f"  HBM    {plan.bound.memory:10.3f} s   at {where.chip.bandwidth:.3g} bytes/s",
        f"  links  {plan.bound.links:10.3f} s   at {where.chip.links:.3g} bytes/s",
        *_network(plan),
        f"What binds: {BINDS[plan.bound.binds]}. A step takes {plan.bound.seconds:.3f} s or more.",
    ]
    if compiled and compiled.collectives:
        out += ["", "Collectives of a chip in a step, as compiled:"]
        out += [
            f"  {one.kind:20}{one.axes:16}{one.bytes / GIB:10.3f} GiB in {one.count:,}"
            for one in compiled.collectives
        ]
    elif not (compiled and compiled.fits):
        out.append("The links' time is of the least a mesh must send, not of a compiled program.")
    out += [
        "",
        f"At {plan.efficiency:.0%} of that bound, which is an assumption (--efficiency): "
        f"{plan.tokens_per_second:,.0f} tokens/s;",
        f"{training.steps:,} steps take {plan.days:.1f} days, {plan.chip_hours:,.0f} chip-hours.",
    ]
    return out


def _parameters(run: Run) -> str:
    whole, adapters = f"{count(run.size):,} parameters", adapter_count(run.size, run.lora)
    return f"{whole}, frozen beside {adapters:,} of adapters" if adapters else whole


def _network(plan: Plan) -> list[str]:
    where, seconds = plan.where, plan.bound.network
    if where.chips <= where.wired:
        return []
    rate = f"{where.chip.network:.3g} bytes/s between {'hosts' if where.gpu else 'slices'}"
    return [f"  network{seconds:10.3f} s   at {rate}"]


def _verdict(plan: Plan) -> str:
    compiled, memory = plan.compiled, plan.where.chip.memory
    if compiled is None:
        least = sum(plan.kinds.values())
        word = "It may fit" if plan.fits else "It does not fit"
        return (
            f"{word}: {least / GIB:.2f} of {memory / GIB:.1f} GiB a chip by arithmetic. "
            + missing_compiler(plan.where)
        )
    if compiled.fits:
        return (
            f"It fits: {compiled.peak / GIB:.2f} of {memory / GIB:.1f} GiB a chip at the peak, "
            f"compiled in {compiled.seconds:.0f} s."
        )
    needed, available = compiled.needed / GIB, compiled.available / GIB
    by = (
        f"the compiler needs {needed:.2f} GiB a chip and has {available:.2f}, "
        f"{needed - available:.2f} too few"
        if needed
        else "the compiler ran out of memory and did not say by how much"
    )
    return f"It does not fit: {by}. What would help: {'; '.join(advice(plan))}."


def advice(plan: Plan) -> list[str]:
    """Settings that would lower what is too large, the most helpful first."""
    run, where = plan.run, plan.where
    data, fsdp, tensor = whole_mesh(run, where)
    copies = data // where.slices
    training, steps = run.training, []
    rows = training.batch // (data * fsdp * training.microbatches)
    if run.compute.remat != "full":
        steps.append('compute.remat = "full"')
    if rows > 1:
        divisors = [n for n in range(2, rows + 1) if rows % n == 0]
        kept = plan.kinds["activations"] / rows
        room = where.chip.memory / 2
        parts = next((n for n in divisors if kept * rows / n <= room), divisors[-1])
        steps.append(f"train.microbatches = {training.microbatches * parts}")
        steps.append(f"train.batch = {training.batch // parts}, which is another run")
    if copies > 1:
        steps.append(f"mesh.data = 1 with mesh.fsdp = {fsdp * copies}")
    if run.compute.loss_block > 512:
        steps.append("compute.loss_block = 512")
    if rows == 1 and run.size.heads % (2 * tensor) == 0 and fsdp % 2 == 0:
        steps.append(f"mesh.tensor = {2 * tensor} with mesh.fsdp = {fsdp // 2}")
    return [*steps, "a larger slice"]


def record(plan: Plan) -> dict[str, Any]:
    """The plan as JSON: every number the words are made of."""
    return {
        "name": plan.name,
        "slice": asdict(plan.where),
        "mesh": dict(zip(AXES, whole_mesh(plan.run, plan.where), strict=True)),
        "batch": plan.run.training.batch,
        "microbatches": plan.run.training.microbatches,
        "remat": plan.run.compute.remat,
        "fits": plan.fits,
        "compiled": plan.compiled and asdict(plan.compiled),
        "bytes_by_kind": plan.kinds,
        "capacity_bytes": plan.where.chip.memory,
        "flops": dict(
            zip(("model", "recomputed"), flops_on_chip(plan.run, plan.where), strict=True)
        ),
        "bound_seconds": asdict(plan.bound),
        "binds": plan.bound.binds,
        "efficiency": plan.efficiency,
        "tokens_per_second": plan.tokens_per_second,
        "days": plan.days,
        "chip_hours": plan.chip_hours,
    }


def row(plan: Plan) -> str:
    """The plan as a row of the Markdown table that TABLE_HEAD begins."""
    mesh, memory = whole_mesh(plan.run, plan.where), plan.where.chip.memory / GIB
    compiled, most = plan.compiled, sum(plan.kinds.values())
    if compiled:
        most = compiled.peak if compiled.fits else compiled.needed
    cells = [
        f"`{plan.name}`",
        " x ".join(map(str, mesh)),
        str(plan.run.training.microbatches),
        "not tried" if compiled is None else "yes" if compiled.fits else "too large",
        f"{most / GIB:.1f} of {memory:.1f}",
        f"{plan.bound.seconds:.2f} s, {BINDS[plan.bound.binds]}",
        f"{plan.days:.1f}" if plan.days >= 0.1 else f"{plan.days:.1g}",
        *_sent(plan),
    ]
    return f"| {' | '.join(cells)} |"


def _sent(plan: Plan) -> list[str]:
    """GB that enter a chip in a step, the share of them that work may hide, seconds by the
    text, and how many gathers and sums are sent so that it may."""
    compiled = plan.compiled
    if not (compiled and compiled.fits):
        return [""] * 5
    sent = sum(one.bytes for one in compiled.collectives)
    hidden = sum(one.overlapped for one in compiled.collectives)
    share = f"{hidden / sent:.0%}" if sent else ""
    counts = (_beside(compiled.collectives, kinds) for kinds in (GATHERS, SUMS))
    return [f"{sent / GB:.1f}", share, f"{text_seconds(plan):.2f} s", *counts]


def _beside(sent: Sequence[Collective], kinds: tuple[str, ...]) -> str:
    """How many collectives of these kinds are sent beside work: "1,284 of 1,285"."""
    some = [one for one in sent if one.kind in kinds]
    count = sum(one.count for one in some)
    return f"{sum(one.beside for one in some):,} of {count:,}" if count else ""


def text_seconds(plan: Plan) -> float:
    """Seconds of a step by its compiled program: its kernels, then what is sent meanwhile by none.

    The compiler's text says that the rest may be sent beside them, not that there is time for it.
    """
    assert plan.compiled is not None
    alone = [replace(one, bytes=one.bytes - one.overlapped) for one in plan.compiled.collectives]
    late = bound(plan.run, plan.where, alone)
    return whole(plan.compiled.parts).seconds + late.links + late.network


def draw(plan: Plan, path: Path) -> Path:
    """One stacked bar of a chip's memory by kind, against its capacity; a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8.3, 2.6), dpi=150, layout="constrained")
    ax = figure.subplots()
    left = 0.0
    for kind, size in plan.kinds.items():
        ax.barh(0, size / GIB, left=left, color=COLOURS[kind], height=0.6,
                label=f"{kind} {size / GIB:.1f}")  # fmt: skip
        left += size / GIB
    capacity = plan.where.chip.memory / GIB
    marks = {f"capacity {capacity:.1f}": (capacity, "#d1495b")}
    if plan.compiled and plan.compiled.fits:
        marks[f"compiler's peak {plan.compiled.peak / GIB:.1f}"] = (
            plan.compiled.peak / GIB,
            "#22303c",
        )
    for label, (place, colour) in marks.items():
        ax.axvline(place, color=colour, lw=1.5, label=label)
    ax.set(yticks=[], xlabel="GiB of one chip", xlim=(0, 1.05 * max(left, capacity)))
    ax.set_title(f"{plan.name} on {plan.where.name}", loc="left", weight="bold", size=11)
    ax.spines[["left", "top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(unfinished, format="png")
    os.replace(unfinished, path)
    return path
