"""What is known of a run on a slice without compiling it: arithmetic, and the certified table.

The table is what `polylm plan --certify` writes into a Markdown file, between two marks.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from polylm_jax.errors import UserError
from polylm_jax.plan.compile import Run, check, whole_mesh
from polylm_jax.plan.estimate import state_on_chip
from polylm_jax.plan.slices import FAMILIES, Slice, slice_of

MARKS = ("<!-- made by polylm plan --certify -->\n", "<!-- end -->\n")
GIB = 2**30


class Certified(NamedTuple):
    """A row of the table. compiles: "yes", "too large" or "not tried". memory: "22.3 of 32.0"."""

    name: str
    compiles: str
    memory: str


def around_the_table(path: str) -> tuple[str, str, str]:
    """The text before, in and after the table of a file; a UserError where it has none."""
    text = Path(path).read_text()
    if not all(text.count(mark) == 1 for mark in MARKS):
        raise UserError(f"{path} has no table between the marks {' and '.join(MARKS)}.")
    before, rest = text.split(MARKS[0])
    table, after = rest.split(MARKS[1])
    return before, table, after


def rows(folder: Path) -> list[Certified]:
    """The table of the one file that has it, README.md or a page of docs/; [] where none has."""
    for page in [folder / "README.md", *sorted(folder.glob("docs/**/*.md"))]:
        if page.is_file() and MARKS[0] in page.read_text():
            _, table, _ = around_the_table(str(page))
            lines = [[cell.strip(" `") for cell in line.split("|")] for line in table.splitlines()]
            return [Certified(line[1], line[4], line[5]) for line in lines[2:]]
    return []


def any_slice_of(name: str) -> Slice:
    """As slice_of, but of any number of chips: clouds have 4x4x12, which no plan here is for."""
    family, _, size = name.partition("-")
    if family in FAMILIES and size.isdigit():
        _, cores, _, most = FAMILIES[family]
        chips, half = divmod(int(size), cores)
        if 1 <= chips <= most and not half:
            return Slice(name, family, chips, "")
    return slice_of(name)


def refuse(run: Run, where: Slice) -> None:
    """UserError if the run cannot be split over the slice, or its state alone is too large."""
    check(run, where)
    state = sum(state_on_chip(run, where))
    if state > where.chip.memory:
        raise UserError(
            f"parameters and moments alone are {state / GIB:.1f} of {where.chip.memory / GIB:.1f} "
            f"GiB a chip of {where.name}; take a larger slice or split over more mesh.fsdp."
        )


def same_memory(run: Run, other: Run, where: Slice) -> bool:
    """Whether two runs need the same memory of each chip of a slice."""
    return _memory_of(run, where) == _memory_of(other, where)


def _memory_of(run: Run, where: Slice) -> tuple:
    training = run.training
    return (
        run.size,
        run.lora,
        run.marked,
        run.length,
        training.batch,
        training.microbatches,
        whole_mesh(run, where),
        run.optimizer.moments,
        replace(run.compute, compile_cache=""),
    )
