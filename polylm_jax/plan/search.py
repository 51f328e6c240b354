"""The meshes, remat policies and microbatches that could work on a slice, the best first."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

from polylm_jax.console import format_duration
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import REMAT_POLICIES
from polylm_jax.parallel.mesh import MeshShape
from polylm_jax.plan.compile import Compiled, Run
from polylm_jax.plan.estimate import bound, least_sent, memory_by_kind
from polylm_jax.plan.report import Plan, make_plan
from polylm_jax.plan.slices import Slice

# A remat policy whose bound is so much less is worth another gin line.
WORTH = 0.99
# The kinds known by arithmetic may fill this much of a chip; temporaries come on top.
ROOM = 0.9


def candidates(run: Run, where: Slice) -> list[Run]:
    """Variants of the run that divide evenly and fit by arithmetic, the least bound first.

    Of each mesh and policy: the fewest microbatches that fit, and twice as many, in case the
    compiler's temporaries are large.
    """
    ranked = []
    for (data, fsdp, tensor), remat in product(_meshes(run, where), REMAT_POLICIES):
        mesh = MeshShape(data, fsdp, tensor)
        base = replace(run, mesh=mesh, compute=replace(run.compute, remat=remat))
        rows = run.training.batch // (where.slices * data * fsdp)
        fitting = [
            one
            for n in range(1, rows + 1)
            if rows % n == 0
            for one in [replace(base, training=replace(run.training, microbatches=n))]
            if sum(memory_by_kind(one, where).values()) <= ROOM * where.chip.memory
        ]
        ranked += fitting[:2]
    return sorted(ranked, key=lambda one: bound(one, where, least_sent(one, where)).seconds)


def cheaper(run: Run, where: Slice) -> list[Run]:
    """The run under remat policies with a lesser bound that fit by arithmetic, the least first."""

    def seconds(one: Run) -> float:
        return bound(one, where, least_sent(one, where)).seconds

    variants = [
        one
        for remat in REMAT_POLICIES
        for one in [replace(run, compute=replace(run.compute, remat=remat))]
        if sum(memory_by_kind(one, where).values()) <= ROOM * where.chip.memory
        and seconds(one) < WORTH * seconds(run)
    ]
    return sorted(variants, key=seconds)


def search(
    name: str,
    run: Run,
    where: Slice,
    best: int,
    efficiency: float,
    compiler: Callable[[Run, Slice], Compiled | None],
    say: Callable[[str], None],
) -> list[Plan]:
    """Compiles the `best` candidates and returns those that fit, the least bound first.

    say: told after each compilation what came of it, and how long the others will take.
    UserError where nothing fits.
    """
    tried = candidates(run, where)
    say(f"{len(tried)} variants may fit {where.name} by arithmetic; compiling the best {best}.")
    plans, start = [], time.monotonic()
    for done, one in enumerate(tried[:best], 1):
        plan = make_plan(name, one, where, compiler(one, where), efficiency)
        plans.append(plan)
        left = (time.monotonic() - start) / done * (min(best, len(tried)) - done)
        word = f"{plan.bound.seconds:.3f} s a step" if plan.fits else "too large"
        say(f"{done}. {settings_of(one)}: {word}. ETA {format_duration(left)}")
    fitting = sorted((p for p in plans if p.fits), key=lambda plan: plan.bound.seconds)
    if not fitting:
        raise UserError(
            f"{name} does not fit {where.name} in any way that was compiled; raise --best or take "
            "a larger slice."
        )
    return fitting


def settings_of(run: Run) -> str:
    """What a search may change, in words."""
    mesh = run.mesh
    return (
        f"data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor}, remat {run.compute.remat}, "
        f"microbatches {run.training.microbatches}"
    )


def as_gin(files: list[str], plan: Plan) -> str:
    """A gin file: the run's own, and what the search found for its slice."""
    run, mesh = plan.run, plan.run.mesh
    return "\n".join([
        f"# Found by `polylm plan --search` for {plan.where.name}: {plan.bound.seconds:.3f} s a "
        "step or more.",
        *(f'include "{file}"' for file in files),
        "",
        *(f"mesh.{axis} = {getattr(mesh, axis)}" for axis in ("data", "fsdp", "tensor")),
        f'compute.remat = "{run.compute.remat}"',
        f"train.microbatches = {run.training.microbatches}",
        "",
    ])  # fmt: skip


def _meshes(run: Run, where: Slice) -> Iterator[tuple[int, int, int]]:
    """Every (data, fsdp, tensor) of a slice's chips that divides the model and the batch."""
    size, chips = run.size, where.chips // where.slices
    divisors = [n for n in range(1, chips + 1) if chips % n == 0]
    for tensor, fsdp in product(divisors, repeat=2):
        data, rest = divmod(chips, tensor * fsdp)
        wanted = [(n, tensor) for n in (size.heads, size.d_ff, size.vocabulary)]
        wanted += [(size.d_model, fsdp), (run.training.batch, max(1, where.slices * data * fsdp))]
        if not rest and all(n % ways == 0 for n, ways in wanted):
            yield data, fsdp, tensor
