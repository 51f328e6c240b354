"""Say what a run needs of a slice that is not here: compiled, in memory, time and chip-hours."""

import argparse
import json
from pathlib import Path

import jax

from polylm_jax import config
from polylm_jax.errors import UserError
from polylm_jax.plan.compile import Run, check, compile_step
from polylm_jax.plan.report import draw, lines, make_plan, record
from polylm_jax.plan.slices import FAMILIES, slice_of


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--slice",
        default="",
        help="v5p-128, v5e-256, h100-64, …; by default the end of the run's name",
    )
    parser.add_argument(
        "--efficiency", type=float, default=0.5, help="share of the bound that a run reaches (0.5)"
    )
    parser.add_argument("--json", default="", help="file for all numbers")
    parser.add_argument("--out", default="runs/plans", help="folder for figures and the cache")


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    if not 0 < given.efficiency <= 1:
        raise UserError(f"--efficiency={given.efficiency:g} must lie above 0 and be at most 1.")
    jax.config.update("jax_platforms", "cpu")  # whatever is here, it is not what is planned for
    out = Path(given.out)
    name = Path(given.gin_file[-1]).stem if given.gin_file else "run"
    where = slice_of(given.slice or slice_in(name))
    planned = settings()
    check(planned, where)
    plan = make_plan(
        name, planned, where, compile_step(planned, where, out / "cache"), given.efficiency
    )
    print("\n".join(lines(plan)))
    figure = draw(plan, out / f"{name}_{where.name}.png")
    if given.json:
        Path(given.json).write_text(json.dumps(record(plan), indent=1) + "\n")
    print(f"\nThe figure is {figure}{f', the numbers are in {given.json}' if given.json else ''}.")
    if not plan.fits:
        raise UserError(f"{name} does not fit {where.name}; see above for what would help.")


def slice_in(name: str) -> str:
    """The slice that a run's name ends with: "v5e-256" of polylm_1b7_v5e_256."""
    parts = name.split("_")
    if len(parts) < 2 or parts[-2] not in FAMILIES:
        raise UserError(f"give --slice: the name {name} does not end with one, as …_v5p_128 does.")
    return "-".join(parts[-2:])


def settings() -> Run:
    """What of the parsed gin makes the step."""
    return Run(
        training=config.get("train"),
        size=config.get("model"),
        init=config.get("init"),
        compute=config.get("compute"),
        mesh=config.get("mesh"),
        optimizer=config.get("optimizer"),
        length=config.get("rows").length,
    )
